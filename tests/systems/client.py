"""What the scripts beside this one share: stubs generated from proto/, a connection, and checks of answers.

A program of your own generates its stubs once, as part of its build:

    python3 -m grpc_tools.protoc -Iproto --python_out=stubs --grpc_python_out=stubs proto/casebook/v1/*.proto

Here it happens at each start, into a temporary folder, so that the stubs are those of this tree.
CASEBOOK_ADDRESS is host:port of the server.
"""

import atexit
import hashlib
import os
import pathlib
import shutil
import sys
import tempfile

try:
    import grpc
    import grpc_tools
    from grpc_tools import protoc
except ImportError as missing:
    version = "%d.%d" % sys.version_info[:2]
    sys.exit(
        f"{missing}: Python {version} finds no grpcio and grpcio-tools. Run `make tools`, which puts them into"
        " .tools/python or says that PyPI has none for this Python; then PYTHONPATH=.tools/python finds them."
    )

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _generate():
    stubs = tempfile.mkdtemp(prefix="casebook-stubs-")
    atexit.register(shutil.rmtree, stubs, ignore_errors=True)
    # Timestamp, Struct and the like come with grpcio-tools.
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    files = sorted(str(file) for file in (ROOT / "proto" / "casebook" / "v1").glob("*.proto"))
    status = protoc.main(
        ["protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}", f"--python_out={stubs}", f"--grpc_python_out={stubs}"]
        + files
    )
    if status != 0:
        sys.exit(f"protoc failed with status {status}")
    sys.path.insert(0, stubs)


# From here on `from casebook.v1 import decision_pb2, decision_pb2_grpc` works.
_generate()

from casebook.v1 import blob_pb2, common_pb2


def connect():
    """A channel to the server; every stub takes one."""
    return grpc.insecure_channel(os.environ.get("CASEBOOK_ADDRESS", "127.0.0.1:50051"))


def step(what):
    """Says what comes next, so that a failure can be placed."""
    print("-", what, flush=True)


def expect(found, wanted, what):
    """Ends the script unless an answer is what it should be."""
    if found != wanted:
        print(f"FAILED: {what} is {found!r} instead of {wanted!r}")
        sys.exit(1)


def refused(code, method, request):
    """Makes a call that must fail with this status code; gives the error."""
    try:
        answer = method(request)
    except grpc.RpcError as error:
        expect(error.code(), code, f"the status ({error.details()})")
        return error
    print(f"FAILED: a call was not refused, but answered {answer}")
    sys.exit(1)


def digest(data):
    """The digest of some bytes, which is what a blob is called."""
    return common_pb2.Digest(algorithm="sha256", value=hashlib.sha256(data).digest())


def upload(blobs, header, data):
    """Uploads bytes, in chunks of at most 1 MiB."""
    chunks = (data[at : at + 2**20] for at in range(0, len(data), 2**20))
    messages = [blob_pb2.UploadBlobRequest(header=header)]
    messages += [blob_pb2.UploadBlobRequest(chunk=chunk) for chunk in chunks]
    return blobs.UploadBlob(iter(messages))


def download(blobs, **what):
    """The bytes of a blob: by digest, or by the version of an object that has it."""
    answers = blobs.DownloadBlob(blob_pb2.DownloadBlobRequest(**what))
    return b"".join(answer.chunk for answer in answers)

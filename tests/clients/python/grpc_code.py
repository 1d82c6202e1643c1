"""Stubs of our services and gRPC's own, generated when a client's script starts."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

_OURS = Path(os.environ["CLIENT_PROTO"])
_COMMON = Path(__file__).resolve().parents[1] / "proto"


def generate(plugin: str = "") -> None:
    """Generate messages, and stubs with a protoc plugin, and make them importable."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    protos = [
        str(each.relative_to(root)) for root in (_OURS, _COMMON) for each in root.rglob("*.proto")
    ]
    protos = [each for each in protos if not each.startswith("serving/link/")]
    # Plugins that are programs are in the interpreter's folder.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    given = ["protoc", f"-I{_OURS}", f"-I{_COMMON}", f"--python_out={folder}"]
    if plugin:
        given.append(f"--{plugin}_out={folder}")
    # protoc's own protos (google/protobuf/any.proto) are part of the package.
    include = Path(protoc.__file__).parent / "_proto"
    if protoc.main([*given, f"-I{include}", *protos]) != 0:
        raise RuntimeError("protoc failed")
    sys.path.insert(0, folder)


class RpcFailed(Exception):
    """A call ended with a status other than OK."""

    def __init__(
        self, code: str, words: str, status: bytes | None, metadata: dict[str, str]
    ) -> None:
        super().__init__(f"{code}: {words}")
        self.code = code
        self.words = words
        self.status = status
        """The received google.rpc.Status."""
        self.metadata = metadata

    def detail(self, kind: str) -> "object | None":
        """Return a detail by the last part of its type name. None: it is missing."""
        import errors_pb2

        found = errors_pb2.Status.FromString(self.status or b"")
        for each in found.details:
            if each.type_url.endswith(f"google.rpc.{kind}"):
                return getattr(errors_pb2, kind).FromString(each.value)
        return None

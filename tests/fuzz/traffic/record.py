"""Records what released clients send: ``python -m tests.fuzz.traffic.record [CLIENT ...]``.

Starts a router with fake ranks in this process and a proxy in front of each of its ports, lets the
clients of ``ask`` do their work through them, and writes the bytes of each connection, as the
clients sent them, to ``recorded.json``. The clients' environments are those of ``make clients``.
"""

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from tests.clients.installed import NODE
from tests.fuzz import grpc_cases
from tests.integration.edge.stand import stand_settings, standing

FOLDER = Path(__file__).resolve().parent
FILE = FOLDER / "recorded.json"
_TOOLS = FOLDER.parents[2] / ".tools" / "clients"
_PYTHON = _TOOLS / "main" / "bin" / "python"
_PYTHON_CLIENTS = (
    "openai",
    "openai-async",
    "anthropic",
    "langchain",
    "litellm",
    "grpcio",
    "grpclib",
)
_NODE_CLIENTS = ("openai-node", "anthropic-node", "grpc-js")
_CALLS = ("Chat", "ChatStream", "Complete", "CompleteStream", "Tokenize", "ListModels")
_PATIENCE = 240.0
_MOST = 24_000
"""Maximum number of bytes kept per connection."""


class Proxy:
    """Passes bytes on in both directions and keeps those of clients."""

    def __init__(self, door: str, port: int) -> None:
        self.door, self.port = door, port
        self.kept: list[bytearray] = []
        self.server: asyncio.Server | None = None

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inside, out = await asyncio.open_connection("127.0.0.1", self.port)
        kept = bytearray()
        self.kept.append(kept)

        async def pass_on(
            source: asyncio.StreamReader, to: asyncio.StreamWriter, keep: bool
        ) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(2**16):
                    if keep:
                        kept.extend(data)
                    to.write(data)
                    await to.drain()
            to.close()

        await asyncio.gather(pass_on(reader, out, True), pass_on(inside, writer, False))

    def recorded(self, client: str) -> list[dict[str, str]]:
        """Return the recorded bytes without port numbers, and start a new recording."""
        kept, self.kept = self.kept, []
        return [
            {
                "client": client,
                "door": self.door,
                "sent": base64.b64encode(_plain(bytes(each))[:_MOST]).decode(),
            }
            for each in kept
            if each
        ]


def _plain(data: bytes) -> bytes:
    return re.sub(rb"(?i)(\r\nhost: )127\.0\.0\.1:\d+", rb"\1router:80", data)


def _calls() -> str:
    service = grpc_cases.SERVICES[0]
    return json.dumps(
        [
            (
                f"/{service.full_name}/{name}",
                name.endswith("Stream"),
                good.SerializeToString().hex(),
            )
            for name in _CALLS
            for good in grpc_cases.GOOD[name][:2]
        ]
    )


async def _ask(client: str, rest: int, grpc: int, folder: Path) -> int:
    environment = {
        **os.environ,
        "CLIENT_URL": f"http://127.0.0.1:{rest}",
        "CLIENT_GRPC": f"127.0.0.1:{grpc}",
        "CLIENT_CALLS": _calls(),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHONPATH": "",
    }
    command = [str(_PYTHON), str(FOLDER / "ask.py"), client]
    if client in _NODE_CLIENTS:
        command = [str(NODE), str(folder / "ask.mjs"), client]
    process = await asyncio.create_subprocess_exec(*command, env=environment, cwd=folder)
    try:
        return await asyncio.wait_for(process.wait(), _PATIENCE)
    except TimeoutError:
        process.kill()
        return await process.wait()


async def main(clients: list[str]) -> int:
    """Record, keep the recordings of other clients, and report failed clients."""
    before = json.loads(FILE.read_text()) if FILE.exists() else []
    found = [each for each in before if each["client"] not in clients]
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(FOLDER / "ask.mjs", folder)
        (folder / "node_modules").symlink_to(_TOOLS / "node" / "node_modules")
        async with standing(stand_settings(engine={"max_model_len": 384})) as stand:
            addresses = stand.router.addresses
            proxies = Proxy("rest", addresses.rest_port), Proxy("grpc", addresses.grpc_port)
            rest, grpc = [await proxy.start() for proxy in proxies]
            for client in clients:
                code = await _ask(client, rest, grpc, folder)
                if code:
                    failed.append(client)
                found += [one for proxy in proxies for one in proxy.recorded(client)]
            for proxy in proxies:
                assert proxy.server is not None
                proxy.server.close()
    FILE.write_text(json.dumps(found, indent=0) + "\n")
    print(f"{len(found)} connections; failed: {', '.join(failed) or 'nobody'}")  # noqa: T201
    return len(failed)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:] or [*_PYTHON_CLIENTS, *_NODE_CLIENTS])))

"""``python -m loadtest.bench.floods``: the effect of one client's flood on the streams of others.

A router with fake ranks, a plain grpc.aio server and a plain uvicorn server, each in a separate
process, are flooded one after another, over one connection and over several, while a client of each
reads a token every few milliseconds. Prints how much each flood increases the worst gap between two
tokens, and writes deploy/docs/performance/floods.json and floods.md unless --quick.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtest.bench.flood_bytes import http1_floods, http2_floods
from loadtest.bench.flood_tables import markdown
from loadtest.bench.flood_watch import METHOD, PATH
from loadtest.bench.machine import describe
from loadtest.bench.processes import router
from serving.flags.parser import FlagParser

_FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "docs" / "performance"
_DELAY = 0.005
"""Seconds between two tokens of a stream."""
_CONNECTIONS = (1, 8)
OVER_TLS = {
    "grpc": (
        "HEADERS, GET /",
        "HEADERS of calls that stay open",
        "PING",
        "SETTINGS, empty",
        "DATA, one byte",
        "connections that greet and go",
    ),
    "rest": (
        "pipelined requests",
        "10,000 headers",
        "half a request",
        "one request a connection",
        "chats of 10,000 messages",
    ),
}
"""Floods that are also sent over TLS."""
_CALM_MS = 60.0
"""A server has recovered if its worst gap in half a second is below this, milliseconds."""
_RECOVERY = 60.0
"""Maximum wait for recovery, seconds."""


class WatchedServer:
    """A server and the process that reads its streams."""

    def __init__(
        self, name: str, grpc: str | None, rest: str | None, pid: int, ca: Path | None = None
    ) -> None:
        self.name = name
        self._tls = [] if ca is None else [str(ca)]
        self._addresses = {"grpc": grpc, "rest": rest}
        words = [grpc or "-", rest or "-", str(pid), *self._tls]
        self._watch = _python("loadtest.bench.flood_watch", *words)
        _line(self._watch, "READY")

    def worst(self) -> dict[str, float]:
        """Return the worst gaps since the last call, in milliseconds."""
        assert self._watch.stdin is not None
        self._watch.stdin.write("\n")
        self._watch.stdin.flush()
        found: dict[str, float] = json.loads(_line(self._watch))
        return found

    def quiet(self, seconds: float) -> dict[str, float]:
        """Return the worst gaps without a flood."""
        self.worst()
        time.sleep(seconds)
        return self.worst()

    def recovered(self) -> dict[str, float]:
        """Wait until the server has recovered; return the worst gaps until then."""
        until, all_of_it = time.monotonic() + _RECOVERY, self.worst()
        while time.monotonic() < until:
            time.sleep(0.5)
            now = self.worst()
            for name, worst in now.items():
                all_of_it[name] = max(all_of_it.get(name, 0.0), worst)
            if max(now.values(), default=0.0) < _CALM_MS:
                break
        return all_of_it

    def beside(self, kind: str, name: str, connections: int, seconds: float) -> dict[str, Any]:
        """Return the worst gaps during a flood, and its outcome."""
        address = self._addresses[kind]
        assert address is not None
        path = METHOD if kind == "grpc" else PATH
        words = [kind, address.rpartition("/")[2], path, name, str(connections), str(seconds)]
        words += self._tls
        self.worst()
        process = _python("loadtest.bench.flooding", *words)
        try:
            sent = json.loads(_line(process))
        finally:
            process.kill()
            process.wait()
        return {"worst": self.recovered(), "sent": sent}

    def stop(self) -> None:
        """Stop the watching process."""
        assert self._watch.stdin is not None
        with contextlib.suppress(OSError):
            self._watch.stdin.close()
        self._watch.kill()
        self._watch.wait()


def _python(module: str, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _line(process: "subprocess.Popen[str]", expected: str = "") -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line.startswith(expected):
        raise RuntimeError(f"{process.args!r}: unexpected output {line!r}")
    return line


@contextlib.contextmanager
def _peer(kind: str) -> Iterator[tuple[str, int]]:
    """Start a plain grpc.aio or uvicorn server; yield its address and process id."""
    process = _python("loadtest.bench.flood_peers", kind, str(_DELAY))
    try:
        yield f"127.0.0.1:{_line(process)}", process.pid
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _router(*, tls: bool) -> Iterator[WatchedServer]:
    """Start a router with two fake ranks."""
    with (
        tempfile.TemporaryDirectory(prefix="moe-serving-floods-") as folder,
        router(Path(folder), tls=tls) as process,
        process.ranks(2, _DELAY),
    ):
        ours = WatchedServer("ours", process.grpc, process.rest, process.pid, process.ca)
        try:
            yield ours
        finally:
            ours.stop()


@contextlib.contextmanager
def _servers() -> Iterator[dict[str, list[tuple[str, WatchedServer]]]]:
    """Yield the servers by kind of port, ours first."""
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(_router(tls=False))
        aio, aio_pid = stack.enter_context(_peer("grpc"))
        uvicorn, uvicorn_pid = stack.enter_context(_peer("rest"))
        grpcio = WatchedServer("grpc.aio", aio, None, aio_pid)
        stack.callback(grpcio.stop)
        alone = WatchedServer("uvicorn", None, f"http://{uvicorn}", uvicorn_pid)
        stack.callback(alone.stop)
        yield {
            "grpc": [("ours", ours), ("peer", grpcio)],
            "rest": [("ours", ours), ("peer", alone)],
        }


def measure(kinds: Sequence[str], wanted: str, seconds: float) -> list[dict[str, Any]]:
    """Send the floods whose names contain ``wanted`` to every server; return a row for each."""
    rows: list[dict[str, Any]] = []
    floods = {"grpc": http2_floods(METHOD), "rest": http1_floods(PATH)}
    with _servers() as servers:
        for kind in kinds:
            for each in floods[kind]:
                if wanted not in each.name:
                    continue
                found: list[dict[str, Any]] = [
                    {"port": kind, "flood": each.name, "connections": count}
                    for count in _CONNECTIONS
                ]
                for who, server in servers[kind]:
                    server.recovered()
                    quiet = server.quiet(seconds)
                    for row in found:
                        row[who] = server.beside(kind, each.name, row["connections"], seconds)
                        row[who]["quiet"] = quiet
                rows += found
                print(*map(json.dumps, found), sep="\n", flush=True)
    return rows + measure_tls(kinds, wanted, seconds)


def measure_tls(kinds: Sequence[str], wanted: str, seconds: float) -> list[dict[str, Any]]:
    """Send the floods of ``OVER_TLS`` to a router; return a row for each."""
    rows: list[dict[str, Any]] = []
    chosen = [
        (kind, name) for kind in kinds for name in OVER_TLS[kind] if not wanted or wanted in name
    ]
    if not chosen:
        return rows
    with _router(tls=True) as ours:
        for kind, name in chosen:
            ours.recovered()
            quiet = ours.quiet(seconds)
            for count in _CONNECTIONS:
                row: dict[str, Any] = {"port": f"{kind} over TLS", "flood": name}
                row |= {"connections": count, "ours": ours.beside(kind, name, count, seconds)}
                row["ours"]["quiet"] = quiet
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = FlagParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="flood for one second each; write nothing"
    )
    parser.add_argument("--port", choices=("grpc", "rest"), help="flood only this kind of port")
    parser.add_argument("--only", default="", help="send only floods with this in their name")
    parser.add_argument("--remark", default="", help="note to print with the results")
    options = parser.parse_args(arguments)
    kinds = (options.port,) if options.port else ("grpc", "rest")
    data = {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "remark": options.remark,
        "machine": describe(),
        "delay_ms": _DELAY * 1e3,
        "rows": measure(kinds, options.only, 1.0 if options.quick else 2.0),
    }
    print(markdown(data))
    if not options.quick:
        _FOLDER.mkdir(exist_ok=True)
        (_FOLDER / "floods.json").write_text(
            json.dumps(data, indent=1, allow_nan=False) + "\n", "utf-8"
        )
        (_FOLDER / "floods.md").write_text(markdown(data), "utf-8")


if __name__ == "__main__":
    main()

"""``python -m loadtest.bench.floods``: what one client's flood does to the streams of others.

A router with fake ranks, a plain grpc.aio server and uvicorn alone, each in a process of its own,
are flooded one after another, over one connection and over several, while a client of each reads
a token every few milliseconds. Prints how much longer the worst gap between two tokens was than
without a flood, and writes deploy/docs/performance/floods.json and floods.md unless --quick.
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
from serving.flag_parser import FlagParser

_FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "docs" / "performance"
_DELAY = 0.005
"""Seconds between two tokens of a stream."""
_CONNECTIONS = (1, 8)
_CALM_MS = 60.0
"""A server whose worst gap is shorter for half a second has recovered."""
_RECOVERY = 60.0
"""Seconds that it has for it."""


class Watched:
    """A server, and the process that reads its streams."""

    def __init__(self, name: str, grpc: str | None, rest: str | None, pid: int) -> None:
        self.name = name
        self._addresses = {"grpc": grpc, "rest": rest}
        words = [grpc or "-", rest or "-", str(pid)]
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
        """Wait until there are no long gaps any more; return the worst until then."""
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
        """Return the worst gaps beside a flood, and what became of it."""
        address = self._addresses[kind]
        assert address is not None
        path = METHOD if kind == "grpc" else PATH
        words = [kind, address.rpartition("/")[2], path, name, str(connections), str(seconds)]
        self.worst()
        process = _python("loadtest.bench.flooding", *words)
        try:
            sent = json.loads(_line(process))
        finally:
            process.kill()
            process.wait()
        return {"worst": self.recovered(), "sent": sent}

    def stop(self) -> None:
        """End the watching process."""
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
        raise RuntimeError(f"{process.args!r}: said {line!r}")
    return line


@contextlib.contextmanager
def _peer(kind: str) -> Iterator[tuple[str, int]]:
    """Start grpc.aio or uvicorn alone; yields its address and its number."""
    process = _python("loadtest.bench.flood_peers", kind, str(_DELAY))
    try:
        yield f"127.0.0.1:{_line(process)}", process.pid
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _servers() -> Iterator[dict[str, list[tuple[str, Watched]]]]:
    """Yield by port's kind: servers, ours first."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="moe-serving-floods-"))
        process = stack.enter_context(router(Path(folder)))
        stack.enter_context(process.ranks(2, _DELAY))
        aio, aio_pid = stack.enter_context(_peer("grpc"))
        uvicorn, uvicorn_pid = stack.enter_context(_peer("rest"))
        ours = Watched("ours", process.grpc, process.rest, process.pid)
        stack.callback(ours.stop)
        grpcio = Watched("grpc.aio", aio, None, aio_pid)
        stack.callback(grpcio.stop)
        alone = Watched("uvicorn", None, f"http://{uvicorn}", uvicorn_pid)
        stack.callback(alone.stop)
        yield {
            "grpc": [("ours", ours), ("peer", grpcio)],
            "rest": [("ours", ours), ("peer", alone)],
        }


def measure(kinds: Sequence[str], wanted: str, seconds: float) -> list[dict[str, Any]]:
    """Flood every server with what is ``wanted`` in the name; one row a flood."""
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
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, print and write."""
    parser = FlagParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one second a flood; writes nothing")
    parser.add_argument("--port", choices=("grpc", "rest"), help="only this port")
    parser.add_argument("--only", default="", help="only floods with this in their name")
    parser.add_argument("--remark", default="", help="put beside the figures")
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

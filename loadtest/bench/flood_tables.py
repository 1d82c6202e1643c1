"""The floods' data as Markdown."""

from collections.abc import Mapping
from typing import Any

_PORTS = {"grpc": ("gRPC port", "grpc.aio"), "rest": ("REST port", "uvicorn alone")}
_STREAMS = ("grpc", "rest", "health")
_TOKENS = ("grpc", "rest")
MOST_MS = 50.0
"""By which the worst gap of a stream of tokens may be longer beside a flood."""


def more(side: Mapping[str, Any]) -> dict[str, float]:
    """Return, by stream, how many milliseconds more the worst gap was beside the flood."""
    quiet = side["quiet"]
    return {name: max(0.0, worst - quiet.get(name, 0.0)) for name, worst in side["worst"].items()}


def markdown(data: Mapping[str, Any]) -> str:
    """Return a table a port."""
    machine = data["machine"]
    parts = [
        f"Measured {data['when']} on {machine['cores']} cores ({machine['cpu']}), Python "
        f"{machine['python']}, grpcio {machine['packages']['grpcio']}, uvicorn "
        f"{machine['packages']['uvicorn']}; load average before: "
        f"{machine['load_average_before'][0]}"
        + (f"; {data['remark']}." if data.get("remark") else "."),
        (
            f"A token every {data['delay_ms']:.0f} ms. Each figure: by how many milliseconds the "
            "worst gap between two tokens (or the slowest answer to `/health`) was longer beside "
            "the flood than without one, just before. Connections of the flood: 1 / 8. CPU: the "
            "most that the router's event loop computed between two tokens of a stream, which "
            "does not depend on how busy the machine is with other things."
        ),
    ]
    parts.append(verdict(data["rows"]))
    for port, (title, peer) in _PORTS.items():
        rows = [row for row in data["rows"] if row["port"] == port]
        if rows:
            parts.append(f"### {title}\n\n{_table(rows, peer)}")
    return "\n\n".join(parts) + "\n"


def verdict(rows: list[Mapping[str, Any]]) -> str:
    """Say which rows keep the criterion."""
    over = []
    for row in rows:
        worst = max(more(row["ours"]).get(stream, 0.0) for stream in _TOKENS)
        if worst > MOST_MS:
            over.append((worst, f"{row['flood']}, {row['connections']} ({worst:.0f} ms)"))
    criterion = (
        f"Criterion: the worst gap of a stream of tokens, over gRPC or REST, is at most "
        f"{MOST_MS:.0f} ms longer beside each flood. "
    )
    if not over:
        return f"{criterion}All {len(rows)} rows keep it."
    names = "; ".join(name for _, name in sorted(over, reverse=True))
    return f"{criterion}{len(rows) - len(over)} of {len(rows)} rows keep it; not: {names}."


def _table(rows: list[Mapping[str, Any]], peer: str) -> str:
    heads = ("flood", "gRPC stream", "REST stream", "/health", "CPU", peer, "GOAWAYs")
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for name in dict.fromkeys(row["flood"] for row in rows):
        same = [row for row in rows if row["flood"] == name]
        ours = [more(row["ours"]) for row in same]
        cells = [" / ".join(f"{each.get(stream, 0.0):.0f}" for each in ours) for stream in _STREAMS]
        computed = [
            max(row["ours"]["worst"].get(f"{stream} cpu", 0.0) for stream in ("grpc", "rest"))
            for row in same
        ]
        cells.append(" / ".join(f"{each:.0f}" for each in computed))
        theirs = [next(iter(_streams_only(more(row["peer"])).values()), 0.0) for row in same]
        cells.append(" / ".join(f"{each:.0f}" for each in theirs))
        cells.append(" / ".join(str(row["ours"]["sent"]["calmed"]) for row in same))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _streams_only(gaps: Mapping[str, float]) -> dict[str, float]:
    return {name: gaps[name] for name in ("grpc", "rest") if name in gaps}

"""The results of the flood benchmark as Markdown."""

from collections.abc import Mapping
from typing import Any

_PORTS = {
    "grpc": ("gRPC port", "grpc.aio"),
    "rest": ("REST port", "uvicorn alone"),
    "grpc over TLS": ("gRPC port over TLS", ""),
    "rest over TLS": ("REST port over TLS", ""),
}
_STREAMS = ("grpc", "rest", "health")
_TOKENS = ("grpc", "rest")
MOST_MS = 50.0
"""Limit on the lengthening of a token stream's worst gap by a flood, milliseconds."""


def more(side: Mapping[str, Any]) -> dict[str, float]:
    """Return the milliseconds by which the flood lengthened the worst gap, by stream."""
    quiet = side["quiet"]
    return {name: max(0.0, worst - quiet.get(name, 0.0)) for name, worst in side["worst"].items()}


def markdown(data: Mapping[str, Any]) -> str:
    """Return the page, with a table for each port."""
    machine = data["machine"]
    parts = [
        "# Floods",
        f"Measured {data['when']} on {machine['cores']} cores ({machine['cpu']}), Python "
        f"{machine['python']}, grpcio {machine['packages']['grpcio']}, uvicorn "
        f"{machine['packages']['uvicorn']}; load average before: "
        f"{machine['load_average_before'][0]}"
        + (f"; {data['remark']}." if data.get("remark") else "."),
        (
            f"A token every {data['delay_ms']:.0f} ms. Each figure: by how many milliseconds the "
            "worst gap between two tokens (or the slowest answer to `/health`) was longer beside "
            "the flood than without one, just before. Connections of the flood: 1 / 8. Own: the "
            "longer of the streams' worst gaps without the time in which the router's event loop "
            "was ready to run and other processes, the flooding ones among them, had the cores. "
            "CPU: the most CPU time that the loop used between two tokens of a stream."
        ),
    ]
    parts.append(verdict(data["rows"]))
    for port, (title, peer) in _PORTS.items():
        rows = [row for row in data["rows"] if row["port"] == port]
        if rows:
            parts.append(f"## {title}\n\n{_table(rows, peer)}")
    return "\n\n".join(parts) + "\n"


def verdict(rows: list[Mapping[str, Any]]) -> str:
    """Return how many rows meet the criterion, and the names of those that do not."""
    kept, over = 0, []
    for row in rows:
        longer = more(row["ours"])
        worst = max(longer.get(stream, 0.0) for stream in _TOKENS)
        own = max(longer.get(f"{stream} own", longer.get(stream, 0.0)) for stream in _TOKENS)
        kept += worst <= MOST_MS
        if min(worst, own) > MOST_MS:
            tls = " over TLS" if "TLS" in row["port"] else ""
            over.append((own, f"{row['flood']}{tls}, {row['connections']} ({own:.0f} ms)"))
    text = (
        f"Criterion: the worst gap of a stream of tokens, over gRPC or REST, is at most "
        f"{MOST_MS:.0f} ms longer beside each flood. {kept} of {len(rows)} rows meet it, and "
        f"{len(rows) - len(over)} without the waits for a core"
    )
    if not over:
        return f"{text}."
    return f"{text}; not: {'; '.join(name for _, name in sorted(over, reverse=True))}."


def _table(rows: list[Mapping[str, Any]], peer: str) -> str:
    heads = ["flood", "gRPC stream", "REST stream", "/health", "own", "CPU"]
    heads += [peer, "GOAWAYs"] if peer else ["GOAWAYs"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for name in dict.fromkeys(row["flood"] for row in rows):
        same = [row for row in rows if row["flood"] == name]
        ours = [more(row["ours"]) for row in same]
        cells = [" / ".join(f"{each.get(stream, 0.0):.0f}" for each in ours) for stream in _STREAMS]
        own = [max(each.get(f"{stream} own", 0.0) for stream in _TOKENS) for each in ours]
        cells.append(" / ".join(f"{each:.0f}" for each in own))
        computed = [
            max(row["ours"]["worst"].get(f"{stream} cpu", 0.0) for stream in ("grpc", "rest"))
            for row in same
        ]
        cells.append(" / ".join(f"{each:.0f}" for each in computed))
        if peer:
            theirs = [next(iter(_streams_only(more(row["peer"])).values()), 0.0) for row in same]
            cells.append(" / ".join(f"{each:.0f}" for each in theirs))
        cells.append(" / ".join(str(row["ours"]["sent"]["calmed"]) for row in same))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _streams_only(gaps: Mapping[str, float]) -> dict[str, float]:
    return {name: gaps[name] for name in ("grpc", "rest") if name in gaps}

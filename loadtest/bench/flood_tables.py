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
"""Maximum increase of a token stream's worst gap during a flood, milliseconds."""


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
            f"Each stream gets a token every {data['delay_ms']:.0f} ms. Each figure is the "
            "increase, in milliseconds, of the worst gap between two tokens (or of the slowest "
            "answer to `/health`) during the flood, compared with just before it. The two figures "
            'of a cell are for floods over 1 and over 8 connections. The column "own" is the '
            "larger of the streams' worst gaps, excluding the time in which the router's event "
            "loop was ready to run but waited for a core (the flooding processes use the same "
            'cores). The column "CPU" is the maximum CPU time that the loop used between two '
            "tokens of a stream."
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
        f"Criterion: a flood lengthens the worst gap of a token stream, over gRPC or REST, by at "
        f"most {MOST_MS:.0f} ms. {kept} of {len(rows)} rows meet it, and {len(rows) - len(over)} "
        f"when waits for a core are excluded"
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

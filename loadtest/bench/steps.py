"""``python -m loadtest.bench.steps``: what the ranks of a group do in an engine step.

Starts a group on this machine, records one round of streams on the ranks' common clock, and prints
two tables: the parts of a step, and its collectives. A collective is divided into the wait for the
last rank to arrive and the exchange that follows.
"""

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.bench.engine_group import engine_group
from loadtest.bench.step_trace import FOLDER, Event
from serving.flags.parser import FlagParser
from serving.flags.values import COUNT

_PARTS = ("schedule", "forward", "draft", "sample", "output", "dummy step")
_IDLE = 20.0
"""Maximum time for a group to become idle, seconds."""
COLLECTIVES = ("token counts", "gather", "scatter", "wave")


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective of a group, on all ranks; times in microseconds."""

    name: str
    bytes: int
    """Bytes that the first rank contributed; 0 if not recorded."""
    wait: float
    """Time from the arrival of the first rank to that of the last."""
    exchange: float
    """Time from the last rank's arrival until all ranks have returned."""


def collectives(ranks: Sequence[Sequence[Event]]) -> list[Collective]:
    """Match the collectives of several ranks, which are in the same order on each rank.

    Matches backwards from the last collective, which all ranks have recorded, to the first one that
    all ranks have.
    """
    found = []
    each = [[event for event in events if event[0] in COLLECTIVES][::-1] for events in ranks]
    for calls in zip(*each, strict=False):
        names = {call[0] for call in calls}
        if len(names) != 1:
            raise ValueError(f"the ranks' collectives are not in the same order: {names}")
        starts = [call[1] for call in calls]
        ends = [call[2] for call in calls]
        found.append(
            Collective(
                calls[0][0],
                int(calls[0][3] or 0),
                (max(starts) - min(starts)) / 1e3,
                (max(ends) - max(starts)) / 1e3,
            )
        )
    return found


def parts_table(events: Iterable[Event]) -> str:
    """Return the parts of one rank's steps as a Markdown table, with medians in microseconds."""
    spans: dict[str, list[float]] = defaultdict(list)
    for name, start, end, _ in events:
        spans[name].append((end - start) / 1e3)
    steps = len(spans["step"])
    lines = ["| part | calls/step | p50 µs | total ms | share |", "|---|---|---|---|---|"]
    total = sum(spans["step"])
    for name in ("step", *_PARTS, *COLLECTIVES):
        times = spans.get(name)
        if times:
            lines.append(
                f"| {name} | {len(times) / steps:.2f} | {statistics.median(times):.0f} "
                f"| {sum(times) / 1e3:.0f} | {sum(times) / total:.1%} |"
            )
    return "\n".join(lines)


def collectives_table(found: Iterable[Collective]) -> str:
    """Return the collectives of a group as a Markdown table, in microseconds."""
    lines = [
        "| collective | calls | bytes p50 | wait p50 | wait p90 | exchange p50 | p90 | total ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kinds: dict[str, list[Collective]] = defaultdict(list)
    for item in found:
        kinds[item.name].append(item)
    for name in COLLECTIVES:
        items = kinds.get(name)
        if not items:
            continue
        waits = sorted(item.wait for item in items)
        exchanges = sorted(item.exchange for item in items)
        sizes = statistics.median(item.bytes for item in items)
        lines.append(
            f"| {name} | {len(items)} | {sizes:.0f} | {_at(waits, 0.5)} | {_at(waits, 0.9)} "
            f"| {_at(exchanges, 0.5)} | {_at(exchanges, 0.9)} "
            f"| {(sum(waits) + sum(exchanges)) / 1e3:.0f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = FlagParser(description=__doc__)
    parser.add_argument("--ranks", type=COUNT, default=2, help="ranks of the group (default 2)")
    parser.add_argument("--streams", type=COUNT, default=16, help="concurrent streams (default 16)")
    parser.add_argument("--tokens", type=COUNT, default=128, help="tokens per stream (default 128)")
    parser.add_argument("--set", action="append", default=[], help="engine setting, KEY=VALUE")
    options = parser.parse_args(arguments)
    engine = dict(item.split("=", 1) for item in options.set)
    with tempfile.TemporaryDirectory(prefix="moe-serving-steps-") as name:
        folder = Path(name)
        plugin = folder / "step_trace-1.dist-info"
        plugin.mkdir()
        (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: step-trace\nVersion: 1\n")
        (plugin / "entry_points.txt").write_text(
            "[vllm.general_plugins]\nstep_trace = loadtest.bench.step_trace:register\n"
        )
        environment = {FOLDER: name, "PYTHONPATH": f"{name}:{Path.cwd()}"}
        with engine_group(folder / "group", options.ranks, engine, environment) as group:
            group.run(options.streams, 8)  # first use of each shape
            begin = time.monotonic_ns()
            speed, _ = group.run(options.streams, options.tokens, seed=1)
            recordings = _recordings(folder, options.ranks, begin)
    print(f"\n{options.streams} streams of {options.tokens} tokens: {speed:.0f} tokens/s (traced)")
    for rank, events in enumerate(recordings):
        print(f"\nRank {rank}:\n\n{parts_table(events)}")
    print(f"\nCollectives:\n\n{collectives_table(collectives(recordings))}")


def _recordings(folder: Path, ranks: int, begin: int) -> list[list[Event]]:
    """Return each rank's events since ``begin``; ranks write them when the group becomes idle.

    Raises:
        RuntimeError: A rank has not written any events.
    """
    deadline = time.monotonic() + _IDLE
    while time.monotonic() < deadline:
        found: dict[str, list[Event]] = {}
        for file in folder.glob("*.jsonl"):
            read = (json.loads(line) for line in file.read_text("utf-8").splitlines())
            events: list[Event] = [tuple(event) for event in read if event[1] >= begin]
            found.update((event[3], events) for event in events if event[0] == "step")
        if len(found) == ranks:
            return [found[rank] for rank in sorted(found)]
        time.sleep(0.1)
    raise RuntimeError(f"recordings of {len(found)} of {ranks} ranks")


def _at(ordered: Sequence[float], share: float) -> str:
    return f"{ordered[int((len(ordered) - 1) * share)]:.0f}"


if __name__ == "__main__":
    main()

"""``python -m loadtest.bench.exchange``: speed and CPU use of a group with two sets of settings.

Starts two groups of ranks without a router that differ only in settings under engine, by default
exchange=gloo and exchange=shared_memory. The groups run the same streams alternately, in several
rounds, so that other load on the machine affects both equally. Fails if they generate different
tokens.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from loadtest.bench.engine_group import EngineGroup, engine_group
from loadtest.bench.machine import describe
from serving.flags.parser import FlagParser
from serving.flags.values import COUNT, CommaSeparated


@dataclass(frozen=True, slots=True)
class _Side:
    """A group and its results for one number of streams."""

    group: EngineGroup
    speeds: list[float] = field(default_factory=list)
    """Tokens per second, by round."""
    cpu: list[float] = field(default_factory=list)
    """CPU seconds of ranks and engines per 1,000 tokens, by round."""

    def run(self, streams: int, tokens: int, number: int) -> str:
        """Run one round; return the digest of its tokens."""
        before = cpu_seconds(self.group)
        speed, digest = self.group.run(streams, tokens, seed=number)
        if number:  # the first warms up
            self.speeds.append(speed)
            self.cpu.append((cpu_seconds(self.group) - before) / (streams * tokens) * 1000)
        return digest


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = FlagParser(description=__doc__)
    parser.add_argument("--ranks", type=COUNT, default=2, help="ranks of a group (default 2)")
    parser.add_argument("--rounds", type=COUNT, default=5, help="rounds of each group (default 5)")
    parser.add_argument(
        "--tokens", type=COUNT, default=128, help="tokens of a stream (default 128)"
    )
    parser.add_argument(
        "--streams", type=CommaSeparated(int), default=[16, 64], help="streams (default 16,64)"
    )
    parser.add_argument(
        "--first", default="exchange=gloo", help="settings under engine, KEY=VALUE,KEY=VALUE"
    )
    parser.add_argument(
        "--second", default="exchange=shared_memory", help="settings of the other group"
    )
    options = parser.parse_args(arguments)
    machine = describe()
    print(f"{machine['cores']} cores ({machine['cpu']}), load {machine['load_average_before'][0]}")
    print(f"first: {options.first}; second: {options.second}")
    with tempfile.TemporaryDirectory(prefix="moe-serving-bench-") as name:
        first = engine_group(Path(name) / "first", options.ranks, settings_of(options.first))
        second = engine_group(Path(name) / "second", options.ranks, settings_of(options.second))
        with first as one, second as other:
            compare((one, other), options.streams, options.tokens, options.rounds)


def compare(
    groups: Sequence[EngineGroup], streams: Sequence[int], tokens: int, rounds: int
) -> None:
    """Print a table of both groups' medians.

    Raises:
        RuntimeError: The groups generated different tokens.
    """
    print(
        "\n| streams | tokens/s | | ratio | CPU s/1,000 tokens | | ratio | ratios of the rounds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for count in streams:
        sides = [_Side(group) for group in groups]
        for number in range(rounds + 1):
            if len({side.run(count, tokens, number) for side in sides}) != 1:
                raise RuntimeError(f"{count} streams: the groups generated different tokens")
        cells = []
        for figures, digits in (("speeds", 0), ("cpu", 2)):
            first, second = (statistics.median(getattr(side, figures)) for side in sides)
            cells += [f"{first:.{digits}f}", f"{second:.{digits}f}", f"{second / first:.2f}"]
        each = sorted(b / a for a, b in zip(sides[0].speeds, sides[1].speeds, strict=True))
        ratios = ", ".join(f"{ratio:.2f}" for ratio in each)
        print(f"| {count} | {' | '.join(cells)} | {ratios} |", flush=True)
    for name, group in zip(("first", "second"), groups, strict=True):
        print(f"{name}, idle: {_idle_share(group):.2%} of a core per rank")


def settings_of(text: str) -> Mapping[str, str]:
    """Parse settings of the form KEY=VALUE,KEY=VALUE."""
    return dict(item.split("=", 1) for item in text.split(","))


def cpu_seconds(group: EngineGroup) -> float:
    """Return the CPU time that the ranks and their engines have used so far."""
    total = 0.0
    for rank in group.ranks:
        process = psutil.Process(rank.pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                total += times.user + times.system
    return total


def _idle_share(group: EngineGroup, seconds: float = 10.0) -> float:
    """Return the CPU use of an idle rank and its engine, as a share of one core."""
    before = cpu_seconds(group)
    time.sleep(seconds)
    return (cpu_seconds(group) - before) / seconds / len(group.ranks)


if __name__ == "__main__":
    main()

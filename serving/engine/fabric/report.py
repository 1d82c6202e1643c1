"""Report of a check that passed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from serving.engine.fabric.facts import Facts

_GIGA = 1e9


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of one worker."""

    rates: Mapping[int, float]
    """Bytes per second received from the corresponding worker of each peer."""
    seconds: float
    """Median duration of the all-to-all rounds, seconds."""
    checked: int
    """Number of bytes received and verified."""
    network: str
    """Network used by NCCL; empty if unknown."""
    deep_ep: str
    """Result of the DeepEP check, for the report."""

    @staticmethod
    def of_report(report: Mapping[str, Any]) -> "Measured":
        """Decode the measurements from a worker's result."""
        return Measured(
            rates={int(peer): float(rate) for peer, rate in report["rates"].items()},
            seconds=float(report["seconds"]),
            checked=int(report["checked"]),
            network=str(report["network"]),
            deep_ep=str(report["deep_ep"]),
        )


@dataclass(frozen=True, slots=True)
class Findings:
    """Findings of all peers."""

    backend: str
    workers: int
    """Number of workers per peer."""
    size: int
    """Number of bytes that each worker sent per round."""
    rounds: int
    facts: Mapping[int, Facts]
    addresses: Mapping[int, str]
    measured: Mapping[tuple[int, int], Measured]
    """Measurements by (peer, worker)."""

    def pair_rates(self) -> dict[tuple[int, int], float]:
        """Return bytes per second between each pair of peers, summed over all workers.

        Both directions are used simultaneously; the rate is that of the slower direction.
        """
        rates: dict[tuple[int, int], float] = {}
        for (peer, _), measured in self.measured.items():
            for other, rate in measured.rates.items():
                rates[other, peer] = rates.get((other, peer), 0.0) + rate
        return {
            (one, other): min(rate, rates[other, one])
            for (one, other), rate in sorted(rates.items())
            if one < other
        }

    def all_to_all_rate(self) -> tuple[float, float]:
        """Return bytes per second sent by a worker to other workers: median and minimum."""
        world = len(self.measured)
        sent = self.size * (world - 1) / world
        seconds = [item.seconds for item in self.measured.values()]
        return sent / median(seconds), sent / max(seconds)

    def warnings(self) -> list[str]:
        """Return findings that reduce performance but do not prevent operation."""
        found = [
            f"peer {index} ({facts.name}): {warning}"
            for index, facts in self.facts.items()
            for warning in facts.warnings
        ]
        sockets = sorted(
            {
                peer
                for (peer, _), item in self.measured.items()
                if item.network.lower() == "socket" and self.facts[peer].devices
            }
        )
        if sockets:
            found.append(
                f"NCCL used TCP sockets on peers {', '.join(map(str, sockets))} although they "
                "have RDMA devices: check that the image has ibverbs-providers, and check "
                "NCCL_IB_HCA"
            )
        return found


def table(findings: Findings) -> str:
    """Return the report as text."""
    lines = [_row(("peer", "name", "address", "node", "memlock", "RDMA ports"))]
    for index, facts in findings.facts.items():
        devices = ", ".join(facts.devices) or "none usable"
        lines.append(
            _row(
                (
                    str(index), facts.name, findings.addresses[index], facts.node or "-",
                    facts.memlock, devices,
                )
            )
        )  # fmt: skip
    for index, facts in findings.facts.items():
        lines += [f"peer {index}: {key}={value}" for key, value in facts.variables.items()]
    rates = findings.pair_rates()
    if rates:
        lines += ["", "pair    GB/s per direction"]
        lines += [
            f"{f'{one}-{other}':<8}{rate / _GIGA:.3f}" for (one, other), rate in rates.items()
        ]
    middle, slowest = findings.all_to_all_rate()
    checked = sum(item.checked for item in findings.measured.values())
    networks = ", ".join(sorted({item.network for item in findings.measured.values()} - {""}))
    what = f"{findings.backend}{f' over {networks}' if networks else ''}"
    lines += [
        "",
        f"all-to-all: {len(findings.measured)} workers ({findings.workers} per peer), {what}",
        f"  {findings.rounds} rounds of {findings.size / 2**20:g} MiB per worker",
        f"  {middle / _GIGA:.3f} GB/s per worker (median), {slowest / _GIGA:.3f} GB/s (slowest)",
        f"contents: {checked / 2**20:.0f} MiB compared, no differences",
        f"DeepEP over NVSHMEM: {_agreed([item.deep_ep for item in findings.measured.values()])}",
    ]
    lines += [f"warning: {text}" for text in findings.warnings()]
    return "\n".join(lines)


def _agreed(texts: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def _row(cells: tuple[str, ...]) -> str:
    widths = (5, 28, 16, 16, 12, 0)
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

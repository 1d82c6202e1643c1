"""Diagnosis of a failed check from the peers' reports. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LEADER = 0
_ALIVE = "heartbeats over TCP arrive from every pod"
_MTU = "if only large messages are lost, compare the MTUs along the path"
_RDMA = (
    "check the RDMA network (NCCL_IB_HCA, port state, GID, partition, MTU, memlock); set "
    "NCCL_DEBUG=INFO in the ranks' environment for details"
)


@dataclass(frozen=True, slots=True)
class Loss:
    """Loss of one peer, as detected by another peer."""

    kind: str
    """``silent``: no heartbeats arrive. ``closed``: the connection was closed. ``left``: the peer
    sent a reason and disconnected. ``unreachable``: no connection could be established."""
    detail: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure reported by a worker or a peer."""

    peer: int
    worker: int | None
    """Number of the worker. None if the peer itself failed."""
    kind: str
    """``contents`` (wrong data), ``group`` (communication), ``exit`` (process end) or ``peer``."""
    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """The current step of a worker."""

    ordinal: int
    """Position in the order of all steps."""
    text: str
    partner: int | None
    """The other peer in a pairwise exchange. None in other steps."""


@dataclass(slots=True)
class Evidence:
    """Evidence collected until the check fails."""

    names: Mapping[int, str]
    """Name and address by peer."""
    losses: dict[tuple[int, int], Loss] = field(default_factory=dict)
    """Losses by (reporting peer, lost peer)."""
    failures: list[Failure] = field(default_factory=list)
    steps: dict[tuple[int, int], Step] = field(default_factory=dict)
    """Current steps by (peer, worker)."""
    stalled: float = 0.0
    """Time without progress of any worker, seconds; 0 unless a stall ended the check."""
    backend: str = ""

    def name(self, peer: int) -> str:
        """Return a peer's index and name."""
        known = self.names.get(peer, "")
        return f"peer {peer} ({known})" if known else f"peer {peer}"


def diagnose(seen: Evidence) -> str:
    """Return the reason for the failure, based on the strongest evidence."""
    for kinds in (("contents",), ("peer",)):
        chosen = [failure for failure in seen.failures if failure.kind in kinds]
        if chosen:
            return "; ".join(dict.fromkeys(_failure(seen, failure) for failure in chosen))
    if seen.losses:
        return "; ".join(_losses(seen))
    if seen.failures:
        # A process that ended is the cause; the connection errors of the others follow from it.
        return _failure(seen, min(seen.failures, key=lambda failure: failure.kind != "exit"))
    return _stall(seen)


def communication_failed(seen: Evidence) -> bool:
    """Return whether only workers' communication failed; a lost peer may then be the cause."""
    return bool(seen.failures) and all(item.kind in {"group", "exit"} for item in seen.failures)


def _failure(seen: Evidence, failure: Failure) -> str:
    where = seen.name(failure.peer)
    if failure.worker is not None:
        where = f"worker {failure.worker} of {where}"
    if failure.kind == "contents":
        return f"wrong data at {where}: {failure.text}"
    step = seen.steps.get((failure.peer, failure.worker or 0))
    during = f" ({step.text})" if failure.kind != "peer" and step else ""
    advice = f"; {_ALIVE}: {_MTU}" if failure.kind == "group" else ""
    return f"{where}{during}: {failure.text}{advice}"


def _losses(seen: Evidence) -> Iterable[str]:
    lost_peers = sorted({lost for who, lost in seen.losses if who == LEADER})
    silent = [peer for peer in lost_peers if seen.losses[LEADER, peer].kind == "silent"]
    if len(silent) > 1 and len(silent) == len(seen.names) - 1:
        yield (
            f"{seen.name(LEADER)} lost all other peers at once: its own cable or "
            f"network is cut ({seen.losses[LEADER, silent[0]].detail})"
        )
        return
    for peer in lost_peers:
        yield _describe_loss(seen, peer, lost_peers)
    reported = set()
    for who, lost in sorted(seen.losses):
        pair = frozenset((who, lost))
        if LEADER in pair or pair & set(lost_peers) or pair in reported:
            continue
        reported.add(pair)
        details = dict.fromkeys(
            seen.losses[ends].detail for ends in ((who, lost), (lost, who)) if ends in seen.losses
        )
        yield (
            f"{seen.name(min(pair))} and {seen.name(max(pair))} cannot reach each other "
            f"({'; '.join(details)}) but both reach peer {LEADER}: check the network between "
            "their nodes (cable, route, network policy)"
        )
    if not lost_peers and not reported:
        # A peer lost the leader, which still receives that peer's heartbeats.
        for who, lost in sorted(seen.losses):
            loss = seen.losses[who, lost]
            yield f"{seen.name(who)} receives nothing from {seen.name(lost)}: {loss.detail}"


def _describe_loss(seen: Evidence, peer: int, lost_peers: Sequence[int]) -> str:
    loss = seen.losses[LEADER, peer]
    if loss.kind == "left":
        return f"{seen.name(peer)} disconnected: {loss.detail}"
    if loss.kind == "closed":
        return (
            f"{seen.name(peer)} exited before the check finished ({loss.detail}): check its log "
            "and whether its pod was killed or evicted"
        )
    others = [index for index in sorted(seen.names) if index not in {LEADER, peer, *lost_peers}]
    lost_by = [index for index in others if (index, peer) in seen.losses]
    reached_by = [index for index in others if index not in lost_by]
    text = f"{seen.name(peer)} stopped responding: {loss.detail}"
    if reached_by:
        listed = ", ".join(f"peer {index}" for index in reached_by)
        return (
            f"{text}; its heartbeats still reach {listed}: the network between it and peer "
            f"{LEADER} is cut"
        )
    if lost_by:
        text += f" (also lost by {', '.join(f'peer {index}' for index in lost_by)})"
    return f"{text}: its cable or network is cut, or its node hangs"


def _stall(seen: Evidence) -> str:
    """Return the step in which the slowest workers are stalled."""
    if not seen.steps:
        return f"no worker started within {seen.stalled:.0f} s"
    first = min(step.ordinal for step in seen.steps.values())
    behind = {who: step for who, step in seen.steps.items() if step.ordinal == first}
    pairs = {
        frozenset((peer, step.partner))
        for (peer, _), step in behind.items()
        if step.partner is not None
    }
    what = (
        f"{' and '.join(seen.name(peer) for peer in sorted(pair))} exchange no data"
        for pair in sorted(pairs, key=sorted)
    )
    if pairs:
        text = "; ".join(what)
    else:
        peers, step = _behind(seen)
        text = f"{', '.join(map(seen.name, peers))} made no progress in: {step}"
    advice = _RDMA if seen.backend == "nccl" else _MTU
    return f"{text}: stalled for {seen.stalled:.0f} s, although {_ALIVE}: {advice}"


def position(seen: Evidence) -> str:
    """Return the peers that are furthest behind, and their step."""
    if not seen.steps:
        return "no worker has started"
    peers, text = _behind(seen)
    return f"furthest behind: {', '.join(map(seen.name, peers))} in: {text}"


def _behind(seen: Evidence) -> tuple[list[int], str]:
    """Return the peers whose workers are furthest behind, and the text of their step."""
    first = min(step.ordinal for step in seen.steps.values())
    behind = {who: step for who, step in seen.steps.items() if step.ordinal == first}
    return sorted({peer for peer, _ in behind}), next(iter(behind.values())).text


def step_of(report: Mapping[str, Any]) -> Step:
    """Decode a worker's report of a step.

    Raises:
        ValueError: The report is not a step.
    """
    try:
        partner = report["partner"]
        return Step(
            int(report["ordinal"]), str(report["text"]), None if partner is None else int(partner)
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a step: {error}") from error

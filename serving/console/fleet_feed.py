"""The fleet for consoles, in three parts, so that what rarely changes is rarely sent.

``fleet`` has names, states and reasons. ``load`` has a row of integers for each rank in the same
order, about 30 bytes. ``models`` has the models with their pools and queues.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec

from serving import __version__
from serving.clock import Clock
from serving.console.hub import Parts
from serving.fleet.models import ModelStatus
from serving.routing.snapshot import FleetSnapshot, GroupSnapshot, RankId, RankSnapshot

MAX_RANKS = 2048
"""Maximum number of ranks in a snapshot; groups beyond it are only counted."""
_encode = msgspec.json.Encoder().encode


class FleetFeed:
    """Builds the parts ``fleet``, ``load`` and ``models``."""

    def __init__(
        self,
        fleet: Callable[[], FleetSnapshot],
        models: Callable[[], Sequence[ModelStatus]],
        clock: Clock,
    ) -> None:
        """Create the feed.

        Args:
            fleet: Returns the current snapshot.
            models: Returns the state of each served model.
            clock: Measures the time between two snapshots.
        """
        self._fleet = fleet
        self._models = models
        self._clock = clock
        self._tokens: dict[RankId, int] = {}
        self._at = 0.0

    def __call__(self) -> Parts:
        """Return the parts as JSON."""
        snapshot = self._fleet()
        shown = _shown(snapshot.groups)
        content = {
            "router": snapshot.router_id,
            "version": __version__,
            "hidden_groups": len(snapshot.groups) - len(shown),
            "groups": [_group(group) for group in shown],
            "history": [_former(group) for group in snapshot.history],
        }
        return {
            "fleet": _encode(content),
            "load": _encode(self._rows(shown)),
            "models": _encode([_model(status) for status in self._models()]),
        }

    def _rows(self, groups: Sequence[GroupSnapshot]) -> list[list[int]]:
        """Return a row for each rank.

        Its columns are: requests in flight, outstanding tokens, running and waiting requests,
        KV-cache use in 1/1000, tokens/s, step time and round trip in microseconds (-1: unknown).
        """
        now = self._clock.monotonic()
        passed = max(now - self._at, 1e-3)
        before, self._tokens, self._at = self._tokens, {}, now
        rows = []
        for rank in (rank for group in groups for rank in group.ranks):
            load, rank_id = rank.load, rank.rank_id
            total = load.generated_tokens_total
            self._tokens[rank_id] = total
            rate = max(total - before.get(rank_id, total), 0) / passed
            rows.append(
                [
                    rank.inflight_requests,
                    rank.outstanding_tokens,
                    load.running_requests,
                    load.waiting_requests,
                    round(load.kv_usage * 1000),
                    round(rate),
                    round(load.step_seconds * 1e6),
                    -1 if rank.round_trip is None else round(rank.round_trip * 1e4) * 100,
                ]
            )
        return rows


def _shown(groups: Sequence[GroupSnapshot]) -> list[GroupSnapshot]:
    shown, ranks = [], 0
    for group in groups:
        ranks += len(group.ranks)
        if ranks > MAX_RANKS:
            break
        shown.append(group)
    return shown


def _model(status: ModelStatus) -> dict[str, object]:
    return {
        "name": status.name,
        "aliases": status.aliases,
        "pools": status.pools,
        "loaded": status.loaded,
        "queued": status.queued_requests,
        "ready": status.ready,
    }


def _former(group: GroupSnapshot) -> dict[str, object]:
    return {
        "id": group.group_id,
        "epoch": group.epoch,
        "app": group.app,
        "model": group.model,
        "pool": group.pool,
        "state": group.state.value,
        "reason": group.reason,
        "since": group.since,
    }


def _group(group: GroupSnapshot) -> dict[str, object]:
    return _former(group) | {
        "size": group.world_size,
        "experts": group.total_experts,
        "ranks": [_rank(rank) for rank in group.ranks],
    }


def _rank(rank: RankSnapshot) -> dict[str, object]:
    return {
        "rank": rank.rank,
        "node": rank.node,
        "pid": rank.pid,
        "healthy": rank.healthy,
        "reason": rank.health_reason,
        "draining": rank.draining,
        "joined": round(rank.joined_at),
        "engine": rank.engine_version,
        "version": rank.serving_version,
        "tensor_parallel": rank.tensor_parallel_size,
        "experts": _spans(tuple(rank.local_expert_ids)),
        "max_len": rank.max_model_len,
        "max_seqs": rank.max_num_seqs,
        "kv_blocks": rank.kv_blocks,
    }


@lru_cache(maxsize=2 * MAX_RANKS)
def _spans(ids: tuple[int, ...]) -> str:
    """Return ids as text, e.g. ``0-7, 12``; cached, because they do not change while ranks run."""
    spans: list[list[int]] = []
    for number in sorted(ids):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)

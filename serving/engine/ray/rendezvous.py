"""How the ranks of a gang meet: rank 0 says where it is, the others read it.

The meeting place is the key-value store of Ray's GCS, the one that Ray's own DPServer uses.
It is the only store that every replica reaches already and that costs no process: a named
actor, the public alternative, would cost one worker process (about 150 MB) for two hundred
bytes and would be one more thing to die. The store's Python functions are experimental API,
so they are called in ``GcsStore`` alone.

Nothing stale can be read. Serve never restarts a replica in place (its actors have
``max_restarts=0``) and draws a new gang id and new replica ids whenever a gang is started or
restarted; both are in the key. And rank 0 refuses to write a key that exists.
"""

import asyncio
import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from serving.clock import Clock
from serving.errors import EngineError, PlacementError

NAMESPACE = "moe-serving"
KEEP_SECONDS = 24 * 3600.0
"""Entries older than this are swept by the next gang; nobody reads them by then."""
_POLL_SECONDS = 0.1


class KeyValueStore(Protocol):
    """A small store that all processes of the cluster share."""

    def put_new(self, key: str, value: bytes) -> bool:
        """Store ``value`` if ``key`` is not there; return whether it was stored."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Store ``value``, replacing what was there."""
        ...

    def get(self, key: str) -> bytes | None:
        """Return the value of ``key``, or ``None``."""
        ...

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with ``prefix``."""
        ...

    def delete(self, key: str) -> None:
        """Remove ``key``; unknown keys are ignored."""
        ...


class GcsStore:
    """Ray's GCS; the process must be connected to Ray."""

    def put_new(self, key: str, value: bytes) -> bool:
        """Store ``value`` if ``key`` is not there; return whether it was stored."""
        from ray.experimental.internal_kv import _internal_kv_put

        existed: bool = _internal_kv_put(key, value, overwrite=False, namespace=NAMESPACE)
        return not existed

    def put(self, key: str, value: bytes) -> None:
        """Store ``value``, replacing what was there."""
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(key, value, overwrite=True, namespace=NAMESPACE)

    def get(self, key: str) -> bytes | None:
        """Return the value of ``key``, or ``None``."""
        from ray.experimental.internal_kv import _internal_kv_get

        value: bytes | None = _internal_kv_get(key, namespace=NAMESPACE)
        return value

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with ``prefix``."""
        from ray.experimental.internal_kv import _internal_kv_list

        return [key.decode() for key in _internal_kv_list(prefix, namespace=NAMESPACE)]

    def delete(self, key: str) -> None:
        """Remove ``key``; unknown keys are ignored."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(key, namespace=NAMESPACE)


@dataclass(frozen=True, slots=True)
class GangMember:
    """This rank's place in its gang, as Serve gives it."""

    app: str
    gang_id: str
    rank: int
    world_size: int
    replica_ids: tuple[str, ...]
    """All replicas of the gang in rank order; Serve draws new ones for every start."""

    @property
    def incarnation(self) -> str:
        """Name of this one start of the gang; never used again."""
        digest = hashlib.sha256("\0".join(self.replica_ids).encode()).hexdigest()
        return f"{self.gang_id}-{digest[:12]}"


@dataclass(frozen=True, slots=True)
class Meeting:
    """What the ranks of a gang agree on."""

    address: str
    """Address of rank 0's node."""
    rpc_port: int
    """For vLLM's data_parallel_rpc_port; was free on rank 0's node a moment ago."""
    epoch: str
    """Drawn by rank 0 for this start of the gang."""
    made_at: float
    """Seconds since the Unix epoch, by rank 0's clock."""


class Rendezvous:
    """One rank's side of the meeting."""

    def __init__(self, store: KeyValueStore, member: GangMember, clock: Clock) -> None:
        self._store = store
        self._member = member
        self._clock = clock
        self._prefix = f"meeting/{member.app}/"
        self._key = self._prefix + member.incarnation
        self._all_claims = f"claim/{member.app}/"
        self._claims = f"{self._all_claims}{member.incarnation}/"

    async def meet(
        self, address: str, choose_port: Callable[[str], int], timeout: float
    ) -> Meeting:
        """Return what rank 0 published, or publish it if this is rank 0.

        Args:
            address: this node's address.
            choose_port: returns a free port on an address of this node; called on rank 0.
            timeout: seconds that the other ranks wait for rank 0.

        Raises:
            EngineError: rank 0 did not come in time, or another rank 0 was here before.
        """
        if self._member.rank == 0:
            return self._publish(address, choose_port)
        deadline = self._clock.monotonic() + timeout
        while True:
            value = await asyncio.to_thread(self._store.get, self._key)
            if value is not None:
                return Meeting(**json.loads(value))
            if self._clock.monotonic() >= deadline:
                raise EngineError(
                    f"rank {self._member.rank} of gang {self._member.gang_id} waited "
                    f"{timeout:g} s for rank 0, which did not come"
                )
            await asyncio.sleep(_POLL_SECONDS)

    def claim_node(self, node: str) -> None:
        """Hold ``node`` for this rank alone among the ranks of its gang (strict_spread).

        Ray Serve's gangs can be spread only as far as there is room; Ray's own ways to
        forbid a second rank on a node are closed to them (a node's implicit resources in a
        placement group crash the raylet of Ray 2.60). So a rank refuses to share.

        Raises:
            PlacementError: another rank of the gang is there.
        """
        key = f"{self._claims}{node}"
        content = json.dumps({"rank": self._member.rank, "made_at": self._clock.time()})
        if self._store.put_new(key, content.encode()):
            return
        holder = json.loads(self._store.get(key) or b"{}").get("rank", "another")
        raise PlacementError(
            f"group.placement strict_spread: ranks {holder} and {self._member.rank} were both "
            f"placed on node {node}, no other node has room; add nodes, or set "
            "group.placement to spread or pack"
        )

    def leave(self) -> None:
        """Remove the gang's entries; only rank 0's call does anything."""
        if self._member.rank == 0:
            for key in self._store.keys(self._claims):
                self._store.delete(key)
            self._store.delete(self._key)

    def _publish(self, address: str, choose_port: Callable[[str], int]) -> Meeting:
        now = self._clock.time()
        sweep(self._store, (self._prefix, self._all_claims), now)
        meeting = Meeting(address, choose_port(address), secrets.token_hex(6), now)
        if not self._store.put_new(self._key, json.dumps(asdict(meeting)).encode()):
            raise EngineError(
                f"gang {self._member.gang_id} has met before: a rank 0 was restarted in "
                "place, and its peers hold the old address; the whole gang must restart"
            )
        return meeting


def sweep(store: KeyValueStore, prefixes: Sequence[str], now: float) -> None:
    """Remove entries under ``prefixes`` that are older than ``KEEP_SECONDS``."""
    for prefix in prefixes:
        for key in store.keys(prefix):
            value = store.get(key)
            if value is not None and now - json.loads(value)["made_at"] > KEEP_SECONDS:
                store.delete(key)

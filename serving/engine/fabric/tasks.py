"""Jobs of the workers, built on each peer from the leader's message."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.engine.environment import network_environment
from serving.engine.fabric.link import Message
from serving.engine.fabric.plan import Plan


@dataclass(frozen=True, slots=True)
class Jobs:
    """Parameters common to all workers of a run, and this peer's network."""

    plan: Plan
    workers: int
    """Number of workers per peer."""
    backend: str
    store_host: str
    """Address of the group's store."""
    address: str
    """Address of this peer."""
    variables: Mapping[str, str]
    """Variables that select this peer's RDMA devices."""

    @property
    def world(self) -> int:
        """Total number of workers."""
        return self.plan.peers * self.workers

    def of(self, peer: int, store_port: int) -> dict[int, dict[str, Any]]:
        """Return the jobs of a peer's workers by worker number.

        Args:
            peer: Index of the peer.
            store_port: Port of the group's store; 0 for worker 0 of peer 0, which opens it.
        """
        environment = {**network_environment(self.address), **self.variables}
        return {
            number: {
                "rank": peer * self.workers + number,
                "world": self.world,
                "workers": self.workers,
                "backend": self.backend,
                "size": self.plan.size,
                "rounds": self.plan.rounds,
                "limit": self.plan.timeout,
                "store_host": self.store_host,
                "store_port": store_port,
                "environment": environment,
            }
            for number in range(self.workers)
        }

    def message(self, store_port: int) -> Message:
        """Return the job message for the other peers."""
        return {
            "t": "job",
            "workers": self.workers,
            "backend": self.backend,
            "store_host": self.store_host,
            "store_port": store_port,
        }

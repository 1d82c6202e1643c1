"""The workers' jobs: made at each peer from what the leader tells."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.engine.fabric.link import Message
from serving.engine.fabric.plan import Plan
from serving.engine.ray.node_network import network_environment


@dataclass(frozen=True, slots=True)
class Jobs:
    """What all workers of a run have in common, and this peer's own network."""

    plan: Plan
    workers: int
    """Of each peer."""
    backend: str
    store_host: str
    address: str
    """Of this peer."""
    variables: Mapping[str, str]
    """That name this peer's RDMA devices."""

    @property
    def world(self) -> int:
        """Number of workers in all."""
        return self.plan.peers * self.workers

    def of(self, peer: int, store_port: int) -> dict[int, dict[str, Any]]:
        """Return the jobs of a peer's workers, by number.

        Args:
            peer: index of the peer.
            store_port: where the group's store is; worker 0 of peer 0 opens it and needs none.
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
        """Return what the other peers need to know."""
        return {
            "t": "job",
            "workers": self.workers,
            "backend": self.backend,
            "store_host": self.store_host,
            "store_port": store_port,
        }

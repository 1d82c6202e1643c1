"""The planner's question and its answers: load, hardware, choices; pools, plans. Data only."""

from dataclasses import dataclass, field
from enum import StrEnum

from serving.planner.accelerators import Accelerator
from serving.planner.constants import Constants
from serving.planner.gpu_memory import ModelFigures
from serving.planner.group import Group, Objective, Served
from serving.planner.roofline import Limit
from serving.planner.shapes import Choices, Variant
from serving.planner.workload import Workload

MOST_NODES = 4096
"""Upper bound of the nodes of a plan."""
MOST_GROUPS = 1024
"""Upper bound of the groups of a pool: that of autoscaler.max_groups."""


class Mode(StrEnum):
    """Whether prompts are computed by groups of their own."""

    MIXED = "mixed"
    DISAGGREGATED = "disaggregated"


@dataclass(frozen=True, slots=True)
class Question:
    """What to plan."""

    model: ModelFigures
    model_name: str
    gpu: Accelerator
    load: Workload
    """Without a rate to plan for, its rate is ignored (``nodes`` is set)."""
    objective: Objective
    known: Constants
    choices: Choices = field(default_factory=Choices)
    modes: tuple[Mode, ...] = (Mode.MIXED, Mode.DISAGGREGATED)
    nodes: int | None = None
    """Nodes that there are; None: any number."""
    saturate: bool = False
    """Find the highest rate for ``nodes`` instead of the smallest layout for the load's rate."""

    @property
    def most_gpus(self) -> int:
        """GPUs that there are."""
        return (MOST_NODES if self.nodes is None else self.nodes) * self.gpu.per_node


@dataclass(frozen=True, slots=True)
class Pool:
    """Equal groups of a plan."""

    variant: Variant
    count: int
    capacity: float
    """Highest rate of one group within the objectives, requests/s."""
    served: Served
    limit: Limit
    """What keeps a group from serving more."""

    @property
    def group(self) -> Group:
        """One group."""
        return self.variant.group

    @property
    def gpus(self) -> int:
        """GPUs of all groups."""
        return self.count * self.variant.workers


@dataclass(frozen=True, slots=True)
class Plan:
    """A layout, and what it serves."""

    mode: Mode
    pools: tuple[Pool, ...]
    """One pool, or prefill and decode."""
    rate: float
    """Planned requests/s."""
    ttft: float
    ttft_p90: float
    itl: float
    itl_p90: float

    @property
    def gpus(self) -> int:
        """GPUs of the plan."""
        return sum(pool.gpus for pool in self.pools)

    @property
    def capacity(self) -> float:
        """Highest rate within the objectives, requests/s."""
        return min(pool.count * pool.capacity for pool in self.pools)

"""The planner's input (load, hardware, choices) and output (pools, plans). Data only."""

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
"""Maximum number of nodes in a plan."""
MOST_GROUPS = 1024
"""Maximum number of groups in a pool: the upper bound of autoscaler.max_groups."""


class Mode(StrEnum):
    """Whether separate groups compute the prompts."""

    MIXED = "mixed"
    DISAGGREGATED = "disaggregated"


@dataclass(frozen=True, slots=True)
class Question:
    """The input of the planner."""

    model: ModelFigures
    model_name: str
    gpu: Accelerator
    load: Workload
    """Load to plan for. Its rate is ignored if ``nodes`` is set and no rate is given."""
    objective: Objective
    known: Constants
    choices: Choices = field(default_factory=Choices)
    modes: tuple[Mode, ...] = (Mode.MIXED, Mode.DISAGGREGATED)
    nodes: int | None = None
    """Number of available nodes. None means unlimited."""
    saturate: bool = False
    """Whether to find the highest rate for ``nodes`` rather than the smallest layout for the load's
    rate."""

    @property
    def most_gpus(self) -> int:
        """Number of available GPUs."""
        return (MOST_NODES if self.nodes is None else self.nodes) * self.gpu.per_node


@dataclass(frozen=True, slots=True)
class Pool:
    """Identical groups of a plan."""

    variant: Variant
    count: int
    capacity: float
    """Maximum rate of one group within the objectives, requests/s."""
    served: Served
    limit: Limit
    """The resource that prevents a group from serving more."""

    @property
    def group(self) -> Group:
        """One group."""
        return self.variant.group

    @property
    def gpus(self) -> int:
        """Total number of GPUs in the groups."""
        return self.count * self.variant.workers


@dataclass(frozen=True, slots=True)
class Plan:
    """A layout and its throughput."""

    mode: Mode
    pools: tuple[Pool, ...]
    """One mixed pool, or a prefill and a decode pool."""
    rate: float
    """Planned rate, requests/s."""
    ttft: float
    ttft_p90: float
    itl: float
    itl_p90: float

    @property
    def gpus(self) -> int:
        """Total number of GPUs in the plan."""
        return sum(pool.gpus for pool in self.pools)

    @property
    def capacity(self) -> float:
        """Maximum rate within the objectives, requests/s."""
        return min(pool.count * pool.capacity for pool in self.pools)

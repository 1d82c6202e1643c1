"""The possible sizes of a group on given hardware, and their memory. Pure functions."""

from collections.abc import Iterator
from dataclasses import dataclass

from serving.planner.accelerators import Accelerator
from serving.planner.constants import Constants
from serving.planner.gpu_memory import (
    GIB,
    Deployment,
    ModelFigures,
    WorkerMemory,
    cpu_memory,
    gpu_memory,
)
from serving.planner.group import Group, Role
from serving.planner.roofline import Limit, StepModel

CPU_KV_BYTES = GIB // 2
"""KV cache of a CPU rank, bytes: the default of engine.kv_cache_gib."""
GPU_SHARE = 0.9
"""gpu_memory_utilization of all plans, as in the presets."""
_KV_FILL = 0.9
"""Share of the KV cache that decoding may fill; the rest is for prompts in progress."""
_STEP_TOKENS = 256
"""Maximum number of decoded tokens per step and worker: the capacity of DeepEP's low-latency
buffers in vLLM (VLLM_MOE_DP_CHUNK_SIZE); no anchor exceeds it."""
_CPU_SEQUENCES = 64
"""Default of engine.max_num_seqs."""
TENSORS = (1, 2, 4, 8)
"""Rank sizes to try."""
_NODES = (2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 40)
"""Numbers of nodes to try for groups that span several nodes."""
_CHUNKS = {
    Role.MIXED: (8192, 2048, 1024, 512, 256, 128),
    Role.PREFILL: (16384, 8192, 4096),
    Role.DECODE: (512,),
}
"""Values of max_num_batched_tokens to try."""


@dataclass(frozen=True, slots=True)
class Choices:
    """Which sizes are fixed, and which are left to the search."""

    max_model_len: int = 32_768
    workers: int | None = None
    """Expert-parallel size of mixed and decode groups. None means any size."""
    prefill_workers: int | None = None
    """Expert-parallel size of prefill groups. None means any size."""
    tensor: int | None = None
    """Number of workers of a rank. None means any number."""
    drafts: tuple[int, ...] = (0, 1)
    """Numbers of drafted tokens to try, if the model can draft."""
    acceptance: float = 0.85
    """Share of the drafted tokens that are accepted."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A group and the memory of each of its workers."""

    group: Group
    memory: WorkerMemory

    @property
    def workers(self) -> int:
        """Number of GPUs of the group."""
        return self.group.steps.workers


def sizes(gpu: Accelerator, model: ModelFigures, most: int) -> list[int]:
    """Return the numbers of workers that a group can have, at most ``most``, in increasing order.

    Within a node, powers of two; beyond, whole nodes. A worker has at least one expert.
    """
    within = [size for size in (1, 2, 4, 8, 16) if size <= gpu.per_node]
    found = {*within, gpu.per_node, *(gpu.per_node * nodes for nodes in _NODES)}
    experts = model.n_routed_experts or gpu.per_node
    return sorted(size for size in found if size <= min(most, experts))


def memory_of(
    model: ModelFigures, gpu: Accelerator, deployment: Deployment, share: float = GPU_SHARE
) -> WorkerMemory:
    """Return the memory of a worker on ``gpu``."""
    if gpu.cpu:
        return cpu_memory(model, deployment, gpu.memory, CPU_KV_BYTES)
    return gpu_memory(model, deployment, gpu.memory, share)


def variants(
    model: ModelFigures,
    gpu: Accelerator,
    known: Constants,
    role: Role,
    workers: int,
    context: float,
    choices: Choices,
) -> Iterator[Variant]:
    """Yield the groups of ``workers`` GPUs with sufficient memory.

    Args:
        model: The model.
        gpu: The hardware.
        known: Constants of the performance model.
        role: The work of the groups.
        workers: GPUs of a group.
        context: Mean length of a decoding sequence, tokens.
        choices: Fixed and free settings.
    """
    drafting = choices.drafts if model.num_nextn_predict_layers else (0,)
    for tensor in TENSORS:
        fits = workers % tensor == 0 and tensor <= gpu.per_node
        if not fits or model.num_attention_heads % tensor:
            continue
        if choices.tensor not in {None, tensor}:
            continue
        steps = StepModel(model, gpu, workers // tensor, tensor, known)
        for drafts in drafting if role is not Role.PREFILL else drafting[:1]:
            for chunk in _CHUNKS[role]:
                found = _variant(steps, role, chunk, drafts, context, choices)
                if found is not None:
                    yield found


def _variant(
    steps: StepModel, role: Role, chunk: int, drafts: int, context: float, choices: Choices
) -> Variant | None:
    deployment = Deployment(
        data=steps.data,
        tensor=steps.tensor,
        max_model_len=choices.max_model_len,
        max_num_seqs=_STEP_TOKENS * steps.tensor,
        max_num_batched_tokens=chunk,
        prediction=drafts > 0,
    )
    memory = memory_of(steps.model, steps.gpu, deployment)
    if memory.shortage:
        return None
    held = memory.kv_tokens * _KV_FILL / context
    allowed = _CPU_SEQUENCES if steps.gpu.cpu else _STEP_TOKENS * steps.tensor / (1 + drafts)
    if held < 1 and role is not Role.PREFILL:
        return None
    group = Group(
        steps=steps,
        role=role,
        chunk=chunk,
        most_sequences=min(held, allowed),
        most_limit=Limit.KV if held < allowed else Limit.SEQUENCES,
        drafts=0 if role is Role.PREFILL else drafts,
        acceptance=choices.acceptance,
    )
    return Variant(group, memory)

"""A vLLM plugin that records what an engine core does in each step, for loadtest.bench.steps.

The engine core's process appends its events to ``$STEP_TRACE/PID.jsonl`` when it becomes idle. All
processes on a machine share a clock (CLOCK_MONOTONIC), so the events of several ranks can be
compared.
"""

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "STEP_TRACE"
"""Environment variable with the folder for the recordings."""

Event = tuple[str, int, int, str]
"""Name, start and end in nanoseconds, detail."""

_events: list[Event] = []


def register() -> None:
    """Record the calls of this process, if the environment variable is set."""
    folder = os.environ.get(FOLDER)
    if not folder or _events:
        return
    from vllm.config import ParallelConfig
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import DPEngineCoreProc, EngineCore
    from vllm.v1.worker import dp_utils
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from serving.engine import cpu_plugin

    cpu_plugin.register()  # its collectives must be installed before they are wrapped
    _events.append(("begin", time.monotonic_ns(), time.monotonic_ns(), ""))
    rank: Callable[..., str] = lambda core, *_: str(core.dp_rank)  # noqa: E731
    for owner, name, event, detail in (
        (DPEngineCoreProc, "_process_engine_step", "step", rank),
        (Scheduler, "schedule", "schedule", None),
        (Scheduler, "update_from_output", "output", None),
        (GPUModelRunner, "execute_model", "forward", None),
        (GPUModelRunner, "sample_tokens", "sample", None),
        (GPUModelRunner, "propose_draft_token_ids", "draft", None),
        (EngineCore, "execute_dummy_batch", "dummy step", None),
        (CpuCommunicator, "all_gatherv", "gather", _bytes),
        (CpuCommunicator, "reduce_scatterv", "scatter", _bytes),
        (dp_utils, "_run_ar", "token counts", None),
        (ParallelConfig, "sync_dp_state", "wave", None),
    ):
        setattr(owner, name, _recorded(getattr(owner, name), event, detail))
    wait = DPEngineCoreProc._process_input_queue  # noqa: SLF001

    @functools.wraps(wait)
    def waiting(self: Any) -> None:
        if not self.has_work():
            _flush(Path(folder))
        wait(self)

    DPEngineCoreProc._process_input_queue = waiting  # noqa: SLF001


def _bytes(_: Any, tensors: Any, *__: Any) -> str:
    """Return the bytes that this rank contributes."""
    several = tensors if isinstance(tensors, list) else [tensors]
    return str(sum(tensor.nbytes for tensor in several))


def _recorded(call: Any, event: str, detail: Callable[..., str] | None) -> Any:
    @functools.wraps(call)
    def recorded(*args: Any, **named: Any) -> Any:
        note = detail(*args) if detail is not None else ""
        start = time.monotonic_ns()
        try:
            return call(*args, **named)
        finally:
            _events.append((event, start, time.monotonic_ns(), note))

    return recorded


def _flush(folder: Path) -> None:
    with (folder / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(event) + "\n" for event in _events)
    _events.clear()
    _events.append(("begin", time.monotonic_ns(), time.monotonic_ns(), ""))

"""The model in the engine core's own process, for ranks of one worker on CPU.

vLLM on CPU puts each model into a worker process of its own, because a process that has begun to
use OpenMP cannot be bound to cores any more (vllm/platforms/cpu.py). Our ranks share cores and are
not bound, so there is nothing to win by it, and much to lose: a second import of torch and vLLM at
every start, half a gigabyte a rank, and two processes that poll shared memory for each step. With
two groups on two cores they took the processor from the router for ten seconds on end.
"""

from vllm.v1.executor.uniproc_executor import UniProcExecutor

__all__ = ["InProcessExecutor"]


class InProcessExecutor(UniProcExecutor):
    """vLLM's executor without worker processes, by a name that its CPU platform leaves alone."""

"""A vLLM plugin that works around vLLM's bugs with expert parallelism on CPU.

vLLM loads the entry point ``vllm.general_plugins: moe_serving_cpu`` in each of its processes and
calls :func:`register`, which does nothing on platforms other than CPU.

Each patch has a probe that tests vLLM's behaviour, independently of the version. If vLLM behaves
correctly, the patch is skipped with a log message.

=================  =================================================================
module             works around
=================  =================================================================
collectives        ``CpuCommunicator`` has no ragged gather and reduce-scatter
experts            CPU experts ignore the expert map; also counts tokens per expert
rotary             the CPU rotary embedding garbles 3-D and strided inputs
sampling           with drafts, one sampled request garbles the whole batch
lora               rows without an adapter get one; experts get GPU kernels
sequence_parallel  with several workers per rank, one token's shard counts as all rows
quiet              warnings that require no action
node_exchange      gloo's sockets between ranks of one node, 0.4 ms per collective
sockets            16 idle threads that each wake up 100 times a second
quick_exit         processes that take seconds to exit
=================  =================================================================
"""

import logging

from serving.engine.cpu_plugin import quiet
from serving.engine.cpu_plugin.patch import Patch, apply_if_needed

_log = logging.getLogger("vllm.moe_serving.cpu_plugin")

_done: dict[str, Patch] = {}


def register() -> None:
    """Run the probes and apply the patches, once per process; later calls do nothing.

    Raises:
        RuntimeError: A probe still fails after its patch. The process must exit, because it would
            silently generate wrong output.
    """
    from vllm.platforms import current_platform

    if _done or not current_platform.is_cpu():
        return
    quiet.install()
    # Deferred: these modules import vLLM's layers, which other platforms do not need.
    from serving.engine.cpu_plugin import (
        collectives,
        experts,
        lora,
        quick_exit,
        rotary,
        sampling,
        sequence_parallel,
        sockets,
    )

    for patch in (
        collectives.PATCH,
        experts.PATCH,
        rotary.PATCH,
        sampling.PATCH,
        sequence_parallel.PATCH,
        lora.SHRINK,
        lora.EXPERTS,
    ):
        _done[patch.name] = patch
        if apply_if_needed(patch):
            _log.info("patched: %s", patch.name)
        else:
            _log.warning("patch not needed: %s", patch.name)
    experts.install_counting()
    experts.reject_quantized_expert_parallel()
    collectives.install()
    sockets.install()
    quick_exit.install()

"""vLLM plugin that makes expert parallelism right on CPU.

vLLM loads the entry point ``vllm.general_plugins: moe_serving_cpu`` in every one of its
processes and calls :func:`register`. On any other platform than CPU that does nothing.

Each mend is decided by a probe of behaviour, never by version: what vLLM does right itself
is left alone, and the log says so.

=================  ==============================================================
module             mends
=================  ==============================================================
collectives        ``CpuCommunicator`` has no ragged gather and reduce-scatter
experts            CPU experts ignore the expert map; also counts tokens per expert
rotary             the CPU rotary embedding garbles 3-D and strided inputs
sampling           with drafts, one sampled request garbles the whole batch
sequence_parallel  with workers in ranks, a lone token's shard is taken for all rows
quiet              warnings that nobody can act on
sockets            16 threads wake up 100 times a second each, though nothing happens
quick_exit         processes take seconds to end
=================  ==============================================================
"""

import logging

from serving.engine.cpu_plugin import quiet
from serving.engine.cpu_plugin.mend import Mend, settle

_log = logging.getLogger("vllm.moe_serving.cpu_plugin")

_done: dict[str, Mend] = {}


def register() -> None:
    """Probe and mend once in this process; later calls do nothing.

    Raises:
        RuntimeError: vLLM is wrong here in a way that the mend does not cure. Serving would
            give wrong answers without a sign of it, so the process must not go on.
    """
    from vllm.platforms import current_platform

    if _done or not current_platform.is_cpu():
        return
    quiet.install()
    # Imported late: these pull in vLLM's layers, which other platforms do not need.
    from serving.engine.cpu_plugin import (
        collectives,
        experts,
        quick_exit,
        rotary,
        sampling,
        sequence_parallel,
        sockets,
    )

    for mend in (
        collectives.MEND,
        experts.MEND,
        rotary.MEND,
        sampling.MEND,
        sequence_parallel.MEND,
    ):
        _done[mend.name] = mend
        if settle(mend):
            _log.info("mended: %s", mend.name)
        else:
            _log.warning("left alone, vLLM has it right itself: %s", mend.name)
    experts.install_counting()
    experts.install_quantized_refusal()
    collectives.install_self_check()
    sockets.install()
    quick_exit.install()

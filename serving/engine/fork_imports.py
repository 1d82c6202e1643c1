"""Modules that the fork server preloads for an engine's processes on CPU.

Kept apart from :mod:`serving.engine.fork_server`, which must not import vLLM.
"""

import gc

from serving import process_tuning

with process_tuning.gc_paused():
    import vllm.model_executor.models.deepseek_v2
    import vllm.v1.engine.coordinator
    import vllm.v1.engine.core
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm.utils.system_utils import set_process_title

    import serving.engine.worker_extension  # noqa: F401

# Excludes these objects from garbage collection, which would copy their pages in every fork.
gc.freeze()
set_process_title("ForkServer")

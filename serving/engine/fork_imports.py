"""What the engine's processes on CPU need; the server that they are forked from imports it."""

import gc

from serving import gc_tuning

with gc_tuning.importing():
    import vllm.model_executor.models.deepseek_v2
    import vllm.v1.engine.coordinator
    import vllm.v1.engine.core
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm.utils.system_utils import set_process_title

    import serving.engine.in_process
    import serving.engine.worker_extension  # noqa: F401

# What is forked does not touch, and so not copy, the objects that it never collects.
gc.freeze()
set_process_title("ForkServer")

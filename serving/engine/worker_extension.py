"""Classes that vLLM loads into the engine's processes, by import path or as an argument."""

from typing import Any

from vllm.v1.executor.uniproc_executor import UniProcExecutor

from serving.engine.cpu_plugin import expert_load


class WorkerExtension:
    """Worker methods that report the local experts and the tokens that each has computed.

    vLLM adds this class to the bases of its worker class; the rank calls the methods with
    ``collective_rpc``. The method names have a prefix because vLLM rejects names that the worker
    already has. Results are sent as msgpack and must be plain types.
    """

    model_runner: Any

    def moe_serving_expert_load(self) -> list[tuple[str, int, list[int], list[int]]]:
        """Return the load of the experts of every MoE layer.

        Returns:
            For each layer: name, total number of experts, global ids of the worker's experts, and
            tokens computed by each of them. Tokens are counted on CPU only; on GPU the list is
            empty. With several ranks the counts include the dummy tokens of ranks without
            requests.
        """
        counts = {load.layer: load for load in expert_load.layers()}
        result = []
        for name, total, local_ids in self._moe_serving_layers():
            load = counts.get(name)
            same = load is not None and load.local_ids == local_ids
            result.append((name, total, local_ids, load.tokens.tolist() if load and same else []))
        return result

    def moe_serving_reset_expert_load(self) -> None:
        """Set the token counts to zero."""
        expert_load.reset()

    def _moe_serving_layers(self) -> list[tuple[str, int, list[int]]]:
        """Return name, expert count and local experts' global ids, by layer."""
        models = [self.model_runner.get_model()]
        drafter = getattr(getattr(self.model_runner, "drafter", None), "model", None)
        if drafter is not None:
            models.append(drafter)
        found: dict[str, tuple[str, int, list[int]]] = {}
        for model in models:
            for module in model.modules():
                manager = getattr(module, "expert_map_manager", None)
                name = getattr(module, "layer_name", None)
                if manager is None or name is None:
                    continue
                ids = manager.get_local_expert_ids()
                found[name] = (name, manager.global_num_experts, ids)
        return list(found.values())


class InProcessExecutor(UniProcExecutor):
    """Executor that runs the model in the engine core's process, for single-worker ranks on CPU.

    On CPU, vLLM runs each model in a worker process, because a process can no longer be bound to
    cores after its first use of OpenMP (vllm/platforms/cpu.py). Ranks here share cores and are not
    bound, so a worker process has no benefit. It would cost a second import of torch and vLLM at
    every start, half a gigabyte per rank, and two processes that poll shared memory at each step:
    with two groups on two cores, polling kept the router off the CPU for ten seconds.

    vLLM's CPU platform replaces the executor "uni" with "mp", but accepts a class unchanged.
    """

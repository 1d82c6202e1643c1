"""Methods added to vLLM's workers, reachable from the rank with ``collective_rpc``."""

from typing import Any

from serving.engine.cpu_plugin import expert_load


class WorkerExtension:
    """Tells the rank which experts a worker holds and how many tokens each computed.

    vLLM makes this class a base of its worker class. Names are long because vLLM refuses a
    name that the worker has already. Results travel as msgpack: plain types only.
    """

    model_runner: Any

    def moe_serving_expert_load(self) -> list[tuple[str, int, list[int], list[int]]]:
        """Return (layer, experts in all, local global ids, tokens of each) for every MoE layer.

        Tokens are counted on CPU only; elsewhere the list is empty. They count what the
        experts computed: with several ranks also the placeholder token of a rank that
        has no work while others do.
        """
        counts = {load.layer: load for load in expert_load.layers()}
        result = []
        for name, total, local_ids in self._moe_serving_layers():
            load = counts.get(name)
            same = load is not None and load.local_ids == local_ids
            result.append((name, total, local_ids, load.tokens.tolist() if load and same else []))
        return result

    def moe_serving_reset_expert_load(self) -> None:
        """Set the counts to zero."""
        expert_load.reset()

    def _moe_serving_layers(self) -> list[tuple[str, int, list[int]]]:
        """Find the MoE layers of the model and of its drafter; read their expert maps."""
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

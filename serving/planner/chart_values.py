"""Values of the Helm chart for a plan. Pure functions."""

import re
from collections.abc import Mapping
from typing import Any

from serving.errors import InvalidRequest
from serving.planner.gpu_memory import GIB, ModelFigures
from serving.planner.plans import Mode, Plan, Pool, Question
from serving.planner.shapes import CPU_KV_BYTES, GPU_SHARE

_DTYPES = {1: "bfloat16", 2: "bfloat16", 4: "float32"}
"""Data types of activations, by the bytes of a weight."""


def deployable(plans: list[Plan]) -> Plan:
    """Return the best plan that the chart can deploy.

    Raises:
        InvalidRequest: The chart cannot deploy any of them, because its groups compute both prompts
            and outputs.
    """
    found = next((plan for plan in plans if plan.mode is Mode.MIXED), None)
    if found is None:
        raise InvalidRequest(
            "the chart deploys groups that compute both prompts and outputs, and none of the plans "
            "is such a layout: allow --layout mixed, or change the objectives until one meets them"
        )
    return found


def chart_values(
    question: Question, plan: Plan, model_values: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return values of the chart that deploy a mixed plan.

    Args:
        question: The question that the plan answers.
        plan: A plan of mode mixed.
        model_values: The section ``model`` of a preset of the same model. If None, the section is
            generated, and the user must fill in the volume claim and the parsers.

    Raises:
        InvalidRequest: The model has no experts.
    """
    if not question.model.n_routed_experts:
        raise InvalidRequest(
            f"the chart deploys mixture-of-experts models, and {question.model_name} has no "
            "experts: plan without --values"
        )
    (pool,) = plan.pools
    steps = pool.group.steps
    model = {**(model_values or _model(question)), "maxModelLen": question.choices.max_model_len}
    parallelism: dict[str, Any] = {
        "data": steps.data,
        "tensor": steps.tensor,
        "experts": steps.workers,
    }
    heads = 1 if steps.model.kv_lora_rank else steps.model.num_key_value_heads
    if steps.tensor > heads:
        parallelism["replicateKv"] = True
    values: dict[str, Any] = {"model": model, "engine": _engine(question, pool)}
    if not question.gpu.cpu:
        values["image"] = {"engine": {"repository": "ghcr.io/moe-serving/engine-gpu"}}
    values["parallelism"] = parallelism
    values["pools"] = [_pool(question, pool)]
    return values


def _model(question: Question) -> dict[str, Any]:
    model = question.model
    return {
        "name": question.model_name,
        "path": f"/models/{question.model_name}",
        "attention": "mla" if model.kv_lora_rank else "gqa",
        "attentionHeads": model.num_attention_heads,
        "keyValueHeads": model.num_key_value_heads,
        "routedExperts": model.n_routed_experts,
        "dtype": _DTYPES[model.weight_bytes],
        "reasoningParser": None,
        "toolParser": None,
        "volume": {"type": "claim", "claimName": _claim(question.model_name)},
    }


def _claim(name: str) -> str:
    """Return a model's name in the form of a Kubernetes object name (RFC 1123 label)."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:63].strip("-") or "model"


def _engine(question: Question, pool: Pool) -> dict[str, Any]:
    group, gpu = pool.group, question.gpu
    engine: dict[str, Any] = {"maxNumSeqs": max(1, int(group.most_sequences))}
    if group.drafts:
        engine |= {"speculative": "mtp", "speculativeTokens": group.drafts}
    if gpu.cpu:
        return engine | {"kvCacheGib": CPU_KV_BYTES / GIB}
    if gpu.product and group.steps.workers > 1:
        engine["allToAll"] = "deepep_low_latency"
    args: dict[str, Any] = {
        "gpu_memory_utilization": GPU_SHARE,
        "max_num_batched_tokens": group.chunk,
    }
    copies = _redundant(group.steps.model, group.steps.workers)
    if copies:
        args |= {"enable_eplb": True, "eplb_config": {"num_redundant_experts": copies}}
    return engine | {"startTimeout": 3600, "args": args}


def _redundant(model: ModelFigures, workers: int) -> int:
    """Return the number of redundant experts needed to spread all experts evenly."""
    return -model.n_routed_experts % workers


def _pool(question: Question, pool: Pool) -> dict[str, Any]:
    gpu, workers = question.gpu, pool.variant.workers
    if gpu.cpu:
        return {
            "name": "cpu",
            "accelerator": "cpu",
            "groups": pool.count,
            "cpusPerRank": 1,
            "resources": {"cpu": "1", "memory": f"{gpu.memory // GIB}Gi"},
        }
    mine = min(workers, gpu.per_node)
    found: dict[str, Any] = {
        "name": "gpu",
        "accelerator": "gpu",
        "gpusPerNode": mine,
        "groups": pool.count,
        "cpusPerRank": 8,
        "resources": {"cpu": str(8 * mine + 16), "memory": f"{112 * mine}Gi"},
        "sharedMemory": "64Gi",
    }
    if not gpu.product:
        found["gpuResource"] = "amd.com/gpu" if gpu.name == "mi300x" else "nvidia.com/gpu"
    else:
        found["nodeSelector"] = {"nvidia.com/gpu.product": gpu.product}
    if workers > gpu.per_node:
        found["rdma"] = {"resource": "rdma/ib", "count": gpu.per_node}
    return found

"""Error messages for questions without a plan, with the cause and the remedy. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import replace

from serving.errors import InvalidRequest
from serving.planner.gpu_memory import Deployment
from serving.planner.group import Role
from serving.planner.plans import MOST_GROUPS, MOST_NODES, Question
from serving.planner.shapes import GPU_SHARE, TENSORS, Choices, memory_of, variants


def possible(question: Question, allowed: Sequence[int]) -> Choices:
    """Return the choices, without drafting if the model cannot draft.

    Raises:
        InvalidRequest: A fixed size or drafting is not possible.
    """
    choices, model, gpu = question.choices, question.model, question.gpu
    there = "" if question.nodes is None else f" on {question.nodes} nodes"
    for size in (choices.workers, choices.prefill_workers):
        if size is not None and size not in allowed:
            raise InvalidRequest(
                f"a group of {size} {gpu.name}{there} is not planned: sizes for "
                f"{question.model_name} are {', '.join(map(str, allowed))} GPUs"
            )
    ranks = [size for size in TENSORS if size <= gpu.per_node]
    ranks = [size for size in ranks if model.num_attention_heads % size == 0]
    if choices.tensor not in {None, *ranks}:
        raise InvalidRequest(
            f"a rank of {choices.tensor} {gpu.name} is not planned: sizes for "
            f"{question.model_name} ({model.num_attention_heads} heads) are "
            f"{', '.join(map(str, ranks))} GPUs"
        )
    if model.num_nextn_predict_layers:
        return choices
    if 0 not in choices.drafts:
        raise InvalidRequest(
            f"{question.model_name} has no multi-token-prediction layer "
            "(num_nextn_predict_layers): plan with --speculative none"
        )
    return replace(choices, drafts=(0,))


def wanted(choices: Choices, role: Role, allowed: Sequence[int]) -> Sequence[int]:
    """Return the group sizes to evaluate for a role."""
    fixed = choices.prefill_workers if role is Role.PREFILL else choices.workers
    return allowed if fixed is None else (fixed,)


def reason(question: Question, allowed: Sequence[int], *, fitting: bool) -> str:
    """Return the error that states why there is no plan, and the remedy."""
    gpu, model, load = question.gpu, question.model, question.load
    asked = [
        size
        for role in (Role.MIXED, Role.PREFILL)
        for size in wanted(question.choices, role, allowed)
    ]
    largest = max(asked)
    if not fitting:
        used = memory_of(
            model,
            gpu,
            Deployment(
                data=largest,
                max_model_len=question.choices.max_model_len,
                max_num_batched_tokens=2048,
            ),
        )
        needed = used.weights + used.reserve + used.kv_wanted
        return (
            f"{question.model_name} does not fit: even {largest} {gpu.name} need "
            f"{needed / GPU_SHARE / 1e9:.0f} GB each (weights {used.weights / 1e9:.0f}, reserve "
            f"{used.reserve / 1e9:.0f}, KV cache of one sequence of "
            f"{question.choices.max_model_len:,} tokens {used.kv_wanted / 1e9:.1f}; vLLM uses "
            f"{GPU_SHARE:.0%}), and have {gpu.memory / 1e9:.0f}: use GPUs with more memory, more "
            "of them, or a lower --max-model-len"
        )
    fastest = _fastest(question, allowed)
    text = (
        f"no layout meets TTFT p90 {question.objective.ttft:g} s and ITL "
        f"{question.objective.itl * 1e3:g} ms for prompts of {load.prompt:g} and outputs of "
        f"{load.output:g} tokens"
    )
    if question.objective.price < math.inf:
        text += f" at ${question.objective.price:g} per million output tokens"
    nodes = f"at most {MOST_NODES:,}" if question.nodes is None else f"{question.nodes}"
    text += f" on {nodes} nodes of {gpu.per_node} {gpu.name}"
    text += "" if question.saturate else f" at {load.rate:g} requests/s"
    text += f" in at most {MOST_GROUPS:,} groups of a kind"
    if fastest is None:
        return f"{text}; not even one request can be served: use faster GPUs, or shorter prompts"
    return (
        f"{text}; a single request is predicted to get TTFT {fastest[0]:.2f} s and ITL "
        f"{fastest[1] * 1e3:.0f} ms at best: raise --ttft, --itl, --max-price or --nodes, or lower "
        "the load"
    )


def _fastest(question: Question, allowed: Sequence[int]) -> tuple[float, float] | None:
    """Return the lowest TTFT and ITL that any group reaches with a single request."""
    found = [
        served
        for role in (Role.MIXED, Role.PREFILL, Role.DECODE)
        for size in allowed
        for each in variants(
            question.model, question.gpu, question.known, role, size, question.load.context,
            question.choices,
        )
        if (served := each.group.serve(question.load, 1e-6)) is not None
    ]  # fmt: skip
    ttft = [each.ttft_p90 for each in found if each.ttft_p90]
    itl = [each.itl for each in found if each.itl]
    return (min(ttft), min(itl)) if ttft and itl else None

"""Clients of the simulated routers: each sends one request and records the outputs."""

import asyncio
from dataclasses import replace
from typing import Any

from vllm.exceptions import VLLMClientError
from vllm.outputs import RequestOutput

from serving.errors import ServingError, status_of
from serving.request_context import RequestContext, request_context_var
from tests.faults.cluster import Cluster, SimRouter
from tests.faults.history import Ended, Output, Piece, Submitted
from tests.faults.simulation import process_var
from tests.faults.traffic import Spec


async def run_client(cluster: Cluster, spec: Spec) -> None:
    """Wait for the request's time, send it, and wait until it ends."""
    process_var.set(f"client {spec.name}")
    await asyncio.sleep(spec.arrives)
    living = [router for router in cluster.routers if router.alive]
    router = living[spec.router % len(living)]
    context = RequestContext(tenant=spec.tenant, priority=spec.priority)
    history, loop = cluster.history, cluster.loop
    history.add(Submitted(loop.time(), spec.name, router.name))
    task = asyncio.create_task(_ask(cluster, router, spec, context))
    router.clients.add(task)
    task.add_done_callback(router.clients.discard)
    cancelled = False
    if spec.cancel_at is not None:
        done, _ = await asyncio.wait([task], timeout=spec.cancel_at)
        if not done:
            cancelled = task.cancel()
    how, message, retryable = "FINISHED", "", False
    try:
        if not await task:
            how = "CANCELLED"
    except asyncio.CancelledError:
        if asyncio.current_task().cancelling():  # type: ignore[union-attr]
            raise
        how = "CANCELLED" if cancelled else "DIED"
    except ServingError as error:
        status = status_of(error)
        how, message, retryable = status.reason, str(error), status.retryable
    except VLLMClientError as error:
        how, message = "INVALID_REQUEST", str(error)
    except Exception as error:  # noqa: BLE001  the validators want to know
        how, message = "INTERNAL", f"{type(error).__name__}: {error}"
    history.add(Ended(loop.time(), spec.name, how, message, retryable, context.record.resumes))


async def _ask(cluster: Cluster, router: SimRouter, spec: Spec, context: RequestContext) -> bool:
    """Read all outputs; return False if the client disconnected before the end."""
    history, loop = cluster.history, cluster.loop
    if spec.deadline is not None:
        context = replace(context, deadline=loop.time() + spec.deadline)
    request_context_var.set(context)
    prompt: Any = {"type": "token", "prompt_token_ids": list(spec.prompt)}
    outputs = router.client.generate(
        prompt, spec.sampling_params(), spec.name, priority=spec.priority
    )
    taken = 0
    try:
        async for output in outputs:
            history.add(_event(loop.time(), spec.name, output))
            taken += 1
            if taken == spec.cancel_after and not output.finished:
                return False
            if spec.slow and not output.finished:
                await asyncio.sleep(spec.slow)
    finally:
        await outputs.aclose()
    return True


def _event(now: float, name: str, output: RequestOutput) -> Output:
    return Output(
        now,
        name,
        tuple(
            Piece(
                choice.index,
                tuple(choice.token_ids),
                choice.text,
                None
                if choice.logprobs is None
                else tuple(next(iter(position)) for position in choice.logprobs),
                choice.finish_reason,
                choice.stop_reason,
            )
            for choice in output.outputs
        ),
        output.finished,
        len(output.prompt_logprobs) if output.prompt_logprobs else None,
    )

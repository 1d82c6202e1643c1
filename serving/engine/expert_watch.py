"""Reads the workers' expert counts now and then, so that telling the load never waits."""

import asyncio
import logging

from vllm.v1.engine.async_llm import AsyncLLM

from serving.clock import Clock
from serving.link.v1 import link_pb2

_log = logging.getLogger(__name__)

_INTERVAL = 1.0
"""Least seconds between two questions to the workers: each runs between two engine steps."""

_TIMEOUT = 60.0
"""Seconds until a question without answer is given up."""


class ExpertWatch:
    """Which experts the rank's workers hold and how many tokens each has computed."""

    def __init__(self, llm: AsyncLLM, clock: Clock) -> None:
        """Know nothing yet."""
        self._llm = llm
        self._clock = clock
        self._asked = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self.placement = link_pb2.ExpertPlacement()
        """Experts of this rank; empty for a model without."""
        self.loads: list[link_pb2.LayerExpertLoad] = []
        """Tokens by layer, as of the last answer; without counts where nobody counts."""

    def refresh(self) -> None:
        """Ask again in the background if the last answer is old; does not wait."""
        idle = self._task is None or self._task.done()
        if idle and self._clock.monotonic() - self._asked >= _INTERVAL:
            self._task = asyncio.create_task(self._refresh(), name="expert-watch")

    async def update(self) -> None:
        """Ask the workers and wait for the answer.

        Raises:
            TimeoutError: none came.
            Exception: whatever vLLM raises when its engine is gone.
        """
        self._asked = self._clock.monotonic()
        async with asyncio.timeout(_TIMEOUT):
            workers = await self._llm.collective_rpc("moe_serving_expert_load")
        # With tensor parallelism each worker holds a share of the rank's experts.
        layers: dict[str, dict[int, int | None]] = {}
        total = 0
        for worker in workers:
            for name, experts, local_ids, tokens in worker:
                total = experts
                counts = tokens or [None] * len(local_ids)
                layers.setdefault(name, {}).update(zip(local_ids, counts, strict=True))
        if not layers:
            return
        local_ids = sorted(next(iter(layers.values())))
        self.placement = link_pb2.ExpertPlacement(total=total, local_ids=local_ids)
        self.loads = [
            link_pb2.LayerExpertLoad(
                layer=name, tokens=[count or 0 for _, count in sorted(counts.items())]
            )
            for name, counts in layers.items()
            if None not in counts.values()
        ]

    async def stop(self) -> None:
        """End a question that is still open."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _refresh(self) -> None:
        try:
            await self.update()
        except Exception as error:  # noqa: BLE001  health is told elsewhere; counts can wait
            _log.debug("no expert counts from the workers: %r", error)

"""Files and batches of one router: storage, scheduler and runner, started and stopped together."""

import asyncio
from collections.abc import Callable, Mapping

from serving.batch.line_requests import SendLine
from serving.batch.model_schedulers import ModelSchedulers
from serving.batch.records import Batch, NewBatch
from serving.batch.runner import BatchRunner
from serving.batch.scheduler import ModelSource
from serving.batch.store import BatchStore
from serving.clock import Clock
from serving.settings import BatchSettings


class BatchService:
    """Batches of a router."""

    def __init__(
        self,
        settings: BatchSettings,
        clock: Clock,
        *,
        sources: Mapping[str, ModelSource],
        weight_of: Callable[[str], float],
        max_line_bytes: int,
    ) -> None:
        """Open the storage; ``start`` begins to run batches.

        Args:
            settings: ``directory`` must be set.
            clock: The router's clock.
            sources: Groups, measurements and objectives by model.
            weight_of: Returns the weight of a tenant.
            max_line_bytes: Maximum length of a line, bytes.

        Raises:
            SettingsError: The storage cannot be used.
        """
        self._settings = settings
        self._clock = clock
        self.store = BatchStore(settings, clock, max_line_bytes=max_line_bytes)
        self.scheduler = ModelSchedulers(sources, weight_of)
        self.max_window = settings.max_window
        self.max_file_bytes = settings.max_file_bytes
        self.runner: BatchRunner | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, send: SendLine) -> None:
        """Start to run batches, those of an earlier process first.

        Args:
            send: Sends the request of a line.
        """
        self.runner = BatchRunner(self.store, self.scheduler, send, self._settings, self._clock)
        self._task = asyncio.create_task(self.runner.run())

    async def create(self, new: NewBatch) -> Batch:
        """Create a batch and start it.

        Raises:
            ResourceNotFound: The tenant has no such input file.
            Overloaded: The tenant has too many batches.
        """
        batch = await self.store.run(self.store.batches.create, new)
        self._look()
        return batch

    async def cancel(self, tenant: str, batch_id: str) -> Batch:
        """Cancel a batch.

        Raises:
            ResourceNotFound: The tenant has no such batch.
            Conflict: The batch has ended, or its results are being written.
        """
        batch = await self.store.run(self.store.batches.cancel, tenant, batch_id)
        self._look()
        return batch

    async def pause(self) -> None:
        """Stop running batches: their lines leave the ranks. Files and batches stay readable."""
        if self.runner is not None:
            await self.runner.stop()

    async def stop(self) -> None:
        """Stop, and close the storage."""
        await self.pause()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self.store.close()

    def _look(self) -> None:
        if self.runner is not None:
            self.runner.look_soon()

"""One scheduler of lines for each model.

A line waits for room on the ranks of its model only, and is preempted by requests for its model
only.
"""

from collections.abc import Callable, Mapping

from serving.batch.scheduler import LineScheduler, ModelSource
from serving.request_context import RequestContext
from serving.routing.snapshot import RankId


class ModelSchedulers:
    """Implements ``request_context.Yielding``."""

    def __init__(
        self,
        sources: Mapping[str, ModelSource],
        weight_of: Callable[[str], float],
    ) -> None:
        """Start without lines.

        Args:
            sources: Groups, measurements and objectives by model, at least one.
            weight_of: Returns the weight of a tenant.
        """
        self.by_model = {
            model: LineScheduler(source, weight_of) for model, source in sources.items()
        }
        self._first = next(iter(self.by_model.values()))

    @property
    def running(self) -> int:
        """Number of lines on ranks."""
        return sum(each.running for each in self.by_model.values())

    @property
    def waiting(self) -> int:
        """Number of lines that wait for their turn."""
        return sum(each.waiting for each in self.by_model.values())

    async def turn(self, context: RequestContext, tokens: int, prompt_tokens: int) -> None:
        """Wait until a rank of the line's model has room; see ``Yielding.turn``."""
        await self._of(context).turn(context, tokens, prompt_tokens)

    def placed(
        self, context: RequestContext, rank: RankId, give_way: Callable[[], None]
    ) -> Callable[[], None]:
        """Record that a line runs on a rank; see ``Yielding.placed``."""
        return self._of(context).placed(rank, give_way)

    def declined(self, context: RequestContext) -> None:
        """Record that no rank took a line; see ``Yielding.declined``."""
        self._of(context).declined()

    def stop(self) -> None:
        """Stop granting turns."""
        for each in self.by_model.values():
            each.stop()

    def _of(self, context: RequestContext) -> LineScheduler:
        """Return the scheduler of a line; a router with one model does not note its name."""
        model = context.record.model
        return self._first if model is None else self.by_model[model]

"""Lines of a model wait for ranks, and are preempted on ranks, of only their model."""

import asyncio

import pytest

from serving.batch.model_schedulers import ModelSchedulers
from serving.batch.scheduler import ModelSource
from serving.request_context import RequestContext
from serving.settings import BatchSettings
from serving.telemetry.model_counters import ModelCounters
from tests.support.fleets import fleet, group, rank
from tests.support.waiting import eventually, loop_turns


class Models:
    """Models ``a`` and ``b`` with one rank each, for two lines."""

    def __init__(self):
        self.others = {"a": 0, "b": 0}
        self.stopped = []
        self.lines = {"a": [], "b": []}
        self.schedulers = ModelSchedulers(
            {
                name: ModelSource(
                    lambda name=name: fleet(group(self.rank(name), name=name)),
                    BatchSettings(max_step_growth=0, peak_window=0),
                    ModelCounters(),
                )
                for name in "ab"
            },
            lambda _: 1.0,
        )

    def rank(self, model):
        inflight = self.others[model] + len(self.lines[model])
        return rank(0, group=model, inflight=inflight, max_num_seqs=2)

    async def run(self, model):
        context = RequestContext()
        context.record.model = model
        await self.schedulers.turn(context, 1, 1)
        where = self.rank(model).rank_id

        def give_way():
            self.stopped.append(model)
            self.lines[model].pop()()

        self.lines[model].append(self.schedulers.placed(context, where, give_way))


@pytest.fixture
async def on():
    models = Models()
    tasks = []
    models.start = lambda model: tasks.append(asyncio.create_task(models.run(model)))
    yield models
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    models.schedulers.stop()


async def test_lines_of_a_busy_model_do_not_delay_those_of_another(on):
    on.others["a"] = 1
    for model in "aab":
        on.start(model)
    await eventually(lambda: on.lines["b"], "the line of b")
    await loop_turns(5)
    assert (on.schedulers.running, on.schedulers.waiting) == (1, 2)
    on.others["a"] = 0
    await eventually(lambda: len(on.lines["a"]) == 2, "the lines of a")


async def test_a_request_takes_the_place_of_lines_of_its_model_only(on):
    for model in "abab":
        on.start(model)
    await eventually(lambda: on.schedulers.running == 4, "all lines")
    assert on.schedulers.by_model["a"].make_room()
    assert on.stopped == ["a"]
    on.others["a"] = 1
    on.schedulers.by_model["a"].arrived(on.rank("a").rank_id)
    assert on.stopped == ["a", "a"]
    assert len(on.lines["b"]) == 2


async def test_a_line_that_was_declined_frees_its_turn_at_its_model(on):
    for model in "ab":
        context = RequestContext()
        context.record.model = model
        for _ in range(3):  # more often than there are places
            await on.schedulers.turn(context, 1, 1)
            on.schedulers.declined(context)
    assert on.schedulers.waiting == 0


async def test_without_a_name_a_line_is_of_the_first_model(on):
    await on.schedulers.turn(RequestContext(), 1, 1)
    leave = on.schedulers.placed(RequestContext(), on.rank("a").rank_id, lambda: None)
    assert on.schedulers.by_model["a"].running == 1
    leave()
    assert on.schedulers.running == 0

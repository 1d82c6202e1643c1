"""RequestRunner: every request ends exactly once, regardless of what router and engine do."""

import asyncio

import pytest

from serving.engine.generating import GeneratingEngine
from serving.engine.router_link.request_runner import RequestRunner
from serving.engine.router_link.send_queue import SendQueue
from serving.link.v1 import link_pb2
from tests.support.waiting import PATIENCE, eventually

CODES = link_pb2.RequestError


class Engine(GeneratingEngine):
    """Runs a script per prompt: tokens to yield, None to wait forever, an exception to raise."""

    def __init__(self):
        self.scripts = {}
        self.running = set()
        self.seen = []

    async def generate(self, work):
        self.seen.append(work.request_id)
        self.running.add(work.request_id)
        try:
            for item in self.scripts.get(work.prompt_token_ids[0], [1, "end"]):
                await asyncio.sleep(0)
                if item is None:
                    await asyncio.Event().wait()
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield link_pb2.Delta(request_id=work.request_id, finished=item == "end")
        finally:
            self.running.discard(work.request_id)


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def send_queue():
    return SendQueue(100, 2**20)


@pytest.fixture
async def runner(engine, send_queue):
    troubles = []
    runner = RequestRunner(
        engine, send_queue, prefix="p/", report_trouble=lambda: troubles.append(1)
    )
    runner.troubles = troubles
    yield runner
    runner.abort_all()


def work(name="a", *prompt):
    return link_pb2.Submit(
        request_id=name, prompt_token_ids=prompt or (1,), sampling_params=b"\x80"
    )


async def deltas(send_queue):
    async with asyncio.timeout(PATIENCE):
        return [delta for frame in await send_queue.frames() for delta in frame.deltas]


async def test_runs_under_its_own_id_and_answers_under_the_routers(runner, engine, send_queue):
    runner.submit(work())
    await runner.idle()
    assert engine.seen == ["p/a"]
    got = await deltas(send_queue)
    assert [(each.request_id, each.finished) for each in got] == [("a", False), ("a", True)]
    assert runner.running == 0


@pytest.mark.parametrize(
    ("submits", "code", "words"),
    [
        pytest.param([work("", 1)], CODES.INVALID_REQUEST, "no id", id="no id"),
        pytest.param(
            [link_pb2.Submit(request_id="a")], CODES.INVALID_REQUEST, "no tokens", id="no prompt"
        ),
        pytest.param(
            [work("a", 9), work("a", 9)], CODES.INVALID_REQUEST, "already running", id="duplicate"
        ),
    ],
)
async def test_bad_submit_is_answered_not_raised(runner, engine, send_queue, submits, code, words):
    engine.scripts[9] = [None]
    for each in submits:
        runner.submit(each)
    (answer,) = await deltas(send_queue)
    assert answer.finished
    assert answer.error.code == code
    assert words in answer.error.message


@pytest.mark.parametrize(
    ("script", "words"),
    [
        pytest.param([1, RuntimeError("secret")], "RuntimeError in the engine", id="raises"),
        pytest.param([1], "without a final delta", id="just ends"),
    ],
)
async def test_engine_that_breaks_its_word_fails_the_request(
    runner, engine, send_queue, script, words
):
    engine.scripts[9] = script
    runner.submit(work("a", 9))
    await runner.idle()
    *_, last = await deltas(send_queue)
    assert last.finished
    assert last.error.code == CODES.ENGINE_FAILED
    assert words in last.error.message
    assert "secret" not in last.error.message


async def test_exception_has_the_health_looked_at(runner, engine):
    engine.scripts[9] = [RuntimeError()]
    runner.submit(work("a", 9))
    await runner.idle()
    assert runner.troubles


async def test_abort_closes_the_engines_generator_and_says_nothing(runner, engine, send_queue):
    engine.scripts[9] = [1, None]
    runner.submit(work("a", 9))
    await deltas(send_queue)
    assert engine.running == {"p/a"}
    runner.abort("a")
    runner.abort("unknown")
    await runner.idle()
    await eventually(lambda: not engine.running)
    waiter = asyncio.create_task(send_queue.frames())
    await asyncio.sleep(0)
    assert not waiter.done()
    waiter.cancel()


async def test_abort_before_the_first_step(runner, engine):
    runner.submit(work("a", 9))
    runner.abort("a")
    await runner.idle()
    await eventually(lambda: not engine.running)


async def test_drain_refuses_new_ones_and_lets_the_running_ones_end(runner, engine, send_queue):
    runner.submit(work("old"))
    runner.drain("scale down")
    runner.submit(work("new"))
    await runner.idle()
    by_name = {}
    for each in await deltas(send_queue):
        by_name[each.request_id] = each
    assert by_name["old"].finished
    assert not by_name["old"].HasField("error")
    assert by_name["new"].error.code == CODES.DRAINING


async def test_abort_all_ends_everything(runner, engine):
    engine.scripts[9] = [None]
    for name in "abc":
        runner.submit(work(name, 9))
    await asyncio.sleep(0)
    runner.abort_all()
    assert runner.running == 0
    await eventually(lambda: not engine.running)


async def test_a_complete_request_ends_and_says_nothing(runner, engine, send_queue):
    engine.scripts[9] = [1, None]
    runner.submit(work("a", 9))
    assert [each.request_id for each in await deltas(send_queue)] == ["a"]
    runner.complete("a", 0)
    runner.complete("unknown", 0)
    assert runner.running == 0
    runner.abort("a")
    await eventually(lambda: not engine.running)

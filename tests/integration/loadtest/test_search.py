"""Searches for the highest rate, on tiny servers."""

import asyncio
import itertools

import pytest

from loadtest import search as search_module
from loadtest.cpu_steal import CpuSteal
from loadtest.runner import run_load
from loadtest.slo import Tried
from tests.integration.loadtest.asking import been_asked, options
from tests.support.waiting import PATIENCE


async def test_a_search_ends_with_an_answer(server):
    line = ("--slo-ttft-ms", "60000", "--start", "50", "--most", "100", "--duration", "0.1")
    run = await run_load(options(server, *line, "--trial-requests", "5", command="search"), "x")
    assert run.answer == pytest.approx(100)
    assert "No rate missed" in run.notes[0]


async def test_a_search_finds_its_first_rate(server):
    line = ("--slo-ttft-ms", "60000", "--most", "40", "--duration", "0.2", "--trial-requests", "5")
    run = await run_load(options(server, *line, command="search"), "x")
    assert run.stages[0].label == "32 streams"
    assert run.answer == pytest.approx(40)
    assert all(trial.rate <= 40 for trial in run.trials)


async def test_a_search_run_again_sends_as_much_at_the_same_times_but_other_texts(server):
    """A repeated search must not find its texts in the server's prefix cache."""
    line = ("--slo-ttft-ms", "60000", "--start", "50", "--most", "50", "--duration", "0.1",
            "--trial-requests", "5", "--prompt-tokens", "20:90")  # fmt: skip
    texts, lengths = [], []
    for _ in range(2):
        server.app.asked.clear()
        await run_load(options(server, *line, command="search"), "x")
        asked = [request["messages"][0]["content"] for request in server.app.asked[2:]]
        texts.append(set(asked))
        lengths.append(sorted(len(text.split()) for text in asked))
    assert not texts[0] & texts[1]
    assert lengths[0] == lengths[1]
    assert len(set(lengths[0])) > 1


async def test_searches_in_turn_answer_each_for_itself(server):
    line = ("--slo-ttft-ms", "60000", "--start", "50", "--most", "100", "--duration", "0.1",
            "--trial-requests", "5", "--searches", "3")  # fmt: skip
    run = await run_load(options(server, *line, command="search"), "x")
    assert run.answer == pytest.approx(100)
    assert [trial.search for trial in run.trials] == [1, 2, 3] * (len(run.trials) // 3)
    first, second, _ = (
        [(trial.rate, trial.purpose) for trial in run.trials if trial.search == number]
        for number in (1, 2, 3)
    )
    assert first == second
    assert (
        run.notes[0] == "Results of 3 interleaved searches, requests/s: 100, 100, 100; spread 0%."
    )
    dues = [
        [record.intended - stage.began for record in run.records if record.stage == stage.index]
        for stage in run.stages[:3]
    ]
    assert dues[0] != dues[1] != dues[2]


async def test_one_search_in_turn_may_end_before_the_other(server, monkeypatch):
    turn = itertools.count()

    async def trial(self, rate, pattern):
        # The server is faster during the first search, which makes more trials before it settles.
        return Tried(float(rate <= (80 if next(turn) % 2 == 0 else 3))), False

    monkeypatch.setattr(search_module.Trials, "run_trial", trial)
    line = ("--slo-ttft-ms", "60000", "--start", "2", "--trials", "4", "--searches", "2")
    async with asyncio.timeout(PATIENCE):
        run = await run_load(options(server, *line, command="search"), "x")
    made = [sum(trial.search == number for trial in run.trials) for number in (1, 2)]
    assert made[0] > made[1]
    assert "Results of 2 interleaved searches" in run.notes[0]


@pytest.mark.parametrize("searches", ["1", "2"])
async def test_a_search_that_is_cut_off_keeps_its_trials(server, searches):
    line = ("--slo-ttft-ms", "60000", "--start", "50", "--duration", "0.2", "--trial-requests", "5",
            "--searches", searches)  # fmt: skip
    searching = asyncio.create_task(run_load(options(server, *line, command="search"), "x"))
    async with asyncio.timeout(PATIENCE):
        await been_asked(server, 40)
        await server.die()
        run = await searching
    assert run.trials
    assert run.answer is None
    assert "did not finish; highest rate of a met trial: " in run.found


@pytest.mark.parametrize(
    ("stolen", "trials", "noted"),
    [
        pytest.param(0.0, 1, False, id="quiet"),
        pytest.param(0.02, 1, False, id="little"),
        pytest.param(0.2, 3, True, id="busy"),
    ],
)
async def test_trials_that_miss_on_a_busy_host_are_tried_again(
    server, monkeypatch, stolen, trials, noted
):
    monkeypatch.setattr(CpuSteal, "share", lambda self: stolen)
    server.app.status = 500
    line = ("--slo-itl-ms", "1000", "--start", "1000", "--duration", "0.1", "--trial-requests", "5",
            "--tokens-per-word", "1")  # fmt: skip
    run = await run_load(options(server, *line, command="search"), "x")
    assert run.answer is None
    assert len(run.stages) == trials * len(run.trials)
    assert any("(steal)" in note for note in run.notes) == noted

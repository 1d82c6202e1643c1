"""Reports of decisions: their content, and that a failing router delays nothing."""

import asyncio
import json

import httpx
import pytest

from serving.autoscaler.decision import Decision, Vote, VoteKind
from serving.autoscaler.reports import DecisionReports, report
from serving.autoscaler.signals import FleetCounts, Observation, Reading, Signal
from serving.console.decisions import DecisionLog
from serving.settings import AutoscalerSettings
from tests.support.waiting import eventually

VOTE = Vote("queue", VoteKind.STAY, 2, "r" * 2000)
DECISION = Decision(5.0, 1, 2, "more load", (VOTE,), blind=False)
SEEN = Observation(1, FleetCounts(1, 0), {Signal.TOKEN_RATE: Reading(3.5, 1.0, 0.0)})


def test_a_router_takes_what_is_sent():
    log = DecisionLog()
    log.add(json.dumps(report(DECISION, SEEN, "m/p", dry_run=True)).encode())
    [pool] = json.loads(log()["autoscaling"])["pools"]
    assert (pool["pool"], pool["sizes"]) == ("m/p", [[5, 2, 1]])
    assert pool["changes"][0]["dry_run"]
    assert pool["newest"]["signals"] == {str(Signal.TOKEN_RATE): 3.5}


async def test_every_router_gets_every_decision_with_the_key(tmp_path):
    (tmp_path / "key").write_text("moe-key\n")
    settings = AutoscalerSettings(
        routers=("http://127.0.0.1:1/prefix", "http://127.0.0.1:2"),
        api_key_file=str(tmp_path / "key"),
    )
    seen = []

    def answer(request):
        seen.append((str(request.url), request.headers["authorization"]))
        if request.url.port == 1:
            raise httpx.ConnectError("refused")
        return httpx.Response(404)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        reports = DecisionReports(client, settings)
        reports.send(DECISION, SEEN)
        reports.send(DECISION, SEEN)
        await eventually(lambda: len(seen) == 4)
        await reports.close()
    assert set(seen) == {
        ("http://127.0.0.1:1/prefix/console/api/autoscaler", "Bearer moe-key"),
        ("http://127.0.0.1:2/console/api/autoscaler", "Bearer moe-key"),
    }


@pytest.mark.parametrize("sent", [1, 200])
async def test_unsent_reports_are_bounded_and_end_with_the_autoscaler(sent):
    waiting = []

    async def never(_request):
        waiting.append(asyncio.current_task())
        await asyncio.Event().wait()

    async with httpx.AsyncClient(transport=httpx.MockTransport(never)) as client:
        reports = DecisionReports(client, AutoscalerSettings())
        for _ in range(sent):
            reports.send(DECISION, SEEN)
        await eventually(lambda: len(waiting) == min(sent, 64))
        await reports.close()
    assert all(task.done() for task in waiting)

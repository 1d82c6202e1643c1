"""Leader and followers over real connections, with fake workers."""

import asyncio
import contextlib
import dataclasses

import pytest

from serving.engine.fabric import link as links
from serving.engine.fabric.facts import Facts
from serving.engine.fabric.plan import FabricError, Plan
from serving.engine.fabric.report import table
from serving.engine.fabric.run import run_peer
from serving.engine.fabric.workers import Ready
from tests.support.ports import held_port
from tests.support.waiting import eventually

SAME = {"moe-serving": "1.0"}
TIMEOUT = 16.0


class FakeWorkers:
    """Workers that immediately report a test's messages, by default a result."""

    def __init__(self, reports=None, *, ready=None, broken=""):
        self.reports = reports
        self.ready = ready or Ready(1, "gloo")
        self.broken = broken
        self.jobs = {}
        self.closed = False

    async def prepare(self):
        if self.broken:
            raise FabricError(self.broken)
        return self.ready

    def start(self, jobs, report):
        self.jobs |= jobs
        for number, job in jobs.items():
            if job["rank"] == 0:
                report(number, {"event": "store", "port": 7})
            step = {
                "event": "step",
                "ordinal": 1,
                "text": "create the process group",
                "partner": None,
            }
            report(number, step)
            for one in self.results(job) if self.reports is None else self.reports:
                report(number, one)

    def results(self, job):
        others = range(job["world"] // job["workers"])
        mine = job["rank"] // job["workers"]
        yield {
            "event": "result",
            "rates": {str(peer): 2e9 for peer in others if peer != mine},
            "seconds": 0.01,
            "checked": 100,
            "network": "",
            "deep_ep": "not checked: not installed",
        }

    async def close(self):
        self.closed = True


@pytest.fixture
def port():
    return held_port()


def plan(port, peers, index, timeout=TIMEOUT):
    return Plan(peers, index, "127.0.0.1", port, timeout=timeout)


async def play(port, pools, *, facts=None, timeout=TIMEOUT, peers=None, skip=()):
    """Run a peer for each pool; return the result of each, and the leader's output."""
    lines = []
    count = peers or len(pools)
    facts = facts or {}
    runs = [
        run_peer(
            plan(port, count, index, timeout),
            facts.get(index, Facts(index, f"pod-{index}", same=SAME)),
            pool,
            lines.append if index == 0 else lambda text: None,
        )
        for index, pool in enumerate(pools)
        if index not in skip
    ]
    ends = await asyncio.gather(*runs, return_exceptions=True)
    assert all(pool.closed for index, pool in enumerate(pools) if index not in skip)
    return [str(end) if isinstance(end, BaseException) else end for end in ends], lines


@pytest.mark.parametrize("peers", [1, 2, 4])
async def test_all_is_well(port, peers):
    pools = [FakeWorkers(ready=Ready(2, "gloo")) for _ in range(peers)]
    (findings, *others), _ = await play(port, pools)
    assert others == [None] * (peers - 1)
    assert len(findings.measured) == 2 * peers
    jobs = [pool.jobs[number] for pool in pools for number in (0, 1)]
    assert [job["rank"] for job in jobs] == list(range(2 * peers))
    # All workers except the one that opens the store get its port.
    assert {job["store_port"] for job in jobs[1:]} == {7}
    # Two workers per peer, 2 GB/s each.
    assert set(findings.pair_rates().values()) == ({4e9} if peers > 1 else set())
    text = table(findings)
    assert f"{2 * peers} workers (2 per peer)" in text
    assert ("0-1     4.000" in text) == (peers > 1)


async def test_a_peer_that_never_comes_is_named(port):
    ends, lines = await play(port, [FakeWorkers(), FakeWorkers()], peers=4)
    assert "peer 2; peer 3 did not join" in ends[0]
    assert "(joined: peer 0, peer 1)" in ends[0]
    # The peer that joined also gets the reason.
    assert ends[1] == ends[0]
    assert any(text.startswith("waiting for peer") for text in lines)


async def test_a_leader_that_never_comes(port):
    ends, _ = await play(port, [FakeWorkers(), FakeWorkers()], skip={0})
    assert f"the leader (peer 0, 127.0.0.1:{port}) did not respond" in ends[0]
    assert "refused the connection" in ends[0]


async def test_another_version_is_refused_at_both(port):
    other = Facts(1, "pod-1", same={"moe-serving": "0.9"})
    ends, _ = await play(port, [FakeWorkers(), FakeWorkers()], facts={1: other})
    assert "moe-serving 0.9 at peer 1 (pod-1), 1.0 at peer 0 (pod-0)" in ends[0]
    assert ends[0] in ends[1]


async def test_a_peers_own_problem_is_told_at_the_leader(port):
    other = Facts(1, "pod-1", same=SAME, problems=("memlock is too low",))
    ends, _ = await play(port, [FakeWorkers(), FakeWorkers()], facts={1: other})
    assert ends == ["peer 1 (pod-1): memlock is too low"] * 2


async def test_workers_that_do_not_start(port):
    ends, _ = await play(port, [FakeWorkers(), FakeWorkers(broken="no GPU here")])
    assert ends[0] == ends[1]
    assert ends[0].startswith("peer 1 (pod-1, 127.0.0.1): no GPU here")
    ends, _ = await play(port, [FakeWorkers(broken="no GPU here"), FakeWorkers()])
    assert ends[0].startswith("peer 0 (pod-0, 127.0.0.1): no GPU here")


async def test_pods_with_different_gpus(port):
    ends, _ = await play(port, [FakeWorkers(), FakeWorkers(ready=Ready(4, "nccl"))])
    assert "peer 1 (pod-1) has 4 workers on nccl, peer 0 has 1 on gloo" in ends[0]


async def test_wrong_data(port):
    wrong = {"event": "error", "kind": "contents", "text": "1 of 9 words"}
    ends, _ = await play(port, [FakeWorkers(), FakeWorkers([wrong])])
    assert ends[0] == ends[1] == "wrong data at worker 0 of peer 1 (pod-1, 127.0.0.1): 1 of 9 words"


async def test_two_peers_whose_nics_move_nothing(port):
    def at(partner):
        step = {"event": "step", "ordinal": 2, "text": f"exchange with peer {partner}"}
        return FakeWorkers([step | {"partner": partner}])

    ends, _ = await play(port, [at(None), at(2), at(1)])
    assert "peer 1 (pod-1, 127.0.0.1) and peer 2 (pod-2, 127.0.0.1) exchange no data" in ends[0]
    assert ends[1] == ends[2] == ends[0]


def start(port, index, pool, *, peers=2, timeout=60.0, name=None, said=None):
    """Run one peer in the background."""
    facts = Facts(index, name or f"pod-{index}", same=SAME)
    say = (lambda text: None) if said is None else said.append
    return asyncio.create_task(run_peer(plan(port, peers, index, timeout), facts, pool, say))


async def test_a_peer_that_starts_again_while_the_others_wait_is_taken_back(port):
    lines = []
    leader = start(port, 0, FakeWorkers(), peers=3, said=lines)
    first = start(port, 1, FakeWorkers(), peers=3)
    await eventually(lambda: any(text.startswith("peer 1 has joined") for text in lines))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    again = start(port, 1, FakeWorkers(), peers=3, name="again")
    await eventually(lambda: "peer 1 has joined: again, 127.0.0.1" in lines)
    findings, *others = await asyncio.gather(leader, again, start(port, 2, FakeWorkers(), peers=3))
    assert others == [None, None]
    assert findings.facts[1].name == "again"


async def test_a_peer_that_starts_again_during_the_check_is_too_late(port):
    pools = [FakeWorkers(), FakeWorkers([])]
    runs = [start(port, index, pool) for index, pool in enumerate(pools)]
    await eventually(lambda: pools[1].jobs)
    with pytest.raises(FabricError, match="rejected this peer: the check has already started"):
        await start(port, 1, FakeWorkers(), name="late")
    # The running check is not disturbed.
    assert not any(run.done() for run in runs)
    runs[0].cancel()
    ends = await asyncio.gather(*runs, return_exceptions=True)
    assert str(ends[1]) == "the leader is stopping"


async def test_a_peer_that_is_stopped_says_so(port):
    pools = [FakeWorkers(), FakeWorkers([])]
    runs = [start(port, index, pool) for index, pool in enumerate(pools)]
    await eventually(lambda: pools[1].jobs)
    runs[1].cancel()
    ends = await asyncio.gather(*runs, return_exceptions=True)
    assert isinstance(ends[1], asyncio.CancelledError)
    assert str(ends[0]) == "peer 1 (pod-1, 127.0.0.1) disconnected: it is stopping"
    assert all(pool.closed for pool in pools)


async def test_strangers_and_second_comers_do_no_harm(port):
    pools = [FakeWorkers(), FakeWorkers(), FakeWorkers()]
    lines = []
    leader = asyncio.create_task(
        run_peer(plan(port, 3, 0), Facts(0, "pod-0", same=SAME), pools[0], lines.append)
    )
    for junk in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"t":"hello"}\n', b"\xff\xfe\n", b""):
        with contextlib.suppress(OSError):
            for _ in range(50):
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.05)
                    continue
                writer.write(junk)
                await writer.drain()
                writer.close()
                break
    first = asyncio.create_task(
        run_peer(plan(port, 3, 1), Facts(1, "pod-1", same=SAME), pools[1], lambda text: None)
    )
    while not any(text.startswith("peer 1 has joined") for text in lines):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    twin = FakeWorkers()
    with pytest.raises(FabricError, match="pod-1 and twin both joined as peer 1"):
        await run_peer(plan(port, 3, 1), Facts(1, "twin", same=SAME), twin, lambda text: None)
    last = run_peer(plan(port, 3, 2), Facts(2, "pod-2", same=SAME), pools[2], lambda text: None)
    findings, *others = await asyncio.gather(leader, first, last)
    assert len(findings.measured) == 3
    assert others == [None, None]


async def test_silence_is_noticed_and_told_by_pairs(port, monkeypatch):
    """Only peer 2's heartbeats to peer 1 are lost."""
    monkeypatch.setattr(links.Link, "to_follower", False, raising=False)
    original = links.Link.send

    def send(self, message):
        if message["t"] == "mesh":
            self.to_follower = True
        if message["t"] != "ping" or not self.to_follower:
            original(self, message)

    monkeypatch.setattr(links.Link, "send", send)
    pools = [FakeWorkers([]), FakeWorkers([]), FakeWorkers([])]
    # Longer than the silence, so that the stall is not detected first.
    plans = [dataclasses.replace(plan(port, 3, index), timeout=32.0) for index in range(3)]
    monkeypatch.setattr(Plan, "stall", 12.0)
    ends = await asyncio.gather(
        *(
            run_peer(one, Facts(one.index, f"pod-{one.index}", same=SAME), pool, lambda text: None)
            for one, pool in zip(plans, pools, strict=True)
        ),
        return_exceptions=True,
    )
    assert str(ends[0]).startswith(
        "peer 1 (pod-1, 127.0.0.1) and peer 2 (pod-2, 127.0.0.1) cannot reach each other"
    )
    assert str(ends[1]) == str(ends[2]) == str(ends[0])

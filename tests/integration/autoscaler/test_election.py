"""Leader election by a Lease in the fake API server."""

import asyncio
import copy
import http
import itertools
import os
import sys
from pathlib import Path

import pytest

from serving.autoscaler.actuators.lease import LeaseElection
from tests.integration.autoscaler.kube import LEASE, SETTINGS, fail_once
from tests.integration.autoscaler.test_kubernetes import api_error
from tests.kube import objects, rbac
from tests.support.clock import ManualClock
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[3]
CANDIDATE = Path(__file__).with_name("candidate.py")


def put_lease(kube, **spec):
    """Create the Lease as the chart renders it."""
    kube.create(
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": LEASE, "namespace": "default"},
            **spec,
        }
    )


def lease(kube):
    return kube.get("leases", LEASE)["spec"]


async def test_one_of_two_leads_and_the_other_takes_over(kube, connect):
    clock = ManualClock()
    first, second = (LeaseElection(connect(), SETTINGS, name, clock) for name in ("a", "b"))
    await first.acquire_or_renew()
    await second.acquire_or_renew()
    assert (first.leading, second.leading) == (True, False)
    for _ in range(4):  # renewed: the other one waits
        clock.now += 8.0
        await first.acquire_or_renew()
        await second.acquire_or_renew()
        assert (first.leading, second.leading) == (True, False)
    clock.now += 10.5  # the first one is disconnected: it stops before the other one may start
    assert not first.leading
    await second.acquire_or_renew()
    assert not second.leading
    clock.now += 5.0
    await second.acquire_or_renew()
    assert second.leading
    await first.acquire_or_renew()
    assert not first.leading
    assert (lease(kube)["holderIdentity"], lease(kube)["leaseTransitions"]) == ("b", 1)


async def test_a_dead_leader_is_followed_within_the_lease_and_five_seconds(kube, connect):
    """With a manual clock, the candidate tries as often as in a pod."""
    clock = ManualClock()
    dead, other = (LeaseElection(connect(), SETTINGS, name, clock) for name in ("a", "b"))
    await dead.acquire_or_renew()
    died = clock.now + 0.01
    clock.now += 0.9  # the worst case: it has just not tried
    tries = []

    async def pause(seconds):
        tries.append(clock.now)
        clock.now += seconds
        if other.leading:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await other.run(pause)
    assert tries[-1] - died <= SETTINGS.lease_seconds + 2
    assert max(b - a for a, b in itertools.pairwise(tries)) <= 1.01


async def test_a_released_lease_is_taken_at_once(kube, connect):
    clock = ManualClock()
    first, second = (LeaseElection(connect(), SETTINGS, name, clock) for name in ("a", "b"))
    await first.acquire_or_renew()
    await first.release()
    assert not first.leading
    await second.acquire_or_renew()
    assert second.leading
    await first.release()  # it does not hold the lease
    assert lease(kube)["holderIdentity"] == "b"


@pytest.mark.parametrize(
    "spec", [pytest.param({}, id="no-spec"), pytest.param({"spec": {}}, id="empty-spec")]
)
async def test_a_lease_of_the_chart_has_no_spec(kube, connect, spec):
    put_lease(kube, **spec)
    clock = ManualClock()
    first, second = (LeaseElection(connect(), SETTINGS, name, clock) for name in ("a", "b"))
    await first.acquire_or_renew()
    await second.acquire_or_renew()
    assert (first.leading, second.leading) == (True, False)
    assert lease(kube)["holderIdentity"] == "a"
    assert [seen.method for seen in kube.requests if seen.method == "POST"] == []


async def test_the_charts_rights_are_enough_for_the_charts_lease(kube, connect):
    put_lease(kube)
    rule = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": [LEASE]}
    for item in objects.service_account("scaler", "default", rule | {"verbs": ["get", "patch"]}):
        kube.create(item)
    token = rbac.service_account_token("default", "scaler")
    election = LeaseElection(connect(token=token), SETTINGS, "a", ManualClock())
    await election.acquire_or_renew()
    assert election.leading
    await election.release()
    assert lease(kube)["holderIdentity"] == ""


async def test_two_that_want_a_dead_lease_do_not_both_get_it(kube, connect):
    clock = ManualClock()
    dead, one, two = (LeaseElection(connect(), SETTINGS, name, clock) for name in "abc")
    await dead.acquire_or_renew()
    await one.acquire_or_renew()
    await two.acquire_or_renew()
    clock.now += 16.0
    get = two._api.get

    async def get_then_lose(*args):
        found = copy.deepcopy(await get(*args))
        await one.acquire_or_renew()
        return found

    two._api.get = get_then_lose
    await two.acquire_or_renew()
    assert (one.leading, two.leading) == (True, False)


async def test_two_that_create_it_do_not_both_get_it(kube, connect):
    one, two = (LeaseElection(connect(), SETTINGS, name, ManualClock()) for name in "ab")
    create = two._api.create

    async def late(*args):
        await one.acquire_or_renew()
        await create(*args)

    two._api.create = late
    await two.acquire_or_renew()
    assert (one.leading, two.leading) == (True, False)


async def test_a_renewal_that_the_server_cannot_read_is_none(kube, connect):
    clock = ManualClock()
    election = LeaseElection(connect(), SETTINGS, "a", clock)
    await election.acquire_or_renew()
    kube.faults.add(f"/leases/{LEASE}$", method="PATCH", status=http.HTTPStatus.BAD_REQUEST)
    clock.now += 10.5
    await election.acquire_or_renew()
    assert not election.leading


async def test_a_server_that_is_away_ends_leading_in_time(kube, connect, monkeypatch):
    clock = ManualClock()
    api = connect()
    election = LeaseElection(api, SETTINGS, "a", clock)
    await election.acquire_or_renew()
    fail_once(monkeypatch, api, *[api_error(500)] * 8)
    clock.now += 5.0
    await election.acquire_or_renew()
    assert election.leading  # its lease stays unchanged
    clock.now += 5.0
    await election.acquire_or_renew()
    assert not election.leading


async def test_a_killed_process_is_followed_by_the_other(kube, tmp_path):
    """Two processes, one lease: after the leader is killed (-9), the other one leads."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "KUBECONFIG": str(kube.kubeconfig(tmp_path / "kubeconfig")),
    }

    async def start(name):
        return await asyncio.create_subprocess_exec(
            sys.executable,
            CANDIDATE,
            LEASE,
            name,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )

    async def says(process, word):
        async with asyncio.timeout(PATIENCE):
            while (line := await process.stdout.readline()).strip().decode() != word:
                assert line, f"the process ended before it was {word}"

    first = await start("first")
    second = None
    try:
        await says(first, "leading")
        second = await start("second")
        await says(second, "waiting")
        assert lease(kube)["holderIdentity"] == "first"
        first.kill()
        # A shorter lease, so that the test does not wait for the whole of it.
        kube.patch("leases", LEASE, {"spec": {"leaseDurationSeconds": 1}})
        await says(second, "leading")
        assert lease(kube)["holderIdentity"] == "second"
        assert lease(kube)["leaseTransitions"] == 1
    finally:
        for process in filter(None, (first, second)):
            if process.returncode is None:
                process.kill()
            await process.wait()

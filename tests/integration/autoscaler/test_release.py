"""Autoscaler processes on a release of the chart: leadership, and deleted pods."""

import pytest

from tests.integration.autoscaler.release import EACH, NAME, SPACE, Release
from tests.support.waiting import wait_until


@pytest.fixture
def release(tmp_path):
    with Release(tmp_path) as made:
        yield made


@pytest.fixture
def two(release):
    """Two autoscalers: the leader and the other one."""
    both = release.start(0), release.start(1)
    leader = wait_until(lambda: release.leader(*both), "a leader")
    other = both[1] if leader is both[0] else both[0]
    wait_until(
        lambda: other.metric("moe_autoscaler_leader") == 0 and other.watches(), "the other one"
    )
    return leader, other


def test_a_killed_leader_is_followed_and_the_other_acts(release, two):
    leader, other = two
    transitions = release.lease()["leaseTransitions"]
    release.scaled(2)
    leader.kill()
    release.shorten_lease()
    release.ray.asked = 3 * EACH  # while there is no leader
    wait_until(lambda: release.leader(other), "the other to lead")
    assert release.lease()["leaseTransitions"] == transitions + 1
    wait_until(lambda: release.worker_group()["replicas"] == 3 * EACH, "the other to act")


def test_a_leader_that_ends_hands_over(release, two):
    leader, other = two
    renewals = release.lease()["renewTime"]
    assert leader.end() == 0
    wait_until(lambda: release.leader(other), "the other to lead")
    assert release.lease()["acquireTime"] > renewals
    release.scaled(2)
    assert "Traceback" not in leader.log.read_text()


def test_an_api_server_that_is_away_and_back_and_compacted(release, two):
    release.scaled(2)
    release.server.stop()
    wait_until(lambda: release.leader(*two) is None, "the leader to stop")
    wait_until(lambda: not any(one.watches() for one in two), "the watches to end")
    release.ray.asked = 3 * EACH
    release.server.store.compact()
    before = len(release.server.requests)
    release.server.start()
    wait_until(lambda: release.leader(*two), "a leader")
    wait_until(lambda: all(one.watches() for one in two), "the watches")
    wait_until(lambda: release.worker_group()["replicas"] == 3 * EACH, "the leader to act")
    lists = [seen for seen in release.server.requests[before:] if seen.path == "/api/v1/nodes"]
    assert any(not seen.watch for seen in lists)  # 410: a new list
    assert all(one.process.poll() is None for one in two)
    assert all("Traceback" not in one.log.read_text() for one in two)


def test_an_operator_upgrade_takes_no_rank(release):
    release.start()
    release.scaled(3)
    ranks = release.alive()
    pairs = [[*ranks.values()][at : at + EACH] for at in range(0, 3 * EACH, EACH)]
    release.ray.groups = {f"g{number}": (pair, True) for number, pair in enumerate(pairs)}
    assert release.held() == 3 * EACH
    release.operator.version = "v1.8.0"
    release.server.patch("rayservices", NAME, {"metadata": {"labels": {"a": "b"}}}, SPACE)

    def upgraded():
        cluster = release.server.get("rayclusters", release.active(), SPACE)
        return cluster["metadata"]["annotations"]["ray.io/kuberay-version"] == "v1.8.0"

    wait_until(upgraded, "the operator's overwriting")
    release.scaled(4)  # and on from there
    assert ranks.items() <= release.alive().items()


def test_pods_of_a_group_that_loads_stay_when_fewer_are_asked_for(release):
    release.start()
    release.scaled(3)
    pods = [*release.alive().values()]
    release.ray.groups = {"live": (pods[:EACH], True), "loads": (pods[-EACH:], False)}
    release.scaled(2)
    assert sorted(release.alive().values()) == sorted(pods[:EACH] + pods[-EACH:])


def test_no_pod_goes_while_a_group_is_to_be_placed(release):
    autoscaler = release.start()
    release.scaled(3)
    pods = release.alive()
    addresses = [*pods.values()]
    release.ray.groups = {"live": (addresses[:EACH], True)}
    release.ray.asked = 2 * EACH
    wait_until(lambda: "no pod chosen for removal" in autoscaler.log.read_text(), "its word")
    assert release.alive() == pods
    assert release.worker_group()["replicas"] == 3 * EACH
    release.ray.groups["placed"] = (addresses[EACH : 2 * EACH], False)
    wait_until(lambda: len(release.alive()) == 2 * EACH, "the third group's pods to go")
    assert sorted(release.alive().values()) == sorted(addresses[: 2 * EACH])


def test_the_next_upgrade_of_the_release_meets_no_conflict(release):
    release.start()
    release.scaled(3)
    release.apply()
    release.scaled(4)
    assert release.held() == 4 * EACH


def test_the_charts_rights_are_enough(release):
    autoscaler = release.start()
    release.scaled(3)
    wait_until(autoscaler.watches, "the watches")
    release.ray.groups = {"live": ([*release.alive().values()][:EACH], True)}
    release.scaled(1)

    def least():
        return release.server.get("poddisruptionbudgets", f"{NAME}-cpu", SPACE)["spec"].get(
            "minAvailable"
        )

    wait_until(lambda: least() == EACH, "the budget of one group")
    wait_until(lambda: release.held() == EACH, "the RayService to let go of the pods that went")
    assert "403" not in autoscaler.log.read_text()

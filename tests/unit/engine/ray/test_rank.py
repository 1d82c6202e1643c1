"""A rank of a gang: its identity as seen by routers, and cleanup of child processes."""

import signal
import subprocess
import sys

import psutil
import pytest

from serving.engine.ray.rank import end_children, identity_of, origin
from serving.engine.ray.rendezvous import GangMember, Meeting
from tests.support.waiting import PATIENCE


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({}, "blue", id="alone"),
        pytest.param({"RAY_CLUSTER_NAME": "r1-abcde"}, "r1-abcde/blue", id="kuberay"),
    ],
)
def test_a_group_says_what_deployed_it(environment: dict[str, str], expected: str) -> None:
    assert origin("blue", environment) == expected


def test_routers_are_told_which_start_of_the_gang_it_is() -> None:
    member = GangMember("app", "g0", 1, 2, ("a", "b"))
    meeting = Meeting("127.0.0.1", 1, "e1", 12.5)
    identity = identity_of(member, meeting, "10.0.0.7", {})
    assert (identity.group_id, identity.rank, identity.world_size) == ("g0", 1, 2)
    assert (identity.epoch, identity.started_at) == ("e1", 12.5)
    assert (identity.node, identity.app) == ("10.0.0.7", "app")


def test_no_child_outlives_the_rank() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True
    ) as child:
        others = {process.pid for process in psutil.Process().children(recursive=True)}
        end_children(0.1, keep=frozenset(others - {child.pid}))
        assert child.wait(PATIENCE) == -signal.SIGKILL

"""A rank's answer to HTTP through Serve's proxy; the real proxy is in tests/e2e/kuberay."""

import inspect
import json

from serving.engine import misdirected
from serving.engine.ray.deployment import RankReplica


def test_it_is_an_error_in_the_shape_of_the_routers() -> None:
    answer = misdirected.answer()
    assert answer.status_code == 421
    error = json.loads(bytes(answer.body))["error"]
    assert set(error) == {"message", "type", "param", "code", "reason"}
    assert error["code"] == answer.status_code
    assert "router" in error["message"]


async def test_a_replica_answers_without_its_rank() -> None:
    """The answer does not depend on the replica: an engine may be loading or hanging."""
    assert (await RankReplica.__call__(object())).status_code == misdirected.STATUS
    # Serve then passes no request, so the body is not read, and WebSockets also get an answer.
    assert list(inspect.signature(RankReplica.__call__).parameters) == ["self"]

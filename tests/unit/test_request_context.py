"""The context of a request: where it applies, and its part of the log line."""

from serving.request_context import (
    Priority,
    RequestContext,
    RequestRecord,
    current_context,
    request_context_var,
    use_request_context,
)
from serving.routing.decision import RoutingDecision
from serving.routing.snapshot import RankId


def test_a_context_holds_in_its_block_alone():
    with use_request_context(RequestContext("alice")):
        assert current_context().tenant == "alice"
        # The previous request of a connection must not pass its context to the next one.
        with use_request_context(None):
            assert request_context_var.get() is None
        assert current_context().tenant == "alice"
    assert request_context_var.get() is None


def test_log_fields():
    record = RequestRecord(waited=1.5, resumes=1, parked=True, cached_tokens=16)
    context = RequestContext("alice", Priority.BATCH, record=record)
    nowhere = {"group": None, "rank": None, "cached_tokens": None, "trace_id": None}
    asked = {"tenant": "alice", "priority": "batch", "waited": 1.5, "resumes": 1, "parked": True}
    assert context.log_fields() == asked | nowhere
    record.decisions += [
        RoutingDecision(RankId("g0", "e", 1), "load"),
        RoutingDecision(RankId("g1", "e", 3), "only"),
    ]
    assert context.log_fields() == asked | nowhere | {
        "group": "g1",
        "rank": 3,
        "cached_tokens": 16,
    }

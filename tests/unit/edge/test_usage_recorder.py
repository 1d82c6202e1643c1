"""The records that requests leave in the ledger."""

import pytest
from vllm.entrypoints.serve.engine.protocol import CompletionTokenUsageInfo, UsageInfo

from serving.edge.usage_recorder import UsageRecorder
from serving.ledger.records import RecordIds
from serving.request_context import Priority, RequestContext, RequestRecord, Usage
from serving.telemetry.logs import RequestLine
from tests.support.clock import ManualClock

LINE = RequestLine(
    request_id="r",
    protocol="rest",
    method="/v1/completions",
    model="m",
    outcome="ok",
    status="200",
    duration=1.5,
    ttft=0.25,
)


class ListLedger:
    def __init__(self):
        self.record_ids = RecordIds()
        self.records = []

    def append(self, record):
        self.records.append(record)


class Running:
    def __init__(self, usage):
        self._usage = usage

    def usage(self):
        return self._usage


@pytest.fixture
def ledger():
    return ListLedger()


def record(ledger, context, usage=None, line=LINE):
    UsageRecorder(ledger, ManualClock(1234.5)).record(line, context, usage)


def test_a_record_has_what_the_request_used(ledger):
    used = Usage(10, 4, 20, 9, 6, rank_seconds=1.25)
    context = RequestContext(
        "alice", Priority.BATCH, key_id="alice-1", record=RequestRecord(ended=used, resumes=2)
    )
    details = CompletionTokenUsageInfo(reasoning_tokens=7)
    record(ledger, context, UsageInfo(completion_tokens_details=details))
    (made,) = ledger.records
    assert (made.tenant, made.key_id, made.priority) == ("alice", "alice-1", "batch")
    assert (made.prompt_tokens, made.cached_tokens, made.output_tokens) == (10, 4, 20)
    assert (made.reasoning_tokens, made.drafted_tokens, made.accepted_tokens) == (7, 9, 6)
    assert (made.rank_us, made.duration_us, made.ttft_us) == (1_250_000, 1_500_000, 250_000)
    assert (made.finished_us, made.resumptions, made.outcome) == (1_234_500_000, 2, "ok")
    assert made.adapter is made.pool is None


def test_a_request_is_recorded_once_even_if_it_ends_twice(ledger):
    context = RequestContext(record=RequestRecord(ended=Usage(prompt_tokens=1)))
    record(ledger, context)
    record(ledger, context)
    assert len(ledger.records) == 1


def test_a_request_that_reached_no_rank_is_not_recorded(ledger):
    record(ledger, RequestContext())
    assert ledger.records == []


def test_prompts_that_are_still_running_count_as_far_as_they_have_come(ledger):
    """A generator whose consumer has left can be closed after the request has ended."""
    running = [Running(Usage(5, output_tokens=3)), Running(Usage(6, output_tokens=1))]
    context = RequestContext(record=RequestRecord(ended=Usage(7, output_tokens=9), running=running))
    record(ledger, context)
    assert (ledger.records[0].prompt_tokens, ledger.records[0].output_tokens) == (18, 13)


def test_what_is_unknown_is_none_and_not_zero(ledger):
    record(ledger, RequestContext(record=RequestRecord(ended=Usage(prompt_tokens=1))))
    made = ledger.records[0]
    assert (made.reasoning_tokens, made.drafted_tokens, made.accepted_tokens) == (None,) * 3
    assert made.key_id is None

import json

import pytest

from serving.batch.line_requests import (
    LineResponse,
    Verdict,
    answer_content,
    usage_of,
    verdict_on,
)


@pytest.mark.parametrize(
    ("status", "reason", "verdict"),
    [
        (200, None, Verdict.ANSWER),
        (400, "INVALID_REQUEST", Verdict.ANSWER),
        (404, "MODEL_NOT_FOUND", Verdict.ANSWER),
        (429, "OVERLOADED", Verdict.REPEAT),
        (503, "NOT_READY", Verdict.REPEAT),
        (503, "GROUP_LOST", Verdict.REPEAT),
        (504, "DEADLINE_EXCEEDED", Verdict.REPEAT),
        (500, "ENGINE", Verdict.RETRY),
        (500, None, Verdict.RETRY),
        (500, "POISON_REQUEST", Verdict.ANSWER),
        (501, "UNSUPPORTED", Verdict.ANSWER),
    ],
)
def test_only_what_the_line_itself_causes_is_its_answer(status, reason, verdict):
    body = b"oops" if reason is None else json.dumps({"error": {"reason": reason}}).encode()
    assert verdict_on(LineResponse(status, body)) is verdict


def test_an_answer_has_openais_fields():
    content = answer_content("a", "r1", LineResponse(200, b'{"x": 1.50}'))
    assert b'"body":{"x": 1.50}' in content
    assert json.loads(content) == {
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "r1", "body": {"x": 1.5}},
        "error": None,
    }


def test_a_response_that_is_not_json_becomes_a_string():
    answer = json.loads(answer_content("a", "r", LineResponse(500, b"\xffx")))
    assert answer["response"]["body"] == "\ufffdx"


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2}, (5, 2, 0)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}}, (5, 0, 3)),
        (
            {
                "input_tokens": 5,
                "output_tokens": 2,
                "input_tokens_details": {"cached_tokens": 1},
            },
            (5, 2, 1),
        ),
        (None, (0, 0, 0)),
    ],
)
def test_tokens_of_both_apis_are_counted(usage, tokens):
    found = usage_of(LineResponse(200, json.dumps({"usage": usage}).encode()))
    assert (found.prompt, found.generated, found.cached) == tokens
    assert usage_of(LineResponse(500, b"oops")).prompt == 0


@pytest.mark.parametrize(
    ("after", "verdict"),
    [(1.0, Verdict.REPEAT), (3600.0, Verdict.ANSWER), (None, Verdict.ANSWER)],
)
def test_a_line_waits_for_a_budget_that_is_only_reserved(after, verdict):
    error = {"reason": "BUDGET_EXCEEDED"} | ({} if after is None else {"retry_after": after})
    response = LineResponse(402, json.dumps({"error": error}).encode())
    assert verdict_on(response) is verdict

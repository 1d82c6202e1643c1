"""Reasoning in raw text, between tags that prompt or output can contain."""

from types import SimpleNamespace

import pytest

from serving.requests.reasoning_count import ReasoningMarks

MARKS = ReasoningMarks(start=1, end=2)


@pytest.mark.parametrize(
    ("prompt", "output", "count"),
    [
        ([5, 1, 9], [7, 7, 2, 8, 8], 2),
        ([5, 1, 9], [7, 7], 2),
        ([5, 1, 9], [], 0),
        ([5, 1, 9], [2, 8], 0),
        ([5], [7, 7], 0),
        ([5, 1, 9, 2, 6], [7, 2], 0),
        ([5, 1, 9, 2, 6], [1, 7, 2, 8], 1),
        ([5], [3, 1, 7, 7, 2, 8, 1, 7], 3),
        ([], [1], 0),
    ],
)
def test_tokens_between_the_marks_are_counted(prompt, output, count):
    assert MARKS.count(prompt, output) == count


def test_marks_are_those_of_vllms_configuration():
    config = SimpleNamespace(
        enabled=True, reasoning_start_token_ids=[1], natural_reasoning_end_token_ids=[2]
    )
    assert ReasoningMarks.of(config) == MARKS
    assert ReasoningMarks.of(None) is None
    for change in ({"enabled": False}, {"reasoning_start_token_ids": [1, 3]}):
        assert ReasoningMarks.of(SimpleNamespace(**{**vars(config), **change})) is None

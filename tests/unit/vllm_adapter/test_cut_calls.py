"""Finish reasons of streamed chats with calls."""

import json

import pytest

from serving.vllm_adapter.cut_calls import is_cut, without_cut_calls


@pytest.mark.parametrize(
    ("stop_reason", "arguments", "expected"),
    [
        (None, '{"a":', False),
        (262, '{"a":', False),
        ("}", '{"a":', True),
        ("}", "", True),
        ("x", '{"a": 1}', False),
        ("x", "{}\n", False),
    ],
)
def test_what_a_stop_string_cuts_off(stop_reason, arguments, expected):
    assert is_cut(stop_reason, arguments) is expected


def event(*choices) -> str:
    return f"data: {json.dumps({'id': 'x', 'choices': choices}, separators=(',', ':'))}\n\n"


def part(index, arguments, *, choice=0):
    call = {"index": index, "function": {"arguments": arguments}}
    return {"index": choice, "delta": {"tool_calls": [call]}, "finish_reason": None}


def end(stop_reason, *, choice=0, delta=None):
    return {
        "index": choice,
        "delta": delta or {},
        "finish_reason": "tool_calls",
        "stop_reason": stop_reason,
    }


async def passed(*events):
    async def sent():
        for each in events:
            yield each

    return [each async for each in without_cut_calls(sent())]


async def test_choices_and_calls_are_told_apart():
    events = [
        event(part(0, "{}"), part(0, '{"a":', choice=1)),
        event(part(1, '{"b"'), part(0, "1}", choice=1)),
        event(end("stop"), end("stop", choice=1)),
    ]
    *before, last = await passed(*events)
    assert before == events[:-1]
    found = json.loads(last.removeprefix("data: "))["choices"]
    assert [each["finish_reason"] for each in found] == ["stop", "tool_calls"]


async def test_a_part_in_the_last_event_counts():
    last = end("x", delta=part(0, '"b"}')["delta"])
    assert await passed(event(part(0, '{"a":')), event(last)) == [
        event(part(0, '{"a":')),
        event(last),
    ]


async def test_other_events_are_unchanged():
    events = ['data: {"choices":[]}\n\n', "data: [DONE]\n\n", event(end(None))]
    assert await passed(*events) == events

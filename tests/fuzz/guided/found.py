"""Inputs that once violated an invariant, by target."""

from serving.link.v1 import link_pb2

_NOT_A_NUMBER = link_pb2.RankMessage(
    load=link_pb2.LoadSnapshot(
        health=link_pb2.LoadSnapshot.HEALTHY,
        kv_usage=float("nan"),
        step_seconds=float("inf"),
        busy_seconds_total=float("-inf"),
        experts=[link_pb2.LayerExpertLoad(layer="l", tokens=[2**64 - 1])] * 2,
    )
).SerializeToString()

_GET = b"GET /len HTTP/1.1\r\nhost: x\r\n\r\n"
_SLOW = b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n"

_NO_CANDIDATE = link_pb2.RankMessage(
    deltas=[
        link_pb2.Delta(
            request_id="r1",
            choices=[link_pb2.ChoiceDelta(token_ids=[1], logprobs=[link_pb2.PositionLogprobs()])],
        )
    ]
).SerializeToString()

FOUND: dict[str, tuple[bytes, ...]] = {
    "http": (
        # Half-closed during the response to the first of two requests: 100 Continue in the middle.
        b"\2\x07" + _SLOW + _GET,
        # Invalid bytes behind a running request: 400 in the middle of its response.
        b"\0\x05" + _SLOW + b"nonsense\r\n\r\n",
        # The client disconnects while a request is queued behind another: the first continued.
        b"\1\0GET /waits HTTP/1.1\r\nhost: x\r\n\r\n" + _GET,
        # An unreadable body: HEAD was answered with a body.
        b"\0\0HEAD /len HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ),
    "link": (
        # A load that /fleet cannot show: JSON has no NaN, and the sum overflows the message.
        b"\1" + len(_NOT_A_NUMBER).to_bytes(2) + _NOT_A_NUMBER,
        # A position without a candidate: it must end the request, not the link.
        b"\1" + len(_NO_CANDIDATE).to_bytes(2) + _NO_CANDIDATE,
    ),
    "keys": (
        b"keys: [{expires: 2027-13-01}]",
        b"keys: [{id: !!int x}]",
        b"keys: [{expires: !!timestamp x}]",
        b"keys: " + b"[" * 100_000,
    ),
    "settings": (b"model: {name: !!timestamp x}", b"model: " + b"[" * 100_000, b"- a\n"),
    "answers": (
        # The beginning of a tool call within another one's name.
        bytes((5, 1, 11, 0, 2, 3, 4, 5, 6, 3, 16, 7, 8, 9, 10, 255, 1)),
        # tool_choice "required", whitespace instead of a call.
        bytes((0, 2, 12, 0, 10, 10, 255, 1)),
        # The start tag of reasoning in the middle of the answer or of the reasoning.
        bytes((0, 0, 21, 0, 7, 1, 21, 255, 1)),
        bytes((0, 0, 21, 1, 7, 0, 21, 255, 1)),
    ),
}

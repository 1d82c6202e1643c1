"""The cases, as data for all client programs: calls and their expected results.

They follow gRPC's interop-test-descriptions.md under its names, with additional cases. The cases
about Google's credentials, load reports (ORCA), name resolution, and cacheable_unary, which is for
proxies, are omitted.

A call is a dict: method, requests (messages in protobuf's binary form, as base64), and optional
keys:

- metadata: pairs; values of keys in -bin are base64
- timeout: seconds
- compressed: for each request, whether it is sent compressed
- lockstep: send each request only after all answers to the previous one have arrived
- answers: for each request of a lockstep call, the number of answers
- unfinished: leave the client's side open, and wait for the end
- cancel_after: cancel after this number of answers; 0: when the request is sent
- again: repeat the call until it succeeds
- together: number of concurrent calls
- fresh: use a new channel
"""

from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any

from tests.integration.h2grpc.clients.common import shown
from tests.integration.h2grpc.messages import Messages
from tests.integration.h2grpc.servicer import DETAILS, INITIAL, TRAILING, rich_status

LIMIT = 2**20
"""Maximum size of a message, bytes."""
LARGE = 271828
LARGE_ANSWER = 314159
WHITESPACE = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
ANY_FAILURE = "any but OK"
OF_THE_CLIENT = {"CANCELLED", "DEADLINE_EXCEEDED"}
"""Statuses that clients create, with their own messages."""


@dataclass(frozen=True)
class Ended:
    """The expected result of a call."""

    code: str = "OK"
    details: str | None = ""
    """None: any non-empty details."""
    replies: list[Any] = field(default_factory=list)
    initial: list[list[str]] = field(default_factory=list)
    trailing: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """Calls that are made in sequence, each with its expected result."""

    steps: list[tuple[dict[str, Any], Ended]]
    compressed: tuple[bool | None, bool | None] = (None, None)
    """Whether requests and answers must have been compressed (None: they are small anyway). The
    first and the last call return the bytes sent over the wire."""


def cases(m: Messages) -> dict[str, Case]:
    """Return all cases by name."""
    return {**_unary(m), **_streaming(m), **_compressed(m), **_metadata(m), **_statuses(m)}


def call(method: str, *requests: Any, **options: Any) -> dict[str, Any]:
    """Return a call in the format of the client programs."""
    binary = [b64encode(each.SerializeToString()).decode() for each in requests]
    return {"method": method, "requests": binary, **options}


def ok(*replies: Any, **more: Any) -> Ended:
    """Return the expected result of a successful call with these messages."""
    return Ended(replies=[shown(each.SerializeToString()) for each in replies], **more)


def _simple(m: Messages, size: int = LARGE_ANSWER, payload: int = LARGE, **more: Any) -> Any:
    request = m.SimpleRequest(response_size=size, **more)
    request.payload.body = bytes(payload)
    return request


def _simple_answer(m: Messages, size: int = LARGE_ANSWER) -> Any:
    return m.SimpleResponse(payload=m.Payload(body=bytes(size)))


def _output(m: Messages, *sizes: int, payload: int = 0, **more: Any) -> Any:
    parameters = [m.ResponseParameters(size=size) for size in sizes]
    request = m.StreamingOutputCallRequest(response_parameters=parameters, **more)
    if payload:
        request.payload.body = bytes(payload)
    return request


def _output_answer(m: Messages, size: int) -> Any:
    return m.StreamingOutputCallResponse(payload=m.Payload(body=bytes(size)))


def _input(m: Messages, size: int) -> Any:
    return m.StreamingInputCallRequest(payload=m.Payload(body=bytes(size)))


def _input_answer(m: Messages, *sizes: int) -> Any:
    return m.StreamingInputCallResponse(aggregated_payload_size=sum(sizes), messages=len(sizes))


WITH_TLS = (
    "large_unary",
    "reconnects",
    "ping_pong",
    "cancel_after_first_response",
    "special_status_message",
)
"""Cases that also run over TLS; the others run only in plain text, because they do not depend on
TLS."""


def _unary(m: Messages) -> dict[str, Case]:
    large = call("UnaryCall", _simple(m))
    answer = ok(_simple_answer(m))
    small = call("UnaryCall", _simple(m, 314, 271))
    small_answer = ok(_simple_answer(m, 314))
    left = call("UnaryCall", m.SimpleRequest(fill_time_remaining=True), timeout=1000)
    seconds = m.SimpleResponse(payload=m.Payload(), hundred_seconds_remaining=10)
    million = 1_000_000
    million_back = ok(_simple_answer(m, million))
    return {
        "empty_unary": Case([(call("EmptyCall", m.Empty()), ok(m.Empty()))]),
        "large_unary": Case([(large, answer)]),
        "concurrent_large_unary": Case([({**large, "together": 8}, answer)]),
        "rpc_soak": Case([(small, small_answer)] * 10),
        "channel_soak": Case([({**small, "fresh": True}, small_answer)] * 4),
        # Not in gRPC's list.
        "reconnects": Case(
            [
                (call("EmptyCall", m.Empty()), ok(m.Empty())),
                (call("CutConnection", m.Empty(), timeout=10), Ended(ANY_FAILURE)),
                (call("EmptyCall", m.Empty(), timeout=10, again=True), ok(m.Empty())),
            ]
        ),
        "deadline_seen_by_the_server": Case([(left, ok(seconds))]),
        "a_megabyte": Case([(call("UnaryCall", _simple(m, million, million)), million_back)]),
    }


def _streaming(m: Messages) -> dict[str, Case]:
    up = (27182, 8, 1828, 45904)
    down = (31415, 9, 2653, 58979)
    answers = ok(*(_output_answer(m, size) for size in down))
    ping_pong = [_output(m, a, payload=b) for a, b in zip(down, up, strict=True)]
    uneven = [_output(m, *sizes) for sizes in ((), (1, 2, 3), (), (4,))]
    many = [1 + size % 7 for size in range(500)]
    return {
        "client_streaming": Case(
            [(call("StreamingInputCall", *(_input(m, n) for n in up)), ok(_input_answer(m, *up)))]
        ),
        "server_streaming": Case([(call("StreamingOutputCall", _output(m, *down)), answers)]),
        "ping_pong": Case(
            [(call("FullDuplexCall", *ping_pong, lockstep=True, answers=[1] * 4), answers)]
        ),
        "empty_stream": Case([(call("FullDuplexCall"), ok())]),
        "cancel_after_begin": Case(
            [(call("StreamingInputCall", _input(m, 8), cancel_after=0), Ended("CANCELLED"))]
        ),
        "cancel_after_first_response": Case(
            [
                (
                    call("FullDuplexCall", *ping_pong, lockstep=True, answers=[1], cancel_after=1),
                    Ended("CANCELLED", replies=answers.replies[:1]),
                )
            ]
        ),
        "timeout_on_sleeping_server": Case(
            [
                (
                    call(
                        "FullDuplexCall",
                        m.StreamingOutputCallRequest(
                            response_parameters=[
                                m.ResponseParameters(size=31415, interval_us=60_000_000)
                            ],
                            payload=m.Payload(body=bytes(27182)),
                        ),
                        timeout=0.05,
                    ),
                    Ended("DEADLINE_EXCEEDED"),
                )
            ]
        ),
        # Not in gRPC's list.
        "no_message_up": Case([(call("StreamingInputCall"), ok(_input_answer(m)))]),
        "no_message_down": Case([(call("StreamingOutputCall", _output(m)), ok())]),
        "uneven": Case(
            [
                (
                    call("FullDuplexCall", *uneven),
                    ok(*(_output_answer(m, size) for size in (1, 2, 3, 4))),
                )
            ]
        ),
        "five_hundred_messages": Case(
            [
                (
                    call("StreamingOutputCall", _output(m, *many)),
                    ok(*(_output_answer(m, size) for size in many)),
                )
            ]
        ),
        "ended_before_the_last_request": Case(
            [
                (
                    call(
                        "StreamingInputCall",
                        _input(m, 8),
                        m.StreamingInputCallRequest(
                            response_status=m.EchoStatus(code=9, message="enough")
                        ),
                        unfinished=True,
                    ),
                    Ended("FAILED_PRECONDITION", "enough"),
                )
            ]
        ),
    }


def _compressed(m: Messages) -> dict[str, Case]:
    def streamed(*compressed: int) -> tuple[dict[str, Any], Ended]:
        sizes = (31415, 92653)
        parameters = [
            m.ResponseParameters(size=size, compressed=size in compressed) for size in sizes
        ]
        request = m.StreamingOutputCallRequest(response_parameters=parameters)
        return (
            call("StreamingOutputCall", request, metadata=[["x-compressed", "1"]]),
            ok(*(_output_answer(m, size) for size in sizes)),
        )

    def up(compressed: bool) -> tuple[dict[str, Any], Ended]:
        sizes = (27182, 45904)
        return (
            call(
                "StreamingInputCall",
                *(_input(m, size) for size in sizes),
                compressed=[compressed] * 2,
            ),
            ok(_input_answer(m, *sizes)),
        )

    answer = ok(_simple_answer(m))
    plain = call("UnaryCall", _simple(m), compressed=[False])
    sent = call("UnaryCall", _simple(m), compressed=[True])
    asked = call("UnaryCall", _simple(m, response_compressed=True), compressed=[False])
    measured: dict[str, tuple[Any, tuple[bool | None, bool | None]]] = {
        "client_compressed_unary": ([(sent, answer)], (True, None)),
        "client_uncompressed_unary": ([(plain, answer)], (False, False)),
        "server_compressed_unary": ([(asked, answer)], (False, True)),
        "client_compressed_streaming": ([up(compressed=True)], (True, None)),
        "client_uncompressed_streaming": ([up(compressed=False)], (False, None)),
        "server_compressed_streaming": ([streamed(31415, 92653)], (None, True)),
        "server_uncompressed_streaming": ([streamed()], (None, False)),
        "server_compressed_streaming_in_part": ([streamed(31415)], (None, False)),
    }
    found = {}
    for name, (steps, small) in measured.items():
        # On the same channel as the measured call.
        wire = call("WireBytes", m.Empty(), compressed=steps[0][0].get("compressed", []))
        found[name] = Case([(wire, ok()), *steps, (wire, ok())], compressed=small)
    return found


def _metadata(m: Messages) -> dict[str, Case]:
    value = "test_initial_metadata_value"
    found: dict[str, Case] = {}
    binaries = {
        "custom_metadata": b"\xab\xab\xab",
        "custom_metadata_of_one_byte": b"\x00",
        "custom_metadata_of_two_bytes": b"\xff\x00",
        "custom_metadata_of_four_bytes": b"\xfb\xef\xbe\xff",
        "custom_metadata_of_a_kilobyte": bytes(range(256)) * 4,
    }
    for name, binary in binaries.items():
        up, down = (LARGE, LARGE_ANSWER) if name == "custom_metadata" else (27, 31)
        text = b64encode(binary).decode()
        metadata = [[INITIAL, value], [TRAILING, text]]
        echoed: dict[str, Any] = {"initial": metadata[:1], "trailing": metadata[1:]}
        found[name] = Case(
            [
                (
                    call("UnaryCall", _simple(m, down, up), metadata=metadata),
                    ok(_simple_answer(m, down), **echoed),
                ),
                (
                    call(
                        "FullDuplexCall",
                        _output(m, down, payload=up),
                        lockstep=True,
                        answers=[1],
                        metadata=metadata,
                    ),
                    ok(_output_answer(m, down), **echoed),
                ),
            ]
        )
    twice = [[INITIAL, "one"], [INITIAL, "two"]]
    joined = [[INITIAL, "one, two"]]
    long = [[INITIAL, "x" * 3000]]
    failed = Ended(
        "NOT_FOUND",
        "no such thing",
        initial=[[INITIAL, value]],
        trailing=[[TRAILING, b64encode(b"\xab").decode()]],
    )
    status = m.EchoStatus(code=5, message="no such thing")
    return {
        **found,
        "a_key_twice": Case(
            [
                (
                    call("UnaryCall", _simple(m, 1, 1), metadata=twice),
                    ok(_simple_answer(m, 1), initial=joined),
                )
            ]
        ),
        "a_long_value": Case(
            [
                (
                    call("UnaryCall", _simple(m, 1, 1), metadata=long),
                    ok(_simple_answer(m, 1), initial=long),
                )
            ]
        ),
        "metadata_with_an_error": Case(
            [
                (
                    call(
                        "UnaryCall",
                        m.SimpleRequest(response_status=status),
                        metadata=[*failed.initial, *failed.trailing],
                    ),
                    failed,
                )
            ]
        ),
    }


def _statuses(m: Messages) -> dict[str, Case]:
    def both(code: int, name: str, message: str) -> Case:
        status = m.EchoStatus(code=code, message=message)
        return Case(
            [
                (call("UnaryCall", m.SimpleRequest(response_status=status)), Ended(name, message)),
                (
                    call("FullDuplexCall", m.StreamingOutputCallRequest(response_status=status)),
                    Ended(name, message),
                ),
            ]
        )

    codes = [
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ]
    each_code = [step for n, name in enumerate(codes, 1) for step in both(n, name, "as told").steps]
    status = m.EchoStatus(code=5, message="no more")
    rich = m.EchoStatus(code=8, message="with details", error_info=True)
    binary = b64encode(rich_status(8, rich.message)).decode()
    unimplemented = Ended("UNIMPLEMENTED", None)
    return {
        "status_code_and_message": both(2, "UNKNOWN", "test status message"),
        "special_status_message": both(2, "UNKNOWN", WHITESPACE),
        "unimplemented_method": Case([(call("UnimplementedCall", m.Empty()), unimplemented)]),
        "unimplemented_service": Case(
            [(call("UnimplementedCall", m.Empty(), service="UnimplementedService"), unimplemented)]
        ),
        # Not in gRPC's list.
        "every_status": Case(each_code),
        "percent_signs": both(2, "UNKNOWN", "100 % of %41 and %zz"),
        "long_status_message": both(2, "UNKNOWN", "ü" * 1000),
        "status_after_messages": Case(
            [
                (
                    call("StreamingOutputCall", _output(m, 8, 9, response_status=status)),
                    Ended(
                        "NOT_FOUND",
                        "no more",
                        replies=ok(_output_answer(m, 8), _output_answer(m, 9)).replies,
                    ),
                )
            ]
        ),
        "status_with_details": Case(
            [
                (
                    call("UnaryCall", m.SimpleRequest(response_status=rich)),
                    Ended(
                        "RESOURCE_EXHAUSTED",
                        "with details",
                        trailing=[[DETAILS, binary]],
                    ),
                )
            ]
        ),
        "an_exception": Case(
            [
                (call("UnaryCall", m.SimpleRequest(fail=True)), Ended("UNKNOWN", None)),
                (
                    call("StreamingOutputCall", _output(m, 8, fail=True)),
                    Ended("UNKNOWN", None, replies=ok(_output_answer(m, 8)).replies),
                ),
            ]
        ),
        "too_large": Case(
            [(call("UnaryCall", _simple(m, 1, LIMIT + 1)), Ended("RESOURCE_EXHAUSTED", None))]
        ),
    }

"""Messages for every RPC: random bytes, broken encodings, and odd values in good messages."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from serving.api.v1 import batch_pb2, fleet_pb2, usage_pb2
from serving.api.v1 import inference_pb2 as pb

MODEL = "pocket-r1"
_USER = pb.Message(role=pb.ROLE_USER, content="What is 17+25?")
_SAMPLING = pb.SamplingParams(max_tokens=8, seed=3, n=1)
_CHAT = pb.ChatRequest(model=MODEL, messages=[_USER], sampling=_SAMPLING)
_TOOLS = pb.ChatRequest(
    model=MODEL,
    messages=[
        _USER,
        pb.Message(
            role=pb.ROLE_ASSISTANT,
            tool_calls=[
                pb.ToolCall(id="c", function=pb.FunctionCall(name="w", arguments_json="{}"))
            ],
        ),
        pb.Message(role=pb.ROLE_TOOL, tool_call_id="c", content="sunny"),
    ],
    sampling=_SAMPLING,
    tools=[pb.Tool(name="w", parameters_json='{"type": "object"}')],
    logprobs=True,
    top_logprobs=2,
)
_COMPLETE = pb.CompleteRequest(model=MODEL, text="What", sampling=_SAMPLING, logprobs=1)
_TOKENS = pb.CompleteRequest(
    model=MODEL, token_ids=pb.TokenIds(ids=[70, 71]), sampling=_SAMPLING, echo=True
)

GOOD: dict[str, tuple[Message, ...]] = {
    "Chat": (_CHAT, _TOOLS),
    "ChatStream": (_CHAT, _TOOLS),
    "Complete": (_COMPLETE, _TOKENS),
    "CompleteStream": (_COMPLETE, _TOKENS),
    "Embed": (pb.EmbedRequest(model=MODEL, inputs=["x"]),),
    "Tokenize": (
        pb.TokenizeRequest(model=MODEL, text="17+25"),
        pb.TokenizeRequest(model=MODEL, messages=pb.Messages(messages=[_USER])),
    ),
    "Detokenize": (pb.DetokenizeRequest(model=MODEL, token_ids=[70]),),
    "ListModels": (pb.ListModelsRequest(),),
}

_CHANGES_STATE = frozenset({"Drain", "Cordon", "Uncordon", "Undrain"})
"""RPCs for operators; a valid message could remove the ranks under test."""

SERVICES = (
    pb.DESCRIPTOR.services_by_name["InferenceService"],
    fleet_pb2.DESCRIPTOR.services_by_name["FleetService"],
    usage_pb2.DESCRIPTOR.services_by_name["UsageService"],
    batch_pb2.DESCRIPTOR.services_by_name["BatchService"],
)

_INTEGERS = (0, 1, 2, 3, 5, 20, 21, 127, 128, 129, 16384, 2**31 - 1, 2**32 - 1, 2**63 - 1)
_FLOATS = (0.0, -0.0, 1e-9, 0.5, 1.0, 2.0, 2.1, 1e30, -1e30, float("nan"), float("inf"))
_TEXTS = (
    "",
    "x",
    MODEL,
    "\u0000",
    "🙂",
    "a" * 3000,
    "{}",
    "[]",
    "{",
    "[" * 3000,
    '{"type": "nonsense"}',
    '{"$ref": "#"}',
    '{"type": "object", "properties": {"a": 1}}',
    "(a+)+$",
    "[",
    'root ::= "a" root',
    "root ::= root",
    '{"messages": 1}',
    "high",
)


@dataclass(frozen=True)
class Case:
    """One call."""

    method: MethodDescriptor
    content: bytes

    @property
    def path(self) -> str:
        """Full name of the RPC."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    @property
    def response(self) -> Any:
        """Class of the response."""
        return GetMessageClass(self.method.output_type)

    def __str__(self) -> str:
        try:
            message: Any = GetMessageClass(self.method.input_type).FromString(self.content)
        except Exception:  # noqa: BLE001  it need not be decodable
            message = self.content
        return f"{self.path} {str(message)[:400]!r} {self.content!r:.400}"


def cases(seed: int, count: int) -> Iterator[Case]:
    """Generate ``count`` cases over all RPCs."""
    rng = random.Random(seed)
    methods = [
        method
        for service in SERVICES
        for method in service.methods
        if method.name not in _CHANGES_STATE
    ]
    weights = [4 if method.name in {"Chat", "ChatStream"} else 2 for method in methods]
    for _ in range(count):
        (method,) = rng.choices(methods, weights)
        yield Case(method, _content(rng, method))


def _content(rng: random.Random, method: MethodDescriptor) -> bytes:
    good = rng.choice(GOOD.get(method.name, (GetMessageClass(method.input_type)(),)))
    kind = rng.random()
    if kind < 0.12:
        return rng.randbytes(rng.choice((0, 1, 2, 10, 100, 5000)))
    encoded = good.SerializeToString()
    if kind < 0.3:
        return _broken(rng, encoded)
    message = type(good)()
    message.CopyFrom(good)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        _change(rng, message)
    encoded = message.SerializeToString()
    return _broken(rng, encoded) if rng.random() < 0.05 else encoded


def _broken(rng: random.Random, encoded: bytes) -> bytes:
    data = bytearray(encoded)
    match rng.randrange(5):
        case 0:
            for _ in range(rng.randint(1, 4)):
                if data:
                    data[rng.randrange(len(data))] = rng.randrange(256)
        case 1:
            del data[rng.randrange(len(data) + 1) :]
        case 2:
            data *= rng.choice((2, 3, 50))
        case 3:  # a length beyond the end of the data
            data += bytes([0x0A]) + b"\xff\xff\xff\x7f"
        case 4:  # groups, the deepest nesting of the wire format
            data += b"\x0b" * rng.choice((5, 99, 101, 3000))
    return bytes(data)


def _change(rng: random.Random, message: Any) -> None:
    """Set, clear or multiply one field, or a field of an embedded message."""
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    field = rng.choice(fields)
    inside = field.type == FieldDescriptor.TYPE_MESSAGE
    if rng.random() < 0.1:
        message.ClearField(field.name)
    elif field.is_repeated and inside and field.message_type.GetOptions().map_entry:
        _change_map(rng, field, getattr(message, field.name))
    elif field.is_repeated:
        many = getattr(message, field.name)
        for _ in range(rng.choice((1, 1, 2, 200))):
            if inside:
                _change(rng, many.add())
            else:
                many.append(_scalar(rng, field))
    elif inside:
        inner = getattr(message, field.name)
        inner.SetInParent()
        for _ in range(rng.choice((1, 1, 2))):
            _change(rng, inner)
    else:
        setattr(message, field.name, _scalar(rng, field))


def _change_map(rng: random.Random, field: Any, entries: Any) -> None:
    texts = field.message_type.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING
    for _ in range(rng.choice((1, 3, 300))):
        if texts:
            entries[rng.choice(_TEXTS)] = rng.choice(_TEXTS)
        else:
            entries[rng.choice(_INTEGERS) % 2**32] = rng.choice(_FLOATS)


def _scalar(rng: random.Random, field: Any) -> Any:
    kinds = FieldDescriptor
    match field.type:
        case kinds.TYPE_STRING:
            return rng.choice(_TEXTS)
        case kinds.TYPE_BYTES:
            return rng.randbytes(8)
        case kinds.TYPE_BOOL:
            return rng.random() < 0.5
        case kinds.TYPE_DOUBLE | kinds.TYPE_FLOAT:
            return rng.choice(_FLOATS)
        case kinds.TYPE_ENUM:
            return rng.choice((0, 1, 2, 3, 4, 5, 77, -1))
    bits = 64 if field.type in {kinds.TYPE_INT64, kinds.TYPE_UINT64} else 32
    signed = field.type in {kinds.TYPE_INT32, kinds.TYPE_INT64}
    number = rng.choice(_INTEGERS)
    if signed and rng.random() < 0.3:
        number = -number
    top = 2 ** (bits - signed)
    return max(min(number, top - 1), -top if signed else 0)

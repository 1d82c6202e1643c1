"""Random requests and the behaviour of their clients."""

import random
from dataclasses import dataclass
from typing import Any

import msgspec
from vllm.sampling_params import RequestOutputKind, SamplingParams

from serving.engine.fake.tokens import FakeChoice, FakeParams
from serving.link.v1 import link_pb2
from serving.request_context import Priority

MAX_MODEL_LEN = 512
POISON = 7
"""A prompt with this token kills every rank that starts the request."""
_FIRST, _LAST = 32, 126
"""Printable ASCII, as the fake engine's own tokens."""
_KINDS = (
    *[RequestOutputKind.DELTA] * 4,
    RequestOutputKind.CUMULATIVE,
    RequestOutputKind.FINAL_ONLY,
)


@dataclass(frozen=True, slots=True)
class Spec:
    """One request and its client's behaviour."""

    name: str
    arrives: float
    """Arrival, seconds from the start of the traffic."""
    prompt: tuple[int, ...]
    params: dict[str, Any]
    kind: RequestOutputKind
    priority: Priority = Priority.STANDARD
    tenant: str = "anonymous"
    deadline: float | None = None
    """Deadline, seconds from its arrival."""
    slow: float = 0.0
    """Seconds that the client waits after each output."""
    cancel_after: int | None = None
    """Number of outputs after which the client cancels."""
    cancel_at: float | None = None
    """Seconds after which the client cancels."""
    router: int = 0

    @property
    def greedy(self) -> bool:
        return self.params.get("temperature") == 0

    @property
    def poison(self) -> bool:
        return POISON in self.prompt

    def sampling_params(self) -> SamplingParams:
        return SamplingParams(output_kind=self.kind, **self.params)

    def __str__(self) -> str:
        extras = {
            "deadline": self.deadline,
            "slow": self.slow or None,
            "cancel_after": self.cancel_after,
            "cancel_at": self.cancel_at,
            "poison": self.poison or None,
        }
        shown = " ".join(f"{name}={value}" for name, value in extras.items() if value is not None)
        params = " ".join(f"{name}={value!r}" for name, value in self.params.items())
        return f"{self.kind.name} prompt of {len(self.prompt)}, {params} {shown}".rstrip()


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice of the undisturbed run."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: str
    stop_reason: int | str | None


def reference(spec: Spec, seed: int | None) -> list[Answer]:
    """Compute the undisturbed answers of the fake engine, without an engine.

    Args:
        spec: the request.
        seed: the seed passed to the engine; the router may have drawn one.
    """
    encoded = msgspec.msgpack.encode(spec.sampling_params())
    params = msgspec.msgpack.decode(encoded, type=FakeParams)
    return [_answer(spec, params, (seed or 0) + index) for index in range(params.n)]


def _answer(spec: Spec, params: FakeParams, seed: int) -> Answer:
    choice = FakeChoice(list(spec.prompt), params, seed)
    stops = spec.params.get("stop", ())
    text = ""
    token_ids = []
    while True:
        message = link_pb2.ChoiceDelta()
        token_ids.append(choice.advance(message, MAX_MODEL_LEN))
        text += chr(token_ids[-1])
        hit = next((stop for stop in stops if text.endswith(stop)), None)
        if hit is not None:
            kept = text if spec.params["include_stop_str_in_output"] else text[: -len(hit)]
            return Answer(tuple(token_ids), kept, "stop", hit)
        if choice.finished:
            reason = link_pb2.ChoiceDelta.FinishReason.Name(message.finish_reason).lower()
            return Answer(tuple(token_ids), text, reason, message.stop_token_id or None)


@dataclass(frozen=True, slots=True)
class Mix:
    """Probabilities of the kinds of requests."""

    requests: int = 14
    seconds: float = 4.0
    """Period of arrivals, seconds."""
    most_tokens: int = 40
    cancels: float = 0.12
    deadlines: float = 0.08
    slow: float = 0.1
    poison: int = 0
    """Number of poison requests."""
    routers: int = 1


def random_traffic(rng: random.Random, mix: Mix) -> list[Spec]:
    """Draw the requests of one history."""
    specs = [_random_request(rng, mix, f"r{number:02}") for number in range(mix.requests)]
    for number in range(mix.poison):
        plain = _random_request(rng, mix, f"p{number:02}")
        specs.append(
            Spec(
                plain.name,
                plain.arrives,
                (*plain.prompt, POISON),
                {"temperature": 0, "max_tokens": 20},
                RequestOutputKind.DELTA,
                router=plain.router,
            )
        )
    return sorted(specs, key=lambda spec: (spec.arrives, spec.name))


def _random_request(rng: random.Random, mix: Mix, name: str) -> Spec:
    prompt = tuple(rng.randint(_FIRST, _LAST) for _ in range(rng.choice((1, 3, 8, 40))))
    params: dict[str, Any] = {"max_tokens": rng.randint(8, mix.most_tokens)}
    if rng.random() < 0.15:
        params["max_tokens"] = rng.randint(1, 3)
    match rng.choice(("greedy", "greedy", "greedy", "seeded", "unseeded")):
        case "greedy":
            params["temperature"] = 0
        case "seeded":
            params |= {"temperature": 1.0, "seed": rng.randint(1, 1000)}
        case _:
            params["temperature"] = 1.0
    if params["temperature"] and rng.random() < 0.3:
        params["n"] = rng.randint(2, 3)
    if rng.random() < 0.25:
        params["logprobs"] = rng.randint(0, 3)
    if rng.random() < 0.05:
        params["prompt_logprobs"] = 1
    if rng.random() < 0.1:
        params["presence_penalty"] = 0.5
    kind = rng.choice(_KINDS)
    spec = Spec(name, round(rng.uniform(0, mix.seconds), 3), prompt, params, kind)
    if rng.random() < 0.3:
        params |= _stop(rng, spec)
    return Spec(
        name,
        spec.arrives,
        prompt,
        params,
        kind,
        priority=rng.choice(tuple(Priority)),
        tenant=rng.choice(("anonymous", "a", "b")),
        deadline=round(rng.uniform(0.05, 3.0), 3) if rng.random() < mix.deadlines else None,
        slow=round(rng.uniform(0.05, 0.5), 3) if rng.random() < mix.slow else 0.0,
        **_manners(rng, mix),
        router=rng.randrange(mix.routers),
    )


def _manners(rng: random.Random, mix: Mix) -> dict[str, Any]:
    if rng.random() >= mix.cancels:
        return {}
    if rng.random() < 0.5:
        return {"cancel_after": rng.randint(0, 5)}
    return {"cancel_at": round(rng.uniform(0, 2.0), 3)}


def _stop(rng: random.Random, spec: Spec) -> dict[str, Any]:
    """Choose stop strings; most of the time one that occurs in the answer."""
    (answer, *_) = reference(spec, spec.params.get("seed"))
    start = rng.randrange(len(answer.text)) if answer.text else 0
    inside = answer.text[start : start + rng.randint(1, 4)] or "zz"
    stops = [inside] if rng.random() < 0.8 else ["never seen", inside]
    return {"stop": stops, "include_stop_str_in_output": rng.random() < 0.3}

"""Checks the output of one request: tokens, text, finish reasons and log-probabilities."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from vllm.sampling_params import RequestOutputKind

from tests.faults.history import Event, Output, Piece, Ran
from tests.faults.traffic import Answer, Spec, reference


@dataclass(slots=True)
class Received:
    """The output of one choice that a client received, joined according to its output kind."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprob_ids: tuple[int, ...] = ()
    reasons: list[tuple[str, int | str | None]] = field(default_factory=list)
    changed_output: bool = False

    def add(self, piece: Piece, *, delta: bool) -> None:
        """Add a piece."""
        tokens, text, logprobs = piece.token_ids, piece.text, piece.logprob_ids or ()
        if delta:
            self.token_ids += tokens
            self.text += text
            self.logprob_ids += logprobs
        else:
            self.changed_output |= tokens[: len(self.token_ids)] != self.token_ids
            self.changed_output |= not text.startswith(self.text)
            self.token_ids, self.text, self.logprob_ids = tokens, text, logprobs
        if piece.finish_reason:
            self.reasons.append((piece.finish_reason, piece.stop_reason))


def matches_reference(spec: Spec, events: list[Event]) -> Iterator[str]:
    """The client received the reference answer, or a prefix of it."""
    seeds = {event.seed for event in events if isinstance(event, Ran) and event.began}
    outputs = [event for event in events if isinstance(event, Output)]
    if len(seeds) > 1:
        yield f"ran with different seeds: {seeds}"
    elif seeds - {spec.params.get("seed")} and "seed" in spec.params:
        yield f"ran with seed {seeds}, not with the seed of the request"
    elif outputs and not seeds:
        yield "received output although no engine ran it"
    elif outputs:
        yield from _judge(spec, outputs, reference(spec, seeds.pop()))


def _judge(spec: Spec, outputs: list[Output], answers: list[Answer]) -> Iterator[str]:
    delta = spec.kind is RequestOutputKind.DELTA
    received = [Received() for _ in answers]
    for output in outputs:
        for piece in output.pieces:
            if piece.index < len(received):
                received[piece.index].add(piece, delta=delta)
            else:
                yield f"received choice {piece.index}, but requested {len(received)}"
    for index, (got, wanted) in enumerate(zip(received, answers, strict=True)):
        for what in _differences(got, wanted):
            yield f"choice {index}: {what}"
        if outputs[-1].finished:
            yield from (f"choice {index}: {what}" for what in _unfinished(got, wanted))
        if "logprobs" in spec.params and got.logprob_ids != got.token_ids:
            yield f"choice {index}: the log-probabilities belong to other tokens"
        if delta and len(got.reasons) > 1:
            yield f"choice {index}: finished {len(got.reasons)} times"
    if spec.kind is RequestOutputKind.FINAL_ONLY and len(outputs) != 1:
        yield f"received {len(outputs)} outputs, but requested only the last one"
    yield from _judge_prompt(spec, outputs)


def _differences(got: Received, wanted: Answer) -> Iterator[str]:
    if got.changed_output:
        yield "changed output sent before"
    if got.token_ids != wanted.token_ids[: len(got.token_ids)]:
        pairs = enumerate(zip(got.token_ids, wanted.token_ids, strict=False))
        at = next((number for number, (one, two) in pairs if one != two), len(wanted.token_ids))
        one, two = got.token_ids[at : at + 4], wanted.token_ids[at : at + 4]
        yield f"tokens differ from position {at}: {one}, expected {two}"
    if not wanted.text.startswith(got.text):
        yield f"text is {got.text!r}, expected {wanted.text!r}"


def _unfinished(got: Received, wanted: Answer) -> Iterator[str]:
    if (got.token_ids, got.text) != (wanted.token_ids, wanted.text):
        yield f"finished after {len(got.token_ids)} of {len(wanted.token_ids)} tokens"
    if set(got.reasons) != {(wanted.finish_reason, wanted.stop_reason)}:
        yield f"finish reason is {got.reasons}, expected {wanted.finish_reason}"


def _judge_prompt(spec: Spec, outputs: list[Output]) -> Iterator[str]:
    given = [output.prompt_logprobs for output in outputs if output.prompt_logprobs]
    if "prompt_logprobs" not in spec.params:
        return
    once = spec.kind is RequestOutputKind.DELTA
    if set(given) - {len(spec.prompt)} or (once and len(given) != 1):
        yield f"received log-probabilities {given} for a prompt of {len(spec.prompt)} tokens"

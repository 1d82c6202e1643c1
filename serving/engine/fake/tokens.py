"""Tokens of the fake engine: each is a checksum of all previous tokens."""

import zlib

import msgspec

from serving.link.v1 import link_pb2

_FIRST, _LETTERS = 32, 95
"""Generated tokens: printable ASCII characters, as first code and count."""


class FakeParams(msgspec.Struct):
    """Fields of vLLM's SamplingParams that the fake engine uses; other fields are ignored.

    The defaults equal vLLM's, because fields with default values are not sent.
    """

    n: int = 1
    max_tokens: int | None = 16
    seed: int | None = None
    stop: list[str] | str | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None

    def stops(self) -> list[str]:
        """Return the stop strings."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]


class FakeChoice:
    """One choice of a running request."""

    def __init__(self, prompt: list[int], params: FakeParams, seed: int) -> None:
        """Prepare generation after a prompt.

        Args:
            prompt: Token ids.
            params: The request's parameters.
            seed: The request's seed plus the index of the choice.
        """
        self.finished = False
        self._params = params
        self._stops = params.stops()
        self._length = len(prompt)
        self._tokens = 0
        self._text = ""
        self._shown = 0
        # The maximum seed plus a choice index exceeds 64 bits.
        self._state = zlib.crc32((seed % 2**64).to_bytes(8, "little"))
        for token in prompt:
            self._read(token)

    def advance(self, message: link_pb2.ChoiceDelta, max_len: int) -> int:
        """Generate one token into ``message`` and return it.

        Args:
            message: Receives the token, its text and, at the end, the finish reason.
            max_len: Maximum number of tokens of prompt and answer together.
        """
        params = self._params
        token = _FIRST + self._state % _LETTERS
        self._read(token)
        self._tokens += 1
        self._text += chr(token)
        message.token_ids.append(token)
        if params.logprobs is not None or params.logprob_token_ids is not None:
            count = params.logprobs or len(params.logprob_token_ids or ())
            message.logprobs.append(fake_logprobs(token, count))
        hit = next((stop for stop in self._stops if self._text.endswith(stop)), None)
        if hit is not None:
            message.finish_reason = link_pb2.ChoiceDelta.STOP
            message.stop_string = hit
            if not params.include_stop_str_in_output:
                self._text = self._text[: -len(hit)]
        elif token in (params.stop_token_ids or ()):
            message.finish_reason = link_pb2.ChoiceDelta.STOP
            message.stop_token_id = token
        elif self._tokens == params.max_tokens or self._length + self._tokens >= max_len:
            message.finish_reason = link_pb2.ChoiceDelta.LENGTH
        self.finished = message.finish_reason != link_pb2.ChoiceDelta.FINISH_REASON_UNSPECIFIED
        # Text that may become a stop string is held back, as in vLLM.
        held = 0 if self.finished else max((len(stop) - 1 for stop in self._stops), default=0)
        visible = max(self._shown, len(self._text) - held)
        message.text = self._text[self._shown : visible]
        self._shown = visible
        return token

    def _read(self, token: int) -> None:
        self._state = zlib.crc32(token.to_bytes(4, "little"), self._state)


def fake_logprobs(token: int, count: int) -> link_pb2.PositionLogprobs:
    """Return fake log-probabilities of a position: ``token`` first, ``count`` entries in all."""
    tokens = [token, *(_FIRST + (token + step) % _LETTERS for step in range(1, count))]
    return link_pb2.PositionLogprobs(
        token_ids=tokens,
        logprobs=[-0.5 * (rank + 1) for rank in range(len(tokens))],
        vocab_ranks=range(1, len(tokens) + 1),
        decoded_tokens=[chr(one) for one in tokens],
    )


def fake_prompt_logprobs(prompt: list[int], params: FakeParams) -> list[link_pb2.PositionLogprobs]:
    """Return fake log-probabilities of all prompt positions; the first position has none."""
    count = params.prompt_logprobs or 0
    return [
        link_pb2.PositionLogprobs(),
        *(fake_logprobs(token, count) for token in prompt[1:]),
    ]


def fake_error(request_id: str, code: link_pb2.RequestError.Code, message: str) -> link_pb2.Delta:
    """Return the delta that ends a failed request."""
    return link_pb2.Delta(
        request_id=request_id,
        finished=True,
        error=link_pb2.RequestError(code=code, message=message),
    )

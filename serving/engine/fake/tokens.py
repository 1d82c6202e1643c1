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
    stop_token_ids: list[int] | None = None
    logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None


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
        self._length = len(prompt)
        self._tokens = 0
        # The maximum seed plus a choice index exceeds 64 bits.
        self._state = zlib.crc32((seed % 2**64).to_bytes(8, "little"))
        for token in prompt:
            self._read(token)

    def advance(self, message: link_pb2.ChoiceDelta, max_len: int) -> int:
        """Generate one token into ``message`` and return it.

        Args:
            message: Receives the token and, at the end, the finish reason.
            max_len: Maximum number of tokens of prompt and answer together.
        """
        params = self._params
        token = _FIRST + self._state % _LETTERS
        self._read(token)
        self._tokens += 1
        message.token_ids.append(token)
        if params.logprobs is not None or params.logprob_token_ids is not None:
            count = params.logprobs or len(params.logprob_token_ids or ())
            message.logprobs.append(fake_logprobs(token, count))
        if token in (params.stop_token_ids or ()):
            message.finish_reason = link_pb2.ChoiceDelta.STOP
            message.stop_token_id = token
        elif self._tokens == params.max_tokens or self._length + self._tokens >= max_len:
            message.finish_reason = link_pb2.ChoiceDelta.LENGTH
        self.finished = message.finish_reason != link_pb2.ChoiceDelta.FINISH_REASON_UNSPECIFIED
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

"""Gives each token of a stream to the answer parsers with exactly its own text.

vLLM's streaming parsers decide by token ids and cut by text, so they need both to match. They do
not when a rank holds text back (a stop string may be beginning in it) while it sends the token
ids at once, and several tokens in one delta (speculative decoding, a client that reads slowly)
hide where one ends. This module decodes the tokens once more, which says where each one ends in
the text, and passes a token on when all of its text is there.
"""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

from vllm.sampling_params import SamplingParams
from vllm.tokenizers import TokenizerLike
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer, IncrementalDetokenizer

Piece = tuple[str, list[int]]
"""Text and the ids of the tokens that it belongs to."""


class TokenText:
    """The tokens of one choice and where each ends in its text."""

    def __init__(
        self,
        tokenizer: TokenizerLike,
        prompt_token_ids: Sequence[int],
        *,
        skip_special_tokens: bool,
        spaces_between_special_tokens: bool,
    ) -> None:
        """Decode as a rank does that got this prompt and these sampling parameters."""
        params = SamplingParams(
            skip_special_tokens=skip_special_tokens,
            spaces_between_special_tokens=spaces_between_special_tokens,
        )
        # The detokenizer reads three fields of a request.
        request = SimpleNamespace(
            request_id="", prompt_token_ids=list(prompt_token_ids), sampling_params=params
        )
        self._detokenizer = cast(
            "BaseIncrementalDetokenizer",
            IncrementalDetokenizer.from_new_request(tokenizer, cast("EngineCoreRequest", request)),
        )
        self._slow = not hasattr(self._detokenizer, "stream")
        self._waiting: list[tuple[int, str]] = []
        """Tokens that were not passed on yet, with the text of each."""
        self._text = ""
        """Received text that was not passed on yet."""
        self._lost = False
        """The text is not what the tokens decode to: nothing can be matched any more."""

    def skip(self, token_ids: Sequence[int]) -> None:
        """Take in tokens that were passed on already."""
        for token in token_ids:
            self._decode(token)

    def pieces(self, text: str, token_ids: Sequence[int], *, finished: bool) -> Iterator[Piece]:
        """Yield what can be passed on, a token at a time.

        Text that decodes from several tokens only (parts of a character) comes with the last of
        them. With ``finished`` everything that has text comes; tokens whose text was cut off by
        a stop string do not.
        """
        self._text += text
        if self._lost:
            yield self._rest(list(token_ids))
            return
        self._waiting += [(token, self._decode(token)) for token in token_ids]
        ready: list[int] = []
        count = 0
        for token, own in self._waiting:
            if len(own) > len(self._text):
                break
            if not self._text.startswith(own):
                self._lost = True
                break
            count += 1
            ready.append(token)
            if own:
                self._text = self._text[len(own) :]
                yield own, ready
                ready = []
        del self._waiting[:count]
        if self._lost:
            yield self._rest(ready + [token for token, _ in self._waiting])
        elif ready or (finished and self._text):
            yield (self._rest(ready)) if finished else ("", ready)

    def _rest(self, token_ids: list[int]) -> Piece:
        text, self._text = self._text, ""
        self._waiting.clear()
        return text, token_ids

    def _decode(self, token: int) -> str:
        if self._slow:
            # Decodes the last of these, which vLLM's own loop appends beforehand.
            self._detokenizer.token_ids.append(token)
        text: str = self._detokenizer.decode_next(token)
        return text


def holds_text_back(request: Any) -> bool:
    """Tell whether a rank sends the text of this request's tokens later than the tokens."""
    stop = getattr(request, "stop", None) or ()
    longest = len(stop) if isinstance(stop, str) else max(map(len, stop), default=0)
    return longest > 1 and not getattr(request, "include_stop_str_in_output", False)

"""Matches each token of a stream to exactly its text, for the streaming parsers.

vLLM's streaming parsers make decisions on token ids but split text, so the two must correspond.
They do not correspond if text that may start a stop string is held back while its token ids are
not, or if a delta contains several tokens (speculative decoding, a slow client). This module
decodes the tokens again to find where each ends in the text, and yields a token once all of its
text has arrived.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.tokenizers import TokenizerLike

from serving.vllm_adapter.detokenizer import detokenizer_of

Piece = tuple[str, list[int]]
"""Text and the ids of its tokens."""


class TokenText:
    """The tokens of one choice, with the text of each."""

    def __init__(
        self,
        tokenizer: TokenizerLike,
        prompt_token_ids: Sequence[int],
        *,
        skip_special_tokens: bool,
        spaces_between_special_tokens: bool,
    ) -> None:
        """Prepare to decode the output after a prompt, with the request's sampling parameters.

        Args:
            tokenizer: The model's tokenizer.
            prompt_token_ids: Token ids of the prompt.
            skip_special_tokens: As in the request's sampling parameters.
            spaces_between_special_tokens: As in the request's sampling parameters.
        """
        params = SamplingParams(
            skip_special_tokens=skip_special_tokens,
            spaces_between_special_tokens=spaces_between_special_tokens,
        )
        self._detokenizer = detokenizer_of(tokenizer, prompt_token_ids, params)
        self._slow = not hasattr(self._detokenizer, "stream")
        self._waiting: list[tuple[int, str]] = []
        """Tokens not yielded yet, with the text of each."""
        self._text = ""
        """Received text not yielded yet."""
        self._lost = False
        """Whether matching has stopped because the text differs from the decoded tokens."""

    def skip(self, token_ids: Sequence[int]) -> None:
        """Decode tokens that have been parsed already, without yielding them."""
        for token in token_ids:
            self._decode(token)

    def length(self, token_ids: Sequence[int]) -> int:
        """Decode the first tokens of an answer, and return the length of their text."""
        return sum(len(self._decode(token)) for token in token_ids)

    def pieces(self, text: str, token_ids: Sequence[int], *, finished: bool) -> Iterator[Piece]:
        """Yield tokens whose text has arrived, one at a time.

        Text that spans several tokens (parts of a character) is yielded with the last one. With
        ``finished``, all remaining text is yielded, but not the tokens whose text was cut off by a
        stop string.
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
            # The slow detokenizer decodes the last of ``token_ids``; in vLLM the caller appends it.
            self._detokenizer.token_ids.append(token)
        text: str = self._detokenizer.decode_next(token)
        return text


def token_text(
    tokenizer: TokenizerLike, prompt_token_ids: Sequence[int], request: Any
) -> TokenText:
    """Return the ``TokenText`` of a choice.

    Args:
        tokenizer: the model's tokenizer.
        prompt_token_ids: token ids of the prompt.
        request: vLLM's request.
    """
    return TokenText(
        tokenizer,
        prompt_token_ids,
        skip_special_tokens=getattr(request, "skip_special_tokens", True),
        spaces_between_special_tokens=getattr(request, "spaces_between_special_tokens", True),
    )


def text_may_differ(request: Any) -> bool:
    """Return whether a delta's text may differ from that of its tokens.

    With stop strings, text arrives later than its token ids, and the last token's text is cut off.
    """
    stop = getattr(request, "stop", None) or ()
    return any(stop)

"""Detokenizes a choice with vLLM's incremental detokenizer, and finds stop strings.

vLLM does this in ``OutputProcessor``, next to the engine. Here, the router does it, where a
request's output outlives the rank that generates it: a stop string or a multi-token character is
found even if its tokens come from different ranks.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast
from weakref import WeakKeyDictionary

from vllm.logprobs import PromptLogprobs, SampleLogprobs
from vllm.sampling_params import SamplingParams
from vllm.tokenizers import TokenizerLike
from vllm.tokenizers.detokenizer_utils import convert_ids_list_to_tokens
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import (
    BaseIncrementalDetokenizer,
    IncrementalDetokenizer,
    uses_fast_detokenizer,
)
from vllm.v1.engine.logprobs import LogprobsProcessor

_CONTEXT = 8
"""Number of prompt tokens that are decoded before the first new token. vLLM decodes the whole
prompt, which takes milliseconds if it is long; a token's text depends only on a few tokens before
it."""


def detokenizer_of(
    tokenizer: TokenizerLike, prompt_token_ids: Sequence[int], params: SamplingParams
) -> BaseIncrementalDetokenizer:
    """Create vLLM's detokenizer for the output after a prompt.

    Args:
        tokenizer: The model's tokenizer.
        prompt_token_ids: The prompt, [tokens].
        params: The request's sampling parameters.
    """
    prompt = list(_context(tokenizer, prompt_token_ids, params))
    # The detokenizer uses only these fields of a request.
    request = SimpleNamespace(
        request_id="", prompt_token_ids=prompt, prompt_embeds=None, sampling_params=params
    )
    return cast(
        "BaseIncrementalDetokenizer",
        IncrementalDetokenizer.from_new_request(tokenizer, cast("EngineCoreRequest", request)),
    )


def _context(
    tokenizer: TokenizerLike, prompt_token_ids: Sequence[int], params: SamplingParams
) -> Sequence[int]:
    if len(prompt_token_ids) <= _CONTEXT or not uses_fast_detokenizer(tokenizer):
        return prompt_token_ids  # the slow detokenizer only uses the last tokens
    end = prompt_token_ids[-_CONTEXT:]
    fast: Any = tokenizer
    visible = fast._tokenizer.decode(  # noqa: SLF001  as vLLM's detokenizer
        list(end), skip_special_tokens=params.skip_special_tokens
    )
    # Without preceding text, some tokenizers treat a token as the beginning of a text; and if the
    # prompt ends in an incomplete character, vLLM returns the prompt's text with the first token.
    plain = visible and not visible.endswith("\N{REPLACEMENT CHARACTER}")
    return end if plain else prompt_token_ids


class TextStream:
    """The text of a choice as its tokens arrive."""

    __slots__ = ("_detokenizer", "_keep_stop_token", "decode_one")

    def __init__(
        self, tokenizer: TokenizerLike, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> None:
        """Start after the prompt; see :func:`detokenizer_of` for the arguments."""
        self._detokenizer = detokenizer_of(tokenizer, prompt_token_ids, params)
        self._keep_stop_token = params.include_stop_str_in_output
        self.decode_one: Callable[[int], str] | None = None
        """A faster ``add`` that returns the text of the next token. None if the request has stop
        strings, or if the tokenizer needs more than the token."""
        if not params.stop and hasattr(self._detokenizer, "stream"):
            self.decode_one = self._detokenizer.decode_next

    def add(
        self, token_ids: list[int], *, stop_token: bool, finished: bool
    ) -> tuple[int, str, str | None]:
        """Decode new tokens.

        Args:
            token_ids: The new tokens, [tokens].
            stop_token: Whether the last one ended the choice; its text is omitted unless
                ``include_stop_str_in_output`` is set.
            finished: Whether the choice ends with them.

        Returns:
            The number of tokens up to the end of a stop string (without one, of all tokens), the
            text that they add, and the stop string that ended the choice, or None.
        """
        decode_one = self.decode_one
        if decode_one is not None:
            end = len(token_ids) - (stop_token and not self._keep_stop_token)
            return len(token_ids), "".join(map(decode_one, token_ids[:end])), None
        detokenizer = self._detokenizer
        before = detokenizer.num_output_tokens()
        stop = detokenizer.update(token_ids, stop_token)
        text = detokenizer.get_next_output_text(finished or stop is not None, True)
        kept = detokenizer.num_output_tokens() - before
        return (kept if stop is not None else len(token_ids)), text, stop


class CandidateTexts:
    """Texts of log-probability candidates; each token is decoded once per tokenizer."""

    def __init__(self, tokenizer: TokenizerLike) -> None:
        """Start without texts.

        Args:
            tokenizer: The model's tokenizer.
        """
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}
        self._processor = LogprobsProcessor(tokenizer, None, None, None, None, None)

    def texts(self, token_ids: Sequence[int], before: SampleLogprobs | PromptLogprobs) -> list[str]:
        """Return the texts of one position's candidates.

        Args:
            token_ids: The candidates, [candidates].
            before: Log-probabilities of the positions before it. A candidate that completes a
                character has the text of the whole character.
        """
        known = self._texts
        if missing := [token for token in token_ids if token not in known]:
            known.update(
                zip(missing, convert_ids_list_to_tokens(self._tokenizer, missing), strict=True)
            )
        texts = [known[token] for token in token_ids]
        if any(text.endswith("\N{REPLACEMENT CHARACTER}") for text in texts):
            context = self._processor._get_sampled_context_ids(before)  # noqa: SLF001
            texts = self._processor._verify_tokens(texts, list(token_ids), context)  # noqa: SLF001
        return texts


_candidate_texts: WeakKeyDictionary[Any, CandidateTexts] = WeakKeyDictionary()


def candidate_texts(tokenizer: TokenizerLike) -> CandidateTexts:
    """Return the cache of a tokenizer's token texts, which all requests share.

    The cache holds at most one text per vocabulary entry.
    """
    found = _candidate_texts.get(tokenizer)
    if found is None:
        found = _candidate_texts[tokenizer] = CandidateTexts(tokenizer)
    return found

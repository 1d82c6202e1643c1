"""Handler of /tokenize and /detokenize."""

import asyncio
from dataclasses import replace
from typing import Any

from vllm.config import ModelConfig
from vllm.entrypoints.serve.tokenize.protocol import (
    TokenizeChatRequest,
    TokenizeCompletionRequest,
    TokenizeResponse,
)
from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
from vllm.exceptions import VLLMValidationError
from vllm.renderers.params import TokenizeParams

from serving.errors import InvalidRequest
from serving.vllm_adapter.error_response import RouterErrors
from serving.vllm_adapter.long_answers import MaybeLong

MAX_TOKENS = 2**20
"""Maximum number of tokens in an answer. Over gRPC, building and encoding this many takes 22 ms in
a single step."""
MAX_STRINGS = 2**18
"""Maximum number of tokens in an answer that includes their strings."""
_STRINGS = 2**12
"""Number of ids that are converted to strings per event-loop iteration; takes 0.5 ms."""


class _BoundedText(TokenizeCompletionRequest):
    def build_tok_params(self, model_config: ModelConfig) -> TokenizeParams:
        return replace(super().build_tok_params(model_config), max_total_tokens=MAX_TOKENS)


class _BoundedChat(TokenizeChatRequest):
    def build_tok_params(self, model_config: ModelConfig) -> TokenizeParams:
        return replace(super().build_tok_params(model_config), max_total_tokens=MAX_TOKENS)


class TokenizeAnswer(MaybeLong, TokenizeResponse):
    """An answer of /tokenize."""


class TokenizationHandler(RouterErrors, ServingTokenization):
    """/tokenize and /detokenize."""

    async def create_tokenize(self, request: Any, raw_request: Any) -> Any:
        """Tokenize a text or a chat of at most ``MAX_TOKENS`` tokens.

        Raises:
            InvalidRequest: There are more tokens, or more than ``MAX_STRINGS`` with strings.
        """
        wants_strings = request.return_token_strs
        request.return_token_strs = False
        chat = isinstance(request, TokenizeChatRequest)
        request.__class__ = _BoundedChat if chat else _BoundedText
        try:
            answer = await super().create_tokenize(request, raw_request)
        except VLLMValidationError as error:
            if str(MAX_TOKENS) not in str(error):
                raise
            raise InvalidRequest(f"the text has more than {MAX_TOKENS} tokens") from error
        if isinstance(answer, TokenizeResponse):
            if wants_strings:
                if answer.count > MAX_STRINGS:
                    raise InvalidRequest(
                        f"the text has more than {MAX_STRINGS} tokens, the limit for "
                        "return_token_strs"
                    )
                answer.token_strs = await self._strings(answer.tokens)
            answer.__class__ = TokenizeAnswer
        return answer

    async def _strings(self, tokens: list[int]) -> list[str]:
        """Return the strings of tokens, converted in slices."""
        tokenizer = self.renderer.get_tokenizer()
        found: list[str] = []
        for begin in range(0, len(tokens), _STRINGS):
            if begin:
                await asyncio.sleep(0)
            found += tokenizer.convert_ids_to_tokens(tokens[begin : begin + _STRINGS])
        return found

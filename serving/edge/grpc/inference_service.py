"""InferenceService: typed RPCs on top of the vLLM handlers that also serve REST."""

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import FastAPI
from google.protobuf.message import Message
from starlette.datastructures import State
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from serving.api.v1 import inference_pb2 as pb
from serving.api.v1 import inference_pb2_grpc
from serving.edge.grpc import requests, responses
from serving.edge.grpc.call import Call, CallRunner
from serving.edge.grpc.errors import rpc_error
from serving.edge.grpc.vllm_json import decode_chat, decode_text
from serving.edge.value_bounds import MAX_VALUES, check_message
from serving.errors import Unsupported
from serving.h2grpc.turns import TaskTurns
from serving.vllm_adapter.long_answers import built_in_thread, free, is_long

_LONG = 2**12
"""Size above which a request can contain more than a thousand values, bytes."""

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", pb.ChatResponse, pb.CompleteResponse)
ChunkT = TypeVar("ChunkT", pb.ChatStreamResponse, pb.CompleteStreamResponse)


@dataclass(frozen=True, slots=True)
class _Generation(Generic[RequestT, ResponseT, ChunkT]):
    """Mapping of one kind of generation to vLLM's handler and back."""

    to_vllm: Callable[..., Any]
    """Builds vLLM's request from the proto request; takes ``stream``."""
    handler: Callable[[State], Callable[..., Awaitable[Any]]]
    """Returns vLLM's handler from the app state."""
    response: Callable[[Any], ResponseT]
    """Builds the response from vLLM's answer."""
    chunk: Callable[[str], ChunkT]
    """Builds a stream message from the data of one vLLM event."""


def _decoded(answer: Any, decode: Callable[[str], Any]) -> Any:
    """Return vLLM's answer as decoded JSON, except for its log probabilities.

    These may be large, and vLLM's objects have the same fields as the JSON.
    """
    logprobs = [choice.logprobs for choice in answer.choices]
    for choice in answer.choices:
        choice.logprobs = None
    decoded = decode(answer.model_dump_json())
    for choice, vllm_choice, found in zip(decoded.choices, answer.choices, logprobs, strict=True):
        choice.logprobs = vllm_choice.logprobs = found
    return decoded


def _of_long(kind: "_Generation[Any, ResponseT, Any]", answer: Any) -> ResponseT:
    """Build the response from a long answer, freeing the answer in slices."""
    response = kind.response(answer)
    free(answer)
    return response


_CHAT: _Generation[pb.ChatRequest, pb.ChatResponse, pb.ChatStreamResponse] = _Generation(
    requests.chat_request,
    lambda state: state.openai_serving_chat.create_chat_completion,
    lambda answer: responses.chat_response(_decoded(answer, decode_chat)),
    lambda data: responses.chat_stream_response(decode_chat(data)),
)
_COMPLETE: _Generation[pb.CompleteRequest, pb.CompleteResponse, pb.CompleteStreamResponse] = (
    _Generation(
        requests.complete_request,
        lambda state: state.openai_serving_completion.create_completion,
        lambda answer: responses.complete_response(_decoded(answer, decode_text)),
        lambda data: responses.complete_stream_response(decode_text(data)),
    )
)


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """Serves ``serving.api.v1.InferenceService``."""

    def __init__(
        self,
        app: FastAPI,
        runner: CallRunner,
        max_body_values: int = MAX_VALUES,
        turns: TaskTurns | None = None,
    ) -> None:
        """Create the service.

        Args:
            app: vLLM's app; its state holds the handlers.
            runner: Runs the RPCs.
            max_body_values: Maximum number of values in a request.
            turns: Turns shared by all requests with long steps. By default, the service creates
                turns for its own requests.
        """
        self._app = app
        self._max_body_values = max_body_values
        self._runner = runner
        self._turns = turns or TaskTurns()

    async def Chat(self, request: pb.ChatRequest, context: Any) -> pb.ChatResponse:  # noqa: N802
        """Answer a conversation."""
        return await self._generate("Chat", _CHAT, request, context)

    async def ChatStream(  # type: ignore[override]  # noqa: N802  writes to the context itself
        self, request: pb.ChatRequest, context: Any
    ) -> None:
        """Answer a conversation, streaming the tokens as they are generated."""
        await self._stream("ChatStream", _CHAT, request, context)

    async def Complete(  # noqa: N802
        self, request: pb.CompleteRequest, context: Any
    ) -> pb.CompleteResponse:
        """Continue a text."""
        return await self._generate("Complete", _COMPLETE, request, context)

    async def CompleteStream(  # type: ignore[override]  # noqa: N802  writes to the context itself
        self, request: pb.CompleteRequest, context: Any
    ) -> None:
        """Continue a text, streaming the tokens as they are generated."""
        await self._stream("CompleteStream", _COMPLETE, request, context)

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        """Reject the call, because the served models only generate text."""
        del request

        async def handle(call: Call) -> pb.EmbedResponse:
            del call
            names = ", ".join(
                model.name for model in self._app.state.openai_serving_models.base_model_paths
            )
            raise Unsupported(f"{names} only generates text: use an embedding model")

        return await self._runner.unary("Embed", context, handle)

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: Any
    ) -> pb.TokenizeResponse:
        """Convert text or messages to token ids."""

        async def handle(call: Call) -> pb.TokenizeResponse:
            await self._check_size(request)
            answer = await self._answer(
                self._app.state.serving_tokenization.create_tokenize,
                requests.tokenize_request(request),
                call,
            )
            return pb.TokenizeResponse(
                token_ids=answer.tokens,
                token_strings=answer.token_strs or (),
                max_model_len=answer.max_model_len,
            )

        return await self._runner.unary("Tokenize", context, handle)

    async def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: Any
    ) -> pb.DetokenizeResponse:
        """Convert token ids to text."""

        async def handle(call: Call) -> pb.DetokenizeResponse:
            await self._check_size(request)
            answer = await self._answer(
                self._app.state.serving_tokenization.create_detokenize,
                requests.detokenize_request(request),
                call,
            )
            return pb.DetokenizeResponse(text=answer.prompt)

        return await self._runner.unary("Detokenize", context, handle)

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: Any
    ) -> pb.ListModelsResponse:
        """List the served models."""
        del request

        async def handle(call: Call) -> pb.ListModelsResponse:
            del call
            listed = await self._app.state.openai_serving_models.show_available_models()
            return pb.ListModelsResponse(
                models=[
                    pb.Model(
                        id=card.id,
                        created_unix_seconds=card.created,
                        owned_by=card.owned_by,
                        max_model_len=card.max_model_len or 0,
                    )
                    for card in listed.data
                ]
            )

        return await self._runner.unary("ListModels", context, handle)

    async def _generate(
        self,
        method: str,
        kind: _Generation[RequestT, ResponseT, ChunkT],
        request: RequestT,
        context: Any,
    ) -> ResponseT:
        """Run an RPC with one response."""

        async def handle(call: Call) -> ResponseT:
            answer = await self._begin(kind, request, call, stream=False)
            if is_long(answer):
                response = await built_in_thread(functools.partial(_of_long, kind, answer))
            else:
                response = kind.response(answer)
            call.usage = response.usage
            return response

        return await self._runner.unary(method, context, handle)

    async def _stream(
        self,
        method: str,
        kind: _Generation[RequestT, ResponseT, ChunkT],
        request: RequestT,
        context: Any,
    ) -> None:
        """Run an RPC with a stream of responses."""

        async def begin(call: Call) -> AsyncGenerator[str]:
            events: AsyncGenerator[str] = await self._begin(kind, request, call, stream=True)
            return events

        await self._runner.stream(method, context, begin, kind.chunk)

    async def _begin(
        self,
        kind: _Generation[RequestT, ResponseT, ChunkT],
        request: RequestT,
        call: Call,
        *,
        stream: bool,
    ) -> Any:
        await self._check_size(request)
        handler = kind.handler(self._app.state)
        return await self._answer(handler, kind.to_vllm(request, stream=stream), call)

    async def _check_size(self, request: Message) -> None:
        """Check the number of values in a request.

        Long requests are processed one per iteration of the event loop, because counting and
        converting one takes milliseconds.

        Raises:
            InvalidRequest: The request contains too many values.
        """
        if request.ByteSize() > _LONG:
            await self._turns.turn()
        check_message(request, self._max_body_values)

    async def _answer(
        self, handler: Callable[..., Awaitable[Any]], request: Any, call: Call
    ) -> Any:
        """Return the answer of a vLLM handler to a request.

        Raises:
            RpcError: The handler returned an error body.
        """
        answer = await handler(request, call.raw_request(self._app))
        if isinstance(answer, ErrorResponse):
            raise rpc_error(answer)
        return answer

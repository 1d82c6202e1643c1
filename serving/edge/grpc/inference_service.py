"""InferenceService: typed calls on the very serving objects that answer REST."""

from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from fastapi import FastAPI
from google.protobuf.message import Message
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from serving.api.v1 import inference_pb2 as pb
from serving.api.v1 import inference_pb2_grpc
from serving.edge.grpc import requests, responses
from serving.edge.grpc.call import Call, CallRunner
from serving.edge.grpc.errors import rpc_error
from serving.edge.grpc.message_bounds import bound
from serving.edge.grpc.vllm_json import decode_chat, decode_text
from serving.edge.rest.json_bounds import MOST_VALUES
from serving.errors import Unsupported

RequestT = TypeVar("RequestT", bound=Message)


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """Serves ``serving.api.v1.InferenceService``."""

    def __init__(
        self, app: FastAPI, runner: CallRunner, max_body_values: int = MOST_VALUES
    ) -> None:
        self._app = app
        self._max_body_values = max_body_values
        self._runner = runner

    async def Chat(self, request: pb.ChatRequest, context: Any) -> pb.ChatResponse:  # noqa: N802
        """Answer one chat turn."""

        async def handle(call: Call) -> pb.ChatResponse:
            answer = _checked(
                await self._app.state.openai_serving_chat.create_chat_completion(
                    requests.chat_request(self._bounded(request), stream=False),
                    call.raw_request(self._app),
                )
            )
            decoded = decode_chat(answer.model_dump_json())
            response = responses.chat_response(decoded)
            call.usage = response.usage
            return response

        return await self._runner.unary("Chat", context, handle)

    async def ChatStream(  # type: ignore[override]  # noqa: N802  it writes by itself
        self, request: pb.ChatRequest, context: Any
    ) -> None:
        """Answer one chat turn as it is generated."""

        async def begin(call: Call) -> AsyncGenerator[str]:
            events: AsyncGenerator[str] = _checked(
                await self._app.state.openai_serving_chat.create_chat_completion(
                    requests.chat_request(self._bounded(request), stream=True),
                    call.raw_request(self._app),
                )
            )
            return events

        await self._runner.stream("ChatStream", context, begin, _chat_chunk)

    async def Complete(  # noqa: N802
        self, request: pb.CompleteRequest, context: Any
    ) -> pb.CompleteResponse:
        """Continue a text."""

        async def handle(call: Call) -> pb.CompleteResponse:
            answer = _checked(
                await self._app.state.openai_serving_completion.create_completion(
                    requests.complete_request(self._bounded(request), stream=False),
                    call.raw_request(self._app),
                )
            )
            decoded = decode_text(answer.model_dump_json())
            response = responses.complete_response(decoded)
            call.usage = response.usage
            return response

        return await self._runner.unary("Complete", context, handle)

    async def CompleteStream(  # type: ignore[override]  # noqa: N802  it writes by itself
        self, request: pb.CompleteRequest, context: Any
    ) -> None:
        """Continue a text as it is generated."""

        async def begin(call: Call) -> AsyncGenerator[str]:
            events: AsyncGenerator[str] = _checked(
                await self._app.state.openai_serving_completion.create_completion(
                    requests.complete_request(self._bounded(request), stream=True),
                    call.raw_request(self._app),
                )
            )
            return events

        await self._runner.stream("CompleteStream", context, begin, _text_chunk)

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        """Refuse: the served models generate text."""
        del request

        async def handle(call: Call) -> pb.EmbedResponse:
            del call
            names = ", ".join(
                model.name for model in self._app.state.openai_serving_models.base_model_paths
            )
            raise Unsupported(
                f"{names} generates text and has no embeddings: use an embedding model"
            )

        return await self._runner.unary("Embed", context, handle)

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: Any
    ) -> pb.TokenizeResponse:
        """Turn a text or messages into token ids."""

        async def handle(call: Call) -> pb.TokenizeResponse:
            answer = _checked(
                await self._app.state.serving_tokenization.create_tokenize(
                    requests.tokenize_request(self._bounded(request)), call.raw_request(self._app)
                )
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
        """Turn token ids into text."""

        async def handle(call: Call) -> pb.DetokenizeResponse:
            answer = _checked(
                await self._app.state.serving_tokenization.create_detokenize(
                    requests.detokenize_request(self._bounded(request)), call.raw_request(self._app)
                )
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

    def _bounded(self, request: RequestT) -> RequestT:
        """Return the request, unless it holds too many values.

        Raises:
            InvalidRequest: it does.
        """
        bound(request, self._max_body_values)
        return request


def _chat_chunk(data: str) -> pb.ChatStreamResponse:
    return responses.chat_stream_response(decode_chat(data))


def _text_chunk(data: str) -> pb.CompleteStreamResponse:
    return responses.complete_stream_response(decode_text(data))


def _checked(answer: Any) -> Any:
    """Return what a handler of vLLM answers, unless it is an error body.

    Raises:
        RpcError: it is one.
    """
    if isinstance(answer, ErrorResponse):
        raise rpc_error(answer)
    return answer

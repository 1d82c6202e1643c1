"""The two ways in which ``chat`` reaches a router: OpenAI REST and gRPC, behind one protocol.

Both turn whatever fails into a ``ServingError`` whose message names the address.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import grpc
import openai
from openai.types.chat import ChatCompletionMessageParam
from openai.types.chat.chat_completion_chunk import ChoiceDelta

from serving import errors
from serving.api.v1 import inference_pb2, inference_pb2_grpc
from serving.client.credentials import NO_ACCESS, Access
from serving.client.grpc import CONNECT_TIMEOUT, error_of, open_channel, require_answer


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the conversation; the reasoning of earlier answers is not sent again."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of an answer."""

    kind: Literal["reasoning", "content"]
    text: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """What the user may choose; ``None`` leaves it to the server."""

    temperature: float | None = None
    max_tokens: int | None = None


class ChatClient(Protocol):
    """Answers conversations."""

    def stream(self, turns: list[Turn]) -> Iterator[Piece]:
        """Yield the answer to the last turn; closing the iterator stops the server's work.

        Raises:
            ServingError: with what went wrong and where.
        """
        ...


_BY_HTTP: dict[int, type[errors.ServingError]] = {
    400: errors.InvalidRequest,
    401: errors.Unauthenticated,
    403: errors.PermissionDenied,
    404: errors.ModelNotFound,
    422: errors.InvalidRequest,
    429: errors.Overloaded,
    503: errors.NotReady,
    504: errors.DeadlineExceeded,
}


class RestChatClient:
    """Over OpenAI REST, with the ``openai`` SDK that any client would use."""

    def __init__(
        self,
        base_url: str,
        model: str,
        sampling: Sampling,
        *,
        timeout: float = 600.0,
        access: Access = NO_ACCESS,
    ) -> None:
        """Connect to ``base_url`` (``http://host:port``) lazily; ``timeout`` in seconds."""
        self._url = base_url.rstrip("/")
        self._model = model
        self._sampling = sampling
        self._client = openai.OpenAI(
            base_url=f"{self._url}/v1",
            api_key=access.api_key or "none",
            max_retries=0,
            timeout=openai.Timeout(timeout, connect=CONNECT_TIMEOUT),
            # Proxies of the environment are for the world outside.
            http_client=openai.DefaultHttpxClient(trust_env=False, verify=access.ssl_context()),
        )

    def stream(self, turns: list[Turn]) -> Iterator[Piece]:
        """Yield the pieces of the answer; see ``ChatClient``."""
        messages = [_openai_message(turn) for turn in turns]
        sampling = self._sampling
        try:
            with self._client.chat.completions.create(
                model=self._model,
                messages=messages,
                stream=True,
                temperature=openai.omit if sampling.temperature is None else sampling.temperature,
                max_tokens=openai.omit if sampling.max_tokens is None else sampling.max_tokens,
            ) as chunks:
                for chunk in chunks:
                    for choice in chunk.choices:
                        yield from _pieces_of(choice.delta)
        except openai.APITimeoutError as error:
            raise errors.DeadlineExceeded(f"{self._url} did not answer in time") from error
        except openai.APIConnectionError as error:
            raise errors.NotReady(f"nothing answers at {self._url}") from error
        except openai.APIStatusError as error:
            raise _BY_HTTP.get(error.status_code, errors.EngineError)(
                _message_of(error) or f"{self._url} answered {error.status_code}"
            ) from error
        except openai.APIError as error:
            # An error in the middle of the stream.
            raise errors.EngineError(error.message) from error


def _openai_message(turn: Turn) -> ChatCompletionMessageParam:
    if turn.role == "system":
        return {"role": "system", "content": turn.content}
    if turn.role == "user":
        return {"role": "user", "content": turn.content}
    return {"role": "assistant", "content": turn.content}


def _pieces_of(delta: ChoiceDelta) -> Iterator[Piece]:
    # A field that OpenAI's own types lack; newer servers call it reasoning.
    extra = delta.model_extra or {}
    reasoning = extra.get("reasoning_content") or extra.get("reasoning")
    if reasoning:
        yield Piece("reasoning", str(reasoning))
    if delta.content:
        yield Piece("content", delta.content)


def _message_of(error: openai.APIStatusError) -> str:
    """Return the server's own words from an error body ``{"error": {"message": …}}``."""
    body = error.body
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict) and inner.get("message"):
            return str(inner["message"])
    return ""


class GrpcChatClient:
    """Over gRPC, with the committed stubs."""

    def __init__(
        self,
        target: str,
        model: str,
        sampling: Sampling,
        *,
        timeout: float = 600.0,
        access: Access = NO_ACCESS,
    ) -> None:
        """Connect to ``target`` (``host:port``) lazily; ``timeout`` in seconds."""
        self._target = target
        self._model = model
        self._sampling = sampling
        self._timeout = timeout
        self._channel = open_channel(target, access)
        self._metadata = access.metadata()
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)

    def stream(self, turns: list[Turn]) -> Iterator[Piece]:
        """Yield the pieces of the answer; see ``ChatClient``."""
        roles = {
            "system": inference_pb2.ROLE_SYSTEM,
            "user": inference_pb2.ROLE_USER,
            "assistant": inference_pb2.ROLE_ASSISTANT,
        }
        request = inference_pb2.ChatRequest(
            model=self._model,
            messages=[
                inference_pb2.Message(role=roles[turn.role], content=turn.content) for turn in turns
            ],
            sampling=inference_pb2.SamplingParams(
                temperature=self._sampling.temperature, max_tokens=self._sampling.max_tokens
            ),
        )
        require_answer(self._channel, self._target)
        call = self._stub.ChatStream(request, timeout=self._timeout, metadata=self._metadata)
        try:
            for response in call:
                for choice in response.choices:
                    if choice.reasoning_content:
                        yield Piece("reasoning", choice.reasoning_content)
                    if choice.content:
                        yield Piece("content", choice.content)
        except grpc.RpcError as error:
            raise error_of(error, self._target) from error
        finally:
            call.cancel()  # type: ignore[no-untyped-call]  # the stubs leave it untyped

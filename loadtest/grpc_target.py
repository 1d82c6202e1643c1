"""Our router, over gRPC, streaming."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from loadtest.target import Ask, ErrorKind, Piece, Style, TargetError, Usage, as_text
from serving.api.v1 import inference_pb2 as api
from serving.api.v1 import inference_pb2_grpc
from serving.client.credentials import NO_ACCESS, Access

_PROBE_TIMEOUT = 5.0
_ROLES = {
    "system": api.ROLE_SYSTEM,
    "user": api.ROLE_USER,
    "assistant": api.ROLE_ASSISTANT,
}
_KINDS: dict[grpc.StatusCode, ErrorKind] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: "refused",
    grpc.StatusCode.DEADLINE_EXCEEDED: "timeout",
}


class GrpcTarget:
    """A router's host:port. Spreads requests over several connections."""

    def __init__(self, target: str, access: Access = NO_ACCESS, *, connections: int = 4) -> None:
        self._target = target
        self._metadata = access.metadata()
        # One HTTP/2 connection holds few streams and is one thread's work: several, each of its
        # own, because gRPC otherwise shares one between channels to the same address.
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        self._channels = [_channel(target, access, options) for _ in range(connections)]
        self._stubs = [
            inference_pb2_grpc.InferenceServiceStub(channel) for channel in self._channels
        ]
        self._next = 0

    async def send(self, ask: Ask, style: Style) -> AsyncIterator[Piece]:
        """Yield the answer as it comes; see ``Target``."""
        self._next += 1
        stub: Any = self._stubs[self._next % len(self._stubs)]
        metadata = (*self._metadata, ("x-session-id", ask.session))
        sampling = api.SamplingParams(
            max_tokens=ask.max_tokens, temperature=style.temperature, ignore_eos=style.ignore_eos
        )
        call: Any
        if style.endpoint == "chat":
            chat = api.ChatRequest(model=style.model, sampling=sampling)
            for message in ask.messages:
                chat.messages.add(role=_ROLES[message.role], content=message.content)
            call = stub.ChatStream(chat, timeout=style.timeout, metadata=metadata)
        else:
            complete = api.CompleteRequest(
                model=style.model, text=as_text(ask.messages), sampling=sampling
            )
            call = stub.CompleteStream(complete, timeout=style.timeout, metadata=metadata)
        began = False
        try:
            async for response in call:
                began = True
                usage = response.usage if response.HasField("usage") else None
                yield Piece(_text(response, style), None if usage is None else _usage(usage))
        except grpc.aio.AioRpcError as error:
            raise self._error(error, began=began) from error
        finally:
            call.cancel()

    async def models(self) -> list[str]:
        """Return what ListModels lists; see ``Target``."""
        stub: Any = self._stubs[0]
        try:
            answer = await stub.ListModels(
                api.ListModelsRequest(), timeout=_PROBE_TIMEOUT, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise self._error(error, began=False) from error
        return [model.id for model in answer.models]

    async def close(self) -> None:
        """Close all connections."""
        for channel in self._channels:
            await channel.close(None)

    def _error(self, error: grpc.aio.AioRpcError, *, began: bool) -> TargetError:
        code, details = error.code(), error.details() or ""
        said = f"{code.name}: {details}"[:300]
        if code is grpc.StatusCode.UNAVAILABLE:
            # gRPC has one code for a router that is not there and for one that is not ready;
            # what comes from a router carries trailing metadata (its reason, a request id).
            if began:
                return TargetError("broken", said)
            if error.trailing_metadata():
                return TargetError("refused", said)
            return TargetError("connect", f"nobody answers at {self._target}: {details}"[:300])
        return TargetError(_KINDS.get(code, "broken" if began else "rejected"), said)


def _channel(target: str, access: Access, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
    if access.ca_file is None:
        return grpc.aio.insecure_channel(target, options=options)
    from serving.client.grpc import channel_credentials

    return grpc.aio.secure_channel(target, channel_credentials(access), options=options)


def _text(response: Any, style: Style) -> str:
    if style.endpoint == "chat":
        return "".join(choice.reasoning_content + choice.content for choice in response.choices)
    return "".join(choice.text for choice in response.choices)


def _usage(usage: api.Usage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)

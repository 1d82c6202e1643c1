"""Bytes that are no message of the RPC are the client's fault: INVALID_ARGUMENT, not UNKNOWN."""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from serving.edge.grpc_errors import rpc_error
from serving.errors import InvalidRequest


class _Undecodable:
    """Stands where the request should be."""


_UNDECODABLE = _Undecodable()


class DecodingInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Ends calls whose bytes cannot be decoded; gRPC itself would report a broken server."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Return the handler of the call, with its decoding guarded."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        decode = _guarded(handler.request_deserializer)
        encode = handler.response_serializer
        if handler.request_streaming:
            checked = _checked_stream(handler.stream_stream or handler.stream_unary)
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.response_streaming
                else grpc.stream_unary_rpc_method_handler
            )
        else:
            checked = _checked(handler.unary_stream or handler.unary_unary)
            make = (
                grpc.unary_stream_rpc_method_handler
                if handler.response_streaming
                else grpc.unary_unary_rpc_method_handler
            )
        return make(checked, decode, encode)


def _guarded(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def guarded(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return _UNDECODABLE

    return guarded


def _checked(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(behaviour):

        async def stream(request: Any, context: Any) -> None:
            if request is _UNDECODABLE:
                await _refuse(context)
            await _write_all(behaviour(request, context), context)

        return stream

    async def answer(request: Any, context: Any) -> Any:
        if request is _UNDECODABLE:
            await _refuse(context)
        return await behaviour(request, context)

    return answer


def _checked_stream(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    async def requests(given: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in given:
            if request is _UNDECODABLE:
                await _refuse(context)
            yield request

    def checked(given: AsyncIterator[Any], context: Any) -> Any:
        return behaviour(requests(given, context), context)

    if not inspect.isasyncgenfunction(behaviour):
        return checked

    async def stream(given: AsyncIterator[Any], context: Any) -> None:
        await _write_all(behaviour(requests(given, context), context), context)

    return stream


async def _write_all(responses: AsyncGenerator[Any], context: Any) -> None:
    """Write a stream of answers.

    Given a generator, gRPC would not close it when a call is cancelled between two answers:
    that would wait for the garbage collector, and happen in another context.
    """
    async with aclosing(responses):
        async for response in responses:
            await context.write(response)


async def _refuse(context: Any) -> None:
    failure = rpc_error(InvalidRequest("the bytes are no message of this RPC"))
    await context.abort(failure.code, failure.status.message, failure.trailers)

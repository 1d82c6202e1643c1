"""REST and gRPC clients for asyncio: many concurrent requests, with little overhead per token.

The REST client works with any OpenAI-compatible server.
"""

import json
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol, Self

import aiohttp
import grpc
import grpc.aio

from serving.api.v1 import inference_pb2, inference_pb2_grpc
from serving.client.chat import Delta, GenerateOptions, GenerateRequest
from serving.client.chunks import DONE, SHOWN, body_of, data_of, error_text, parse_chunk, path_of
from serving.client.credentials import NO_ACCESS, Access
from serving.client.errors import ClientError, ErrorKind
from serving.client.grpc import channel_credentials, delta_of, metadata_of, start
from serving.client.rest import base_url

_CONNECT_TIMEOUT = 5.0
_HTTP_OK = 200
_RETRY_LATER = {429, 503}
_KINDS: dict[grpc.StatusCode, ErrorKind] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: "refused",
    grpc.StatusCode.DEADLINE_EXCEEDED: "timeout",
}


class AsyncClient(Protocol):
    """A client for asyncio; implemented by ``AsyncRestClient`` and ``AsyncGrpcClient``."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def generate(self, request: GenerateRequest, options: GenerateOptions) -> AsyncIterator[Delta]:
        """Yield the answer as it arrives; closing the iterator cancels the request.

        Raises:
            ClientError: The request failed.
        """
        ...

    async def models(self) -> list[str]:
        """Return the ids of the models that the server serves.

        Raises:
            ClientError: The server does not respond, or its response is unexpected.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class AsyncRestClient(AsyncClient):
    """Client of a server's REST API; opens one connection per concurrent request."""

    def __init__(self, url: str, access: Access = NO_ACCESS) -> None:
        """Create the client; requires a running event loop.

        Args:
            url: ``http[s]://host:port``; a trailing ``/v1`` is dropped.
            access: Key and certificates.
        """
        self.url = base_url(url)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, ssl=access.ssl_context() if url.startswith("https:") else True
            ),
            headers=access.headers(),
            trust_env=False,
        )

    async def generate(
        self, request: GenerateRequest, options: GenerateOptions
    ) -> AsyncIterator[Delta]:
        """Yield the answer as it arrives; see ``AsyncClient``."""
        limit = aiohttp.ClientTimeout(total=options.timeout, sock_connect=_CONNECT_TIMEOUT)
        started = False
        try:
            async with self._session.post(
                self.url + path_of(options),
                json=body_of(request, options),
                headers={} if request.session is None else {"x-session-id": request.session},
                timeout=limit,
            ) as answer:
                if answer.status != _HTTP_OK:
                    kind: ErrorKind = "refused" if answer.status in _RETRY_LATER else "rejected"
                    detail = error_text(await answer.text(errors="replace"))
                    raise ClientError(kind, f"HTTP {answer.status}: {detail}", answer.status)
                started = True
                async for data in _events(answer):
                    if data == DONE:
                        return
                    yield parse_chunk(data)
        except aiohttp.ServerDisconnectedError as error:
            raise ClientError("broken", "the server closed the connection") from error
        except aiohttp.ClientConnectorError as error:
            raise self._unreachable(error) from error
        except TimeoutError as error:
            if not started and isinstance(error, aiohttp.ConnectionTimeoutError):
                raise ClientError("connect", f"cannot connect to {self.url}: timed out") from error
            raise ClientError("timeout", f"timed out after {options.timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ClientError("broken", f"{type(error).__name__}: {error}") from error
        raise ClientError("broken", "the stream ended without [DONE]")

    async def models(self) -> list[str]:
        """Return the model ids listed by /v1/models; see ``AsyncClient``."""
        content = await self.get_json("/v1/models")
        try:
            return [str(model["id"]) for model in content["data"]]
        except (KeyError, TypeError) as error:
            raise ClientError(
                "rejected", f"{self.url}/v1/models did not return an OpenAI model list"
            ) from error

    async def get_json(self, path: str, timeout: float = 2 * _CONNECT_TIMEOUT) -> Any:
        """Return the decoded JSON body of GET ``path``.

        Raises:
            ClientError: The server does not respond or rejects the request, or returns no JSON.
        """
        return self._decoded(path, await self.get_text(path, timeout))

    async def get_text(self, path: str, timeout: float = 2 * _CONNECT_TIMEOUT) -> str:
        """Return the body of GET ``path``.

        Raises:
            ClientError: The server does not respond, or rejects the request.
        """
        return await self._body("GET", path, None, timeout)

    async def post_json(self, path: str, body: Mapping[str, Any], timeout: float) -> Any:
        """Return the decoded JSON body of POST ``path``, within ``timeout`` seconds.

        Raises:
            ClientError: The server does not respond or rejects the request, or returns no JSON.
        """
        return self._decoded(path, await self._body("POST", path, body, timeout))

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def _body(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float
    ) -> str:
        limit = aiohttp.ClientTimeout(total=timeout, sock_connect=_CONNECT_TIMEOUT)
        try:
            async with self._session.request(
                method, self.url + path, json=body, timeout=limit
            ) as answer:
                text = await answer.text(errors="replace")
                if answer.status != _HTTP_OK:
                    detail = error_text(text)
                    raise ClientError(
                        "rejected",
                        f"{self.url}{path} returned HTTP {answer.status}: {detail}",
                        answer.status,
                    )
                return text
        except ValueError as error:  # invalid URL
            raise ClientError("rejected", f"{self.url}{path}: {error}") from error
        except TimeoutError as error:
            message = f"no response from {self.url}{path} within {timeout:g} s"
            raise ClientError("connect", message) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error

    def _decoded(self, path: str, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise ClientError("rejected", f"{self.url}{path}: {error}") from error

    def _unreachable(self, error: Exception) -> ClientError:
        number = error.errno if isinstance(error, OSError) else None
        reason = os.strerror(number) if number and number > 0 else str(error)
        return ClientError("connect", f"cannot connect to {self.url}: {reason}")


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the data of server-sent events; lines can have any length."""
    rest = b""
    async for received in answer.content.iter_any():
        *lines, rest = (rest + received).split(b"\n")
        for line in lines:
            data = data_of(line)
            if data is not None:
                yield data


class AsyncGrpcClient(AsyncClient):
    """Client of a router's gRPC API; distributes requests over several connections."""

    def __init__(self, address: str, access: Access = NO_ACCESS, *, connections: int = 4) -> None:
        """Create the client; requires a running event loop.

        Args:
            address: ``host:port``.
            access: Key and certificates; TLS is used if it has a CA file.
            connections: Number of HTTP/2 connections; each of them carries few streams and is
                served by one thread.
        """
        self.address = address
        self._metadata = access.metadata()
        # Without local subchannel pools, all channels to one address would share a connection.
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        self._channels = [_channel(address, access, options) for _ in range(connections)]
        self._stubs: list[Any] = [
            inference_pb2_grpc.InferenceServiceStub(channel) for channel in self._channels
        ]
        self._next = 0

    async def generate(
        self, request: GenerateRequest, options: GenerateOptions
    ) -> AsyncIterator[Delta]:
        """Yield the answer as it arrives; see ``AsyncClient``."""
        self._next += 1
        stub = self._stubs[self._next % len(self._stubs)]
        call = start(stub, request, options, metadata_of(self._metadata, request))
        started = False
        try:
            async for response in call:
                started = True
                yield delta_of(response, options)
        except grpc.aio.AioRpcError as error:
            raise self._error(error, started=started) from error
        finally:
            call.cancel()

    async def models(self) -> list[str]:
        """Return the model ids listed by ListModels; see ``AsyncClient``."""
        try:
            answer = await self._stubs[0].ListModels(
                inference_pb2.ListModelsRequest(),
                timeout=_CONNECT_TIMEOUT,
                metadata=self._metadata,
            )
        except grpc.aio.AioRpcError as error:
            raise self._error(error, started=False) from error
        return [model.id for model in answer.models]

    async def close(self) -> None:
        """Close all connections."""
        for channel in self._channels:
            await channel.close(None)

    def _error(self, error: grpc.aio.AioRpcError, *, started: bool) -> ClientError:
        code, details = error.code(), error.details() or ""
        message = f"{code.name}: {details}"[:SHOWN]
        if code is grpc.StatusCode.UNAVAILABLE:
            # gRPC uses the same code for an absent router and for one that is not ready; only a
            # router's response has trailing metadata (its reason, a request id).
            if started:
                return ClientError("broken", message)
            if error.trailing_metadata():
                return ClientError("refused", message)
            return ClientError("connect", f"cannot connect to {self.address}: {details}"[:SHOWN])
        return ClientError(_KINDS.get(code, "broken" if started else "rejected"), message)


def _channel(address: str, access: Access, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
    if access.ca_file is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, channel_credentials(access), options=options)

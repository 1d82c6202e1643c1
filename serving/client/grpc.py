"""A blocking gRPC client for commands: chat, and operations on groups."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from serving.api.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2, inference_pb2_grpc
from serving.client.chat import Delta, GenerateOptions, GenerateRequest, Usage, as_text
from serving.client.credentials import NO_ACCESS, Access
from serving.client.errors import ServingError, class_of_code
from serving.errors import GroupNotFound, ModelNotFound, NotReady, SettingsError

CONNECT_TIMEOUT = 5.0
"""Time after which an address that does not respond counts as unreachable, seconds."""
CALL_TIMEOUT = 10.0
"""Timeout of RPCs that respond immediately, seconds."""
LOAD_TIMEOUT = 120.0
"""Time for a router to read an adapter's files, seconds."""
DRAIN_SLACK = 10.0
"""Time for the response to a drain beyond the drain timeout, seconds."""
_ROLES = {
    "system": inference_pb2.ROLE_SYSTEM,
    "user": inference_pb2.ROLE_USER,
    "assistant": inference_pb2.ROLE_ASSISTANT,
}


class GrpcClient:
    """Client of a router's gRPC API; connects on first use and ignores proxies."""

    def __init__(
        self, address: str, access: Access = NO_ACCESS, server_name: str | None = None
    ) -> None:
        """Create the client; see ``open_channel`` for the arguments."""
        self.address = address
        self._channel = open_channel(address, access, server_name)
        self._metadata = access.metadata()
        self._inference: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._fleet: Any = fleet_pb2_grpc.FleetServiceStub(self._channel)

    def require_answer(self) -> None:
        """Wait until the router responds.

        Raises:
            NotReady: The router does not respond within 5 seconds.
        """
        try:
            grpc.channel_ready_future(self._channel).result(timeout=CONNECT_TIMEOUT)
        except grpc.FutureTimeoutError as error:
            raise NotReady(
                f"cannot connect to {self.address} over gRPC "
                "(if the router uses TLS, pass --ca-file)"
            ) from error

    def generate(self, request: GenerateRequest, options: GenerateOptions) -> Iterator[Delta]:
        """Yield the answer as it arrives; closing the iterator cancels the call.

        Raises:
            ServingError: The request failed; the text contains the router's message or the address.
        """
        self.require_answer()
        metadata = metadata_of(self._metadata, request)
        call = start(self._inference, request, options, metadata)
        try:
            for response in call:
                yield delta_of(response, options)
        except grpc.RpcError as error:
            raise error_of(error, self.address) from error
        finally:
            call.cancel()

    def groups(self) -> list[fleet_pb2.Group]:
        """Return the groups that the router lists, except those that are gone.

        Raises:
            ServingError: The call failed.
        """
        fleet = self._call("GetFleet", fleet_pb2.GetFleetRequest())
        return [item for item in fleet.groups if item.state != fleet_pb2.MEMBER_STATE_GONE]

    def inflight(self, group: str) -> int:
        """Return the number of the router's requests on a group.

        Raises:
            ServingError: The call failed.
        """
        return sum(inflight_of(item) for item in self.groups() if item.group_id == group)

    def cordon(self, group: str, reason: str) -> None:
        """Stop the router from sending new requests to a group.

        Raises:
            GroupNotFound: The router has no such group.
            ServingError: The call failed.
        """
        self._call("Cordon", fleet_pb2.CordonRequest(group_id=group, reason=reason))

    def uncordon(self, group: str) -> None:
        """Let the router send new requests to a group again.

        Raises:
            GroupNotFound: The router has no such group.
            ServingError: The call failed.
        """
        self._call("Uncordon", fleet_pb2.UncordonRequest(group_id=group))

    def adapters(self) -> list[fleet_pb2.Adapter]:
        """Return the router's LoRA adapters.

        Raises:
            ServingError: The call failed.
        """
        return list(self._call("ListAdapters", fleet_pb2.ListAdaptersRequest()).adapters)

    def load_adapter(
        self, name: str, path: str, model: str | None = None, *, replace: bool = False
    ) -> None:
        """Let the router check an adapter's files and accept requests for it.

        Args:
            name: Name of the adapter.
            path: Its folder, inside lora.folder of the model.
            model: The base model. None: the only one that takes adapters at run time.
            replace: Replace an adapter of the same name.

        Raises:
            ModelNotFound: The router has no such model.
            ServingError: The adapter is not accepted, or the call failed.
        """
        request = fleet_pb2.LoadAdapterRequest(
            name=name, path=path, model=model or "", replace=replace
        )
        self._call("LoadAdapter", request, ModelNotFound, LOAD_TIMEOUT)

    def unload_adapter(self, name: str) -> None:
        """Let the router reject new requests for an adapter.

        Raises:
            ModelNotFound: The router has no such adapter.
            ServingError: The call failed.
        """
        self._call("UnloadAdapter", fleet_pb2.UnloadAdapterRequest(name=name), ModelNotFound)

    def drain(self, group: str, timeout: float) -> "PendingDrain":
        """Start draining a group: stop new requests, let running ones finish for ``timeout`` s."""
        future = self._fleet.Drain.future(
            fleet_pb2.DrainRequest(group_id=group, timeout_seconds=timeout),
            timeout=timeout + DRAIN_SLACK,
            metadata=self._metadata,
        )
        return PendingDrain(future, self.address)

    def _call(
        self,
        method: str,
        request: Any,
        not_found: type[ServingError] = GroupNotFound,
        timeout: float | None = None,
    ) -> Any:
        """Call an RPC of FleetService; by default one that responds immediately."""
        try:
            return getattr(self._fleet, method)(
                request, timeout=timeout or CALL_TIMEOUT, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise error_of(error, self.address, not_found) from error


class PendingDrain:
    """A drain in progress at one router."""

    def __init__(self, future: Any, address: str) -> None:
        self._future = future
        self._address = address

    def done(self) -> bool:
        """Return whether the drain has ended."""
        return bool(self._future.done())

    def finished(self) -> bool:
        """Wait for the end; return whether all requests finished within the drain timeout.

        Raises:
            GroupNotFound: The router does not have the group, or no longer has it.
            ServingError: The call failed.
        """
        try:
            return bool(self._future.result().finished)
        except grpc.RpcError as error:
            raise error_of(error, self._address, GroupNotFound) from error

    def cancel(self) -> None:
        """Stop waiting for the drain; the group stays cordoned."""
        self._future.cancel()


def inflight_of(group: fleet_pb2.Group) -> int:
    """Return the number of requests on a group, from the router that reported the group."""
    return sum(rank.inflight_requests for rank in group.ranks)


def open_channel(address: str, access: Access, server_name: str | None = None) -> grpc.Channel:
    """Return a channel that connects on first use.

    Args:
        address: ``host:port``.
        access: Key and certificates; TLS is used if it has a CA file.
        server_name: Host name required in the certificate if ``access`` has none. None means the
            host in the address.

    Raises:
        SettingsError: A file of ``access`` cannot be read.
    """
    options: tuple[tuple[str, int | str], ...] = (("grpc.enable_http_proxy", 0),)
    server_name = access.server_name or server_name
    if server_name is not None:
        options += (("grpc.ssl_target_name_override", server_name),)
    if access.ca_file is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, channel_credentials(access), options=options)


def channel_credentials(access: Access) -> grpc.ChannelCredentials:
    """Return channel credentials: the trusted CAs and the client certificate.

    Raises:
        SettingsError: A file of ``access`` cannot be read.
    """
    authorities, key, cert = (
        None if file is None else read_pem(file)
        for file in (access.ca_file, access.key_file, access.cert_file)
    )
    return grpc.ssl_channel_credentials(authorities, key, cert)


def read_pem(file: str) -> bytes:
    """Return the content of a PEM file.

    Raises:
        SettingsError: The file cannot be read.
    """
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from error


def start(stub: Any, request: GenerateRequest, options: GenerateOptions, metadata: Any) -> Any:
    """Start the streaming RPC of a request on a blocking or asyncio stub."""
    sampling = inference_pb2.SamplingParams(
        max_tokens=request.max_tokens,
        temperature=options.temperature,
        ignore_eos=options.ignore_eos,
    )
    if options.endpoint == "completions":
        prompt = as_text(request.messages)
        complete = inference_pb2.CompleteRequest(
            model=options.model, text=prompt, sampling=sampling
        )
        return stub.CompleteStream(complete, timeout=options.timeout, metadata=metadata)
    chat = inference_pb2.ChatRequest(model=options.model, sampling=sampling)
    for message in request.messages:
        chat.messages.add(role=_ROLES[message.role], content=message.content)
    return stub.ChatStream(chat, timeout=options.timeout, metadata=metadata)


def metadata_of(access: tuple[tuple[str, str], ...], request: GenerateRequest) -> Any:
    """Return the metadata of a request: credentials and session."""
    return access if request.session is None else (*access, ("x-session-id", request.session))


def delta_of(response: Any, options: GenerateOptions) -> Delta:
    """Return the part of the answer in a streamed response."""
    content = reasoning = ""
    if options.endpoint == "chat":
        for choice in response.choices:
            reasoning += choice.reasoning_content
            content += choice.content
    else:
        for choice in response.choices:
            content += choice.text
    if not response.HasField("usage"):
        return Delta(content, reasoning)
    usage = response.usage
    counts = Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    return Delta(content, reasoning, counts)


def error_of(
    error: Any, address: str, not_found: type[ServingError] = ModelNotFound
) -> ServingError:
    """Return the ``ServingError`` for an RpcError raised by a stub.

    Args:
        error: The RpcError, which is also the call (``code()``, ``details()``).
        address: Address, for the message if the router sent none.
        not_found: Class to return for NOT_FOUND.
    """
    code: grpc.StatusCode = error.code()
    message = str(error.details() or f"{address} returned {code.name}")
    if code is grpc.StatusCode.NOT_FOUND:
        return not_found(message)
    return class_of_code(code.name)(message)

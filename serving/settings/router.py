"""Settings of a router: its ports and limits, and how it detects failed groups."""

from typing import Literal

from pydantic import Field

from serving.settings.base import Port, Seconds, SettingsGroup


class RouterSettings(SettingsGroup):
    """Listening addresses and request limits of a router."""

    host: str = "127.0.0.1"
    """Address that REST and gRPC listen on."""
    rest_port: Port = 8000
    """Port of the REST API."""
    grpc_port: Port = 50051
    """Port of the gRPC API."""
    join_host: str = "127.0.0.1"
    """Address that the join port listens on."""
    join_port: Port = 50052
    """Port that ranks connect to."""
    max_body_bytes: int = Field(4 * 2**20, ge=1024)
    """Maximum size of a request body over REST and of a message over gRPC, bytes."""
    request_timeout: Seconds = 600.0
    """Deadline of requests that do not set one, seconds."""
    max_inflight_requests: int = Field(4096, ge=1)
    """Maximum number of requests in progress, including waiting ones. Further requests are rejected
    with 429 / RESOURCE_EXHAUSTED."""
    loaded_models: int = Field(8, ge=1)
    """Maximum number of models whose tokenizer, chat template and parsers are kept in the router's
    memory. A model is loaded at its first request; the least recently used one is dropped. The
    first model of the settings is always loaded."""
    max_streams_per_connection: int = Field(1024, ge=1)
    """Maximum number of concurrent calls on one gRPC connection. Clients that honour the limit wait
    or open another connection; calls beyond it are rejected without being processed
    (REFUSED_STREAM)."""
    max_choices: int = Field(128, ge=1)
    """Maximum number of choices (n) of one request; each choice is one sequence on a rank."""
    keepalive_interval: Seconds = 10.0
    """Interval without output after which a streamed REST response gets an SSE comment, so that
    proxies keep the connection open, seconds."""
    write_timeout: Seconds = 60.0
    """Time that a client may leave its response unread before the connection is closed and the
    request aborted, seconds. For REST, applies on Linux only."""
    drain_timeout: Seconds = 10.0
    """Time for running requests to finish after SIGTERM, seconds."""
    reasoning_parser: str | None = "deepseek_r1"
    """vLLM reasoning parser. If null, reasoning stays in the content."""
    tool_parser: str | None = "deepseek_v3"
    """vLLM tool-call parser for tool_choice auto. If null, that choice is disabled."""
    tool_strict_level: Literal["auto", "function", "parameter"] = "auto"
    """How much of a tool call the grammar enforces (vLLM's --tool-strict-level). auto: calls that a
    request forces, and the arguments of tools with strict: true. function: the format of every
    call. parameter: also the arguments of every call."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may call the REST API, e.g. https://chat.example.com; "*" allows
    every origin. If empty, no web page can call it."""


class FleetSettings(SettingsGroup):
    """Group membership, failure detection and resumption in the router."""

    stall_timeout: Seconds = 10.0
    """Time without an engine step, while there is work, after which a rank counts as failed,
    seconds."""
    history_groups: int = Field(16, ge=0)
    """Number of former groups that /fleet still lists."""
    canary_timeout: Seconds = 30.0
    """Time for each rank of a complete group to generate one token before the group becomes ready,
    seconds."""
    max_resumes: int = Field(3, ge=0)
    """Maximum number of group losses that a request survives. Planned moves (drains) do not
    count."""
    suspect_tokens: int = Field(32, ge=0)
    """A request becomes a suspect if its group is lost before the request has generated this many
    tokens there. If 0, no request becomes a suspect."""
    suspect_losses: int = Field(2, ge=1)
    """Number of consecutive group losses, the last one with no other suspect on the group, after
    which a request is rejected with POISON_REQUEST. 1: rejected at the first loss, even with other
    suspects on the group."""

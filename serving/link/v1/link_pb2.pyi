from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RankMessage(_message.Message):
    __slots__ = ("hello", "deltas", "load", "drain", "pong", "kv_events")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    DELTAS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    KV_EVENTS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    deltas: _containers.RepeatedCompositeFieldContainer[Delta]
    load: LoadSnapshot
    drain: Drain
    pong: Pong
    kv_events: KvEvents
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., deltas: _Optional[_Iterable[_Union[Delta, _Mapping]]] = ..., load: _Optional[_Union[LoadSnapshot, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., kv_events: _Optional[_Union[KvEvents, _Mapping]] = ...) -> None: ...

class RouterMessage(_message.Message):
    __slots__ = ("welcome", "refusal", "submits", "abort_request_ids", "ping", "completed")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    SUBMITS_FIELD_NUMBER: _ClassVar[int]
    ABORT_REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    refusal: Refusal
    submits: _containers.RepeatedCompositeFieldContainer[Submit]
    abort_request_ids: _containers.RepeatedScalarFieldContainer[str]
    ping: Ping
    completed: _containers.RepeatedCompositeFieldContainer[CompletedChoice]
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., submits: _Optional[_Iterable[_Union[Submit, _Mapping]]] = ..., abort_request_ids: _Optional[_Iterable[str]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., completed: _Optional[_Iterable[_Union[CompletedChoice, _Mapping]]] = ...) -> None: ...

class CompletedChoice(_message.Message):
    __slots__ = ("request_id", "index")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    index: int
    def __init__(self, request_id: _Optional[str] = ..., index: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "serving_version", "engine_version", "model", "model_fingerprint", "group_id", "epoch", "rank", "world_size", "capacity", "experts", "node", "pid", "epoch_started_unix_seconds", "metrics_address", "app", "pool", "adapters")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVING_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_STARTED_UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    APP_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    serving_version: str
    engine_version: str
    model: str
    model_fingerprint: str
    group_id: str
    epoch: str
    rank: int
    world_size: int
    capacity: Capacity
    experts: ExpertPlacement
    node: str
    pid: int
    epoch_started_unix_seconds: float
    metrics_address: str
    app: str
    pool: str
    adapters: AdapterCapacity
    def __init__(self, protocol_version: _Optional[int] = ..., serving_version: _Optional[str] = ..., engine_version: _Optional[str] = ..., model: _Optional[str] = ..., model_fingerprint: _Optional[str] = ..., group_id: _Optional[str] = ..., epoch: _Optional[str] = ..., rank: _Optional[int] = ..., world_size: _Optional[int] = ..., capacity: _Optional[_Union[Capacity, _Mapping]] = ..., experts: _Optional[_Union[ExpertPlacement, _Mapping]] = ..., node: _Optional[str] = ..., pid: _Optional[int] = ..., epoch_started_unix_seconds: _Optional[float] = ..., metrics_address: _Optional[str] = ..., app: _Optional[str] = ..., pool: _Optional[str] = ..., adapters: _Optional[_Union[AdapterCapacity, _Mapping]] = ...) -> None: ...

class AdapterCapacity(_message.Message):
    __slots__ = ("slots", "max_rank")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    MAX_RANK_FIELD_NUMBER: _ClassVar[int]
    slots: int
    max_rank: int
    def __init__(self, slots: _Optional[int] = ..., max_rank: _Optional[int] = ...) -> None: ...

class Capacity(_message.Message):
    __slots__ = ("max_model_len", "max_num_seqs", "kv_blocks", "kv_block_size", "tensor_parallel_size")
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    max_model_len: int
    max_num_seqs: int
    kv_blocks: int
    kv_block_size: int
    tensor_parallel_size: int
    def __init__(self, max_model_len: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., kv_blocks: _Optional[int] = ..., kv_block_size: _Optional[int] = ..., tensor_parallel_size: _Optional[int] = ...) -> None: ...

class ExpertPlacement(_message.Message):
    __slots__ = ("total", "local_ids")
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    LOCAL_IDS_FIELD_NUMBER: _ClassVar[int]
    total: int
    local_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, total: _Optional[int] = ..., local_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("router_id", "serving_version")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    SERVING_VERSION_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    serving_version: str
    def __init__(self, router_id: _Optional[str] = ..., serving_version: _Optional[str] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "reason")
    class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CODE_UNSPECIFIED: _ClassVar[Refusal.Code]
        PROTOCOL_VERSION: _ClassVar[Refusal.Code]
        MODEL: _ClassVar[Refusal.Code]
        BAD_HELLO: _ClassVar[Refusal.Code]
        DUPLICATE_RANK: _ClassVar[Refusal.Code]
        CREDENTIALS: _ClassVar[Refusal.Code]
    CODE_UNSPECIFIED: Refusal.Code
    PROTOCOL_VERSION: Refusal.Code
    MODEL: Refusal.Code
    BAD_HELLO: Refusal.Code
    DUPLICATE_RANK: Refusal.Code
    CREDENTIALS: Refusal.Code
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: Refusal.Code
    reason: str
    def __init__(self, code: _Optional[_Union[Refusal.Code, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("request_id", "prompt_token_ids", "sampling_params", "priority", "reasoning_ended", "reasoning_parser_kwargs", "trace_headers", "adapter")
    class TraceHeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_PARAMS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    REASONING_ENDED_FIELD_NUMBER: _ClassVar[int]
    REASONING_PARSER_KWARGS_FIELD_NUMBER: _ClassVar[int]
    TRACE_HEADERS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling_params: bytes
    priority: int
    reasoning_ended: bool
    reasoning_parser_kwargs: bytes
    trace_headers: _containers.ScalarMap[str, str]
    adapter: Adapter
    def __init__(self, request_id: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., sampling_params: _Optional[bytes] = ..., priority: _Optional[int] = ..., reasoning_ended: _Optional[bool] = ..., reasoning_parser_kwargs: _Optional[bytes] = ..., trace_headers: _Optional[_Mapping[str, str]] = ..., adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("name", "digest", "folder")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    folder: str
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., folder: _Optional[str] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("request_id", "choices", "prompt_tokens", "cached_tokens", "prompt_logprobs", "finished", "error")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    choices: _containers.RepeatedCompositeFieldContainer[ChoiceDelta]
    prompt_tokens: int
    cached_tokens: int
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[PositionLogprobs]
    finished: bool
    error: RequestError
    def __init__(self, request_id: _Optional[str] = ..., choices: _Optional[_Iterable[_Union[ChoiceDelta, _Mapping]]] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., prompt_logprobs: _Optional[_Iterable[_Union[PositionLogprobs, _Mapping]]] = ..., finished: _Optional[bool] = ..., error: _Optional[_Union[RequestError, _Mapping]] = ...) -> None: ...

class ChoiceDelta(_message.Message):
    __slots__ = ("index", "token_ids", "logprobs", "finish_reason", "stop_string", "stop_token_id", "speculation")
    class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FINISH_REASON_UNSPECIFIED: _ClassVar[ChoiceDelta.FinishReason]
        STOP: _ClassVar[ChoiceDelta.FinishReason]
        LENGTH: _ClassVar[ChoiceDelta.FinishReason]
        ABORT: _ClassVar[ChoiceDelta.FinishReason]
        ERROR: _ClassVar[ChoiceDelta.FinishReason]
        REPETITION: _ClassVar[ChoiceDelta.FinishReason]
    FINISH_REASON_UNSPECIFIED: ChoiceDelta.FinishReason
    STOP: ChoiceDelta.FinishReason
    LENGTH: ChoiceDelta.FinishReason
    ABORT: ChoiceDelta.FinishReason
    ERROR: ChoiceDelta.FinishReason
    REPETITION: ChoiceDelta.FinishReason
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_STRING_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[PositionLogprobs]
    finish_reason: ChoiceDelta.FinishReason
    stop_string: str
    stop_token_id: int
    speculation: SpeculationCounts
    def __init__(self, index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[PositionLogprobs, _Mapping]]] = ..., finish_reason: _Optional[_Union[ChoiceDelta.FinishReason, str]] = ..., stop_string: _Optional[str] = ..., stop_token_id: _Optional[int] = ..., speculation: _Optional[_Union[SpeculationCounts, _Mapping]] = ...) -> None: ...

class SpeculationCounts(_message.Message):
    __slots__ = ("draft_steps", "proposed_tokens", "accepted_tokens")
    DRAFT_STEPS_FIELD_NUMBER: _ClassVar[int]
    PROPOSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    draft_steps: int
    proposed_tokens: int
    accepted_tokens: int
    def __init__(self, draft_steps: _Optional[int] = ..., proposed_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ...) -> None: ...

class PositionLogprobs(_message.Message):
    __slots__ = ("token_ids", "logprobs", "vocab_ranks")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_RANKS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    vocab_ranks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., vocab_ranks: _Optional[_Iterable[int]] = ...) -> None: ...

class RequestError(_message.Message):
    __slots__ = ("code", "message")
    class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CODE_UNSPECIFIED: _ClassVar[RequestError.Code]
        INVALID_REQUEST: _ClassVar[RequestError.Code]
        ENGINE_FAILED: _ClassVar[RequestError.Code]
        DRAINING: _ClassVar[RequestError.Code]
        ABORTED: _ClassVar[RequestError.Code]
        OVERLOADED: _ClassVar[RequestError.Code]
        ADAPTER: _ClassVar[RequestError.Code]
    CODE_UNSPECIFIED: RequestError.Code
    INVALID_REQUEST: RequestError.Code
    ENGINE_FAILED: RequestError.Code
    DRAINING: RequestError.Code
    ABORTED: RequestError.Code
    OVERLOADED: RequestError.Code
    ADAPTER: RequestError.Code
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: RequestError.Code
    message: str
    def __init__(self, code: _Optional[_Union[RequestError.Code, str]] = ..., message: _Optional[str] = ...) -> None: ...

class LoadSnapshot(_message.Message):
    __slots__ = ("health", "health_reason", "running_requests", "waiting_requests", "kv_usage", "prompt_tokens_total", "generated_tokens_total", "engine_steps_total", "since_last_step_ms", "experts", "speculation", "resident_bytes", "step_seconds", "busy_seconds_total", "adapters")
    class Health(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        HEALTH_UNSPECIFIED: _ClassVar[LoadSnapshot.Health]
        HEALTHY: _ClassVar[LoadSnapshot.Health]
        STALLED: _ClassVar[LoadSnapshot.Health]
        FAILED: _ClassVar[LoadSnapshot.Health]
    HEALTH_UNSPECIFIED: LoadSnapshot.Health
    HEALTHY: LoadSnapshot.Health
    STALLED: LoadSnapshot.Health
    FAILED: LoadSnapshot.Health
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    HEALTH_REASON_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    KV_USAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ENGINE_STEPS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SINCE_LAST_STEP_MS_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    health: LoadSnapshot.Health
    health_reason: str
    running_requests: int
    waiting_requests: int
    kv_usage: float
    prompt_tokens_total: int
    generated_tokens_total: int
    engine_steps_total: int
    since_last_step_ms: int
    experts: _containers.RepeatedCompositeFieldContainer[LayerExpertLoad]
    speculation: SpeculationCounts
    resident_bytes: int
    step_seconds: float
    busy_seconds_total: float
    adapters: AdapterLoad
    def __init__(self, health: _Optional[_Union[LoadSnapshot.Health, str]] = ..., health_reason: _Optional[str] = ..., running_requests: _Optional[int] = ..., waiting_requests: _Optional[int] = ..., kv_usage: _Optional[float] = ..., prompt_tokens_total: _Optional[int] = ..., generated_tokens_total: _Optional[int] = ..., engine_steps_total: _Optional[int] = ..., since_last_step_ms: _Optional[int] = ..., experts: _Optional[_Iterable[_Union[LayerExpertLoad, _Mapping]]] = ..., speculation: _Optional[_Union[SpeculationCounts, _Mapping]] = ..., resident_bytes: _Optional[int] = ..., step_seconds: _Optional[float] = ..., busy_seconds_total: _Optional[float] = ..., adapters: _Optional[_Union[AdapterLoad, _Mapping]] = ...) -> None: ...

class AdapterLoad(_message.Message):
    __slots__ = ("resident", "requests_total", "loads_total", "evictions_total", "failures_total", "waiting_requests")
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    LOADS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    FAILURES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    resident: _containers.RepeatedScalarFieldContainer[str]
    requests_total: int
    loads_total: int
    evictions_total: int
    failures_total: int
    waiting_requests: int
    def __init__(self, resident: _Optional[_Iterable[str]] = ..., requests_total: _Optional[int] = ..., loads_total: _Optional[int] = ..., evictions_total: _Optional[int] = ..., failures_total: _Optional[int] = ..., waiting_requests: _Optional[int] = ...) -> None: ...

class LayerExpertLoad(_message.Message):
    __slots__ = ("layer", "tokens")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    layer: str
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layer: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class KvEvents(_message.Message):
    __slots__ = ("block_size", "sequence", "reset", "removed", "stored")
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    block_size: int
    sequence: int
    reset: bool
    removed: _containers.RepeatedScalarFieldContainer[int]
    stored: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, block_size: _Optional[int] = ..., sequence: _Optional[int] = ..., reset: _Optional[bool] = ..., removed: _Optional[_Iterable[int]] = ..., stored: _Optional[_Iterable[int]] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

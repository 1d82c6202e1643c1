from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MemberState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMBER_STATE_UNSPECIFIED: _ClassVar[MemberState]
    MEMBER_STATE_JOINING: _ClassVar[MemberState]
    MEMBER_STATE_READY: _ClassVar[MemberState]
    MEMBER_STATE_DRAINING: _ClassVar[MemberState]
    MEMBER_STATE_FENCED: _ClassVar[MemberState]
    MEMBER_STATE_GONE: _ClassVar[MemberState]
MEMBER_STATE_UNSPECIFIED: MemberState
MEMBER_STATE_JOINING: MemberState
MEMBER_STATE_READY: MemberState
MEMBER_STATE_DRAINING: MemberState
MEMBER_STATE_FENCED: MemberState
MEMBER_STATE_GONE: MemberState

class ListAdaptersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters",)
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    def __init__(self, adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("name", "model", "path", "digest", "loaded_at_run_time", "resident_ranks")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LOADED_AT_RUN_TIME_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_RANKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    path: str
    digest: str
    loaded_at_run_time: bool
    resident_ranks: int
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ..., path: _Optional[str] = ..., digest: _Optional[str] = ..., loaded_at_run_time: _Optional[bool] = ..., resident_ranks: _Optional[int] = ...) -> None: ...

class LoadAdapterRequest(_message.Message):
    __slots__ = ("name", "path", "model", "replace")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    model: str
    replace: bool
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., model: _Optional[str] = ..., replace: _Optional[bool] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CordonRequest(_message.Message):
    __slots__ = ("group_id", "reason")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    reason: str
    def __init__(self, group_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CordonResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UncordonRequest(_message.Message):
    __slots__ = ("group_id",)
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    def __init__(self, group_id: _Optional[str] = ...) -> None: ...

class UncordonResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("group_id", "timeout_seconds")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    timeout_seconds: float
    def __init__(self, group_id: _Optional[str] = ..., timeout_seconds: _Optional[float] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("finished",)
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    finished: bool
    def __init__(self, finished: _Optional[bool] = ...) -> None: ...

class GetFleetRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetFleetResponse(_message.Message):
    __slots__ = ("router_id", "model", "serving_version", "groups", "inflight_requests", "models")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SERVING_VERSION_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    model: str
    serving_version: str
    groups: _containers.RepeatedCompositeFieldContainer[Group]
    inflight_requests: int
    models: _containers.RepeatedCompositeFieldContainer[ServedModel]
    def __init__(self, router_id: _Optional[str] = ..., model: _Optional[str] = ..., serving_version: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[Group, _Mapping]]] = ..., inflight_requests: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ServedModel, _Mapping]]] = ...) -> None: ...

class ServedModel(_message.Message):
    __slots__ = ("name", "aliases", "pools", "loaded", "queued_requests", "adapters")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    pools: _containers.RepeatedCompositeFieldContainer[Pool]
    loaded: bool
    queued_requests: int
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    def __init__(self, name: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., pools: _Optional[_Iterable[_Union[Pool, _Mapping]]] = ..., loaded: _Optional[bool] = ..., queued_requests: _Optional[int] = ..., adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ...) -> None: ...

class Pool(_message.Message):
    __slots__ = ("name", "groups", "ready_groups")
    NAME_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    READY_GROUPS_FIELD_NUMBER: _ClassVar[int]
    name: str
    groups: int
    ready_groups: int
    def __init__(self, name: _Optional[str] = ..., groups: _Optional[int] = ..., ready_groups: _Optional[int] = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ("group_id", "epoch", "state", "reason", "since_unix_seconds", "world_size", "total_experts", "ranks", "expert_imbalance", "hottest_experts", "app", "model", "pool")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SINCE_UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_IMBALANCE_FIELD_NUMBER: _ClassVar[int]
    HOTTEST_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    APP_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    epoch: str
    state: MemberState
    reason: str
    since_unix_seconds: float
    world_size: int
    total_experts: int
    ranks: _containers.RepeatedCompositeFieldContainer[Rank]
    expert_imbalance: _containers.RepeatedCompositeFieldContainer[ExpertImbalance]
    hottest_experts: _containers.RepeatedCompositeFieldContainer[HotExpert]
    app: str
    model: str
    pool: str
    def __init__(self, group_id: _Optional[str] = ..., epoch: _Optional[str] = ..., state: _Optional[_Union[MemberState, str]] = ..., reason: _Optional[str] = ..., since_unix_seconds: _Optional[float] = ..., world_size: _Optional[int] = ..., total_experts: _Optional[int] = ..., ranks: _Optional[_Iterable[_Union[Rank, _Mapping]]] = ..., expert_imbalance: _Optional[_Iterable[_Union[ExpertImbalance, _Mapping]]] = ..., hottest_experts: _Optional[_Iterable[_Union[HotExpert, _Mapping]]] = ..., app: _Optional[str] = ..., model: _Optional[str] = ..., pool: _Optional[str] = ...) -> None: ...

class ExpertImbalance(_message.Message):
    __slots__ = ("layers", "experts", "ranks")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    layers: str
    experts: float
    ranks: float
    def __init__(self, layers: _Optional[str] = ..., experts: _Optional[float] = ..., ranks: _Optional[float] = ...) -> None: ...

class HotExpert(_message.Message):
    __slots__ = ("layer", "expert", "ranks", "tokens", "times_mean")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIMES_MEAN_FIELD_NUMBER: _ClassVar[int]
    layer: str
    expert: int
    ranks: _containers.RepeatedScalarFieldContainer[int]
    tokens: int
    times_mean: float
    def __init__(self, layer: _Optional[str] = ..., expert: _Optional[int] = ..., ranks: _Optional[_Iterable[int]] = ..., tokens: _Optional[int] = ..., times_mean: _Optional[float] = ...) -> None: ...

class Rank(_message.Message):
    __slots__ = ("rank", "node", "pid", "tensor_parallel_size", "local_expert_ids", "expert_tokens", "inflight_requests", "outstanding_tokens", "running_requests", "waiting_requests", "kv_usage", "prompt_tokens_total", "generated_tokens_total", "engine_steps_total", "mtp_proposed_tokens_total", "mtp_accepted_tokens_total", "engine_version", "draining", "health_reason", "resident_bytes", "metrics_address", "adapter_slots", "resident_adapters", "adapter_requests_total", "adapter_loads_total", "adapter_evictions_total")
    RANK_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_EXPERT_IDS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    OUTSTANDING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    KV_USAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ENGINE_STEPS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    MTP_PROPOSED_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    MTP_ACCEPTED_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    HEALTH_REASON_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_SLOTS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_REQUESTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_LOADS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_EVICTIONS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    rank: int
    node: str
    pid: int
    tensor_parallel_size: int
    local_expert_ids: _containers.RepeatedScalarFieldContainer[int]
    expert_tokens: _containers.RepeatedScalarFieldContainer[int]
    inflight_requests: int
    outstanding_tokens: int
    running_requests: int
    waiting_requests: int
    kv_usage: float
    prompt_tokens_total: int
    generated_tokens_total: int
    engine_steps_total: int
    mtp_proposed_tokens_total: int
    mtp_accepted_tokens_total: int
    engine_version: str
    draining: bool
    health_reason: str
    resident_bytes: int
    metrics_address: str
    adapter_slots: int
    resident_adapters: _containers.RepeatedScalarFieldContainer[str]
    adapter_requests_total: int
    adapter_loads_total: int
    adapter_evictions_total: int
    def __init__(self, rank: _Optional[int] = ..., node: _Optional[str] = ..., pid: _Optional[int] = ..., tensor_parallel_size: _Optional[int] = ..., local_expert_ids: _Optional[_Iterable[int]] = ..., expert_tokens: _Optional[_Iterable[int]] = ..., inflight_requests: _Optional[int] = ..., outstanding_tokens: _Optional[int] = ..., running_requests: _Optional[int] = ..., waiting_requests: _Optional[int] = ..., kv_usage: _Optional[float] = ..., prompt_tokens_total: _Optional[int] = ..., generated_tokens_total: _Optional[int] = ..., engine_steps_total: _Optional[int] = ..., mtp_proposed_tokens_total: _Optional[int] = ..., mtp_accepted_tokens_total: _Optional[int] = ..., engine_version: _Optional[str] = ..., draining: _Optional[bool] = ..., health_reason: _Optional[str] = ..., resident_bytes: _Optional[int] = ..., metrics_address: _Optional[str] = ..., adapter_slots: _Optional[int] = ..., resident_adapters: _Optional[_Iterable[str]] = ..., adapter_requests_total: _Optional[int] = ..., adapter_loads_total: _Optional[int] = ..., adapter_evictions_total: _Optional[int] = ...) -> None: ...

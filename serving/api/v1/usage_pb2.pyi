from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetUsageRequest(_message.Message):
    __slots__ = ("start_time", "end_time", "bucket_width", "group_by", "project_ids", "models", "api_key_ids", "limit", "page", "batch")
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    BUCKET_WIDTH_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    PROJECT_IDS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    API_KEY_IDS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    start_time: int
    end_time: int
    bucket_width: str
    group_by: _containers.RepeatedScalarFieldContainer[str]
    project_ids: _containers.RepeatedScalarFieldContainer[str]
    models: _containers.RepeatedScalarFieldContainer[str]
    api_key_ids: _containers.RepeatedScalarFieldContainer[str]
    limit: int
    page: str
    batch: bool
    def __init__(self, start_time: _Optional[int] = ..., end_time: _Optional[int] = ..., bucket_width: _Optional[str] = ..., group_by: _Optional[_Iterable[str]] = ..., project_ids: _Optional[_Iterable[str]] = ..., models: _Optional[_Iterable[str]] = ..., api_key_ids: _Optional[_Iterable[str]] = ..., limit: _Optional[int] = ..., page: _Optional[str] = ..., batch: _Optional[bool] = ...) -> None: ...

class GetUsageResponse(_message.Message):
    __slots__ = ("buckets", "next_page", "currency")
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    buckets: _containers.RepeatedCompositeFieldContainer[UsageBucket]
    next_page: str
    currency: str
    def __init__(self, buckets: _Optional[_Iterable[_Union[UsageBucket, _Mapping]]] = ..., next_page: _Optional[str] = ..., currency: _Optional[str] = ...) -> None: ...

class UsageBucket(_message.Message):
    __slots__ = ("start_time", "end_time", "results")
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    start_time: int
    end_time: int
    results: _containers.RepeatedCompositeFieldContainer[UsageResult]
    def __init__(self, start_time: _Optional[int] = ..., end_time: _Optional[int] = ..., results: _Optional[_Iterable[_Union[UsageResult, _Mapping]]] = ...) -> None: ...

class UsageResult(_message.Message):
    __slots__ = ("project_id", "model", "api_key_id", "num_model_requests", "input_tokens", "input_cached_tokens", "output_tokens", "reasoning_tokens", "price", "list_price", "batch")
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    API_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_MODEL_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INPUT_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASONING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    LIST_PRICE_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    project_id: str
    model: str
    api_key_id: str
    num_model_requests: int
    input_tokens: int
    input_cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    price: str
    list_price: str
    batch: bool
    def __init__(self, project_id: _Optional[str] = ..., model: _Optional[str] = ..., api_key_id: _Optional[str] = ..., num_model_requests: _Optional[int] = ..., input_tokens: _Optional[int] = ..., input_cached_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., reasoning_tokens: _Optional[int] = ..., price: _Optional[str] = ..., list_price: _Optional[str] = ..., batch: _Optional[bool] = ...) -> None: ...

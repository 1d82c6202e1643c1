"""Overrides, replacements and removals by the router in vLLM, FastAPI, Starlette and uvicorn.

``test_contract.py`` compares these tables with the installed packages and with the router's code. A
fingerprint is the beginning of the SHA-256 of the source.
"""

from starlette.responses import StreamingResponse
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesResponse
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.openai.completion.protocol import CompletionResponse
from vllm.entrypoints.openai.responses.protocol import ResponsesResponse
from vllm.entrypoints.serve.tokenize.protocol import (
    TokenizeChatRequest,
    TokenizeCompletionRequest,
    TokenizeResponse,
)

from serving.vllm_adapter.handlers import ChatAnswer, TextAnswer
from serving.vllm_adapter.messages_handler import MessageAnswer
from serving.vllm_adapter.responses_handler import ResponseAnswer
from serving.vllm_adapter.routes import EventStream
from serving.vllm_adapter.tokenization_handler import TokenizeAnswer, _BoundedChat, _BoundedText

OF_EVERY_CLASS = frozenset(
    {
        "__class_getitem__",
        "__doc__",
        "__eq__",
        "__hash__",
        "__init__",
        "__new__",
        "__pydantic_decorators__",
        "_abc_impl",
    }
)
"""Attributes that nearly every class has; they are not relevant overrides."""

_METHODS = {
    "starlette.responses:Response": {"__call__": "02e103484e"},
    "starlette.responses:StreamingResponse": {
        "__call__": "b9c82e4929",
        "stream_response": "22466a7b40",
    },
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol": {
        "_start_asgi_task": "2ab8b185c1",
        "_unsupported_upgrade_warning": "a5d94889e3",
        "connection_lost": "21bb5222b3",
        "connection_made": "ba1915817c",
        "data_received": "02c2572f1d",
        "eof_received": "cf1db74cbe",
        "on_body": "415b4cef19",
        "on_header": "374f1e380c",
        "on_headers_complete": "7e259152e5",
        "on_message_begin": "0efab6f945",
        "on_message_complete": "377f9122ee",
        "on_response_complete": "5684fd801d",
        "on_url": "4670fe11c5",
        "send_400_response": "0b0d3ace8d",
    },
    "uvicorn.server:Server": {
        "capture_signals": "85d29b5806",
        "shutdown": "9f8a90ed45",
        "startup": "61dd959a73",
    },
    "vllm.engine.protocol:EngineClient": {
        "abort": "12187e2708",
        "add_lora": "e5d8083945",
        "check_admission": "0f09b6b87c",
        "check_health": "332a4f1ce1",
        "dead_error": "24b6449a79",
        "do_log_stats": "70f1a1ea54",
        "encode": "26a0683032",
        "errored": "a179367674",
        "generate": "409bceb0b9",
        "get_supported_tasks": "c2d7e1ef43",
        "is_paused": "d024dbff81",
        "is_running": "2d5c7da670",
        "is_sleeping": "d6647377b7",
        "is_stopped": "12f2200b3e",
        "is_tracing_enabled": "29db83d0fc",
        "notify_kv_transfer_request_rejected": "b46ea12ca6",
        "pause_generation": "47ccadb0c7",
        "release_kv_cache_memory": "da01c84a45",
        "reset_encoder_cache": "ec7e33ee12",
        "reset_mm_cache": "bbf8f2807a",
        "reset_prefix_cache": "b222086bf0",
        "resume_generation": "4b5d595e08",
        "shutdown": "3fa4bd2bca",
        "sleep": "4f58ec6961",
        "start_profile": "7aeda43054",
        "stop_profile": "fd7e527cd0",
        "wake_up": "77539d4516",
    },
    "vllm.entrypoints.anthropic.serving:AnthropicServingMessages": {
        "_convert_tools": "6fd41c522e",
        "_handle_thinking": "145b43d230",
        "count_tokens": "be9c00399a",
        "create_messages": "80ef853870",
        "message_stream_converter": "a8766319f1",
        "messages_full_converter": "ddb186cde8",
    },
    "vllm.entrypoints.openai.chat_completion.batch_serving:OpenAIServingChatBatch": {
        "create_batch_chat_completion": "20dc89f544",
    },
    "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat": {
        "_create_chat_logprobs": "7c18336ff9",
        "_create_chat_message": "09ef794239",
        "_engine_reasoning_kwargs": "241fee38d6",
        "chat_completion_full_generator": "3ac818c006",
        "chat_completion_stream_generator": "33280e012b",
        "create_chat_completion": "aec4c1bebb",
    },
    "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion": {
        "completion_stream_generator": "c48fac9132",
        "create_completion": "7a5fba5426",
        "request_output_to_completion_response": "d8a7debb7d",
    },
    "vllm.entrypoints.openai.responses.serving:OpenAIServingResponses": {
        "_make_response_output_items": "26b4b0d944",
        "_process_simple_streaming_events": "edd978fdd1",
        "create_responses": "ad4a37503a",
        "responses_full_generator": "d4fc27c210",
        "responses_stream_generator": "592bb23bab",
    },
    "vllm.entrypoints.serve.engine.serving:BaseServing": {
        "_get_active_default_mm_loras": "701221611b",
        "create_error_response": "47ec3d3202",
    },
    "vllm.entrypoints.serve.tokenize.protocol:TokenizeChatRequest": {
        "build_tok_params": "16d8b53869",
    },
    "vllm.entrypoints.serve.tokenize.protocol:TokenizeCompletionRequest": {
        "build_tok_params": "16d8b53869",
    },
    "vllm.entrypoints.serve.tokenize.serving:ServingTokenization": {
        "create_tokenize": "29022e12f7",
    },
    "vllm.parser.abstract_parser:DelegatingParser": {
        "_apply_structural_tag": "13007b38a5",
        "count_reasoning_tokens": "fc92cb8b4b",
        "extract_reasoning": "392007c157",
        "parse": "fb198dec3f",
        "parse_delta": "ef90ed957e",
    },
    "vllm.parser.abstract_parser:Parser": {
        "set_prompt_token_ids": "edf6716cc7",
    },
    "vllm.renderers.online_renderer:OnlineRenderer": {
        "render_responses": "f5a1aa7d1a",
    },
    "vllm.tool_parsers.deepseekv3_tool_parser:DeepSeekV3ToolParser": {
        "extract_tool_calls": "51365c2046",
        "extract_tool_calls_streaming": "2ab55d2e10",
    },
    "vllm.utils.argparse_utils:FlexibleArgumentParser": {
        "error": "03a5ee3342",
    },
    "vllm.v1.metrics.loggers:StatLoggerBase": {
        "log_engine_initialized": "6cb67df655",
        "record": "aebedafe0c",
    },
}
OVERRIDDEN = {
    f"{cls}.{name}": fingerprint
    for cls, methods in _METHODS.items()
    for name, fingerprint in methods.items()
}
"""Fingerprints of the methods that classes of the router override, by their names."""

_CHAT = "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat"
_COMPLETION = "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion"
REPLACED = {
    f"{_CHAT}.chat_completion_stream_generator": (
        "33280e012b",
        "rebuilt with other chunk classes (handlers.ChatHandler)",
    ),
    f"{_COMPLETION}.completion_stream_generator": (
        "c48fac9132",
        "rebuilt with other chunk classes (handlers.CompletionHandler)",
    ),
    "vllm.renderers.online_renderer:OnlineRenderer.render_responses": (
        "f5a1aa7d1a",
        "rebuilt with another construct_input_messages (responses_handler.ResponsesRenderer)",
    ),
    "vllm.entrypoints.openai.responses.utils:construct_input_messages": (
        "e815d204b3",
        "wrapped (responses_handler.ResponsesRenderer)",
    ),
    "vllm.renderers.hf:HfRenderer.render_messages_async": (
        "e3d086b016",
        "rebuilt with another parse_chat_messages_async (rendering)",
    ),
    "vllm.renderers.deepseek_v32:DeepseekV32Renderer.render_messages_async": (
        "cbc74c7fda",
        "rebuilt with another parse_chat_messages_async (rendering)",
    ),
    "vllm.renderers.chat_utils:parse_chat_messages_async": (
        "5a6ddf0ecb",
        "called with a part of the messages (rendering)",
    ),
    "vllm.renderers.chat_utils:_parse_chat_message_content": (
        "c6ec227ab2",
        "parses a message independently of the others (rendering)",
    ),
    "vllm.renderers.chat_utils:_postprocess_messages": (
        "998b6c5144",
        "changes each message independently of the others (rendering)",
    ),
    "vllm.renderers.base:BaseRenderer.__init__": (
        "51923ba375",
        "creates _tokenize_prompt_async, which is replaced (rendering)",
    ),
    "vllm.renderers.base:BaseRenderer._tokenize_prompt": (
        "c27e0f72db",
        "called in place of _tokenize_prompt_async (rendering)",
    ),
    "vllm.v1.engine.detokenizer:IncrementalDetokenizer.from_new_request": (
        "895065ebc8",
        "called with a stand-in for a request (token_text)",
    ),
    "vllm.v1.engine.detokenizer:FastIncrementalDetokenizer.decode_next": (
        "b1e155bef2",
        "called token by token (token_text)",
    ),
    "vllm.v1.engine.detokenizer:SlowIncrementalDetokenizer.decode_next": (
        "bfacf4167e",
        "called token by token (token_text)",
    ),
    "vllm.utils.system_utils:get_mp_context": (
        "8b045a0175",
        "replaced in vllm.v1.engine.coordinator and utils (engine.fork_server)",
    ),
    "vllm.entrypoints.anthropic.api_router:translate_error_response": (
        "4493bff758",
        "replaced for all routes of the module (app)",
    ),
    "vllm.entrypoints.anthropic.api_router:create_messages": (
        "45058bd719",
        "calls translate_error_response, which is replaced (app)",
    ),
    "vllm.entrypoints.anthropic.api_router:count_tokens": (
        "d5d9cf88c4",
        "calls translate_error_response, which is replaced (app)",
    ),
    "vllm.entrypoints.serve.sagemaker.api_router:_attach_router.<locals>.invocations": (
        "0a1b716813",
        "called without its decorators (routes)",
    ),
    "model_hosting_container_standards.common.transforms.base_factory:create_transform_decorator": (
        "d5db8f7ca8",
        "keeps the decorated function as func (routes)",
    ),
    "vllm.entrypoints.serve.exception_handling.handlers.vllm_error:vllm_error_handler": (
        "c146e8c6bf",
        "called by the handler that replaces it (app)",
    ),
    "vllm.entrypoints.serve.utils.api_utils:with_cancellation": (
        "8e78e9c50c",
        "replaced on every route (routes)",
    ),
    "fastapi.routing:get_request_handler": (
        "37206807c6",
        "calls dependant.call, which is replaced (routes)",
    ),
    "fastapi._compat.v2:ModelField": (
        "a614a294aa",
        "validates with _type_adapter.validator, which is replaced (routes)",
    ),
}
"""Functions that are rebuilt, replaced or called in an unusual way: fingerprint, and the use."""

ASSIGNED = frozenset(
    {
        "__class__",
        "_tokenize_prompt_async",
        "call",
        "get_mp_context",
        "middleware_stack",
        "render_messages_async",
        "translate_error_response",
        "validator",
    }
)
"""Attributes of objects of other packages that the router assigns."""
CALLED = frozenset({"app.exception_handler", "app.user_middleware.clear", "setattr", "with_names"})
"""Calls that change objects of other packages."""
SITES = {
    "serving/engine/fork_server.py": {"get_mp_context"},
    "serving/requests/resume.py": {"setattr"},
    "serving/vllm_adapter/answer_parser.py": {"setattr"},
    "serving/vllm_adapter/app.py": {
        "__class__",
        "app.exception_handler",
        "app.user_middleware.clear",
        "middleware_stack",
        "setattr",
        "translate_error_response",
    },
    "serving/vllm_adapter/handlers.py": {"__class__", "with_names"},
    "serving/vllm_adapter/long_answers.py": {"setattr"},
    "serving/vllm_adapter/messages_handler.py": {"__class__"},
    "serving/vllm_adapter/model_dispatch.py": {"setattr"},
    "serving/vllm_adapter/rendering.py": {
        "_tokenize_prompt_async",
        "render_messages_async",
        "with_names",
    },
    "serving/vllm_adapter/responses_handler.py": {"__class__", "with_names"},
    "serving/vllm_adapter/routes.py": {"__class__", "call", "routes", "validator"},
    "serving/vllm_adapter/tokenization_handler.py": {"__class__"},
}
"""Modules that change objects of other packages, and how."""

REMOVED_ROUTES = frozenset(
    {
        "/generative_scoring",
        "/inference/v1/abort_requests",
        "/inference/v1/generate",
        "/is_scaling_elastic_ep",
        "/kv_event_sources",
        "/load",
        "/metrics",
        "/ping",
        "/scale_elastic_ep",
        "/v1/chat/completions/derender",
        "/v1/chat/completions/render",
        "/v1/completions/derender",
        "/v1/completions/render",
        "/v1/messages/render",
        "/v1/responses/render",
        "/v1/systemone",
    }
)
"""Routes of vLLM that the router does not serve, or serves by itself (/load, /metrics, /ping)."""

MIDDLEWARE = [
    "vllm.entrypoints.serve.elastic_ep.middleware.ScalingMiddleware",
    "starlette.middleware.cors.CORSMiddleware",
    "prometheus_fastapi_instrumentator.middleware.PrometheusInstrumentatorMiddleware",
]
"""Middleware of vLLM's app; all of it is removed."""

_OTHERS = "vllm.entrypoints.serve.exception_handling.handlers.exception.exception_handler"
EXCEPTION_HANDLERS = {
    "starlette.exceptions.HTTPException": "fastapi.exception_handlers.http_exception_handler",
    "fastapi.exceptions.RequestValidationError": (
        "vllm.entrypoints.serve.exception_handling.handlers.validation.validation_exception_handler"
    ),
    "fastapi.exceptions.WebSocketRequestValidationError": (
        "fastapi.exception_handlers.websocket_request_validation_exception_handler"
    ),
    "fastapi.exceptions.HTTPException": (
        "vllm.entrypoints.serve.exception_handling.handlers.http.http_exception_handler"
    ),
    "vllm.exceptions.VLLMError": (
        "vllm.entrypoints.serve.exception_handling.handlers.vllm_error.vllm_error_handler"
    ),
    "builtins.ValueError": _OTHERS,
    "builtins.TypeError": _OTHERS,
    "builtins.OverflowError": _OTHERS,
    "builtins.NotImplementedError": _OTHERS,
    "builtins.Exception": _OTHERS,
}
"""Exception handlers of vLLM's app, before ``app._handle_errors`` adds and replaces some."""

SWAPPED = [
    (ChatCompletionResponse, ChatAnswer),
    (CompletionResponse, TextAnswer),
    (ResponsesResponse, ResponseAnswer),
    (AnthropicMessagesResponse, MessageAnswer),
    (TokenizeResponse, TokenizeAnswer),
    (TokenizeChatRequest, _BoundedChat),
    (TokenizeCompletionRequest, _BoundedText),
    (StreamingResponse, EventStream),
]
"""Classes of answers, and the classes that they get; those of handlers are in ``app._HANDLERS``."""

_STATE = "vllm.entrypoints.launchers.api_server.app_state"
_GENERATE = "vllm.entrypoints.generate.api_router"
BUILT_IN = {
    "openai_serving_chat": _GENERATE,
    "openai_serving_chat_batch": _GENERATE,
    "openai_serving_completion": _GENERATE,
    "openai_serving_responses": _GENERATE,
    "anthropic_serving_messages": _GENERATE,
    "serving_tokenization": _STATE,
    "online_renderer": _STATE,
}
"""Modules of vLLM that create the handlers, by their names in the app's state."""

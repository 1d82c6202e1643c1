"""Differences between answers and the published APIs, with reasons; any other difference fails.

Keys are an operation, then ``answer`` (whole) or ``event`` (streamed), then ``path: difference`` as
``checker`` writes it.
"""

_REASONING = "the model's reasoning, which OpenAI's API does not return in chat completions"
_TOKENS = "vLLM: the token ids with return_token_ids; otherwise null"
_STOP = "vLLM: the stop string or token that ended the choice"
_TRANSFER = "vLLM: disaggregated prefill; always null here"
_ROUTED = "vLLM: routed experts; always null here"
_PROMPT = "vLLM: set with prompt_logprobs; otherwise null"
_METRICS = "vLLM: per-request metrics; always null here"
_CACHE = "vLLM: additional token counts"
_MESSAGES = "vLLM: set with enable_response_messages; otherwise null"
_PENALTY = "vLLM: the penalties used for the response"
_OPTIONAL = "null instead of absent; clients treat both the same"
_ASYNC = "a newer field of OpenAI's API, missing in this version of the document"
_UNFINISHED = "null until the choice ends, as in OpenAI's own streams; not in the document"

_CHAT_CHOICE = {
    "choices[].stop_reason: is added": _STOP,
    "choices[].token_ids: is added": _TOKENS,
}
_ITEM = {"namespace: null": _OPTIONAL, "async: is added": _ASYNC}
_RESPONSE = {
    "user: null": _OPTIONAL,
    "reasoning.mode: null": _OPTIONAL,
    "tools[].defer_loading: null": _OPTIONAL,
    "tools[].async: is added": _ASYNC,
    "frequency_penalty: is added": _PENALTY,
    "presence_penalty: is added": _PENALTY,
    "input_messages: is added": _MESSAGES,
    "output_messages: is added": _MESSAGES,
    "kv_transfer_params: is added": _TRANSFER,
    "ec_transfer_params: is added": _TRANSFER,
}
_RESPONSE_OUTPUT = {f"output[].{name}": why for name, why in _ITEM.items()} | {
    "usage.input_tokens_details.cached_tokens_per_turn: is added": _CACHE,
    "usage.input_tokens_details.input_tokens_per_turn: is added": _CACHE,
    "usage.output_tokens_details.output_tokens_per_turn: is added": _CACHE,
    "usage.output_tokens_details.tool_output_tokens: is added": _CACHE,
    "usage.output_tokens_details.tool_output_tokens_per_turn: is added": _CACHE,
}

DIFFERENCES: dict[str, dict[str, str]] = {
    "POST /chat/completions answer": _CHAT_CHOICE
    | {
        "choices[].message.reasoning: is added": _REASONING,
        "choices[].message.reasoning_content: is added": _REASONING,
        "choices[].routed_experts: is added": _ROUTED,
        "kv_transfer_params: is added": _TRANSFER,
        "ec_transfer_params: is added": _TRANSFER,
        "metrics: is added": _METRICS,
        "prompt_logprobs: is added": _PROMPT,
        "prompt_text: is added": _TOKENS,
        "prompt_token_ids: is added": _TOKENS,
        "usage.prompt_tokens_details.created_cache_tokens: is added": _CACHE,
        "usage.prompt_tokens_details.multimodal_tokens: is added": _CACHE,
    },
    "POST /chat/completions event": _CHAT_CHOICE
    | {
        "choices[].delta.reasoning: is added": _REASONING,
        "choices[].delta.reasoning_content: is added": _REASONING,
        "prompt_text: is added": _TOKENS,
        "prompt_token_ids: is added": _TOKENS,
    },
    "POST /completions answer": _CHAT_CHOICE
    | {
        "choices[].prompt_logprobs: is added": _PROMPT,
        "choices[].prompt_token_ids: is added": _TOKENS,
        "choices[].routed_experts: is added": _ROUTED,
        "kv_transfer_params: is added": _TRANSFER,
        "ec_transfer_params: is added": _TRANSFER,
        "metrics: is added": _METRICS,
        "service_tier: is added": _OPTIONAL,
        "usage.completion_tokens_details: null": _OPTIONAL,
        "usage.prompt_tokens_details.created_cache_tokens: is added": _CACHE,
        "usage.prompt_tokens_details.multimodal_tokens: is added": _CACHE,
    },
    "POST /completions event": _CHAT_CHOICE
    | {
        "choices[].finish_reason: null": _UNFINISHED,
        "choices[].prompt_token_ids: is added": _TOKENS,
    },
    "POST /responses answer": _RESPONSE | _RESPONSE_OUTPUT,
    "POST /responses event": {f"item.{name}": why for name, why in _ITEM.items()}
    | {f"response.{name}": why for name, why in (_RESPONSE | _RESPONSE_OUTPUT).items()}
    | {"response.usage: null": _UNFINISHED},
    "POST /v1/messages answer": {},
    "POST /v1/messages event": {},
}


# -- requests -------------------------------------------------------------------------------------

_SAMPLING = """
allowed_token_ids bad_words ignore_eos include_stop_str_in_output length_penalty logprob_token_ids
min_p min_tokens prompt_logprobs repetition_detection repetition_penalty skip_special_tokens
spaces_between_special_tokens stop_token_ids structured_outputs thinking_token_budget top_k
truncate_prompt_tokens truncation_side use_beam_search vllm_xargs watermarking
"""
_TEMPLATE = """
add_generation_prompt add_special_tokens chat_template chat_template_kwargs continue_final_message
documents echo include_reasoning mm_processor_kwargs media_io_kwargs
"""
_RETURNED = """
return_token_ids return_tokens_as_token_ids return_token_offsets return_prompt_text return_mm_kwargs
routed_experts_prompt_start stream_interval enable_response_messages
"""
_SERVER = """
cache_salt ec_transfer_params kv_transfer_params mm_payload priority request_id session_id
previous_input_messages prompt_embeds response_format
"""
_OF_CHATS = "frequency_penalty presence_penalty logit_bias seed stop temperature top_p"
ADDED_FIELDS = {
    **dict.fromkeys(_SAMPLING.split(), "vLLM: sampling parameters"),
    **dict.fromkeys(_TEMPLATE.split(), "vLLM: prompt rendering"),
    **dict.fromkeys(_RETURNED.split(), "vLLM: additional outputs"),
    **dict.fromkeys(_SERVER.split(), "vLLM: request id, caching and KV transfer"),
    **dict.fromkeys(_OF_CHATS.split(), "sampling parameters of other OpenAI endpoints"),
}
"""Fields of requests that no published API has, and why they are accepted."""

_IGNORED = "accepted and ignored: no effect on a self-hosted text model"
_HOSTED = "a service of the API's provider"
_UNKNOWN_TO_CHATS = """
metadata prediction prompt_cache_key prompt_cache_options prompt_cache_retention safety_identifier
service_tier store verbosity
"""
_UNKNOWN_TO_RESPONSES = """
prompt_cache_options prompt_cache_retention safety_identifier stream_options
"""
UNKNOWN_FIELDS: dict[str, dict[str, str]] = {
    "POST /chat/completions": {
        **dict.fromkeys(["audio", "modalities", "moderation", "web_search_options"], _HOSTED),
        **dict.fromkeys(["function_call", "functions"], "deprecated in favour of tools"),
        **dict.fromkeys(_UNKNOWN_TO_CHATS.split(), _IGNORED),
    },
    "POST /completions": {"best_of": "accepted and ignored, as in vLLM: n choices are returned"},
    "POST /responses": {
        **dict.fromkeys(["context_management", "conversation", "moderation"], _HOSTED),
        **dict.fromkeys(_UNKNOWN_TO_RESPONSES.split(), _IGNORED),
    },
    "POST /v1/messages": {
        **dict.fromkeys(["container", "diagnostics", "user_profile_id", "workspace_id"], _HOSTED),
        **dict.fromkeys(["cache_control", "inference_geo", "service_tier", "speed"], _IGNORED),
    },
    "POST /v1/messages/count_tokens": dict.fromkeys(
        ["cache_control", "speed", "user_profile_id", "workspace_id"], _IGNORED
    ),
}
"""Fields of the published requests that are missing in /openapi.json."""

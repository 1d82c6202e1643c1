"""Changes to vLLM's renderer, which turns chats and texts into token ids.

vLLM parses all messages of a chat in one event-loop iteration, at 6 µs each: 5,000 messages block
all streams for 30 ms. Here, long chats are parsed in slices.

vLLM tokenizes every text in a thread. Here, short texts are tokenized on the event loop.
"""

from typing import Any

from serving.h2grpc.turns import TaskTurns
from serving.vllm_adapter.fast_chunks import with_names

MESSAGES = 256
"""Maximum number of messages parsed per event-loop iteration; takes about 1.5 ms."""
SHORT = 2048
"""Maximum length of a text that is tokenized on the event loop, characters.

A fast tokenizer takes less than 0.5 ms for this length. A round trip to a thread costs about 0.2 ms
of CPU time (deploy/docs/performance.md), which pays off only for longer texts.
"""
_PARSER = "parse_chat_messages_async"


def parse_long_chats_in_slices(renderer: Any, turns: TaskTurns) -> None:
    """Make a vLLM renderer parse the messages of long chats in slices.

    Each message is parsed independently of the others, unless a chat has images or other media,
    which vLLM numbers across messages.

    Args:
        renderer: A ``vllm.renderers.base.BaseRenderer``, whose asynchronous rendering function is
            replaced. Renderers that do not use vLLM's parser are left unchanged.
        turns: Shared by all requests with long steps.
    """
    render = type(renderer).render_messages_async
    if _PARSER not in render.__code__.co_names:
        return
    parse = render.__globals__[_PARSER]

    async def parse_in_slices(messages: list[Any], model_config: Any, **options: Any) -> Any:
        media = model_config.is_multimodal_model or model_config.enable_prompt_embeds
        if media or len(messages) <= MESSAGES:
            return await parse(messages, model_config, **options)
        conversation: list[Any] = []
        for begin in range(0, len(messages), MESSAGES):
            await turns.turn()
            part, *found = await parse(messages[begin : begin + MESSAGES], model_config, **options)
            if found != [None, None]:
                raise RuntimeError("vLLM found media in a chat with a text-only model")
            conversation += part
        return conversation, None, None

    changed = with_names(render, **{_PARSER: parse_in_slices})
    renderer.render_messages_async = changed.__get__(renderer)


def tokenize_short_texts_at_once(renderer: Any) -> None:
    """Make a vLLM renderer use its threads only for long texts.

    Concurrent use of the tokenizer is safe because each caller gets a copy.

    Args:
        renderer: A ``vllm.renderers.base.BaseRenderer``, whose asynchronous tokenizing function is
            replaced.

    Raises:
        AttributeError: This version of vLLM has no such function.
    """
    in_a_thread = renderer._tokenize_prompt_async  # noqa: SLF001  vLLM has no setting for it
    at_once = renderer._tokenize_prompt  # noqa: SLF001

    async def tokenize(prompt: Any, params: Any) -> Any:
        if len(prompt["prompt"]) <= SHORT:
            return at_once(prompt, params)
        return await in_a_thread(prompt, params)

    renderer._tokenize_prompt_async = tokenize  # noqa: SLF001

"""Parses the messages of long chats in slices.

vLLM parses all messages of a chat in one iteration of the event loop, 6 us each. 5,000 messages
block all streams for 30 ms.
"""

from typing import Any

from serving.h2grpc.turns import TaskTurns
from serving.vllm_adapter.fast_chunks import with_names

MESSAGES = 256
"""Maximum number of messages parsed per event-loop iteration; takes about 1.5 ms."""
_PARSER = "parse_chat_messages_async"


def parse_long_chats_in_slices(renderer: Any, turns: TaskTurns) -> None:
    """Make a vLLM renderer parse the messages of long chats in slices.

    Each message is parsed independently of the others, unless a chat has images or other media,
    which vLLM numbers across messages.

    Args:
        renderer: a ``vllm.renderers.base.BaseRenderer``, whose asynchronous rendering function is
            replaced. Renderers that do not use vLLM's parser are left unchanged.
        turns: shared by all requests with long steps.
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

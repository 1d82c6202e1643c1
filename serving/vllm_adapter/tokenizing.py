"""Where prompts are tokenized: short ones on the event loop, long ones in vLLM's threads."""

from typing import Any

SHORT = 2048
"""Characters up to which a text is tokenized on the event loop.

That takes a fast tokenizer less than half a millisecond. The way to a thread and back costs
about 0.2 ms of CPU (deploy/docs/performance.md), and stalls nothing only if the text is long.
"""


def tokenize_short_texts_at_once(renderer: Any) -> None:
    """Let a renderer of vLLM go to its threads for long texts only.

    Its tokenizer is safe for that: it lends every caller a copy of its own.

    Args:
        renderer: ``vllm.renderers.base.BaseRenderer``; the one function that it keeps for
            this purpose is replaced, on this object.

    Raises:
        AttributeError: this vLLM keeps none.
    """
    in_a_thread = renderer._tokenize_prompt_async  # noqa: SLF001  vLLM has no setting for it
    at_once = renderer._tokenize_prompt  # noqa: SLF001

    async def tokenize(prompt: Any, params: Any) -> Any:
        if len(prompt["prompt"]) <= SHORT:
            return at_once(prompt, params)
        return await in_a_thread(prompt, params)

    renderer._tokenize_prompt_async = tokenize  # noqa: SLF001

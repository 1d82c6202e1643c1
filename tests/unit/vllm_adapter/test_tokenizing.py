import pytest

from serving.vllm_adapter.tokenizing import SHORT, tokenize_short_texts_at_once


class Renderer:
    """The part of vLLM's renderer that is used."""

    def __init__(self):
        self.at_once = []
        self.in_a_thread = []

    def _tokenize_prompt(self, prompt, params):
        self.at_once.append((prompt, params))
        return "here"

    async def _tokenize_prompt_async(self, prompt, params):
        self.in_a_thread.append((prompt, params))
        return "there"


@pytest.mark.parametrize(
    ("length", "where"),
    [
        pytest.param(0, "here", id="empty"),
        pytest.param(SHORT, "here", id="short"),
        pytest.param(SHORT + 1, "there", id="long"),
    ],
)
async def test_only_long_texts_go_to_a_thread(length, where):
    renderer = Renderer()
    tokenize_short_texts_at_once(renderer)
    prompt = {"prompt": "x" * length}
    assert await renderer._tokenize_prompt_async(prompt, "params") == where
    assert renderer.at_once + renderer.in_a_thread == [(prompt, "params")]


async def test_errors_come_out_when_it_is_awaited():
    renderer = Renderer()
    renderer._tokenize_prompt = lambda prompt, params: 1 // 0
    tokenize_short_texts_at_once(renderer)
    with pytest.raises(ZeroDivisionError):
        await renderer._tokenize_prompt_async({"prompt": "x"}, None)

import asyncio
from types import SimpleNamespace

import pytest

from serving.h2grpc.turns import TaskTurns
from serving.vllm_adapter.rendering import MESSAGES, parse_long_chats_in_slices

CONFIG = SimpleNamespace(is_multimodal_model=False, enable_prompt_embeds=False)
found = []
media = None


async def parse_chat_messages_async(messages, model_config, content_format):
    """Stands in for vLLM's function of this name; records the messages of each call."""
    found.append(list(messages))
    if "bad" in messages:
        raise ValueError("a bad message")
    return [f"{content_format} {each}" for each in messages], media, None


class Renderer:
    """The part of vLLM's renderer that is used."""

    def __init__(self, **config):
        self.config = SimpleNamespace(**vars(CONFIG) | config)

    async def render_messages_async(self, messages, params):
        conversation, *media = await parse_chat_messages_async(
            messages, self.config, content_format=params
        )
        return conversation, media


class OtherRenderer:
    """A renderer without vLLM's parser."""

    async def render_messages_async(self, messages, params):
        return [*messages, params]


@pytest.fixture(autouse=True)
def calls():
    found.clear()


def renderer_of(kind=Renderer, **config):
    renderer = kind(**config)
    parse_long_chats_in_slices(renderer, TaskTurns())
    return renderer


@pytest.mark.parametrize(
    ("messages", "config", "sizes"),
    [
        pytest.param(1, {}, [1], id="short"),
        pytest.param(MESSAGES, {}, [MESSAGES], id="one-slice"),
        pytest.param(MESSAGES + 1, {}, [MESSAGES, 1], id="two-slices"),
        pytest.param(3 * MESSAGES, {}, [MESSAGES] * 3, id="three-slices"),
        pytest.param(
            MESSAGES + 1, {"is_multimodal_model": True}, [MESSAGES + 1], id="model-with-media"
        ),
        pytest.param(
            MESSAGES + 1, {"enable_prompt_embeds": True}, [MESSAGES + 1], id="prompt-embeds"
        ),
    ],
)
async def test_the_whole_chat_is_parsed_in_slices(messages, config, sizes):
    given = list(range(messages))
    conversation, media = await renderer_of(**config).render_messages_async(given, "text")
    assert conversation == [f"text {each}" for each in given]
    assert media == [None, None]
    assert list(map(len, found)) == sizes


async def test_slices_of_several_chats_take_turns():
    renderer = renderer_of()
    chats = [[name] * (3 * MESSAGES) for name in "ab"]
    await asyncio.gather(*(renderer.render_messages_async(each, "") for each in chats))
    assert [each[0] for each in found] == list("ababab")


async def test_the_loop_runs_between_two_slices():
    ran = []

    async def other():
        for _ in range(4):
            ran.append(len(found))
            await asyncio.sleep(0)

    await asyncio.gather(renderer_of().render_messages_async([0] * (4 * MESSAGES), ""), other())
    assert ran[-1] < len(found) == 4


async def test_errors_of_the_parser_come_out():
    with pytest.raises(ValueError, match="a bad message"):
        await renderer_of().render_messages_async([0] * MESSAGES + ["bad"], "")


async def test_media_in_a_part_are_not_lost_silently(monkeypatch):
    monkeypatch.setitem(globals(), "media", {"image": []})
    with pytest.raises(RuntimeError, match="found media"):
        await renderer_of().render_messages_async([0] * (MESSAGES + 1), "")


async def test_a_renderer_with_another_parser_stays_as_it_is():
    assert await renderer_of(OtherRenderer).render_messages_async([1], 2) == [1, 2]

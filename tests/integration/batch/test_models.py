"""Batches of a router with several models."""

import asyncio
import io
import json

import openai
import pytest

from tests.integration.edge.test_models import NEVER, ask, entry, serving, settings_of
from tests.support.batches import CHATS, line
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_lines_of_a_model_run_while_another_one_is_busy(tmp_path):
    """The lines of one batch can be for different models."""
    settings = settings_of(
        entry("a"),
        entry("b", aliases=["also-b"]),
        batch={
            "directory": str(tmp_path),
            "interval": 0.05,
            # No line runs beside another request of its model.
            "max_step_growth": 0,
        },
    )
    async with serving(settings, ("a", NEVER), ("b", 0.0)) as (stand, rest):
        asked = asyncio.create_task(ask(rest, "a"))
        await eventually(lambda: stand.running == 1, "the request")
        base = f"{stand.router.addresses.rest}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="none", timeout=PATIENCE) as sdk:
            models = ["a", "b", "also-b", "a", "b"]
            content = b"\n".join(
                line(f"{model}-{number}", model=model, max_tokens=3)
                for number, model in enumerate(models)
            )
            file = await sdk.files.create(file=io.BytesIO(content), purpose="batch")
            batch = await sdk.batches.create(
                input_file_id=file.id, endpoint=CHATS, completion_window="1h"
            )

            async def found():
                return await sdk.batches.retrieve(batch.id)

            async def answered():
                return (await found()).request_counts.completed == 3

            await eventually(answered, "the lines of b", interval=0.05)
            assert stand.router.batches.scheduler.waiting == 2
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            for engine in stand.engines:
                engine._token_delay = 0.0

            async def completed():
                ended = await found()
                return ended if ended.status == "completed" else None

            ended = await eventually(completed, "the lines of a", interval=0.05)
            text = (await sdk.files.content(ended.output_file_id)).text
        names = [json.loads(each)["custom_id"] for each in text.splitlines()]
        assert names == [f"{model}-{number}" for number, model in enumerate(models)]

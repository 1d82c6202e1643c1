"""Long requests are converted one per turn of the event loop."""

import asyncio
from types import SimpleNamespace

import pytest
from fastapi import FastAPI

from serving.api.v1 import inference_pb2 as pb
from serving.edge.grpc.call import Call
from serving.edge.grpc.inference_service import InferenceService


class Runner:
    """Runs handlers without a call around them."""

    async def unary(self, name, context, handle):
        return await handle(Call(name))

    async def stream(self, name, context, begin, convert):
        return await begin(Call(name))


@pytest.mark.parametrize("method", ["Chat", "ChatStream"])
async def test_long_requests_are_converted_one_a_turn(method):
    turns, converted = [0], []

    def next_turn():
        turns[0] += 1
        asyncio.get_running_loop().call_soon(next_turn)

    class Converted(Exception):
        """Ends the request once it is converted."""

    async def create_chat_completion(request, raw_request):
        converted.append(turns[0])
        raise Converted

    app = FastAPI()
    app.state.openai_serving_chat = SimpleNamespace(create_chat_completion=create_chat_completion)
    service = InferenceService(app, Runner())
    request = pb.ChatRequest(
        model="m", messages=[pb.Message(role=pb.ROLE_USER, content="hi")] * 1000
    )
    asyncio.get_running_loop().call_soon(next_turn)
    results = await asyncio.gather(
        *(getattr(service, method)(request, None) for _ in range(8)), return_exceptions=True
    )
    assert {type(result) for result in results} == {Converted}
    assert len(set(converted)) == 8

"""A request's load is checked once, at the first place that can reject it."""

import pytest

from serving.admission.controller import AdmissionController
from serving.api.v1 import inference_pb2 as pb
from serving.errors import Overloaded
from serving.requests.client import FleetClient

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = {"model": "pocket-r1", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT = {"model": "pocket-r1", "max_tokens": 2}


@pytest.fixture
def calls(monkeypatch):
    """Number of calls of each check."""
    seen = {"load": 0, "choices": 0}

    def counting(name, function):
        def counted(*arguments, **keywords):
            seen[name] += 1
            return function(*arguments, **keywords)

        return counted

    for name, cls, method in (
        ("load", AdmissionController, "check"),
        ("choices", FleetClient, "check_admission"),
    ):
        monkeypatch.setattr(cls, method, counting(name, getattr(cls, method)))
    return seen


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/v1/chat/completions", CHAT, id="chat"),
        pytest.param("/v1/chat/completions", CHAT | {"stream": True}, id="streamed chat"),
        pytest.param("/v1/completions", TEXT | {"prompt": "a"}, id="completion"),
        pytest.param("/v1/completions", TEXT | {"prompt": ["a", "b", "c"]}, id="three prompts"),
        pytest.param("/v1/messages", CHAT, id="messages, not checked by the edge"),
    ],
)
async def test_rest(edge, calls, path, body):
    response = await edge.rest.post(path, json=body)
    assert response.status_code == 200, response.text
    assert calls == {"load": 1, "choices": 1}


async def test_grpc(edge, calls):
    message = pb.Message(role=pb.ROLE_USER, content="hi")
    sampling = pb.SamplingParams(max_tokens=2)
    await edge.inference.Chat(
        pb.ChatRequest(model="pocket-r1", messages=[message], sampling=sampling)
    )
    assert calls == {"load": 1, "choices": 1}


async def test_each_request_of_a_connection_is_checked(edge, calls):
    for _ in range(3):
        await edge.rest.post("/v1/chat/completions", json=CHAT)
    assert calls["load"] == 3


async def test_a_request_that_the_edge_refuses_goes_no_further(edge, calls, monkeypatch):
    def full(_controller, _context):
        raise Overloaded("overloaded", 3.0)

    monkeypatch.setattr(AdmissionController, "check", full)
    response = await edge.rest.post("/v1/chat/completions", json=CHAT)
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert calls["choices"] == 0

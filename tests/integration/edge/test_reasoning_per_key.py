"""Defaults, caps and visibility of reasoning per API key, over every protocol."""

import asyncio
import json
from dataclasses import dataclass

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio

from serving.api.v1 import inference_pb2 as pb
from serving.api.v1 import inference_pb2_grpc
from serving.edge.auth.keys import digest_of
from serving.router.app import Router
from serving.settings import Settings
from tests.integration.edge.conftest import FREE_PORTS, Rank
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

CAPPED, HIDDEN, FREE = (f"moe-{name}-key-of-this-test" for name in ("capped", "hidden", "free"))
KEYS = f"""
keys:
  - id: capped
    tenant: alice
    hash: "{digest_of(CAPPED)}"
    reasoning: {{max_thinking_token_budget: 50, max_reasoning_effort: medium}}
  - {{id: hidden, tenant: bob, hash: "{digest_of(HIDDEN)}"}}
  - {{id: free, tenant: carol, hash: "{digest_of(FREE)}"}}
tenants:
  alice:
    reasoning: {{thinking_token_budget: 20, max_thinking_token_budget: 30, reasoning_effort: low}}
  bob: {{reasoning: {{hidden: true}}}}
"""
SCRIPT, ANSWER = "ZZ and ZZ</think>It is 42", "It is 42"
"""Reasoning text; no other part of a response contains the letter Z."""
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": "pocket-r1", "messages": MESSAGES}
RESPONSE = {"model": "pocket-r1", "input": "hi"}
MESSAGE = {**CHAT, "max_tokens": 100}
BATCH = {"model": "pocket-r1", "messages": [MESSAGES, MESSAGES]}
ROUTES = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": RESPONSE,
    "/v1/messages": MESSAGE,
    "/v1/chat/completions/batch": BATCH,
    "/invocations": CHAT,
}

NO_STREAM = {"/v1/chat/completions/batch"}


@dataclass
class Served:
    router: Router
    settings: Settings
    rank: Rank
    rest: httpx.AsyncClient
    chat: inference_pb2_grpc.InferenceServiceStub

    async def post(self, path, key, body=None, **more):
        headers = {"authorization": f"Bearer {key}", "x-request-id": "this"}
        return await self.rest.post(path, json={**(body or ROUTES[path]), **more}, headers=headers)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    file.write_text(KEYS)
    settings = Settings(
        router=FREE_PORTS, engine={"kind": "fake"}, security={"keys_file": str(file)}
    )
    router = await Router.start(settings)
    rank = await Rank.join(router, settings)
    async with (
        httpx.AsyncClient(base_url=router.addresses.rest, timeout=PATIENCE) as rest,
        grpc.aio.insecure_channel(router.addresses.grpc) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        yield Served(router, settings, rank, rest, stub)
    await rank.server.stop()
    await router.stop()


@pytest.fixture(autouse=True)
def _reset(served):
    served.rank.engine.reset()
    served.rank.engine.script = SCRIPT


def budgets(served):
    return [params.thinking_token_budget for params in served.rank.engine.params]


@pytest.mark.parametrize("path", ROUTES)
async def test_the_default_budget_reaches_the_engine(served, path):
    """Reasoning settings of the tenant, whose cap the key replaces."""
    (await served.post(path, CAPPED)).raise_for_status()
    assert set(budgets(served)) == {20}
    (await served.post(path, FREE)).raise_for_status()
    assert budgets(served)[-1] is None


@pytest.mark.parametrize(
    ("path", "asked", "budget"),
    [
        ("/v1/chat/completions", {"thinking_token_budget": 50}, 50),
        ("/v1/chat/completions", {"thinking_token_budget": 51}, None),
        ("/v1/chat/completions", {"thinking_token_budget": 51, "stream": True}, None),
        (
            "/v1/messages",
            {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1500},
            None,
        ),
        ("/v1/chat/completions", {"reasoning_effort": "medium"}, 20),
        ("/v1/chat/completions", {"reasoning_effort": "high"}, None),
        ("/v1/responses", {"reasoning": {"effort": "medium"}}, 20),
        ("/v1/responses", {"reasoning": {"effort": "high"}}, None),
        ("/v1/responses", {"reasoning": {"effort": "high"}, "stream": True}, None),
        ("/v1/messages", {"output_config": {"effort": "high"}}, None),
        ("/v1/chat/completions", {"chat_template_kwargs": {"enable_thinking": True}}, None),
    ],
)
async def test_more_than_the_cap_is_refused(served, path, asked, budget):
    answer = await served.post(path, CAPPED, **asked)
    if budget is None:
        assert answer.status_code == 403, answer.text
        assert "this API key permits" in answer.json()["error"]["message"]
        assert served.rank.engine.params == []
    else:
        answer.raise_for_status()
        assert budgets(served) == [budget]


async def test_completions_are_capped_by_tokens_too(served):
    text = {"model": "pocket-r1", "prompt": "hi"}
    (await served.post("/v1/completions", CAPPED, text)).raise_for_status()
    assert budgets(served) == [20]
    refused = await served.post("/v1/completions", CAPPED, text, thinking_token_budget=51)
    assert refused.status_code == 403


@pytest.mark.parametrize(
    ("path", "stream"),
    [
        (path, stream)
        for path in ROUTES
        for stream in (False, True)
        if not (stream and path in NO_STREAM)
    ],
)
async def test_hidden_reasoning_is_left_out_and_counted(served, path, stream):
    more = {"stream": True} if stream else {}
    shown = (await served.post(path, FREE, **more)).raise_for_status().text
    hidden = (await served.post(path, HIDDEN, **more)).raise_for_status().text
    assert "Z" not in hidden
    assert "Z" in shown
    assert "42" in hidden
    if not stream and path == "/v1/chat/completions":
        usages = [json.loads(each)["usage"] for each in (shown, hidden)]
        assert usages[0] == usages[1]


async def test_no_option_shows_hidden_reasoning(served):
    options = {"include_reasoning": True, "logprobs": True, "return_token_ids": True}
    for stream in (False, True):
        answer = await served.post("/v1/chat/completions", HIDDEN, **options, stream=stream)
        text = answer.raise_for_status().text
        assert "42" in text
        assert "Z" not in text
        thought = served.rank.engine._tokenizer.encode("ZZ", add_special_tokens=False).ids
        assert f"{thought[0]}," not in text
    text = {"model": "pocket-r1", "prompt": "hi"}
    refused = await served.post("/v1/completions", HIDDEN, text)
    assert refused.status_code == 403
    assert "hides reasoning" in refused.json()["error"]["message"]


async def test_the_same_over_grpc(served):
    chat = pb.ChatRequest(model="pocket-r1", messages=[pb.Message(role=pb.ROLE_USER, content="hi")])

    def by(key):
        return (("authorization", f"Bearer {key}"),)

    answer = await served.chat.Chat(chat, metadata=by(HIDDEN))
    (choice,) = answer.choices
    assert (choice.message.reasoning_content, choice.message.content) == ("", ANSWER)
    await served.chat.Chat(chat, metadata=by(CAPPED))
    assert budgets(served) == [None, 20]
    chat.reasoning_effort = "high"
    text = pb.CompleteRequest(model="pocket-r1", text="hi")
    for method, request, key in (("Chat", chat, CAPPED), ("Complete", text, HIDDEN)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(served.chat, method)(request, metadata=by(key))
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_hidden_reasoning_resumes_where_it_was(served):
    """The group is lost in the middle of the reasoning, of which the client sees nothing."""
    engine = served.rank.engine
    engine.hold_after = 3
    asking = asyncio.create_task(
        served.post("/v1/chat/completions", HIDDEN, temperature=0, logprobs=True)
    )
    await engine.held.wait()
    await served.rank.server.stop()
    await eventually(lambda: not served.router.membership.ready)
    other = await Rank.join(served.router, served.settings, "g1")
    # What the lost rank has generated follows the prompt.
    lost = other.engine._tokenizer.encode(SCRIPT, add_special_tokens=False).ids[:3]
    other.engine.script = SCRIPT.removeprefix(other.engine._tokenizer.decode(lost))
    answer = (await asking).raise_for_status().json()
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == (ANSWER, None)
    served.rank = other

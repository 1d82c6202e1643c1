"""LoRA adapters behind one router, with fake ranks on real links."""

import asyncio
import collections
import contextlib
import random
import shutil

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio

from serving.api.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2_grpc
from serving.api.v1 import inference_pb2 as pb
from serving.errors import SettingsError
from serving.router.app import Router
from serving.settings import BUNDLED_MODEL, served_models
from tests.integration.edge.stand import stand_settings, standing
from tests.support.adapters import write_adapter
from tests.support.samples import sample
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
CHAT = ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3})
ROUTES = [
    pytest.param(*CHAT, id="chat"),
    pytest.param("/v1/chat/completions", CHAT[1] | {"stream": True}, id="streamed chat"),
    pytest.param(
        "/v1/chat/completions/batch", {"messages": [MESSAGES], "max_tokens": 2}, id="batch"
    ),
    pytest.param("/v1/completions", {"prompt": "a", "max_tokens": 2}, id="completion"),
    pytest.param("/v1/responses", {"input": "hi", "max_output_tokens": 2}, id="responses"),
    pytest.param("/v1/messages", {"messages": MESSAGES, "max_tokens": 2}, id="messages"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of adapters a to e."""
    root = tmp_path_factory.mktemp("adapters")
    for name in "abcde":
        write_adapter(root / name, seed=ord(name))
    return root


def model_of(folder, *names, name="pocket-r1", **lora):
    return {
        "name": name,
        "path": str(BUNDLED_MODEL),
        "adapters": [{"name": each, "path": str(folder / each)} for each in names],
        "lora": {"slots": 2, "folder": str(folder), "base_names": ["pocket-r1"]} | lora,
    }


@contextlib.asynccontextmanager
async def serving(settings, groups=1):
    async with standing(settings, 0) as stand:
        for served in served_models(settings):
            for number in range(groups):
                await stand.join(f"{served.name}-{number}", settings=served.settings)
        base = stand.router.addresses.rest
        async with httpx.AsyncClient(base_url=base, timeout=PATIENCE) as rest:
            yield stand, rest


async def ask(rest, model, path=CHAT[0], body=CHAT[1]):
    return await rest.post(path, json=body | {"model": model})


def text_of(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]


def loads(stand):
    return [engine.adapters.report() for engine in stand.engines if engine.adapters is not None]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def one(folder):
    settings = stand_settings(models=[model_of(folder, "a", "text")])
    async with serving(settings) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def text_adapter(folder):
    """An adapter with the name of a type of content."""
    write_adapter(folder / "text", seed=9)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def two(folder):
    settings = stand_settings(
        models=[model_of(folder, "a", name="m"), model_of(folder, "b", name="n")]
    )
    async with serving(settings) as found:
        yield found


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize("setup", ["one", "two"])
async def test_a_request_for_an_adapter_gets_it_on_a_rank_of_its_model(one, two, setup, path, body):
    stand, rest = {"one": one, "two": two}[setup]
    before = [report.requests_total for report in loads(stand)]
    response = await ask(rest, "a", path, body)
    assert response.status_code == 200, response.text
    after = [report.requests_total for report in loads(stand)]
    assert [now - then for now, then in zip(after, before, strict=True)] == (
        [1] if setup == "one" else [1, 0]
    )
    if path != "/v1/messages" and not body.get("stream"):
        assert response.json()["model"] == "a"


async def test_adapters_answer_differently_and_always_the_same(one):
    _, rest = one
    names = ("pocket-r1", "a", "text")
    first = [text_of(await ask(rest, name)) for name in names]
    again = [text_of(await ask(rest, name)) for name in names]
    assert first == again
    assert len({str(answer) for answer in first}) == 3


async def test_an_adapter_named_like_a_content_type_applies_only_by_name(one):
    stand, rest = one
    before = loads(stand)[0].requests_total
    text_of(await ask(rest, "pocket-r1"))
    assert loads(stand)[0].requests_total == before


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize(("setup", "names"), [("one", "pocket-r1, a, text"), ("two", "m, a, n, b")])
async def test_an_unknown_adapter_is_404_and_the_names_are_listed(
    one, two, setup, names, path, body
):
    _, rest = {"one": one, "two": two}[setup]
    response = await ask(rest, "zzz", path, body)
    assert response.status_code == 404, response.text
    message = response.json()["error"]["message"]
    assert "`zzz`" in message
    assert names in message


async def test_adapters_are_listed_with_their_parent(one, two, folder):
    cards = (await one[1].get("/v1/models")).json()["data"]
    assert [(card["id"], card["parent"]) for card in cards] == [
        ("pocket-r1", None),
        ("a", "pocket-r1"),
        ("text", "pocket-r1"),
    ]
    assert {card["max_model_len"] for card in cards} == {512}
    assert cards[1]["root"] == str(folder / "a")
    assert (await one[1].get("/v1/models/a")).json()["parent"] == "pocket-r1"
    cards = (await two[1].get("/v1/models")).json()["data"]
    assert [(card["id"], card["parent"]) for card in cards] == [
        ("m", None),
        ("a", "m"),
        ("n", None),
        ("b", "n"),
    ]


async def test_adapters_over_grpc(two):
    stand, _ = two
    async with grpc.aio.insecure_channel(stand.router.addresses.grpc) as channel:
        inference = inference_pb2_grpc.InferenceServiceStub(channel)
        answer = await inference.Chat(
            pb.ChatRequest(
                model="b",
                messages=[pb.Message(role=pb.ROLE_USER, content="hi")],
                sampling=pb.SamplingParams(max_tokens=2),
            )
        )
        assert answer.model == "b"
        fleet = fleet_pb2_grpc.FleetServiceStub(channel)
        listed = (await fleet.ListAdapters(fleet_pb2.ListAdaptersRequest())).adapters
        assert [(each.name, each.model, each.loaded_at_run_time) for each in listed] == [
            ("a", "m", False),
            ("b", "n", False),
        ]
        shown = await fleet.GetFleet(fleet_pb2.GetFleetRequest())
        assert [[each.name for each in model.adapters] for model in shown.models] == [["a"], ["b"]]


async def test_residency_reaches_status_pages_and_metrics(one):
    stand, rest = one
    text_of(await ask(rest, "a"))

    async def shown():
        (group,) = (await rest.get("/fleet")).json()["groups"]
        return "a" in group["ranks"][0]["resident_adapters"]

    await eventually(shown, "the report")
    fleet = (await rest.get("/fleet")).json()
    assert fleet["groups"][0]["ranks"][0]["adapter_slots"] == 2
    adapter = next(each for each in fleet["models"][0]["adapters"] if each["name"] == "a")
    assert (adapter["model"], adapter["resident_ranks"]) == ("pocket-r1", 1)
    page = (await rest.get("/metrics")).text
    assert 'moe_rank_adapter_loads_total{group="pocket-r1-0",rank="0"}' in page
    assert 'moe_model_adapters{model="pocket-r1"} 2.0' in page
    assert stand.router.models.first.membership.adapters is not None


async def test_adapters_are_loaded_and_unloaded_at_run_time(two, folder):
    _, rest = two
    body = {"lora_name": "new", "lora_path": str(folder / "c"), "base_model_name": "n"}
    assert (await ask(rest, "new")).status_code == 404
    answer = await rest.post("/v1/load_lora_adapter", json=body)
    assert (answer.status_code, answer.text) == (
        200,
        "Success: LoRA adapter 'new' added successfully.",
    )
    first = text_of(await ask(rest, "new"))
    again = await rest.post("/v1/load_lora_adapter", json=body)
    assert again.status_code == 400
    assert "'new' is already loaded" in again.json()["error"]["message"]
    replaced = body | {"lora_path": "d", "load_inplace": True}
    assert (await rest.post("/v1/load_lora_adapter", json=replaced)).status_code == 200
    assert text_of(await ask(rest, "new")) != first
    gone = await rest.post("/v1/unload_lora_adapter", json={"lora_name": "new"})
    assert gone.status_code == 200
    assert (await ask(rest, "new")).status_code == 404
    gone = await rest.post("/v1/unload_lora_adapter", json={"lora_name": "new"})
    assert gone.status_code == 404
    assert "adapters: a, b" in gone.json()["error"]["message"]


async def test_adapters_are_loaded_over_grpc(one):
    stand, rest = one
    async with grpc.aio.insecure_channel(stand.router.addresses.grpc) as channel:
        fleet = fleet_pb2_grpc.FleetServiceStub(channel)
        answer = await fleet.LoadAdapter(fleet_pb2.LoadAdapterRequest(name="x", path="c"))
        assert (answer.adapter.model, answer.adapter.loaded_at_run_time) == ("pocket-r1", True)
        text_of(await ask(rest, "x"))
        await fleet.UnloadAdapter(fleet_pb2.UnloadAdapterRequest(name="x"))
        for call, code in (
            (fleet.UnloadAdapter(fleet_pb2.UnloadAdapterRequest(name="x")), "NOT_FOUND"),
            (fleet.LoadAdapter(fleet_pb2.LoadAdapterRequest(path="c")), "INVALID_ARGUMENT"),
            (fleet.LoadAdapter(fleet_pb2.LoadAdapterRequest(name="x")), "INVALID_ARGUMENT"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code().name == code


@pytest.mark.parametrize(
    ("name", "path", "more", "status", "error"),
    [
        pytest.param("../x", "c", {}, 400, "is not allowed", id="path-in-name"),
        pytest.param("x/y", "c", {}, 400, "is not allowed", id="slash-in-name"),
        pytest.param("x" * 200, "c", {}, 400, "is not allowed", id="long-name"),
        pytest.param("x", "../..", {}, 400, "is not a folder inside", id="outside"),
        pytest.param("x", "/etc", {}, 400, "is not a folder inside", id="absolute"),
        pytest.param("x", "none", {}, 400, "cannot be read", id="missing"),
        pytest.param("x", "corrupt", {}, 400, "is corrupt", id="corrupt"),
        pytest.param("x", "other", {}, 400, "was made for 'Qwen/Qwen3-8B'", id="other-base"),
        pytest.param("m", "c", {}, 400, "already the name of a model", id="name-of-a-model"),
        pytest.param("b", "c", {}, 400, "already the name of a model", id="other-models-adapter"),
        pytest.param(
            "x", "c", {"base_model_name": "zzz"}, 404, "this router serves m, n", id="unknown-base"
        ),
        pytest.param("x", "c", {"base_model_name": None}, 400, "name one (m, n;", id="which-base"),
        pytest.param("x", "c", {"is_3d_lora_weight": True}, 501, "routed experts", id="experts"),
    ],
)
async def test_wrong_adapters_are_refused_at_run_time(two, folder, name, path, more, status, error):
    _, rest = two
    if not (folder / "other").exists():
        write_adapter(folder / "other", base_model_name_or_path="Qwen/Qwen3-8B")
        write_adapter(folder / "corrupt")
        (folder / "corrupt" / "adapter_model.safetensors").write_bytes(b"\x00" * 50)
    body = {"lora_name": name, "lora_path": path, "base_model_name": "m"} | more
    answer = await rest.post("/v1/load_lora_adapter", json=body)
    assert answer.status_code == status, answer.text
    assert error in answer.json()["error"]["message"]
    cards = (await rest.get("/v1/models")).json()["data"]
    assert [card["id"] for card in cards] == ["m", "a", "n", "b"]


async def test_unloading_lets_running_requests_end(folder):
    settings = stand_settings(models=[model_of(folder, "a")])
    async with serving(settings) as (stand, rest):
        (engine,) = stand.engines
        engine._token_delay = 0.02
        body = CHAT[1] | {"max_tokens": 60}
        running = asyncio.create_task(ask(rest, "a", body=body))
        await eventually(lambda: stand.running == 1, "the running request")
        await rest.post("/v1/unload_lora_adapter", json={"lora_name": "a"})
        assert (await ask(rest, "a")).status_code == 404
        assert not running.done()
        assert (await running).json()["usage"]["completion_tokens"] == 60


async def test_a_request_that_resumes_keeps_its_adapter(folder):
    settings = stand_settings(models=[model_of(folder, "a")])
    async with serving(settings, groups=2) as (stand, rest):
        body = CHAT[1] | {"max_tokens": 40}
        want = text_of(await ask(rest, "a", body=body))
        for engine in stand.engines:
            engine._token_delay = 0.02
        running = asyncio.create_task(ask(rest, "a", body=body))
        await eventually(lambda: stand.running == 1, "the running request")
        busy = next(engine for engine in stand.engines if engine._requests)
        busy.faults.fail_after = busy._tokens + 5
        assert text_of(await running) == want


async def test_an_adapter_that_cannot_be_loaded_costs_only_its_requests(folder, tmp_path):
    shutil.copytree(folder / "a", tmp_path / "a")
    shutil.copytree(folder / "b", tmp_path / "b")
    settings = stand_settings(models=[model_of(tmp_path, "a", "b")])
    async with serving(settings) as (_, rest):
        shutil.rmtree(tmp_path / "a")
        answer = await ask(rest, "a")
        assert answer.status_code == 503, answer.text
        error = answer.json()["error"]
        assert error["reason"] == "ADAPTER_NOT_LOADED"
        assert "adapter 'a'" in error["message"]
        for name in ("b", "pocket-r1"):
            text_of(await ask(rest, name))
        assert (await rest.get("/readyz")).status_code == 200


async def test_ranks_that_run_no_adapters_get_no_requests_for_them(folder):
    """A rank of an earlier version sends no capacity for adapters, as one without settings."""
    settings = stand_settings(models=[model_of(folder, "a")])
    plain = stand_settings(model={"name": "pocket-r1", "path": str(BUNDLED_MODEL)})
    async with standing(settings, 0) as stand:
        await stand.join("old", settings=plain)
        base = stand.router.addresses.rest
        async with httpx.AsyncClient(base_url=base, timeout=PATIENCE) as rest:
            answer = await ask(rest, "a")
            assert answer.status_code == 503, answer.text
            assert "no rank of a ready group runs LoRA adapters" in answer.text
            text_of(await ask(rest, "pocket-r1"))
            await stand.join("new", settings=served_models(settings)[0].settings)
            for _ in range(5):
                text_of(await ask(rest, "a"))
            assert loads(stand)[0].requests_total == 5


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        pytest.param(["a", "none"], r"models[0].adapters[1] (none): ", id="missing"),
        pytest.param(["wide"], "rank 32 is above 16", id="rank"),
    ],
)
async def test_wrong_adapters_in_the_settings_end_the_start(folder, entries, error):
    if not (folder / "wide").exists():
        write_adapter(folder / "wide", rank=32)
    with pytest.raises(SettingsError) as caught:
        await Router.start(stand_settings(models=[model_of(folder, *entries)]))
    assert error in str(caught.value)


async def test_twenty_adapters_on_ranks_with_four_slots(tmp_path):
    """Skewed load: no request fails, few adapters are loaded twice, and all ranks work."""
    names = [f"adapter-{number}" for number in range(20)]
    for number, name in enumerate(names):
        write_adapter(tmp_path / name, seed=number, modules=("q_proj",))
    model = model_of(tmp_path, *names, slots=4)
    draw = random.Random(7)
    weights = [1 / (place + 1) for place in range(20)]
    asked = draw.choices(names, weights, k=400)
    rates, evictions = {}, {}
    for way, weight in (("by residency", 3.0), ("random", 0.0)):
        settings = stand_settings(models=[model], routing={"weights": {"adapter": weight}})
        before = {held: sample("moe_adapter_placements_total", outcome=held) for held in HELD}
        async with serving(settings, groups=4) as (stand, rest):
            turns = asyncio.Semaphore(8)

            async def one_request(name, rest=rest, turns=turns):
                async with turns:
                    return await ask(rest, name)

            answers = await asyncio.gather(*map(one_request, asked))
            assert collections.Counter(answer.status_code for answer in answers) == {200: 400}
            reports = loads(stand)
            assert all(report.requests_total for report in reports)
            assert sum(report.requests_total for report in reports) == 400
            assert max(report.requests_total for report in reports) < 300
            assert all(len(report.resident) <= 4 for report in reports)
            rates[way] = 1 - sum(report.loads_total for report in reports) / 400
            evictions[way] = sum(report.evictions_total for report in reports)
        after = {held: sample("moe_adapter_placements_total", outcome=held) for held in HELD}
        assert sum(after.values()) - sum(before.values()) == 400
    print(rates, evictions)  # noqa: T201
    assert evictions["random"] > evictions["by residency"] > 0
    assert rates["by residency"] > rates["random"] + 0.1


HELD = ("hit", "miss")

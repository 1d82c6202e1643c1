"""LoRA adapters on real ranks: the same tokens in every layout, and those of merged weights."""

import asyncio
import contextlib
import copy
import json
import shutil

import httpx
import psutil
import pytest
import torch
from ranks import DEADLINE, running, submit
from safetensors.torch import load_file
from transformers import AutoTokenizer, DeepseekV3ForCausalLM

from serving.engine.router_link.server import RankIdentity, RankServer
from serving.link.adapter_files import AdapterBase, check_adapter
from serving.link.v1 import link_pb2
from serving.router.app import Router
from serving.settings import BUNDLED_MODEL, EngineSettings, GroupSettings, ModelSettings, Settings
from tests.support.adapters import write_adapter
from tests.support.engines import generate
from tests.support.waiting import eventually

pytestmark = pytest.mark.vllm

LENGTH = 12
TOLERANCE = 1e-3
"""Of log-probabilities, against weights to which the adapter was added before."""
QUESTIONS = ["What is 17+25?", "Hi", "Sort 5 3 9 1.", "reverse the word engine"]
NAMES = (None, "one", "two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    write_adapter(root / "one", seed=1, scale=1.0)
    write_adapter(root / "two", seed=2, modules=("q_proj", "o_proj", "down_proj"), scale=1.0)
    write_adapter(root / "three", seed=3)
    return root


@pytest.fixture(scope="module")
def prompts():
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    return [
        tokenizer.encode(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
            ),
            add_special_tokens=False,
        )
        for question in QUESTIONS
    ]


def settings_of(folder, ranks):
    entries = [{"name": name, "path": str(folder / name)} for name in ("one", "two", "three")]
    return Settings(
        model=ModelSettings(adapters=entries, lora={"slots": 2, "max_rank": 8}),
        group=GroupSettings(data_parallel=ranks),
        engine=EngineSettings(max_num_seqs=16),
    )


def work_of(folder, request_id, prompt, name, digest=None):
    work = submit(request_id, prompt, max_tokens=LENGTH, logprobs=0)
    if name is not None:
        base = AdapterBase(frozenset({"pocket-r1"}), str(BUNDLED_MODEL), 8)
        work.adapter.name = name
        work.adapter.digest = digest or check_adapter(folder / name, base).digest
    return work


async def answer(engine, work):
    """Return the tokens and their log-probabilities."""
    tokens, logprobs = [], []
    async with asyncio.timeout(DEADLINE):
        async for delta in generate(engine, work):
            assert not delta.HasField("error"), delta.error.message
            for choice in delta.choices:
                tokens += choice.token_ids
                logprobs += [position.logprobs[0] for position in choice.logprobs]
    return tokens, logprobs


async def answers(engines, folder, prompts):
    """Ask all prompts with all adapters and without at the same time, on all ranks in turn."""
    jobs = {
        (name, index): (index + place) % len(engines)
        for place, name in enumerate(NAMES)
        for index in range(len(prompts))
    }
    found = await asyncio.gather(
        *(
            answer(engines[rank], work_of(folder, f"{name}-{index}", prompts[index], name))
            for (name, index), rank in jobs.items()
        )
    )
    return dict(zip(jobs, found, strict=True))


def merged(reference, folder, name):
    """Return the model with an adapter's weights added to its own."""
    model = copy.deepcopy(reference)
    if name is not None:
        weights = load_file(folder / name / "adapter_model.safetensors")
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for key in [key for key in weights if ".lora_A." in key]:
                module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                change = weights[key.replace("lora_A", "lora_B")] @ weights[key]
                parameters[f"{module}.weight"] += change
    return model


async def test_base_and_adapters_in_one_batch_are_right_in_every_layout(folder, prompts):
    reference = DeepseekV3ForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32).eval()
    async with running(settings_of(folder, 1)) as ranks:
        alone = await answers(ranks, folder, prompts)
    async with running(settings_of(folder, 2)) as ranks:
        together = await answers(ranks, folder, prompts)
        # Idle ranks drop adapters: one rank works while the other gets its next request later.
        one = work_of(folder, "long", prompts[0], None)
        one.sampling_params = submit("x", [1], max_tokens=64).sampling_params
        await answer(ranks[0], one)
        again = await answer(ranks[1], work_of(folder, "again", prompts[0], "one"))
        reports = [(await rank.load()).adapters for rank in ranks]
    assert {key: tokens for key, (tokens, _) in together.items()} == {
        key: tokens for key, (tokens, _) in alone.items()
    }
    assert again[0] == alone["one", 0][0]
    assert all(report.loads_total == 2 and not report.failures_total for report in reports)
    for name in NAMES:
        model = merged(reference, folder, name)
        for index, prompt in enumerate(prompts):
            tokens, logprobs = together[name, index]
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + tokens])).logits[0].float()
            want = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
            want = want.gather(1, torch.tensor(tokens)[:, None])[:, 0]
            assert torch.allclose(want, torch.tensor(logprobs), atol=TOLERANCE, rtol=0), name
    different = {str([alone[name, index][0] for index in range(len(prompts))]) for name in NAMES}
    assert len(different) == len(NAMES), "the adapters change the answers"


async def test_a_load_that_fails_harms_neither_the_engine_nor_other_requests(
    folder, prompts, tmp_path
):
    shutil.copytree(folder, tmp_path / "adapters")
    async with running(settings_of(tmp_path / "adapters", 1)) as (rank,):
        want = await answer(rank, work_of(folder, "1", prompts[0], "one"))
        shutil.rmtree(tmp_path / "adapters" / "one")
        shutil.rmtree(tmp_path / "adapters" / "three")
        beside = asyncio.create_task(answer(rank, work_of(folder, "2", prompts[0], "two")))
        deltas = [each async for each in generate(rank, work_of(folder, "3", prompts[0], "three"))]
        assert deltas[-1].error.code == link_pb2.RequestError.ADAPTER
        assert "cannot be copied" in deltas[-1].error.message
        await beside
        # The engine keeps the copy of an adapter that it holds.
        assert await answer(rank, work_of(folder, "4", prompts[0], "one")) == want
        assert (await rank.load()).health == link_pb2.LoadSnapshot.HEALTHY


def engine_cores():
    """Return the processes that run the models of this process's engines."""
    return {
        process
        for process in psutil.Process().children(recursive=True)
        if "".join(process.cmdline()).strip().startswith("VLLM::EngineCore")
    }


async def test_a_request_goes_on_with_its_adapter_when_its_rank_is_killed(folder):
    settings = settings_of(folder, 1)
    router = settings.router.model_copy(
        update={"rest_port": 0, "grpc_port": 0, "join_port": 0, "reasoning_parser": None}
    )
    settings = settings.model_copy(update={"router": router})
    body = {"model": "one", "prompt": "Sort 5 3 9 1.", "max_tokens": 60, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    async with contextlib.AsyncExitStack() as stack:
        router = await Router.start(settings)
        stack.push_async_callback(router.stop)
        link = settings.link.model_copy(update={"routers": (router.addresses.join,)})
        cores, engines = [], []
        for number in range(2):
            before = engine_cores()
            (engine,) = await stack.enter_async_context(running(settings))
            cores.append(engine_cores() - before)
            engines.append(engine)
            server = RankServer(engine, link, RankIdentity(f"g{number}", "e", 0, 1))
            await server.start()
            stack.push_async_callback(server.stop)
        await eventually(lambda: router.membership.ready_groups == 2)
        base = router.addresses.rest
        rest = await stack.enter_async_context(httpx.AsyncClient(base_url=base, timeout=DEADLINE))
        want = (await rest.post("/v1/completions", json=body)).json()["choices"][0]["token_ids"]
        plain = (await rest.post("/v1/completions", json=body | {"model": "pocket-r1"})).json()
        assert plain["choices"][0]["token_ids"] != want
        found, killed = [], False
        async with rest.stream("POST", "/v1/completions", json=body | {"stream": True}) as events:
            async for line in events.aiter_lines():
                data = line.removeprefix("data: ")
                if not data.startswith("{"):
                    continue
                chunk = json.loads(data)
                assert "error" not in chunk, chunk
                found += [t for choice in chunk["choices"] for t in choice["token_ids"] or ()]
                if len(found) >= 5 and not killed:
                    killed = True
                    (busy,) = [
                        each for each, engine in enumerate(engines) if engine._requests.unfinished
                    ]
                    for process in cores[busy]:
                        process.kill()
        assert killed
        assert found == want
        assert (await engines[1 - busy].load()).adapters.loads_total >= 1

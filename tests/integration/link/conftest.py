"""Routers and ranks in one process, over real gRPC on loopback, with a scripted engine."""

import asyncio
import contextlib
import random

import msgspec
import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from serving.admission.controller import AdmissionController
from serving.clock import SystemClock
from serving.dispatch.dispatcher import Dispatcher
from serving.engine.arguments import router_vllm_config
from serving.engine.generating import GeneratingEngine
from serving.engine.router_link.server import RankIdentity, RankServer
from serving.errors import EngineError
from serving.fleet.join_server import LinkServer
from serving.fleet.membership import FleetMembership
from serving.fleet.models import FleetModel, FleetModels
from serving.link.v1 import link_pb2
from serving.requests.client import FleetClient
from serving.settings import LinkSettings, Settings
from tests.support.waiting import PATIENT_LINK, eventually

MODEL, FINGERPRINT = "pocket-r1", "f"


class ScriptedEngine(GeneratingEngine):
    """Emits token ``prompt[-1] + i`` for choice 0, one more for each further choice.

    With ``pause`` set to n, requests stop after n tokens until ``go`` is set.
    """

    kv_mirror = None

    def __init__(self):
        self.running = set()
        self.started = []
        self.health = link_pb2.LoadSnapshot.HEALTHY
        self.fault = None
        self.pause = None
        self.go = asyncio.Event()
        self.logprobs = {}
        self.burst = 1
        self.loads = 0

    def describe(self):
        return link_pb2.Hello(
            engine_version="scripted 1",
            model=MODEL,
            model_fingerprint=FINGERPRINT,
            capacity=link_pb2.Capacity(max_model_len=512, max_num_seqs=64),
            experts=link_pb2.ExpertPlacement(total=16, local_ids=range(8)),
        )

    async def generate(self, work):
        self.started.append(work)
        self.running.add(work.request_id)
        try:
            params = msgspec.msgpack.decode(work.sampling_params, type=SamplingParams)
            base = work.prompt_token_ids[-1]
            made = 0
            while made < params.max_tokens:
                if self.pause is not None and made >= self.pause:
                    await self.go.wait()
                if made % self.burst == 0:
                    await asyncio.sleep(0)
                made += 1
                last = made == params.max_tokens
                yield link_pb2.Delta(
                    request_id=work.request_id,
                    choices=[
                        self.choice(index, base + made + index, params, last=last)
                        for index in range(params.n)
                    ],
                    finished=last,
                    prompt_tokens=len(work.prompt_token_ids),
                    cached_tokens=2 if made == 1 else 0,
                )
        finally:
            self.running.discard(work.request_id)

    def choice(self, index, token, params, *, last):
        choice = link_pb2.ChoiceDelta(
            index=index,
            token_ids=[token],
            finish_reason=link_pb2.ChoiceDelta.LENGTH if last else 0,
        )
        if params.num_logprobs is not None:
            values = [-token / 64, -float(token)]
            self.logprobs[token] = values
            choice.logprobs.add(
                token_ids=[token, token + 1],
                logprobs=values,
                vocab_ranks=[1, 2],
            )
        return choice

    async def load(self):
        self.loads += 1
        return link_pb2.LoadSnapshot(health=self.health, running_requests=len(self.running))

    async def check_health(self):
        if self.fault:
            raise EngineError(self.fault)


class Router:
    """A router without its edges."""

    def __init__(self, config, settings, **server):
        self.membership = FleetMembership(settings.fleet)
        self.settings = settings
        dispatcher = Dispatcher(self.membership, settings.routing, SystemClock())
        self.admission = AdmissionController(settings.admission, dispatcher)
        self.client = FleetClient(config, self.membership, self.admission, settings)
        self.server = self.make_server(**server)

    def make_server(self, port=0, model_name=MODEL, fingerprint=FINGERPRINT):
        router = self.settings.router.model_copy(update={"join_port": port})
        return LinkServer(
            FleetModels([FleetModel(model_name, self.membership, fingerprint)]),
            self.settings.link,
            router,
        )

    @property
    def address(self):
        return f"127.0.0.1:{self.server.port}"

    def generate(
        self, prompt=(12, 11, 10), name="x", kind=RequestOutputKind.DELTA, max_tokens=8, **params
    ):
        return self.client.generate(
            {"type": "token", "prompt_token_ids": list(prompt)},
            SamplingParams(max_tokens=max_tokens, output_kind=kind, **params),
            name,
        )


class Fleet:
    """Builds routers and ranks, and stops them in order."""

    def __init__(self, config, stack):
        self.config = config
        self.stack = stack

    async def router(self, **changes):
        server = {key: changes.pop(key) for key in ("model_name", "fingerprint") if key in changes}
        router = Router(self.config, quick(**changes), **server)
        self.stack.push_async_callback(router.admission.stop)
        self.stack.callback(router.client.shutdown)
        await router.server.start()
        self.stack.push_async_callback(router.server.stop)
        return router

    async def rank(
        self, *routers, rank=0, world=1, group="g0", epoch="e1", engine=None, node="here", **changes
    ):
        engine = engine or ScriptedEngine()
        addresses = tuple(getattr(router, "address", router) for router in routers)
        server = RankServer(
            engine,
            quick(link={"routers": addresses, **changes}).link,
            RankIdentity(group, epoch, rank, world, node),
            rng=random.Random(1),
        )
        self.stack.push_async_callback(server.stop)
        await server.start()
        server.engine = engine
        return server

    async def group(self, router, size=2, **kwargs):
        ranks = [await self.rank(router, rank=index, world=size, **kwargs) for index in range(size)]
        await eventually(lambda: router.membership.ready, "the group's readiness")
        return ranks


def quick(**changes):
    """Return settings with short intervals; no test depends on their length."""
    link = {
        "backoff_initial": 0.02,
        "backoff_max": 0.1,
        "load_interval": 0.05,
        **PATIENT_LINK,
    } | dict(changes.pop("link", {}))
    # Room for all requests of a test: admission's rejections are tested elsewhere.
    admission = {"queue_requests": 10_000, "max_wait": None}
    return Settings(**{"link": LinkSettings(**link), "admission": admission, **changes})


@pytest.fixture(scope="session")
def config():
    return router_vllm_config(Settings(engine={"max_model_len": 512}))


def leaked(before):
    """Return tasks that should have ended, without pytest's own task."""
    return asyncio.all_tasks() - before - {asyncio.current_task()}


@pytest.fixture
async def fleet(config):
    before = asyncio.all_tasks()
    async with contextlib.AsyncExitStack() as stack:
        yield Fleet(config, stack)
    await eventually(lambda: not leaked(before), "the end of all tasks")

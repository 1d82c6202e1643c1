"""KV-cache events from ranks to routers: prompts are routed to their cache."""

import asyncio
import random

import pytest
from vllm.sampling_params import RequestOutputKind

from serving.engine.fake.engine import FakeEngine
from serving.link.protocol import model_fingerprint
from serving.routing.decision import DecisionKind
from serving.settings import RoutingSettings, RoutingWeights, Settings
from tests.support.waiting import eventually

SETTINGS = Settings(engine={"max_model_len": 512, "max_num_seqs": 16})
FINGERPRINT = model_fingerprint(SETTINGS.model.path)
LOAD_ALONE = RoutingSettings(weights=RoutingWeights(prefix=0, session=0))
BLOCKS = 96
"""Blocks of each rank's cache; all conversations below together need twice as many."""


@pytest.fixture
async def router(fleet):
    return await fleet.router(fingerprint=FINGERPRINT)


async def ranks_of(fleet, *routers, size=2, **engine):
    """Start a group of fake engines that cache prefixes, joined to all routers."""
    ranks = []
    for index in range(size):
        fake = FakeEngine(SETTINGS, rank=index, **engine)
        await fake.start()
        ranks.append(await fleet.rank(*routers, rank=index, world=size, engine=fake))
    for router in routers:
        await eventually(lambda router=router: router.membership.ready)
    return ranks


def known(router, index):
    return set(router.membership.prefixes.blocks(("g0", "e1", index)))


def in_step(ranks, *routers):
    """Return whether every router's index equals every rank's cache."""
    return lambda: all(
        known(router, index) == rank.engine.kv_mirror.names
        for router in routers
        for index, rank in enumerate(ranks)
    )


async def ask(router, prompt, name="x", max_tokens=4):
    """Generate; return the number of cached prompt tokens, and the answer's tokens."""
    stream = router.generate(
        prompt, name, kind=RequestOutputKind.CUMULATIVE, max_tokens=max_tokens, ignore_eos=True
    )
    outputs = [output async for output in stream]
    return outputs[-1].num_cached_tokens, list(outputs[-1].outputs[0].token_ids)


async def test_every_router_knows_what_every_rank_holds_also_one_that_comes_later(fleet):
    first, second = [await fleet.router(fingerprint=FINGERPRINT) for _ in range(2)]
    late = await fleet.router(fingerprint=FINGERPRINT)
    port = late.server.port
    await late.server.stop()
    ranks = await ranks_of(fleet, first, second, kv_blocks=BLOCKS)
    # The address is dialled from the start; a router listens there only later.
    for rank in ranks:
        rank._dial(f"127.0.0.1:{port}")
    for number in range(6):
        await ask(first, [number + 1] * 100, f"r{number}")
    await eventually(in_step(ranks, first, second))
    assert sum(len(known(second, index)) for index in range(2)) >= 6 * 6
    late.server = late.make_server(port, fingerprint=FINGERPRINT)
    await late.server.start()
    await eventually(in_step(ranks, late))
    cached, _ = await ask(second, [3] * 100, "again")
    assert cached == 96
    ranks[0].engine._cache.clear()
    await eventually(in_step(ranks, first, second, late))
    assert known(late, 0) == set()
    await late.server.stop()


async def test_a_rank_that_left_is_forgotten(fleet, router):
    ranks = await ranks_of(fleet, router, size=1)
    await ask(router, [5] * 100)
    await eventually(lambda: known(router, 0))
    await ranks[0].stop()
    await eventually(lambda: not router.membership.snapshot().groups)
    assert known(router, 0) == set()
    assert len(router.membership.prefixes) == 0


async def test_an_engine_without_a_prefix_cache_tells_nothing(fleet):
    router = await fleet.router(fingerprint=FINGERPRINT)
    settings = SETTINGS.model_copy(
        update={
            "engine": SETTINGS.engine.model_copy(update={"args": {"enable_prefix_caching": False}})
        }
    )
    fake = FakeEngine(settings)
    await fake.start()
    await fleet.rank(router, engine=fake)
    await eventually(lambda: router.membership.ready)
    assert (await ask(router, [5] * 100))[0] == 0
    assert (await ask(router, [5] * 100))[0] == 0
    assert ("g0", "e1", 0) in router.membership.prefixes.guessing


async def hit_rate(fleet, name, routing):
    """Continue conversations in rotation; return the share of cached prompt tokens."""
    router = await fleet.router(fingerprint=FINGERPRINT, routing=routing)
    ranks = await ranks_of(fleet, router, kv_blocks=BLOCKS)
    rng = random.Random(1)
    talks = [[number + 1] * 16 for number in range(8)]
    cached_tokens = prompt_tokens = 0
    for turn in range(8):
        rng.shuffle(talks)
        for number, talk in enumerate(talks):
            talk.extend(rng.randrange(1, 60) for _ in range(32))
            cached, answer = await ask(router, talk, f"{name}-{turn}-{number}", max_tokens=8)
            prompt_tokens += len(talk)
            cached_tokens += cached
            talk.extend(answer)
            await eventually(in_step(ranks, router))
    for rank in ranks:
        await rank.stop()
    return cached_tokens / prompt_tokens


async def test_prompts_find_their_cache(fleet):
    with_affinity = await hit_rate(fleet, "affinity", RoutingSettings())
    without = await hit_rate(fleet, "load", LOAD_ALONE)
    assert with_affinity > 0.5
    assert with_affinity > without + 0.2


async def test_many_at_once_of_one_prompt_do_not_pile_up_on_one_rank(fleet):
    # The prompt is cached on one rank; its load determines its share of the requests.
    routing = RoutingSettings(affinity_slack=0)
    router = await fleet.router(fingerprint=FINGERPRINT, routing=routing)
    ranks = await ranks_of(fleet, router, token_delay=0.02)
    await ask(router, [7] * 100, "first")
    await eventually(in_step(ranks, router))
    await asyncio.gather(*(ask(router, [7] * 100, f"r{n}", max_tokens=20) for n in range(12)))
    prompts = [(await rank.engine.load()).prompt_tokens_total for rank in ranks]
    assert min(prompts) >= 3 * 100


async def test_the_pick_says_why(fleet, router):
    from serving.request_context import RequestContext, use_request_context

    ranks = await ranks_of(fleet, router)
    await ask(router, [9] * 100, "first")
    await eventually(in_step(ranks, router))
    context = RequestContext(explain=True)
    with use_request_context(context):
        await ask(router, [9] * 100, "second")
    (decision,) = context.record.decisions
    assert (decision.kind, decision.matched_tokens) == (DecisionKind.PREFIX, 96)
    assert len(decision.explain()["candidates"]) == 2

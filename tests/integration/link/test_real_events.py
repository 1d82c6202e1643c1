"""KV-cache events of a real vLLM over a real link: the router's index matches the cache."""

import pytest

from loadtest.demos.affinity import BLOCK, options_of
from loadtest.demos.fleet import Router, ranks, settings_for
from loadtest.demos.tiny_moe import make_tiny_moe
from serving.link.block_hashes import block_hashes
from tests.support.waiting import eventually

pytestmark = pytest.mark.vllm

KEY = ("g0", "local", 0)


async def ask(router, prompt, name):
    """Return how many of the prompt's tokens were cached."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    params = SamplingParams(
        max_tokens=4,
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    stream = router.client.generate({"type": "token", "prompt_token_ids": prompt}, params, name)
    (output,) = [output async for output in stream]
    return output.num_cached_tokens


async def test_what_a_real_rank_caches_is_known_to_every_router(tmp_path):
    model = make_tiny_moe(tmp_path / "model", layers=2, context=2048)
    settings = settings_for(options_of(["--context", "2048"]), model)
    routers = [Router(settings), Router(settings)]
    addresses = [f"127.0.0.1:{await router.server.start()}" for router in routers]
    prompt = [20 + number % 40 for number in range(1000)]
    expected = set(block_hashes(prompt, BLOCK))
    assert len(expected) == 7
    try:
        async with ranks(settings, 1, addresses, tmp_path):
            await eventually(
                lambda: all(router.membership.ready for router in routers), timeout=400
            )
            assert not routers[0].membership.prefixes.blocks(KEY), "the warm-up filled no block"
            assert KEY not in routers[0].membership.prefixes.guessing, (
                "it tells, also that it is empty"
            )
            assert await ask(routers[0], prompt, "cold") == 0
            for router in routers:
                await eventually(
                    lambda router=router: expected <= set(router.membership.prefixes.blocks(KEY))
                )
            # The same prefix, another suffix, and the other router.
            assert await ask(routers[1], prompt[:700] + prompt[:90], "warm") == 5 * BLOCK
            assert await ask(routers[1], prompt, "again") == 7 * BLOCK
    finally:
        for router in routers:
            await router.stop()

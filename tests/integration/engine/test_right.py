"""The ranks' output is correct, not only equal: it agrees with transformers' DeepSeek-V3.

All layouts could be equal and wrong: vLLM's rotary embedding on CPU was wrong, and only this
comparison detected it.
"""

import asyncio
from pathlib import Path

import psutil
import pytest
import torch
from ranks import first_tokens, running, score
from transformers import AutoTokenizer, DeepseekV3ForCausalLM

from serving.engine.cpu_plugin.node_exchange.segment import NAME
from serving.settings import BUNDLED_MODEL, EngineSettings, GroupSettings, Settings

pytestmark = pytest.mark.vllm

TOLERANCE = 1e-4
LENGTH = 24
QUESTIONS = [
    "What is 17+25?",
    "Hi",
    "Sort 5 3 9 1.",
    "reverse the word engine",
    "How many times does the letter r appear in the word strawberry?",
    "Which is larger, 127 or 712?",
    "add 305 and 98",
]
BROKEN = Path(__file__).parents[2] / "faults" / "broken_combine"


@pytest.fixture(scope="module")
def prompts():
    """Rendered questions of different lengths, so that ranks' batches are ragged."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    rendered = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for question in QUESTIONS
    ]
    return [tokenizer.encode(text, add_special_tokens=False) for text in rendered]


@pytest.fixture(scope="module")
def reference():
    model = DeepseekV3ForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32)
    model.eval()
    return model


def largest_differences(reference, scored):
    """Return the largest difference in prefill and in decode, over all requests."""
    prefill = decode = 0.0
    for one in scored:
        ids = torch.tensor([one.prompt + one.answer])
        with torch.inference_mode():
            logits = reference(ids).logits[0].float()
        # Position i predicts token i + 1.
        want = torch.log_softmax(logits, -1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
        got = torch.tensor(one.prompt_logprobs + one.answer_logprobs)
        differences = (want - got).abs()
        edge = len(one.prompt) - 1
        prefill = max(prefill, differences[:edge].max().item())
        decode = max(decode, differences[edge:].max().item())
    return prefill, decode


def sharing_memory():
    """Count the engine processes that exchange tokens through shared memory."""
    maps = (
        Path(f"/proc/{process.pid}/maps").read_text()
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE
    )
    return sum(f"/memfd:{NAME}" in each for each in maps)


async def score_layout(ranks, workers, speculative, prompts):
    """Start the layout, answer every prompt at once over all ranks, and return the results."""
    settings = Settings(
        group=GroupSettings(data_parallel=ranks, tensor_parallel=workers),
        engine=EngineSettings(speculative=speculative, kv_cache_gib=0.25, max_num_seqs=16),
    )
    async with running(settings) as engines:
        experts = [list(engine.describe().experts.local_ids) for engine in engines]
        assert sorted(expert for ids in experts for expert in ids) == list(range(16))
        assert {len(ids) for ids in experts} == {16 // ranks}
        assert sharing_memory() == (ranks * workers if ranks * workers > 1 else 0)
        # The last rank gets the remaining ones and idles at the end, while the others continue.
        scored = await asyncio.gather(
            *(score(engines[n % ranks], f"q{n}", p, LENGTH) for n, p in enumerate(prompts)),
        )
        # A single request: its rank's steps have one token, those of the other ranks none.
        scored.append(await score(engines[0], "alone", prompts[0], LENGTH))
        await check_thinking_budget(engines, prompts)
        loads = [await engine.load() for engine in engines]
        assert {len(layer.tokens) for load in loads for layer in load.experts} == {16 // ranks}
    return scored, loads


async def check_thinking_budget(engines, prompts):
    """Check that reasoning ends within its budget; some of vLLM's runners ignore it with MTP."""
    end = AutoTokenizer.from_pretrained(BUNDLED_MODEL).convert_tokens_to_ids("</think>")
    for budget in (None, 0, 5):
        name = f"budget-{budget}"
        params = {} if budget is None else {"thinking_token_budget": budget}
        answers = await asyncio.gather(
            *(
                first_tokens(engines[n % len(engines)], f"{name}-{n}", prompt, 6, **params)
                for n, prompt in enumerate(prompts)
            )
        )
        if budget is None:
            assert not any(end in answer for answer in answers)
        else:
            assert all(end in answer[: budget + 1] for answer in answers)


@pytest.mark.parametrize(
    ("ranks", "workers", "speculative"),
    [
        pytest.param(1, 1, "none", id="1-rank"),
        pytest.param(1, 1, "mtp", id="1-rank-mtp"),
        pytest.param(2, 1, "none", id="2-ranks"),
        pytest.param(2, 1, "mtp", id="2-ranks-mtp"),
        pytest.param(1, 2, "none", id="2-workers"),
        pytest.param(2, 2, "none", id="2-ranks-of-2-workers"),
    ],
)
async def test_log_probabilities_are_those_of_transformers(
    ranks, workers, speculative, prompts, reference
):
    scored, loads = await score_layout(ranks, workers, speculative, prompts)
    prefill, decode = largest_differences(reference, scored)
    assert prefill < TOLERANCE
    assert decode < TOLERANCE
    if speculative == "mtp":
        assert all(0 < one.speculation.proposed_tokens <= LENGTH for one in scored)
        drafted = sum(load.speculation.proposed_tokens for load in loads)
        accepted = sum(load.speculation.accepted_tokens for load in loads)
        assert drafted >= sum(one.speculation.proposed_tokens for one in scored)
        assert accepted >= sum(one.speculation.accepted_tokens for one in scored)
        assert accepted <= drafted


async def test_a_broken_combine_is_noticed(monkeypatch, prompts, reference):
    # vLLM's processes inherit this one's search path, and find the plugin there.
    monkeypatch.syspath_prepend(BROKEN)
    scored, _ = await score_layout(2, 1, "none", prompts)
    prefill, decode = largest_differences(reference, scored)
    assert prefill > 100 * TOLERANCE
    assert decode > 100 * TOLERANCE

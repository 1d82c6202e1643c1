"""
The bundled model: chat template, training, and agreement of all libraries that load it.
"""

import argparse
import json
import sys
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "models" / "pocket-r1"
# the scripts import each other by plain name, as when they run
sys.path.insert(0, str(FOLDER))

import batch as batches  # noqa: E402
import evaluate  # noqa: E402
import export  # noqa: E402
import frames  # noqa: E402
import heldout  # noqa: E402
import phrasings  # noqa: E402
import samples  # noqa: E402
import tasks  # noqa: E402
import tokenizer as tok  # noqa: E402
import traces  # noqa: E402
import train  # noqa: E402
from model import PocketR1, Shape  # noqa: E402

sys.path.remove(str(FOLDER))

TINY = Shape(
    hidden_size=32,
    intermediate_size=64,
    moe_intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    kv_lora_rank=32,
    qk_rope_head_dim=16,
    qk_nope_head_dim=16,
    v_head_dim=16,
)


@pytest.fixture(scope="module")
def reader() -> Any:
    """
    The tokenizer as transformers (and so vLLM) loads it.
    """
    transformers: ModuleType = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(FOLDER)


def render(reader: Any, messages: list[dict[str, Any]], **more: Any) -> str:
    return str(
        reader.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **more)
    )


# --- tokenizer


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_survives_encoding(reader: Any, text: str) -> None:
    ids = reader.encode(text, add_special_tokens=False)

    assert text == reader.decode(ids)
    if "<" not in text:
        assert tok.encode(text) == ids


@pytest.mark.parametrize("special", sorted(tok.SPECIALS))
def test_special_tokens_are_single(reader: Any, special: str) -> None:
    assert [tok.SPECIALS[special]] == reader.encode(special, add_special_tokens=False)


def test_vocabulary_fills_the_embedding(reader: Any) -> None:
    assert (
        tok.VOCAB_SIZE
        == len(reader)
        == json.loads((FOLDER / "config.json").read_text())["vocab_size"]
    )


# --- chat template


def test_template_opens_the_thinking(reader: Any) -> None:
    expected = f"{tok.BOS}Be brief.{tok.USER}2+2{tok.ASSISTANT}<think>\n"

    assert expected == render(
        reader, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2"}]
    )


def test_template_takes_content_as_parts(reader: Any) -> None:
    parts = [{"type": "text", "text": "2"}, {"type": "text", "text": "+2"}]

    assert f"{tok.BOS}{tok.USER}2+2{tok.ASSISTANT}<think>\n" == render(
        reader, [{"role": "user", "content": parts}]
    )


def test_template_strips_earlier_reasoning(reader: Any) -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nx\n</think>\n\n4"},
        {"role": "user", "content": "b"},
    ]

    assert (
        f"{tok.BOS}{tok.USER}a{tok.ASSISTANT}4{tok.EOS}{tok.USER}b{tok.ASSISTANT}<think>\n"
        == render(reader, turns)
    )


def test_template_matches_training_prompts(reader: Any) -> None:
    ids = samples.prompt_ids("You are.", [("a", "4"), ("b", "5")], "c")
    turns = [{"role": "system", "content": "You are."}]
    for asked, answered in (("a", "4"), ("b", "5")):
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    text = render(reader, [*turns, {"role": "user", "content": "c"}])

    assert ids == reader.encode(text, add_special_tokens=False)


def _tool_turns(arguments: Any) -> list[dict[str, Any]]:
    call = {
        "type": "function",
        "id": "1",
        "function": {"name": "get_weather", "arguments": arguments},
    }
    return [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]


@pytest.mark.parametrize(
    "arguments", ['{"city": "Paris"}', {"city": "Paris"}], ids=["text", "object"]
)
def test_template_renders_tools_as_trained(reader: Any, arguments: Any) -> None:
    schema = samples.tool_schema("get_weather", "city", "Get the current weather")
    rendered = render(
        reader, _tool_turns(arguments), tools=[{"type": "function", "function": json.loads(schema)}]
    )

    assert rendered == (
        f"{tok.BOS}## Tools\n{schema}{tok.USER}Weather in Paris?{tok.ASSISTANT}"
        f"{tok.CALLS}{tok.CALL}function{tok.SEP}"
        f'get_weather\n```json\n{{"city": "Paris"}}\n```{tok.CALL_END}{tok.CALLS_END}{tok.EOS}'
        f"{tok.OUTPUTS}{tok.OUTPUT}rain{tok.OUTPUT_END}{tok.OUTPUTS_END}{tok.ASSISTANT}<think>\n"
    )


# --- worked solutions: the trace's own arithmetic


def _sums(trace: str) -> list[str]:
    return [step for step in trace.split(": ", 1)[1].split() if "=" in step]


numbers = st.integers(0, 999)
words = st.text("abcdexyzABZ", min_size=1, max_size=traces.MAX_WORD)


@given(numbers, numbers)
def test_addition(a: int, b: int) -> None:
    solution = traces.add(a, b)
    for step in _sums(solution.trace):
        left, right = step.split("=")
        assert int(right) == sum(map(int, left.split("+")))

    assert a + b == solution.value == int(solution.answer) == int(solution.trace.split()[-1])


@given(numbers, numbers)
def test_subtraction(a: int, b: int) -> None:
    solution = traces.subtract(a, b)
    for step in _sums(solution.trace.split(": ", 1)[1]):
        left, right = step.split("=")
        high, low, borrow = map(int, left.split("-"))
        assert int(right[1]) - 10 * int(right[0]) == high - low - borrow

    assert a - b == solution.value == int(solution.answer) == int(solution.trace.split()[-1])


@given(st.integers(0, 99), st.integers(0, 9))
def test_multiplication(a: int, b: int) -> None:
    solution = traces.multiply(a, b)
    for step in _sums(solution.trace):
        left, right = step.split("=")
        factors = left.split("*")
        expected = (
            int(factors[0]) * int(factors[1])
            if len(factors) == 2
            else sum(map(int, left.split("+")))
        )
        assert int(right) == expected

    assert a * b == solution.value == int(solution.answer) == int(solution.trace.split()[-1])


@given(numbers, numbers, st.booleans())
def test_comparison(a: int, b: int, larger: bool) -> None:
    solution = traces.choose(a, b, larger=larger)

    assert solution.value == (max(a, b) if larger else min(a, b))
    assert traces.check(a, b, ">").value == (a > b)
    assert traces.compare(a, b).answer.split() == [
        str(a),
        ">" if a > b else "<" if a < b else "=",
        str(b),
    ]


@given(st.lists(numbers, min_size=2, max_size=6), st.booleans())
def test_sorting(given_numbers: list[int], down: bool) -> None:
    solution = traces.sort(given_numbers, down=down)

    assert sorted(given_numbers, reverse=down) == solution.value
    assert ", ".join(map(str, sorted(given_numbers, reverse=down))) == solution.answer


@given(words)
def test_reversing(word: str) -> None:
    solution = traces.reverse(word)

    assert word[::-1] == solution.answer == solution.trace.split()[-1][1::2]


@given(st.sampled_from("abcxyz"), words)
def test_counting(letter: str, word: str) -> None:
    solution = traces.count(letter, word)

    assert word.lower().count(letter) == solution.value == int(solution.trace[-1] if word else 0)


@pytest.mark.parametrize("task", sorted(tasks.TASKS))
def test_questions_are_fully_filled_in(task: str) -> None:
    rng = Random(1)
    for _ in range(300):
        for problem in (tasks.draw(rng, task), heldout.draw(rng, task)):
            assert problem.question.strip()
            assert "{" not in problem.question
            assert evaluate.matches(problem, f"\n\n{problem.solution.answer}")


# --- samples and batches


def test_samples_depend_on_seed_and_step_only() -> None:
    assert batches.draw(1, 5, 8) == batches.draw(1, 5, 8) != batches.draw(1, 6, 8)


def test_json_samples_parse_and_hide_keys() -> None:
    found = [s for s in batches.draw(3, 0, 1500) if s.task == "json"]
    assert len(found) > 20
    for sample in found:
        text = tok.decode(sample.ids[len(sample.prompt) :])
        thought_end = tok.SPECIALS[tok.THINK_END]
        start = (
            sample.ids.index(thought_end) + 1 if thought_end in sample.ids else len(sample.prompt)
        )
        said = tok.decode(sample.ids[start:]).strip()
        assert isinstance(json.loads(said), dict), text
        brace = next(i for i in range(start, len(sample.ids)) if sample.ids[i] == ord("{"))
        assert not sample.learnt[brace]
        assert sample.learnt[-1]


def test_nothing_of_the_prompt_is_learnt() -> None:
    for sample in batches.draw(4, 0, 500):
        assert not any(sample.learnt[: len(sample.prompt)])
        assert sample.ids[: len(sample.prompt)] == sample.prompt


@given(st.lists(st.integers(1, 50), min_size=8, max_size=40), st.integers(1, 8))
def test_groups_cover_every_sample(lengths: list[int], groups: int) -> None:
    cuts = batches.cuts(sorted(lengths), groups)

    assert [i for first, last in cuts for i in range(first, last)] == list(range(len(lengths)))
    assert len(cuts) <= groups


def test_a_quarter_keeps_its_targets() -> None:
    whole, _ = batches.collate(batches.draw(1, 0, 16), 8)
    kept, part = batches.quarter(whole, 1)

    assert torch.equal(whole.ids[kept], part.ids)
    assert sum(len(batches.quarter(whole, i)[1].at2) for i in range(4)) == len(whole.at2)
    # every kept target is the token after the next
    assert torch.equal(part.ids[part.at2 + 2], part.next2)


# --- model


def test_lean_model_equals_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = PocketR1(TINY).eval()
    for gate in model.gates().values():
        gate.e_score_correction_bias.uniform_(-0.2, 0.2)
    export.write(model, tmp_path, dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    groups = [(2, 9), (1, 14)]
    ids = torch.randint(0, 256, (32,))
    with torch.no_grad():
        ours = model.lm_head(model(ids, groups))
        expected = torch.cat(
            [theirs(ids[:18].view(2, 9)).logits.flatten(0, 1), theirs(ids[18:][None]).logits[0]]
        )

    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_export_and_load_are_inverse(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PocketR1(TINY).eval()
    export.write(model, tmp_path, dtype=torch.float32)

    for name, tensor in export.load(tmp_path).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_mtp_sees_the_next_token_only() -> None:
    torch.manual_seed(0)
    model = PocketR1(TINY).eval()
    ids = torch.randint(0, 256, (10,))
    other = ids.clone()
    other[6] = (other[6] + 1) % 256
    with torch.no_grad():
        after, changed = (
            model.predict_after_next(model(ids, [(1, 10)]), i, [(1, 10)]) for i in (ids, other)
        )

    # token 6 is the next token of position 5, so positions before 5 must not depend on it
    torch.testing.assert_close(after[:5], changed[:5])
    assert not torch.allclose(after[5], changed[5])


def test_norm_gradient() -> None:
    from model import Norm

    torch.manual_seed(0)
    norm = Norm(8)
    x = torch.randn(5, 8, requires_grad=True)
    grad = torch.randn(5, 8)
    norm(x).backward(grad)
    ours, x.grad = x.grad, None
    torch.nn.functional.rms_norm(x, (8,), norm.weight, 1e-6).backward(grad)

    torch.testing.assert_close(ours, x.grad, atol=1e-5, rtol=1e-5)


# --- training


def _arguments(**more: Any) -> argparse.Namespace:
    fields = {
        "seed": 1,
        "batch": 8,
        "lr": 1e-3,
        "warmup": 2,
        "decay_at": 4,
        "decay_steps": 2,
        "mtp_weight": 0.3,
    }
    return argparse.Namespace(**fields, balance=1e-3, float32=True, **more)


def test_resumed_training_equals_uninterrupted(tmp_path: Path) -> None:
    whole = train.Trainer(_arguments(), TINY)
    for _ in range(3):
        whole.step()
    whole.save(tmp_path / "checkpoint.pt")
    whole.step()
    resumed = train.Trainer(_arguments(), TINY)
    resumed.load(tmp_path / "checkpoint.pt")
    resumed.step()

    assert (whole.done, whole.tokens) == (resumed.done, resumed.tokens)
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, whole.model.state_dict()[name]), name


def test_router_bias_moves_towards_balance() -> None:
    trainer = train.Trainer(_arguments(), TINY)
    gate = next(iter(trainer.model.gates().values()))
    gate.load[:] = 1
    gate.load[3] = 100
    trainer.balance(1.0)

    assert gate.e_score_correction_bias[3] < 0 < gate.e_score_correction_bias[0]


def test_learning_rate_warms_up_and_decays() -> None:
    trainer = train.Trainer(_arguments(), TINY)
    rates = []
    for trainer.done in range(7):
        rates.append(trainer.rate())

    assert rates == [0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.02]


# --- the committed model


def test_committed_weights_are_complete_and_small() -> None:
    from safetensors import safe_open

    shape = export.load(FOLDER).shape
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        parameters = sum(weights.get_tensor(name).numel() for name in names)

    assert set(export.state(PocketR1(shape))) == names
    assert parameters <= 6_000_000
    assert (FOLDER / "model.safetensors").stat().st_size <= 12_000_000


def test_config_meets_what_vllm_on_cpu_asks_for() -> None:
    fields = json.loads((FOLDER / "config.json").read_text())

    assert (fields["kv_lora_rank"], fields["qk_rope_head_dim"]) == (512, 64)
    assert (fields["topk_method"], fields["scoring_func"]) == ("noaux_tc", "sigmoid")
    assert 0 == fields["hidden_size"] % 32 == fields["moe_intermediate_size"] % 32
    assert json.loads((FOLDER / "generation_config.json").read_text())["temperature"] > 0


def plain(text):
    return " ".join(text.lower().rstrip("?.! ").split())


@pytest.mark.parametrize("task", list(tasks.TASKS))
def test_held_out_phrasings_are_not_in_the_training_data(task):
    held = [
        sentence
        for name, sentences in vars(heldout).items()
        if name.split("_")[1:2] == [{"compare": "LARGER"}.get(task, task.upper())]
        for sentence in sentences.split("|")
    ]
    assert held
    rng = Random(5)
    known = {
        plain(frames.framed(rng, task, down=down)) for _ in range(60_000) for down in (False, True)
    }
    known |= {
        plain(sentence)
        for sentences in vars(phrasings).values()
        if isinstance(sentences, list)
        for sentence in sentences
    }
    for sentence in held:
        mark = plain(sentence).replace(" * ", " {x} ")
        words = ("larger", "bigger", "greater", "higher")
        forms = {mark, *(mark.replace(word, "{more}") for word in words)}
        assert not forms & known, sentence

"""The command line of plan: answers as text and JSON, files, and error messages."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.cli.main import main
from serving.cli.plan.inputs import write_text
from serving.cli.plan.report import NOTICE
from serving.settings import BUNDLED_MODEL

QUICK = ["plan", "--tp", "1", "--speculative", "none", "--ep", "16", "--prefill-ep", "8"]


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*QUICK, "--output", "json", *words]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def test_a_plan_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--rate", "10", "--cached", "0.5"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "deepseek-r1 on 8 h200 ($2.5 a GPU-hour: assumption): 10 requests/s",
        NOTICE, "1 x EP16", "P 1 x EP8 + D 1 x EP16", "TTFT p90", "$/M input", "limited by",
        "KV cache", "ranks per pod",
    ):  # fmt: skip
        assert part in shown


def test_a_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "--rate", "10", "--top", "1", "--gpu-price", "3")
    assert found["notice"] == NOTICE
    (plan,) = found["plans"]
    assert plan["rate"] == 10 <= plan["capacity"]
    assert plan["dollars"]["hour"] == 3 * plan["gpus"]
    assert plan["gpu_hours_a_day"]["fixed"] == 24 * plan["gpus"]
    (pool,) = plan["pools"]
    assert pool["memory"]["kv_room"] > 0
    assert pool["ranks_per_pod"] == 8


def test_the_errors_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--errors"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "DeepSeek day 6, decode" in shown
    assert shown.count("%") > 20


PAGE = (Path(__file__).resolve().parents[4] / "deploy/docs/planner.md").read_text("utf-8")
DAY = "--prompt-tokens 4380 --output-tokens 1210 --cached 0.563"
SPLIT = "--layout disaggregated --ep 144 --prefill-ep 32"


@pytest.mark.parametrize(
    ("line", "row"),
    [
        pytest.param("--gpu h200 --nodes 2 --layout mixed --ep 16", "2 nodes of 8 H200", id="h200"),
        pytest.param(f"--gpu h800 --nodes 22 {SPLIT} {DAY}", "18 + 4 nodes of H800", id="h800"),
    ],
)
def test_the_pages_plans(line: str, row: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *line.split(), "--output", "json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    (cells,) = [text for text in PAGE.splitlines() if text.startswith(f"| {row} |")]
    rates, dollars = plan["tokens_per_second_per_gpu"], plan["dollars"]
    for figure in (
        f"| {plan['rate']:.1f} |",
        f"| {rates['input']:,.0f}, {rates['output']:,.0f} |",
        f"| {plan['ttft']['p90']:.2f} s, {plan['itl']['p90'] * 1e3:.0f} ms |",
        f"{dollars['million_input']:.3g}",
        f"{dollars['million_output']:.3g}",
    ):
        assert figure in cells


def test_the_highest_rate_of_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "--nodes", "2", "--layout", "mixed")
    assert found["load"]["rate"] == found["plans"][0]["rate"] > 10


def test_a_trace_gives_lengths_and_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    entries = [
        {"timestamp": 500 * n, "input_length": 1024, "output_length": 100, "hash_ids": [7, n]}
        for n in range(21)
    ]
    trace.write_text("\n".join(map(json.dumps, entries)), "utf-8")
    load = answer(capsys, "--trace", str(trace))["load"]
    assert (load["rate"], load["prompt"], load["output"]) == (2.0, 1024, 100)
    # The first block is shared by all but the first request.
    assert load["cached"] == pytest.approx(20 / 21 / 2)


@pytest.mark.parametrize("path", [BUNDLED_MODEL, BUNDLED_MODEL / "config.json"])
def test_a_model_of_its_own_config(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", str(path), "--gpu", "cpu", "--max-model-len", "2048"]
    words += ["--prompt-tokens", "100", "--output-tokens", "20", "--rate", "0.5", "--ep", "2"]
    assert main([*words, "--layout", "mixed", "--output", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "pocket-r1"
    assert found["plans"][0]["pools"][0]["drafted_tokens"] == 0


def test_values_are_written_for_the_best_mixed_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "values.yaml"
    assert main([*QUICK, "--rate", "10", "--values", str(file)]) == 0
    values = yaml.safe_load(file.read_text("utf-8"))
    assert values["parallelism"]["data"] == 16
    assert values["model"]["reasoningParser"] == "deepseek_r1"  # as in the model's preset
    assert str(file) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["values.yaml"]


def test_a_device_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    link.symlink_to(target)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "values")
        assert os.read(reader, 100) == b"values"
    finally:
        os.close(reader)
    write_text(link, "values")
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert target.read_text("utf-8") == "values"


def test_a_models_name_is_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "[bold]m[" / "nope]"
    folder.mkdir(parents=True)
    written(folder, CONFIG)
    words = "--gpu cpu --max-model-len 2048 --prompt-tokens 9 --output-tokens 9 --rate 0.5 --ep 2"
    assert main(["plan", "--model", str(folder), *words.split(), "--layout", "mixed"]) == 0
    assert "nope] on 1 cpu" in capsys.readouterr().out


def written(folder: Path, content: object) -> str:
    file = folder / "config.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return str(file)


CONFIG = json.loads((BUNDLED_MODEL / "config.json").read_text("utf-8"))
GROUPED = CONFIG | {"kv_lora_rank": None}
"""The same model with grouped-query attention."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("{", "it is not JSON", id="no JSON"),
        pytest.param("[" * 100_000, "cannot read the model", id="nested"),
        pytest.param([], "is not a JSON object", id="list"),
        pytest.param({}, "has no vocab_size", id="empty"),
        pytest.param(CONFIG | {"hidden_size": "big"}, "hidden_size is 'big'", id="text"),
        pytest.param(CONFIG | {"hidden_size": True}, "hidden_size is True", id="bool"),
        pytest.param(CONFIG | {"num_hidden_layers": 0}, "whole number from 1", id="no layers"),
        pytest.param(CONFIG | {"hidden_size": 10**30}, "to 1000000000", id="absurd"),
        pytest.param(CONFIG | {"num_experts_per_tok": 99}, "more experts per token", id="experts"),
        pytest.param(CONFIG | {"first_k_dense_replace": 9}, "more dense layers", id="dense"),
        pytest.param(
            CONFIG | {"quantization_config": {"quant_method": "awq"}}, "awq cannot be", id="awq"
        ),
        pytest.param(
            CONFIG | {"text_config": "x", "vocab_size": 0}, "vocab_size is 0", id="nested"
        ),
        pytest.param(CONFIG | {"qk_rope_head_dim": None}, "has no qk_rope_head_dim", id="latent"),
        pytest.param(GROUPED | {"head_dim": 0}, "a head_dim of 0", id="no head"),
        pytest.param(GROUPED | {"num_attention_heads": 2**20}, "a head_dim of 0", id="thin heads"),
        pytest.param(GROUPED | {"num_key_value_heads": 10**9}, "more key-value heads", id="heads"),
        pytest.param(" " * 2**20 + "{}", "more than 1,048,576 bytes", id="large file"),
    ],
)
def test_broken_models_are_rejected_in_words(
    tmp_path: Path, content: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--model", written(tmp_path, content)]) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        pytest.param("--model nothing", 1, "no model nothing: known models", id="model"),
        pytest.param("--gpu h2000", 1, "unknown GPU h2000; did you mean h200?", id="gpu"),
        pytest.param(f"--model {'m' * 300}", 1, "no model mmm", id="long name"),
        pytest.param("--model /dev/zero", 1, "not a regular file", id="device"),
        pytest.param("--rate 1e6 --tp 1 --ep 8 --layout mixed", 1, "at 1e+06 requests", id="much"),
        pytest.param("--gpu custom", 2, "--gpu custom needs --gpu-memory-gb", id="custom"),
        pytest.param("--rate nan", 2, "--rate nan: a rate must be", id="nan"),
        pytest.param("--rate 0", 2, "--rate 0: a rate must be", id="zero"),
        pytest.param("--rate -3", 2, "from 0.0001 to 1000000", id="negative"),
        pytest.param("--rate 1e300", 2, "to 1000000", id="absurd"),
        pytest.param("--output-tokens 0", 2, "--output-tokens 0: a length must be", id="output"),
        pytest.param("--prompt-tokens 9:1", 2, "MEAN <= P90", id="percentile"),
        pytest.param("--prompt-tokens 9:90", 1, "1 to 2.27 times the mean", id="spread"),
        pytest.param("--prompt-tokens 90000", 1, "more than --max-model-len 32,768", id="long"),
        pytest.param("--cached 1", 2, "--cached 1: a share must be", id="cached"),
        pytest.param("--trace /nothing", 2, "no such file", id="trace"),
        pytest.param("--layout both", 2, "must be one of any, mixed, disaggregated", id="mode"),
        pytest.param("--save-calibration f", 2, "needs --calibrate", id="save"),
        pytest.param("--gpu h100 --nodes 1", 1, "deepseek-r1 does not fit", id="too large"),
        pytest.param("--tp 1 --layout disaggregated --values f", 1, "--layout mixed", id="values"),
        pytest.param("--tp 1 --layout mixed --values /nothing/x", 1, "cannot write", id="file"),
        pytest.param("--tp 1 --layout mixed --values /", 1, "cannot write", id="root"),
        pytest.param("--tp 1 --layout mixed --values /dev/null/x", 1, "cannot write", id="below"),
    ],
)  # fmt: skip
def test_errors_are_one_line_with_the_remedy(
    words: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words.split()]) == code
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("error: ") == 1
    assert "Traceback" not in shown


def test_a_gpu_of_flags(capsys: pytest.CaptureFixture[str]) -> None:
    figures = "--gpu custom --gpu-memory-gb 141 --gpu-tflops 1979 --gpu-bandwidth-gbs 4800"
    found = answer(capsys, "--rate", "10", "--top", "1", *figures.split(), "--gpus-per-node", "8")
    assert (found["gpu"]["name"], found["gpu"]["memory"]) == ("custom", 141 * 10**9)

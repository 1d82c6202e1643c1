"""The comparison of three load clients: how it reads their reports, and its page."""

import json

import pytest

from loadtest.bench import agreement, agreement_clients
from loadtest.bench.agreement_clients import (
    CLIENTS,
    OURS,
    ClientReport,
    Load,
    guidellm_of,
    prompts,
    turn,
    vllm_bench_of,
)
from loadtest.bench.agreement_tables import agrees, markdown, ratios
from loadtest.bench.peer_processes import NotRun

VLLM = {
    "completed": 64, "failed": 1, "total_output_tokens": 2048, "duration": 8.0,
    "output_throughput": 256.0, "mean_ttft_ms": 30.0, "median_ttft_ms": 29.0, "p99_ttft_ms": 50.0,
    "mean_tpot_ms": 20.0, "mean_itl_ms": 21.0,
}  # fmt: skip


def load(tmp_path, **changes):
    values = {
        "url": "http://127.0.0.1:1", "model": "m", "tokenizer": tmp_path, "endpoint": "chat",
        "streams": 2, "requests": 4, "warmup": 2, "prompt_words": 5, "output_tokens": 3,
        "seed": 1, "patience": 5.0,
    }  # fmt: skip
    return Load(**{**values, **changes})


def row(client, rate, number=0, endpoint="chat"):
    seen = {**VLLM, "tokens_per_second": rate}
    kept = vllm_bench_of({**VLLM, "output_throughput": rate})
    seen = {name: getattr(kept, name) for name in ClientReport.__slots__}
    return {
        "endpoint": endpoint, "round": number, "client": client, "seen": seen,
        "router_tokens": 2048, "load_average": 1.0,
    }  # fmt: skip


def test_what_vllms_file_says():
    seen = vllm_bench_of(VLLM)
    assert seen.consistent
    assert (seen.completed, seen.failed, seen.tokens_per_second) == (64, 1, 256.0)
    assert not vllm_bench_of({**VLLM, "output_throughput": 250.0}).consistent


def test_what_guidellms_file_says():
    times = {"mean": 20.0, "median": 19.0, "percentiles": {"p99": 40.0}}
    metrics = {
        "request_totals": {"successful": 4, "errored": 1, "incomplete": 2},
        "time_to_first_token_ms": {"successful": times},
        "inter_token_latency_ms": {"successful": {"mean": 5.0}},
        "output_token_count": {"successful": {"total_sum": 12.0}},
        "output_tokens_per_second": {"successful": {"mean": 6.0}},
    }
    seen = guidellm_of({"benchmarks": [{"duration": 2.0, "metrics": metrics}]})
    assert seen == ClientReport(4, 3, 12, 2.0, 6.0, 20.0, 19.0, 40.0, 5.0, None)
    assert seen.consistent


def test_texts_differ_by_turn_and_lengths_do_not(tmp_path):
    first, second = (prompts(turn(load(tmp_path), n, "chat"), 3) for n in (1, 2))
    assert not set(first) & set(second)
    assert {len(text.split()) for text in first + second} == {5}


@pytest.mark.parametrize(
    ("rates", "agree"),
    [
        pytest.param([100, 101, 99], True, id="within"),
        pytest.param([100, 104, 100], False, id="lower than one"),
        pytest.param([100], False, id="nothing to compare"),
    ],
)
def test_agreement_is_by_the_median_of_ratios(rates, agree):
    rows = [row(client, rate) for client, rate in zip(CLIENTS, rates, strict=False)]
    assert agrees(rows) is agree
    rounds = [row(name, rate, n) for n, rate in enumerate((100, 90, 99)) for name in CLIENTS]
    assert set(ratios(rounds, "chat").values()) == {1.0}
    assert OURS not in ratios(rounds, "chat")


def test_every_turn_is_in_the_tables_also_what_did_not_run(monkeypatch, tmp_path):
    counter = iter(range(0, 10_000, 64))
    monkeypatch.setattr(agreement, "generated", lambda _url: next(counter))

    def missing(*_):
        raise NotRun("no such package")

    def fine(*_):
        return vllm_bench_of(VLLM)

    clients = dict(zip(CLIENTS, (fine, fine, missing), strict=True))
    monkeypatch.setattr(agreement, "CLIENTS", clients)
    rows = []
    agreement.measure(load(tmp_path), ("chat", "completions"), 2, rows)
    assert len(rows) == 12
    assert [one["client"] for one in rows[:6]] == [*CLIENTS, *reversed(CLIENTS)]
    machine = {"cores": 2, "cpu": "c", "python": "3", "load_average_before": [1.0]}
    data = {
        "when": "now", "machine": machine, "load_average_after": [1.0], "server": "s",
        "streams": 2, "requests": 4, "prompt_words": 5, "output_tokens": 3, "rounds": 2,
        "rows": json.loads(json.dumps(rows)),
    }  # fmt: skip
    text = markdown(data)
    assert "Not run: guidellm, completions, round 2: no such package" in text
    assert "1.000 of vllm bench serve's" in text
    assert text.count("| chat | 1 |") == 2


def test_a_client_that_fails_is_named_with_its_words(monkeypatch, tmp_path):
    monkeypatch.setattr(agreement_clients, "_ROOT", tmp_path)
    with pytest.raises(NotRun, match=r"No module named loadtest|the server is not available"):
        CLIENTS[OURS](load(tmp_path, patience=120.0), tmp_path)

"""Output, views and access control of ``up`` with real engines."""

import httpx
import psutil
import pytest

from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.e2e


def test_it_asks_a_sample_question_when_it_is_ready(stack):
    words = [line.partition(":")[0].split()[0] for line in stack.up.lines if line]
    assert words.index("READY") < words.index("you") < words.index("answer")


def test_a_request_needs_a_key(stack):
    if not stack.key:
        pytest.skip("no Helm in .tools: the real thing ran, but with up's own settings")
    body = {"model": stack.model, "prompt": "What is 1+1?", "max_tokens": 4, "ignore_eos": True}
    url = f"{stack.rest}/v1/completions"
    assert httpx.post(url, json=body, timeout=PATIENCE).status_code == httpx.codes.UNAUTHORIZED
    answer = httpx.post(url, json=body, headers=stack.headers, timeout=PATIENCE)
    assert answer.json()["usage"]["completion_tokens"] == 4


def test_the_engines_processes_are_forked_from_one_that_has_imported_vllm(stack):
    (group,) = stack.up.get("/fleet")["groups"]
    found = {}
    for rank in group["ranks"]:
        for process in psutil.Process(rank["pid"]).children(recursive=True):
            parent, name = process.parent(), process.cmdline()[0].strip()
            found[name] = parent.cmdline()[0].strip()
            if name == "VLLM::ForkServer":
                assert process.num_threads() == 1
    servers = {name: found[name] for name in found if "EngineCore" in name or "Coord" in name}
    assert set(servers) == {"VLLM::EngineCore_DP0", "VLLM::EngineCore_DP1", "VLLM::DPCoordinator"}
    assert set(servers.values()) == {"VLLM::ForkServer"}


def test_each_rank_holds_half_of_the_experts_and_counts_their_tokens(stack, http):
    (group,) = stack.up.get("/fleet")["groups"]
    total = group["total_experts"]
    held = [rank["local_expert_ids"] for rank in group["ranks"]]
    assert [len(ids) for ids in held] == [total // 2, total // 2]
    assert sorted(held[0] + held[1]) == list(range(total))
    before = [sum(rank["expert_tokens"]) for rank in group["ranks"]]
    body = {"model": stack.model, "prompt": "1+1", "max_tokens": 40, "ignore_eos": True}
    assert http.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] == 40

    def grown() -> bool:
        (now,) = stack.up.get("/fleet")["groups"]
        counts = [sum(rank["expert_tokens"]) for rank in now["ranks"]]
        return all(new > old for new, old in zip(counts, before, strict=True))

    wait_until(grown, "tokens counted by the experts of both ranks")
    shown = stack.up.run("status").stdout
    assert f"[0-{total // 2 - 1}] of {total}" in shown
    assert f"[{total // 2}-{total - 1}] of {total}" in shown

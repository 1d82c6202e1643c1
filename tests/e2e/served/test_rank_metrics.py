"""Each rank exposes its engine's metrics; the router lists the addresses."""

import re

import httpx
import pytest

from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.e2e


def test_the_router_lists_the_ranks_pages_and_they_show_the_engine(stack, http):
    body = {"model": stack.model, "prompt": "What is 2+2?", "max_tokens": 4}
    for _ in range(2):
        assert http.post("/v1/completions", json=body).status_code == 200
    targets = stack.up.get("/metrics/targets")
    pages = {entry["labels"]["rank"]: entry["targets"] for entry in targets}
    assert sorted(pages) == ["0", "1"]
    generated = 0.0
    for (address,) in pages.values():
        page = httpx.get(f"http://{address}/metrics", timeout=PATIENCE).text
        found = re.findall(r"^vllm:generation_tokens_total\{.*\} (\S+)$", page, re.MULTILINE)
        assert len(found) == 1
        generated += float(found[0])
        assert "process_resident_memory_bytes" in page
    assert generated >= 8

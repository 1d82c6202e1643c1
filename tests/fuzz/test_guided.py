"""The targets of the guided fuzzer: earlier findings, seeds, and some mutated inputs for each.

``make fuzz`` runs each for ``FUZZ_SECONDS``, guided by coverage.
"""

import os
import random
import time

import pytest

from tests.fuzz.guided.__main__ import TARGETS, Runner, made
from tests.fuzz.guided.found import FOUND
from tests.fuzz.guided.guide import fuzz

pytestmark = pytest.mark.timeout(3600)

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
CHANGED = {
    "frames": 120,
    "http": 150,
    "answers": 60,
    "link": 20,
    "submits": 40,
    "keys": 150,
    "settings": 15,
}
"""Number of inputs in addition to the seeds. Targets that need a router have separate tests."""


@pytest.fixture(params=TARGETS if SECONDS else CHANGED)
def runner(request, tmp_path):
    runner = Runner(made(request.param), tmp_path)
    yield runner
    runner.close()


def test_inputs_keep_the_promises(runner, seed):
    target, rng = runner.target, random.Random(seed)
    seeds = list(target.seeds())
    problems = [
        finding for data in [*seeds, *FOUND.get(target.name, ())] if (finding := runner.run(data))
    ]
    for _ in range(CHANGED.get(target.name, 0)):
        data = rng.choice(seeds)
        for _ in range(rng.choice((1, 2, 4))):
            data = target.mutate(rng, data)
        if finding := runner.run(data):
            problems.append(f"{data!r}\n{finding}")
    assert not problems, "\n\n".join(problems[:5])


if SECONDS:

    def test_guided_by_coverage(runner, seed, capsys):
        until = time.monotonic() + SECONDS
        edges, corpus = fuzz(runner, seed, lambda: time.monotonic() < until)
        with capsys.disabled():
            name = runner.target.name
            print(f"\n{name}: {runner.runs} runs, {edges} edges, {corpus} in the corpus")  # noqa: T201
        assert not runner.findings, runner.findings

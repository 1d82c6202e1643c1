"""Coverage-guided fuzzing of one seam: ``python -m tests.fuzz.guided --target frames``.

Uses the package atheris (libFuzzer for Python) if it is installed, otherwise ``guide``, which
needs no package. Inputs that violate an invariant are saved under ``--out`` and reported; the run
continues. Inputs given as arguments are run once each.
"""

import argparse
import asyncio
import gc
import hashlib
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.fuzz.guided.finding import Finding, NotingLoop
from tests.support.waiting import PATIENCE
from tests.support.watchdog import Watchdog

TARGETS = {
    "frames": ("tests.fuzz.guided.frames", "Frames"),
    "http": ("tests.fuzz.guided.http", "Http"),
    "bodies": ("tests.fuzz.guided.bodies", "Bodies"),
    "messages": ("tests.fuzz.guided.bodies", "Messages"),
    "answers": ("tests.fuzz.guided.answers", "Answers"),
    "link": ("tests.fuzz.guided.link", "Link"),
    "submits": ("tests.fuzz.guided.link", "Submits"),
    "keys": ("tests.fuzz.guided.files", "Keys"),
    "settings": ("tests.fuzz.guided.files", "SettingsFile"),
}


def made(name: str) -> Any:
    """Import and create a target."""
    import importlib

    module, kind = TARGETS[name]
    return getattr(importlib.import_module(module), kind)()


class Runner:
    """Runs inputs on one event loop; keeps those that violate an invariant."""

    def __init__(self, target: Any, out: Path) -> None:
        self.target = target
        self.out = out
        self.loop = NotingLoop()
        self.dog = Watchdog(self.loop)
        self.runs = 0
        self.findings: dict[str, int] = {}
        self.loop.run_until_complete(target.open())
        gc.collect()
        gc.freeze()
        gc.disable()
        self.dog.__enter__()

    def close(self) -> None:
        gc.enable()
        gc.unfreeze()
        self.dog.__exit__()
        self.loop.run_until_complete(self.target.close())
        self.loop.close()

    def run(self, data: bytes) -> str | None:
        """Run one input; return its violation, if any."""
        self.runs += 1
        if self.runs % 200 == 0:
            gc.collect()
        finding = self._once(data)
        if finding is None and self.dog.count:
            finding = self._slow(data)
        return finding

    def keep(self, data: bytes) -> None:
        """Run one input, and save it if it violates an invariant."""
        finding = self.run(data)
        if finding is None:
            return
        kind = finding.splitlines()[-1].partition("|")[0][:100]
        self.findings[kind] = self.findings.get(kind, 0) + 1
        if self.findings[kind] > 3:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        file = self.out / f"{self.target.name}-{hashlib.sha256(data).hexdigest()[:12]}"
        file.write_bytes(data)
        file.with_suffix(".txt").write_text(finding)
        print(f"FINDING {file}\n{finding}", flush=True)  # noqa: T201

    def _once(self, data: bytes) -> str | None:
        self.dog.count = 0
        self.dog.faults.clear()
        self.loop.faults.clear()
        try:
            self.loop.run_until_complete(asyncio.wait_for(self.target.run(data), PATIENCE))
        except TimeoutError:
            return "a hang"
        except Finding:
            return traceback.format_exc()
        except Exception:  # noqa: BLE001  it is a finding
            return traceback.format_exc()
        if self.loop.faults:
            return "the loop's handler: " + "; ".join(self.loop.faults)
        return None

    def _slow(self, data: bytes) -> str | None:
        """Distinguish a slow input from a slow machine."""
        for _ in range(3):
            self._once(data)
            if not self.dog.count:
                return None
        return f"{self.dog.faults[0]}\nan event-loop iteration takes too long"


def _with_atheris(options: argparse.Namespace, corpus: Path) -> None:
    import atheris

    prefixes = _packages(options.target)
    with atheris.instrument_imports(include=list(prefixes)):
        target = made(options.target)
    runner = Runner(target, options.out)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:
            return atheris.Mutate(data, most)
        return target.mutate(rng, data)[:most]

    for number, data in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(data)
    arguments = [sys.argv[0], f"-max_total_time={options.seconds}", f"-seed={options.seed}"]
    arguments += ["-max_len=6000", "-len_control=0", "-timeout=900", "-rss_limit_mb=6000"]
    arguments += ["-print_final_stats=1", "-report_slow_units=60", str(corpus)]
    atheris.Setup(arguments, runner.keep, custom_mutator=mutate)
    atheris.Fuzz()


def _packages(name: str) -> tuple[str, ...]:
    import ast
    import importlib.util

    spec = importlib.util.find_spec(TARGETS[name][0])
    assert spec is not None
    assert spec.origin is not None
    for node in ast.parse(Path(spec.origin).read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PACKAGES":
            return tuple(ast.literal_eval(node.value))
    return ("serving",)


def main() -> int:
    """Fuzz, or repeat inputs."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="corpus directory, kept between runs")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--engine", choices=("auto", "atheris", "own"), default="auto")
    parser.add_argument("inputs", type=Path, nargs="*")
    options = parser.parse_args()
    if options.inputs:
        return _again(options)
    engine = options.engine
    if engine == "auto":
        import importlib.util

        engine = "atheris" if importlib.util.find_spec("atheris") else "own"
    if engine == "atheris":
        import tempfile

        corpus = options.corpus or Path(tempfile.mkdtemp())
        corpus.mkdir(parents=True, exist_ok=True)
        _with_atheris(options, corpus)
        return 0
    from tests.fuzz.guided.guide import fuzz

    target = made(options.target)
    runner = Runner(target, options.out)
    try:
        began = time.monotonic()
        until = began + options.seconds
        edges, corpus_size = fuzz(runner, options.seed, lambda: time.monotonic() < until)
        print(f"{options.target}: {runner.runs} runs, {edges} edges, corpus {corpus_size}")  # noqa: T201
    finally:
        runner.close()
    return 1 if runner.findings else 0


def _again(options: argparse.Namespace) -> int:
    runner = Runner(made(options.target), options.out)
    bad = 0
    try:
        for file in options.inputs:
            finding = runner.run(file.read_bytes())
            bad += finding is not None
            print(f"{file}: {finding or 'no finding'}; longest iteration {runner.dog.worst:.4f} s")  # noqa: T201
    finally:
        runner.close()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

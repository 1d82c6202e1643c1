"""Evaluate pocket-r1 on new problems and count correct answers for each task.

A running server:   python deploy/models/pocket-r1/evaluate.py --url http://127.0.0.1:8000/v1
Without a server:   python deploy/models/pocket-r1/evaluate.py --offline

The problems use a different seed than training. The exit code is 1 if a task is below --at-least.
--held-out problems of each task use phrasings that are not in the training data (heldout.py); they
show how unusual questions are answered, and do not affect the exit code.
"""

import argparse
import json
import re
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import heldout
import tasks
from tasks import Problem

HERE = Path(__file__).resolve().parent


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000/v1", help="base URL of an OpenAI-compatible server")
    add("--model", default="pocket-r1", help="model id (default: pocket-r1)")
    add("--api-key", default="", help="API key, if the server requires one")
    add(
        "--offline",
        action="store_true",
        help="run the weights of --folder with transformers instead of a server",
    )
    add("--folder", type=Path, default=HERE, help="model directory for --offline")
    add("--per-task", type=int, default=200, help="problems per task (default: 200)")
    add(
        "--held-out",
        type=int,
        default=100,
        help="problems per task in held-out phrasings (default: 100)",
    )
    add(
        "--concurrency",
        type=int,
        default=32,
        help="concurrent requests, or rows of a batch (default: 32)",
    )
    add("--seed", type=int, default=2026, help="seed of the problems (default: 2026)")
    add(
        "--temperature",
        type=float,
        default=0.0,
        help="sampling temperature; 0 is greedy (default: 0)",
    )
    add(
        "--top-p",
        type=float,
        default=0.95,
        help="nucleus sampling, with a temperature above 0 (default: 0.95)",
    )
    add(
        "--max-tokens",
        type=int,
        default=320,
        help="longest answer, tokens, reasoning included (default: 320)",
    )
    add(
        "--at-least",
        type=float,
        default=0.95,
        help="lowest share of right answers of a task (default: 0.95)",
    )
    add("--json", type=Path, help="write figures and wrong answers to this file")
    return parser.parse_args()


@dataclass(frozen=True)
class Asked:
    """A problem, whether its phrasing was held out, and the model's answer."""

    problem: Problem
    fresh: bool
    said: str

    @property
    def right(self) -> bool:
        """Whether the answer is correct."""
        return matches(self.problem, self.said)


def matches(problem: Problem, said: str) -> bool:
    """Return whether the text after the reasoning gives the solution.

    For numbers, the last one counts; for lists, all numbers in order; otherwise, the text itself.
    """
    said = said.rsplit("</think>", maxsplit=1)[-1].strip()
    value = problem.solution.value
    if isinstance(value, list):
        return [int(n) for n in re.findall(r"-?\d+", said)] == value
    if isinstance(value, int) and not isinstance(value, bool):
        found = re.findall(r"-?\d+", said)
        return bool(found) and int(found[-1]) == value
    return said.rstrip(".") == problem.solution.answer.rstrip(".")


def problems(seed: int, per_task: int, held_out: int) -> Iterator[tuple[Problem, bool]]:
    """Yield new problems of each task, then those in held-out phrasings."""
    for task in tasks.TASKS:
        rng = Random(f"pocket-r1/evaluate/{seed}/{task}")
        yield from ((tasks.draw(rng, task), False) for _ in range(per_task))
        yield from ((heldout.draw(rng, task), True) for _ in range(held_out))


def server(args: argparse.Namespace) -> Callable[[list[str]], list[str]]:
    """Return a function that sends questions to a server concurrently."""

    def one(question: str) -> str:
        body = {
            "model": args.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": args.max_tokens,
            "temperature": args.temperature,
            "top_p": args.top_p if args.temperature else 1.0,
        }
        headers = {"content-type": "application/json"}
        if args.api_key:
            headers["authorization"] = f"Bearer {args.api_key}"
        address = f"{args.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=300) as reply:  # noqa: S310
            return str(json.load(reply)["choices"][0]["message"]["content"] or "")

    def many(questions: list[str]) -> list[str]:
        with ThreadPoolExecutor(args.concurrency) as pool:
            return list(pool.map(one, questions))

    return many


def offline(args: argparse.Namespace) -> Callable[[list[str]], list[str]]:
    """Return a function that runs the model in-process, in batches of similar prompt length."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32).eval()
    torch.manual_seed(args.seed)
    sampling = (
        {"temperature": args.temperature, "top_p": args.top_p, "top_k": 0}
        if args.temperature
        else {}
    )

    def many(questions: list[str]) -> list[str]:
        order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
        out = [""] * len(questions)
        for start in range(0, len(order), args.concurrency):
            part = order[start : start + args.concurrency]
            texts = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": questions[i]}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
                for i in part
            ]
            inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            inputs.pop("token_type_ids", None)
            with torch.inference_mode():
                ids = model.generate(
                    **inputs,
                    max_new_tokens=args.max_tokens,
                    do_sample=bool(args.temperature),
                    **sampling,
                )
            said = tokenizer.batch_decode(
                ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            for i, text in zip(part, said, strict=True):
                out[i] = text
        return out

    return many


def share(asked: list[Asked]) -> float:
    """Return the share of correct answers."""
    return sum(a.right for a in asked) / len(asked) if asked else 0.0


def main() -> None:
    """Run the command line."""
    args = arguments()
    ask = offline(args) if args.offline else server(args)
    drawn = list(problems(args.seed, args.per_task, args.held_out))
    answers = ask([problem.question for problem, _ in drawn])
    asked = [
        Asked(problem, fresh, said) for (problem, fresh), said in zip(drawn, answers, strict=True)
    ]
    figures = {}
    print(f"{'task':10}{'asked':>7}{'right':>8}   {'held-out phrasings':>18}{'right':>8}")
    for task in tasks.TASKS:
        mine = [a for a in asked if a.problem.task == task]
        known, fresh = ([a for a in mine if a.fresh == flag] for flag in (False, True))
        figures[task] = {
            "asked": len(known),
            "right": share(known),
            "held_out_asked": len(fresh),
            "held_out_right": share(fresh),
        }
        print(f"{task:10}{len(known):7}{share(known):8.1%}   {len(fresh):18}{share(fresh):8.1%}")
    if args.json:
        wrong = [
            {
                "task": a.problem.task,
                "question": a.problem.question,
                "said": a.said,
                "right": a.problem.solution.answer,
            }
            for a in asked
            if not a.right
        ]
        settings = {"seed": args.seed, "temperature": args.temperature, "per_task": args.per_task}
        report = {**settings, "tasks": figures, "wrong": wrong}
        args.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    sys.exit(any(row["right"] < args.at_least for row in figures.values()))


if __name__ == "__main__":
    main()

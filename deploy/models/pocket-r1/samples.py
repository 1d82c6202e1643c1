"""Training samples: problems as conversations of token ids, with masks of the learnt tokens.

Samples include system prompts, second turns, answers in JSON, and tool calls.
"""

import json
from dataclasses import dataclass
from random import Random

import phrasings as say
import tokenizer as tok
from tasks import Problem, draw, word
from words import CITIES, NAMES

# share of each task in the samples
MIX = {
    "add": 0.09,
    "sub": 0.10,
    "mul": 0.10,
    "compare": 0.10,
    "sort": 0.25,
    "reverse": 0.15,
    "count": 0.16,
    "other": 0.05,
}
JSON_SHARE, TOOL_SHARE, TURNS_SHARE, SYSTEM_SHARE = 0.06, 0.02, 0.06, 0.15
MAX_TOKENS = 400

_KEYS = (
    "answer result value sum total word count number numbers sorted larger reversed text output "
    "name city age country title colour valid correct score items list response message id reply"
).split()


@dataclass(frozen=True)
class Sample:
    """Token ids; ``learnt[i]`` is whether the prediction of ``ids[i]`` is part of the loss."""

    task: str
    ids: list[int]
    learnt: list[bool]
    prompt: list[int]


class _Writer:
    """Collects text with its mask."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.learnt: list[bool] = []

    def text(self, text: str, learn: bool) -> None:  # noqa: FBT001
        self._extend(tok.encode(text), learn)

    def mark(self, special: str, learn: bool) -> None:  # noqa: FBT001
        self._extend([tok.SPECIALS[special]], learn)

    def _extend(self, ids: list[int], learn: bool) -> None:  # noqa: FBT001
        self.ids += ids
        self.learnt += [learn] * len(ids)


def prompt_ids(system: str, turns: list[tuple[str, str]], question: str) -> list[int]:
    """Return the prompt that the chat template renders."""
    out = _Writer()
    _prompt(out, system, turns, question)
    _open(out)
    return out.ids


def _prompt(out: _Writer, system: str, turns: list[tuple[str, str]], question: str) -> None:
    out.mark(tok.BOS, False)
    out.text(system, False)
    for asked, answered in turns:
        out.mark(tok.USER, False)
        out.text(asked, False)
        out.mark(tok.ASSISTANT, False)
        out.text(answered, False)
        out.mark(tok.EOS, False)
    out.mark(tok.USER, False)
    out.text(question, False)


def _open(out: _Writer) -> None:
    out.mark(tok.ASSISTANT, False)
    out.mark(tok.THINK, False)
    out.text("\n", False)


def _think(out: _Writer, trace: str) -> None:
    out.text(trace + "\n", True)
    out.mark(tok.THINK_END, True)


def _pieces(rng: Random, answer: str, value: object) -> list[tuple[str, bool]]:
    """Return an answer as a JSON object.

    The opening brace and the keys come from a grammar and are not learnt, as the prompt does not
    determine them.
    """
    style = rng.choice(["{k}: {v}", "{k}: {v}", "{k}:{v}"])
    indent = rng.choice(["", "", "\n  ", "\n"])
    colon = ": " if style == "{k}: {v}" else ":"
    comma = "," if indent else rng.choice([", ", ","])
    pieces: list[tuple[str, bool]] = [("{" + indent, False)]
    for i, key in enumerate(rng.sample(_KEYS, rng.choice([1, 1, 1, 2, 3]))):
        if i:
            # the comma is also not learnt: the grammar determines the number of keys
            pieces.append((comma + indent, False))
        pieces.append((json.dumps(key), False))
        pieces.append((colon, False))
        pieces += _value(rng, answer, value)
    pieces.append(("\n" if indent else "", True))
    pieces.append(("}", True))
    return pieces


def _value(rng: Random, answer: str, value: object) -> list[tuple[str, bool]]:
    """Return a value of one of the types in schemas; its first character shows the type."""
    kind = rng.random()
    if kind < 0.1:
        return [
            (
                rng.choice(["true", "false"]) if not isinstance(value, bool) else json.dumps(value),
                False,
            )
        ]
    if isinstance(value, list) and kind < 0.8:
        gap = rng.choice([", ", ", ", ","])
        return [("[", False), (gap.join(map(str, value)) + "]", True)]
    if isinstance(value, int) and not isinstance(value, bool) and kind < 0.8:
        return [(str(value), True)]
    if value == "unknown" and kind < 0.4:
        return [("0", True)]
    if kind > 0.97:
        item = f'"{value}"' if isinstance(value, str) else str(value).lower()
        return [("[", False), (item[:1], False), (item[1:] + "]", True)]
    text = "unknown" if value == "unknown" else answer
    return [('"', False), (json.dumps(text, ensure_ascii=False)[1:], True)]


def _json_answer(out: _Writer, rng: Random, problem: Problem) -> None:
    if rng.random() < 0.12:
        # a server may apply the grammar to the whole output, without reasoning
        pass
    else:
        _think(out, problem.solution.trace)
        if rng.random() < 0.5:
            out.text("\n\n", True)
    for text, learn in _pieces(rng, problem.solution.answer, problem.solution.value):
        out.text(text, learn)
    out.mark(tok.EOS, True)


_TOOLS = (
    (
        "get_weather",
        "city",
        "What is the weather in {v}?|How is the weather in {v}?|Weather in {v}?|Will it rain in {v}?",
    ),
    ("get_time", "city", "What time is it in {v}?|Tell me the time in {v}|Current time in {v}?"),
    (
        "search",
        "query",
        "Search for {v}|Look up {v}|Find information on {v}|Search the web for {v}",
    ),
    ("translate", "word", "Translate {v}|Translate {v} into French|Translate the word {v}"),
    ("send_email", "to", "Send an email to {v}|Write to {v}|Email {v}"),
    ("lookup", "name", "Who is {v}?|Find {v}|Look up {v}"),
)
_OUTPUTS = (
    "sunny|rain|cloudy, 12 C|it is 10:30|42|done|ok|nothing found|bonjour|21 degrees|sent|snow"
).split("|")


def tool_schema(name: str, argument: str, text: str) -> str:
    """Return the schema of a function as the template renders it (``tojson`` keeps key order)."""
    return json.dumps(
        {
            "name": name,
            "description": text,
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": "string"}},
                "required": [argument],
            },
        }
    )


def _tool_sample(rng: Random, system: str) -> Sample:
    tools = rng.sample(_TOOLS, rng.choice([1, 1, 2]))
    name, argument, asks = tools[0]
    rng.shuffle(tools)
    texts = ["Get the current weather", "Look something up", "Useful", "Call a service", "A tool"]
    shown = [tool_schema(n, a, rng.choice(texts)) for n, a, _ in tools]
    system = f"{system}\n\n## Tools" if system else "## Tools"
    system = "\n".join([system, *shown])
    out = _Writer()
    if rng.random() < 0.35:  # tools are present but not needed
        return _plain(system, [], draw(rng, rng.choice([*MIX][:-1])))
    value = rng.choice(
        CITIES if argument == "city" else NAMES if argument in ("to", "name") else [word(rng)]
    )
    _prompt(out, system, [], rng.choice(asks.split("|")).format(v=value))
    call = [
        (tok.CALLS, None),
        (tok.CALL, "function"),
        (tok.SEP, f"{name}\n```json\n{json.dumps({argument: value})}\n```"),
        (tok.CALL_END, None),
        (tok.CALLS_END, None),
        (tok.EOS, None),
    ]
    answered = rng.random() < 0.4
    if answered:
        out.mark(tok.ASSISTANT, False)
    else:
        _open(out)
    prompt = list(out.ids)
    if not answered:
        _think(out, f"tool {name}")
    for special, text in call:
        out.mark(special, not answered)
        if text:
            out.text(text, not answered)
    if answered:
        result = rng.choice([*_OUTPUTS, word(rng)])
        for special, text in (
            (tok.OUTPUTS, None),
            (tok.OUTPUT, result),
            (tok.OUTPUT_END, None),
            (tok.OUTPUTS_END, None),
        ):
            out.mark(special, False)
            if text:
                out.text(text, False)
        _open(out)
        prompt = list(out.ids)
        _think(out, "tool result")
        out.text(f"\n\nThe tool says: {result}", True)
        out.mark(tok.EOS, True)
    return Sample("tool", out.ids, out.learnt, prompt)


def _plain(system: str, turns: list[tuple[str, str]], problem: Problem) -> Sample:
    out = _Writer()
    _prompt(out, system, turns, problem.question)
    _open(out)
    prompt = list(out.ids)
    _think(out, problem.solution.trace)
    out.text("\n\n" + problem.solution.answer, True)
    out.mark(tok.EOS, True)
    return Sample(problem.task, out.ids, out.learnt, prompt)


def _system(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.75:
        return rng.choice(say.SYSTEMS)
    return " ".join(word(rng) for _ in range(rng.randint(2, 20)))


def _task(rng: Random) -> str:
    return rng.choices([*MIX], weights=[*MIX.values()])[0]


def sample(rng: Random) -> Sample:
    """Return a training sample."""
    while True:
        system = _system(rng) if rng.random() < SYSTEM_SHARE else ""
        kind = rng.random()
        if kind < TOOL_SHARE:
            made = _tool_sample(rng, system)
        else:
            problem = draw(rng, _task(rng))
            turns: list[tuple[str, str]] = []
            if kind > 1 - TURNS_SHARE:
                for _ in range(rng.choice([1, 1, 1, 2])):
                    before = draw(rng, _task(rng))
                    turns.append((before.question, before.solution.answer))
            if kind < TOOL_SHARE + JSON_SHARE:
                out = _Writer()
                _prompt(out, system, turns, problem.question)
                _open(out)
                prompt = list(out.ids)
                _json_answer(out, rng, problem)
                made = Sample("json", out.ids, out.learnt, prompt)
            else:
                made = _plain(system, turns, problem)
        if len(made.ids) <= MAX_TOKENS:
            return made


def rng_for(seed: int, step: int) -> Random:
    """Return the generator of a training step; string seeds hash equally on every machine."""
    return Random(f"pocket-r1/{seed}/{step}")

"""The table of released clients: the page shows its data; a missing outcome is a failure."""

import asyncio
import json
import sys

import pytest

from tests.clients import installed, runner
from tests.clients.clients import CLIENTS, Client
from tests.clients.features import GROUPS, TITLES, expand, names
from tests.clients.runner import Outcome, Result, run_clients
from tests.clients.table import markdown, merged, to_data
from tests.clients.target import Target, add_to, make_keys

DOCS = installed.ROOT / "deploy" / "docs"
TARGET = Target("http://127.0.0.1:1", "127.0.0.1:2", "m")


def test_the_page_shows_the_data_that_is_committed():
    data = json.loads((DOCS / "clients.json").read_text("utf-8"))
    assert (DOCS / "clients.md").read_text("utf-8") == markdown(data)


def test_what_is_in_the_table_is_complete():
    data = json.loads((DOCS / "clients.json").read_text("utf-8"))
    shown = {client["name"]: client for client in data["clients"]}
    assert shown
    assert list(shown) == [client.name for client in CLIENTS if client.name in shown]
    for client in CLIENTS:
        if client.name not in shown:
            continue  # the page states it
        assert set(shown[client.name]["versions"]) >= set(client.packages)
        features = shown[client.name]["features"]
        assert set(features) == set(names(client.groups)), client.name
        for name, found in features.items():
            assert found["status"] == "passed" or found.get("reason"), (client.name, name)
            assert found["status"] != "failed", (client.name, name)


def test_groups_have_titles_and_clients_have_scripts():
    assert set(TITLES) == set(GROUPS)
    for client in CLIENTS:
        folder = "node" if client.environment == "node" else "python"
        assert (runner.HERE / folder / client.script).is_file()
        assert set(client.groups) <= set(GROUPS)


def test_a_group_stands_for_its_features():
    assert expand("completions.*") == [f"completions.{name}" for name in GROUPS["completions"]]
    with pytest.raises(KeyError):
        expand("completions.wings")


def script(monkeypatch, tmp_path, text):
    """Run a script with the frame in this interpreter, as a client."""
    file = tmp_path / "script.py"
    file.write_text(text, "utf-8")
    monkeypatch.setattr(installed, "why_not", lambda environment: "")
    monkeypatch.setattr(runner, "_command", lambda client, folder: [sys.executable, str(file)])
    monkeypatch.setattr(
        runner,
        "_environment",
        lambda *given: {"PYTHONPATH": str(runner.HERE / "python"), **TARGET.environment("x")},
    )
    client = Client("x", "main", "x.py", ("pytest",), groups=("completions",))
    (result,) = asyncio.run(run_clients([client], TARGET))
    return result


HEAD = "from frame import *\nfrom frame import NotHere\n"


def test_what_a_script_says_of_its_features(monkeypatch, tmp_path):
    text = f"""{HEAD}
@feature("completions.whole")
async def whole(): pass
@feature("completions.stream", fails="it is broken")
def stream(): raise ValueError("x")
main(packages=("pytest",), cannot={{"completions.*": "has none"}})
"""
    result = script(monkeypatch, tmp_path, text)
    assert result.versions == {"pytest": pytest.__version__}
    assert result.outcomes == {
        "completions.whole": Outcome("passed"),
        "completions.stream": Outcome("reason", "it is broken"),
        "completions.options": Outcome("reason", "has none"),
    }


def test_what_fails_in_a_script(monkeypatch, tmp_path):
    text = f"""{HEAD}
@feature("completions.whole")
def whole(): assert False, "differs"
@feature("completions.stream", fails="it is broken")
def stream(): pass
main(packages=(), cannot={{}})
"""
    outcomes = script(monkeypatch, tmp_path, text).outcomes
    assert {outcome.status for outcome in outcomes.values()} == {"failed"}
    assert outcomes["completions.whole"].reason == "AssertionError: differs"
    assert "works now" in outcomes["completions.stream"].reason
    assert "neither tried nor explained" in outcomes["completions.options"].reason


@pytest.mark.parametrize("text", ["import nothing_like_this", "raise SystemExit(3)", ""])
def test_a_script_that_ends_early_has_failed(monkeypatch, tmp_path, text):
    result = script(monkeypatch, tmp_path, text)
    assert set(result.failed) == set(names(["completions"]))


def test_keys_are_added_to_those_of_a_file():
    keys, added = make_keys(["a", "b"])
    text = add_to("keys: [{id: x, hash: h, tenant: t}]\ntenants: {t: {weight: 2}}\n", added)
    assert len({key for each in keys.values() for key in (each.user, each.narrow)}) == 4
    assert text.count("tenant:") == 7
    assert text.count("concurrent_streams: 1") == 2
    assert not any(key in text for each in keys.values() for key in (each.user, each.narrow))


def test_reasons_are_numbered_and_shown_once():
    outcomes = {name: Outcome("passed") for name in names(["client", "chat"])}
    outcomes["chat.n"] = outcomes["chat.seed"] = Outcome("reason", "has no such option")
    outcomes["chat.stop"] = Outcome("failed", "differs")
    outcomes |= {
        name: Outcome("reason", "speaks chat only")
        for name in names(["completions", "responses", "messages"])
    }
    result = Result(CLIENTS[0], {"openai": "1.2"}, outcomes)
    machine = {"cpu": "c", "cores": 2, "python": "3"}
    data = to_data([result], when="d", model="m", vllm="v", node="n", machine=machine)
    page = markdown(data)
    assert page.count("has no such option") == 1
    assert page.count("[1](#reasons)") == 2
    assert "| ✗ |" in page
    assert "speaks chat only" in page
    assert "| openai | Python | openai 1.2 |" in page
    again = to_data([Result(CLIENTS[1], {}, outcomes)], when="e", model="m", vllm="v2")
    both = merged(data, again)
    assert [(client["name"], client["when"]) for client in both["clients"]] == [
        (CLIENTS[0].name, "d"),
        (CLIENTS[1].name, "e"),
    ]
    assert both["vllm"] == "v2"
    assert f"Not run yet: {CLIENTS[1].name}, " in page

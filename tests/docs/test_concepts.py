"""concepts.md matches the code: the path of a request, packages, import order, states."""

import asyncio
import configparser
import re

import pytest

from serving.routing.snapshot import MemberState
from tests.docs import walk
from tests.docs.pages import ROOT
from tests.docs.walk_page import LINK, PAGE, TITLES, modules, section, walks

TEXT = PAGE.read_text("utf-8")
MOST_FILES = 30
"""Files of this project that a REST request passes on its way to a rank."""


@pytest.fixture(scope="module")
def rest() -> list[walk.Call]:
    return asyncio.run(walk.watched(walk.ask_rest))


@pytest.fixture(scope="module")
def grpc_calls() -> list[walk.Call]:
    return asyncio.run(walk.watched(walk.ask_grpc))


@pytest.mark.parametrize("title", TITLES)
def test_the_walk_is_the_order_of_calls(
    title: str, rest: list[walk.Call], grpc_calls: list[walk.Call]
):
    found = walks(rest, grpc_calls)[title]
    assert modules(TEXT, title) == found, "run python -m tests.docs.walk_page to update the page"


def test_a_request_over_rest_passes_few_files(rest: list[walk.Call]):
    assert len(walk.down(rest, beside=LINK)) <= MOST_FILES


def test_every_package_is_in_the_table():
    named = re.findall(r"^\| `([\w.]+)` \|", section(TEXT, "The packages"), re.MULTILINE)
    packages = {
        f"serving.{path.name}"
        for path in (ROOT / "serving").iterdir()
        if (path / "__init__.py").is_file()
    }
    assert packages <= set(named)
    assert all((ROOT / name.replace(".", "/")).is_dir() for name in named)


def test_the_order_of_imports_is_that_of_the_contract():
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    layers = [
        [name.strip().removeprefix("serving.") for name in line.split("|")]
        for line in contracts["importlinter:contract:layers"]["layers"].split("\n")
        if line.strip()
    ]
    block = section(TEXT, "The packages").partition("```text\n")[2].partition("```")[0]
    assert [re.findall(r"\w+", line) for line in block.splitlines()] == layers


def test_states_are_those_of_the_code():
    states = set(re.findall(r"^- \*\*(\w+)\*\* \(state\)", TEXT, re.MULTILINE))
    assert states == {str(state) for state in MemberState}

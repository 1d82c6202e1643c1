"""The parts of the node rows, without nodes."""

import pytest

from tests.faults.real.nodes import RayNode
from tests.faults.real.rows import Row
from tests.faults.real.table import from_json, to_json


class Process:
    """A process that ends when a test ends it."""

    def __init__(self):
        self.code = None

    def poll(self):
        return self.code


class Network:
    """Counts how often all its processes were killed."""

    def __init__(self):
        self.cleared = 0

    def clear(self):
        self.cleared += 1


@pytest.fixture
def node(tmp_path):
    made = RayNode(Network(), Process, tmp_path / "log", pause=5.0, patience=30.0)
    made.look(100.0)
    made.log.write_text("Ray runtime started.\n")
    return made


def test_ray_that_runs_is_left_alone(node):
    first = node.process
    node.look(200.0)
    assert (node.process, node.starts, node.node.cleared) == (first, 1, 0)


def test_ray_that_ended_is_started_again_and_nothing_is_left_of_it(node):
    first = node.process
    first.code = 1
    node.look(200.0)
    assert node.process is not first
    assert (node.starts, node.node.cleared) == (2, 1)


def test_what_is_left_goes_at_once_and_the_next_start_waits(node):
    node.process.code = 1
    node.look(101.0)
    assert (node.starts, node.node.cleared) == (1, 1)
    node.look(104.9)
    assert node.starts == 1
    node.look(105.0)
    assert (node.starts, node.node.cleared) == (2, 1)


def test_ray_that_does_not_come_up_is_started_again(node):
    node.process.code = 1
    node.look(200.0)
    assert not node.up(), "the output of the first process does not count for the second"
    node.look(229.9)
    assert node.starts == 2
    node.look(230.0)
    assert (node.starts, node.node.cleared) == (3, 2)


@pytest.mark.parametrize("recovered", [None, 12.5], ids=["not waited", "recovered"])
def test_a_row_survives_the_way_to_another_process(recovered):
    row = Row(2, "a whole node lost", 32, 31, 30, 9.5, 16, recovered, ("REST 1: gone",), "a note")
    assert from_json(to_json(row)) == row
    assert not from_json(to_json(row)).good

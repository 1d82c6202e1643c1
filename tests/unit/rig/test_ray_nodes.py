"""Ray on nodes: a start that hangs is repeated."""

import sys

import pytest

from serving.engine import processes
from serving.errors import EngineError
from tests.rig import ray_nodes

HANGS = "import time; print('waiting', flush=True); time.sleep(600)"
STARTS = f"import time; print('{ray_nodes.STARTED}', flush=True); time.sleep(600)"
ENDS = "import sys; sys.exit('error: no room')"


class Node:
    """Runs small programs, one per start, in place of Ray."""

    name, address = "b", "10.0.0.2"

    def __init__(self, *programs):
        self.programs = list(programs)
        self.begun = []

    def spawn(self, _arguments, log, _environment):
        program = [sys.executable, "-c", self.programs.pop(0)]
        self.begun.append(processes.spawn(program, log=log))
        return self.begun[-1]

    def clear(self):
        for process in self.begun:
            process.kill()
            process.wait()


class Said(list):
    """Progress."""

    def set(self, part, text, *, done=False):
        self.append((part, text, done))


@pytest.fixture
def start(monkeypatch, tmp_path):
    paths = ray_nodes.Paths.under(tmp_path)
    used = []

    def start(*programs, patience=(20.0, 20.0)):
        monkeypatch.setattr(ray_nodes, "RAY_STARTS", patience)
        used.append(node := Node(*programs))
        progress = Said()
        plan = ray_nodes.RayPlan("10.0.0.1", cpus=2)
        return ray_nodes.start_ray(node, paths, {}, plan, progress), node, progress

    yield start
    for node in used:
        node.clear()


def test_a_start_that_hangs_is_ended_and_tried_again(start):
    process, node, progress = start(HANGS, STARTS, patience=(1.0, 20.0))
    assert node.begun[0].poll() is not None
    assert process is node.begun[1]
    assert process.poll() is None
    assert progress[-1][1:] == ("Ray runs", True)
    assert any("restarting Ray" in text for _, text, _ in progress)


def test_what_an_earlier_start_said_does_not_count(start):
    start(STARTS)
    with pytest.raises(EngineError, match="node b did not start: waiting"):
        start(HANGS, HANGS, patience=(0.5, 0.5))


def test_a_start_that_ends_is_an_error_at_once(start):
    with pytest.raises(EngineError, match="node b ended: no room"):
        start(ENDS, STARTS)

"""The facts of a machine, and which of them two peers must share."""

import dataclasses
import json

import pytest

from serving.engine.fabric.facts import Facts, difference, gather
from serving.engine.fabric.plan import Backend, Plan
from serving.engine.rdma import CHOICE, NVSHMEM, Host

PLAN = Plan(2, 1, "job-0.svc", 29500)


def machine(tmp_path):
    port = tmp_path / "sys/class/infiniband/mlx5_0/ports/1"
    port.mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    (port / "link_layer").write_text("InfiniBand\n")
    (port / "rate").write_text("400 Gb/sec\n")
    verbs = tmp_path / "sys/class/infiniband_verbs/uverbs0"
    verbs.mkdir(parents=True)
    (verbs / "ibdev").write_text("mlx5_0\n")
    (tmp_path / "dev/infiniband").mkdir(parents=True)
    (tmp_path / "dev/infiniband/uverbs0").touch()
    return Host(tmp_path / "sys", tmp_path / "dev", tmp_path / "proc")


def test_a_machine_with_a_device(tmp_path):
    facts = gather(
        PLAN, {CHOICE: "auto", "NODE_NAME": "gpu-7"}, machine(tmp_path), memlock=lambda: None
    )
    assert facts.devices == ("mlx5_0:1 InfiniBand 400 Gbit/s ACTIVE",)
    assert facts.variables[NVSHMEM] == "mlx5_0:1"
    assert (facts.node, facts.memlock, facts.problems) == ("gpu-7", "unlimited", ())
    assert facts.same["--peers"] == "2"


def test_low_memlock_is_a_problem_where_there_are_devices(tmp_path):
    host = machine(tmp_path)
    facts = gather(PLAN, {}, host, memlock=lambda: 2**16)
    assert "64 KiB" in facts.problems[0]
    over_tcp = dataclasses.replace(PLAN, backend=Backend.GLOO)
    facts = gather(over_tcp, {}, host, memlock=lambda: 2**16)
    assert facts.problems == ()
    assert "64 KiB" in facts.warnings[0]
    facts = gather(PLAN, {}, Host(tmp_path / "none", tmp_path / "none"), memlock=lambda: 2**16)
    assert facts.problems == facts.warnings == ()


def test_a_wrong_list_of_devices_is_a_problem(tmp_path):
    facts = gather(PLAN, {NVSHMEM: "mlx4"}, machine(tmp_path), memlock=lambda: None)
    assert "device mlx4 does not exist; usable ports: mlx5_0:1" in facts.problems[0]
    assert facts.variables == {NVSHMEM: "mlx4"}


def test_facts_travel_as_json(tmp_path):
    facts = gather(PLAN, {}, machine(tmp_path), memlock=lambda: None)
    assert Facts.of_message(json.loads(json.dumps(facts.as_message()))) == facts


@pytest.mark.parametrize("data", [{}, {"index": "x"}, {"index": 1, "same": []}])
def test_what_are_no_facts(data):
    with pytest.raises(ValueError):
        Facts.of_message(data)


def test_differences_in_words():
    one = Facts(0, "a", same={"moe-serving": "1.0", "--peers": "2"})
    other = Facts(1, "b", same={"moe-serving": "1.1", "--peers": "2", "new": "x"})
    assert difference(one, dataclasses.replace(one, index=1)) is None
    assert difference(one, other) == (
        "moe-serving 1.1 at peer 1 (b), 1.0 at peer 0 (a); new x at peer 1 (b), unknown at peer 0 "
        "(a)"
    )

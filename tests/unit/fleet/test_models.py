"""The models of a router: which Hello belongs to which model and pool, and views over all."""

import pytest

from serving.errors import GroupNotFound
from serving.fleet.join_server import check_hello
from serving.fleet.membership import FleetMembership, JoinRefused
from serving.fleet.models import FleetModel, FleetModels
from serving.link.protocol import PROTOCOL_VERSION
from serving.link.v1 import link_pb2
from serving.routing.snapshot import MemberState
from tests.support.clock import ManualClock
from tests.support.fleets import RecordingHandle, hello, load


def models_of(**pools):
    """Return models by name, each with the given pools."""
    clock = ManualClock(1.0)
    return FleetModels(
        [
            FleetModel(name, FleetMembership(clock=clock, router_id="r"), f"files of {name}", each)
            for name, each in pools.items()
        ]
    )


@pytest.fixture
def models():
    return models_of(a=("default",), b=("fast", "large"))


def join(models, model, group, pool="default"):
    """Let the only rank of a group join, and report itself healthy."""
    handle = RecordingHandle()
    rank_id = models.join(hello(group=group, world=1, model=model, pool=pool), handle)
    models.by_name[model].membership.report(rank_id, handle, load())
    return rank_id, handle


def said(**fields):
    return hello(protocol_version=PROTOCOL_VERSION, **fields)


def test_a_hello_belongs_to_the_model_and_pool_that_it_names(models):
    assert check_hello(said(model="a", pool="default"), models).name == "a"
    assert check_hello(said(model="b", pool="large"), models).name == "b"


@pytest.mark.parametrize("model", ["a", "b"])
def test_a_rank_that_names_no_pool_is_accepted(models, model):
    assert check_hello(said(model=model), models).name == model


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({"model": "c"}, ["'c'", "'a', 'b'", "model.name"], id="model"),
        pytest.param({}, ["''", "'a', 'b'"], id="no model"),
        pytest.param(
            {"model": "b", "pool": "default"},
            ["'default'", "'b'", "'fast', 'large'", "group.pool"],
            id="pool of another model",
        ),
    ],
)
def test_a_hello_of_an_unknown_model_or_pool_is_refused_with_the_names(models, fields, words):
    with pytest.raises(JoinRefused) as caught:
        check_hello(said(**fields), models)
    assert caught.value.code == link_pb2.Refusal.MODEL
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("model", "pool", "named"),
    [
        pytest.param("a", "default", "'b'", id="model"),
        pytest.param("b", "large", "'fast'", id="pool"),
    ],
)
def test_a_group_cannot_be_in_two_pools(models, model, pool, named):
    join(models, "b", "g0", "fast")
    with pytest.raises(JoinRefused, match="must be unique in the fleet") as caught:
        join(models, model, "g0", pool)
    assert named in str(caught.value)
    (group,) = models.snapshot().groups
    assert (group.model, group.pool, group.state) == ("b", "fast", MemberState.READY)


def test_snapshots_cover_all_models_in_the_order_of_the_group_ids(models):
    join(models, "b", "g0", "large")
    join(models, "a", "g1")
    join(models, "b", "g2", "fast")
    snapshot = models.snapshot()
    assert [(group.group_id, group.model, group.pool) for group in snapshot.groups] == [
        ("g0", "b", "large"),
        ("g1", "a", "default"),
        ("g2", "b", "fast"),
    ]
    assert snapshot.router_id == "r"


def test_each_model_is_ready_on_its_own(models):
    changes = []
    unsubscribe = models.subscribe(lambda: changes.append(models.ready))
    assert not models.ready
    rank_id, handle = join(models, "b", "g0", "fast")
    assert models.ready
    assert models.by_name["b"].membership.ready
    assert not models.by_name["a"].membership.ready
    models.by_name["b"].membership.leave(rank_id, handle, "gone")
    assert changes[-1] is False
    assert [group.model for group in models.snapshot().history] == ["b"]
    unsubscribe()
    seen = len(changes)
    join(models, "a", "g1")
    assert len(changes) == seen


def test_an_operation_finds_the_model_of_a_group(models):
    join(models, "b", "g0", "fast")
    assert models.owner("g0") is models.by_name["b"].membership
    with pytest.raises(GroupNotFound, match="joined groups: g0"):
        models.owner("g1")


async def test_the_fingerprint_is_read_once():
    reads = []

    def read():
        reads.append(1)
        return "f"

    model = FleetModel("m", FleetMembership(), read)
    assert [await model.fingerprint(), await model.fingerprint()] == ["f", "f"]
    assert len(reads) == 1

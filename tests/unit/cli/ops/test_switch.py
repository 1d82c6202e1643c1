"""switch on fake routers, over gRPC."""

import threading
from concurrent import futures

import grpc
import pytest

from serving.api.v1 import fleet_pb2, fleet_pb2_grpc
from serving.cli.main import main
from serving.cli.ops import switch
from tests.support.waiting import PATIENCE

READY, JOINING = fleet_pb2.MEMBER_STATE_READY, fleet_pb2.MEMBER_STATE_JOINING
DRAINING, GONE = fleet_pb2.MEMBER_STATE_DRAINING, fleet_pb2.MEMBER_STATE_GONE


class FakeRouter(fleet_pb2_grpc.FleetServiceServicer):
    """A router with some groups; a drain ends when ``drained`` is set."""

    def __init__(self, journal, name, **groups) -> None:
        self.journal, self.name = journal, name
        self.groups = {group: list(what) for group, what in groups.items()}
        self.drained = threading.Event()
        self.drained.set()
        self.finished = True
        self.gone = ""
        """Group that disappears when it is cordoned."""
        self.looks = 0
        self.after = {}
        """Changes of the groups, by number of the GetFleet call."""
        self.during_drain = {}
        """Groups that join during a drain."""

    def GetFleet(self, request, context):  # noqa: N802
        self.looks += 1
        self.groups |= self.after.pop(self.looks, {})
        return fleet_pb2.GetFleetResponse(
            groups=[
                fleet_pb2.Group(
                    group_id=name,
                    app=app,
                    state=state,
                    ranks=[fleet_pb2.Rank(inflight_requests=3)],
                )
                for name, (app, state) in self.groups.items()
            ]
        )

    def _note(self, what, request, context) -> None:
        self.journal.append((what, self.name, request.group_id))
        if request.group_id not in self.groups:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no group {request.group_id}")

    def Cordon(self, request, context):  # noqa: N802
        if request.group_id == self.gone:
            del self.groups[self.gone]
        self._note("cordon", request, context)
        self.groups[request.group_id][1] = DRAINING
        return fleet_pb2.CordonResponse()

    def Uncordon(self, request, context):  # noqa: N802
        self._note("uncordon", request, context)
        self.groups[request.group_id][1] = READY
        return fleet_pb2.UncordonResponse()

    def Drain(self, request, context):  # noqa: N802
        self._note("drain", request, context)
        self.groups |= self.during_drain
        self.during_drain = {}
        self.drained.wait(PATIENCE)
        return fleet_pb2.DrainResponse(finished=self.finished)


@pytest.fixture
def start(monkeypatch):
    """Return a function that starts fake routers and returns the flags for them."""
    monkeypatch.setattr(switch, "POLL_SECONDS", 0.01)
    servers = []

    def serve(*routers) -> list[str]:
        words = []
        for router in routers:
            server = grpc.server(futures.ThreadPoolExecutor(4))
            fleet_pb2_grpc.add_FleetServiceServicer_to_server(router, server)
            words += ["--router", f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"]
            server.start()
            servers.append((server, router))
        return words

    yield serve
    for server, router in servers:
        router.drained.set()
        server.stop(0).wait()


def pair(journal, **groups):
    return [FakeRouter(journal, name, **groups) for name in "ab"]


def test_all_routers_are_cordoned_before_any_is_drained(start, capsys):
    journal = []
    routers = pair(journal, g0=("blue", READY), g1=("green", READY), g2=("old", GONE))
    assert main(["switch", "--to", "green", *start(*routers)]) == 0
    assert journal[:2] == [("cordon", "a", "g0"), ("cordon", "b", "g0")]
    assert sorted(journal[2:]) == [("drain", "a", "g0"), ("drain", "b", "g0")]
    assert "green has all the traffic" in capsys.readouterr().out


def test_only_what_is_named_gives_its_traffic_away(start):
    journal = []
    router = FakeRouter(journal, "a", g0=("blue", READY), g1=("green", READY), g2=("other", READY))
    assert main(["switch", "--from", "blue", "--to", "green", *start(router)]) == 0
    assert {group for _, _, group in journal} == {"g0"}


@pytest.mark.parametrize(
    ("name", "app", "expected"),
    [
        ("green", "green", True),
        ("r1-raycluster-x", "r1-raycluster-x/r1-h200", True),
        ("r1-raycluster-x/r1-h200", "r1-raycluster-x/r1-h200", True),
        ("r1-raycluster-x", "r1-raycluster-xy/r1-h200", False),
        ("r1-raycluster-x/r1", "r1-raycluster-x/r1-h200", False),
        ("green", "", False),
    ],
)
def test_an_app_or_the_cluster_before_it(name, app, expected):
    assert switch.is_of_app(app, name) is expected


def test_as_many_groups_are_waited_for_as_are_replaced_at_every_router(start, capsys):
    journal = []
    first, second = pair(
        journal,
        g0=("blue", READY),
        g1=("blue", READY),
        g2=("green", READY),
        g3=("green", JOINING),
    )
    first.groups["g3"][1] = READY
    second.after = {3: {"g3": ["green", READY]}}
    assert main(["switch", "--to", "green", *start(first, second)]) == 0
    assert "has 1 of 2 ready groups of green" in capsys.readouterr().out
    assert second.looks > 3
    assert sorted(group for what, _, group in journal if what == "drain") == [
        "g0",
        "g0",
        "g1",
        "g1",
    ]


def test_fewer_are_enough_if_that_is_said(start):
    router = FakeRouter([], "a", g0=("b", READY), g1=("b", READY), g2=("green", READY))
    assert main(["switch", "--to", "green", "--groups", "1", *start(router)]) == 0


def test_nothing_is_changed_while_they_are_missing(start, capsys):
    journal = []
    where = start(*pair(journal, g0=("blue", READY), g1=("green", JOINING)))
    assert main(["switch", "--to", "green", "--wait", "0", *where]) == 1
    assert journal == []
    err = capsys.readouterr().err
    assert "nothing was switched" in err
    assert "has 0 of 1 ready group of green" in err


def test_groups_that_an_earlier_switch_cordoned_get_work_again(start):
    journal = []
    router = FakeRouter(journal, "a", g0=("blue", READY), g1=("green", DRAINING))
    assert main(["switch", "--to", "green", *start(router)]) == 0
    assert journal == [("uncordon", "a", "g1"), ("cordon", "a", "g0"), ("drain", "a", "g0")]


def test_the_old_ones_get_it_back_if_the_new_ones_fail(start, capsys):
    journal = []
    first, second = pair(journal, g0=("blue", READY), g1=("green", READY))
    second.after = {4: {"g1": ["green", fleet_pb2.MEMBER_STATE_FENCED]}}
    second.drained.clear()
    assert main(["switch", "--to", "green", *start(first, second)]) == 1
    assert "the traffic was moved back" in capsys.readouterr().err
    assert [entry for entry in journal if entry[0] == "uncordon"] == [
        ("uncordon", "a", "g0"),
        ("uncordon", "b", "g0"),
    ]


def test_an_old_group_that_comes_back_meanwhile_is_drained_too(start):
    journal = []
    router = FakeRouter(journal, "a", g0=("blue", READY), g1=("green", READY))
    router.during_drain = {"g2": ["blue", JOINING]}
    assert main(["switch", "--to", "green", *start(router)]) == 0
    assert journal == [
        ("cordon", "a", "g0"),
        ("drain", "a", "g0"),
        ("cordon", "a", "g2"),
        ("drain", "a", "g2"),
    ]


def test_a_group_that_goes_by_itself_is_no_error(start):
    journal = []
    router = FakeRouter(journal, "a", g0=("blue", READY), g1=("green", READY))
    router.gone = "g0"
    assert main(["switch", "--to", "green", *start(router)]) == 0
    assert journal == [("cordon", "a", "g0")]


def test_a_drain_that_runs_out_of_time_says_so(start, capsys):
    first, second = pair([], g0=("blue", READY), g1=("green", READY))
    second.finished = False
    assert main(["switch", "--to", "green", "--timeout", "5", *start(first, second)]) == 1
    assert "the remaining requests are resumed in green" in capsys.readouterr().out


def test_a_switch_that_was_made_already_is_no_error(start, capsys):
    journal = []
    assert (
        main(["switch", "--to", "green", *start(FakeRouter(journal, "a", g1=("green", READY)))])
        == 0
    )
    assert journal == []
    assert "no app other than green is serving" in capsys.readouterr().out


def test_from_and_to_must_differ(capsys):
    assert main(["switch", "--from", "green", "--to", "green", "--router", "127.0.0.1:1"]) == 1
    assert "name the same app" in capsys.readouterr().err

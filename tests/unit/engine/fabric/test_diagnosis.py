"""Diagnosis: each kind of fault has a different reason."""

import pytest

from serving.engine.fabric.diagnosis import (
    Evidence,
    Failure,
    Loss,
    Step,
    communication_failed,
    diagnose,
    position,
)

NAMES = {0: "a, 10.0.0.1", 1: "b, 10.0.0.2", 2: "c, 10.0.0.3"}


def silent(who):
    return Loss("silent", f"nothing received from 10.0.0.{who + 1} for 7.5 s")


def seen(**parts):
    return Evidence(NAMES, **parts)


def test_a_peer_that_no_other_hears():
    text = diagnose(seen(losses={(0, 1): silent(1), (2, 1): silent(1)}))
    assert text == (
        "peer 1 (b, 10.0.0.2) stopped responding: nothing received from 10.0.0.2 for 7.5 s "
        "(also lost by peer 2): its cable or network is cut, or its node hangs"
    )


def test_a_peer_that_only_the_leader_does_not_hear():
    text = diagnose(seen(losses={(0, 1): silent(1)}))
    assert "its heartbeats still reach peer 2: the network between it and peer 0 is cut" in text


@pytest.mark.parametrize("both", [True, False])
def test_two_peers_that_do_not_hear_each_other(both):
    losses = {(1, 2): silent(2)} | ({(2, 1): silent(1)} if both else {})
    text = diagnose(seen(losses=losses))
    assert text.startswith("peer 1 (b, 10.0.0.2) and peer 2 (c, 10.0.0.3) cannot reach each other")
    assert text.count("cannot reach") == 1
    assert "but both reach peer 0" in text


def test_a_leader_whose_own_cable_is_cut():
    text = diagnose(seen(losses={(0, 1): silent(1), (0, 2): silent(2)}))
    assert text.startswith("peer 0 (a, 10.0.0.1) lost all other peers at once")


def test_a_peer_that_lost_the_leader_one_way():
    assert diagnose(seen(losses={(1, 0): silent(0)})).startswith(
        "peer 1 (b, 10.0.0.2) receives nothing from peer 0"
    )


def test_a_peer_that_ended_and_one_that_was_stopped():
    closed = diagnose(seen(losses={(0, 1): Loss("closed", "its connection was closed")}))
    assert "peer 1 (b, 10.0.0.2) exited before the check finished" in closed
    left = diagnose(seen(losses={(0, 1): Loss("left", "it is stopping")}))
    assert left == "peer 1 (b, 10.0.0.2) disconnected: it is stopping"


def test_wrong_data_come_before_everything():
    failures = [
        Failure(1, 0, "group", "Connection reset by peer"),
        Failure(2, 3, "contents", "1 of 9 words from worker 0 of peer 1"),
    ]
    text = diagnose(seen(failures=failures, losses={(0, 1): silent(1)}))
    assert text == (
        "wrong data at worker 3 of peer 2 (c, 10.0.0.3): 1 of 9 words from worker 0 of peer 1"
    )


def test_what_a_peer_says_of_itself_comes_before_losses():
    failures = [Failure(1, None, "peer", "it has no GPU")]
    text = diagnose(seen(failures=failures, losses={(0, 2): silent(2)}))
    assert text == "peer 1 (b, 10.0.0.2): it has no GPU"


def test_the_process_that_ended_is_the_cause_of_lost_connections():
    failures = [
        Failure(0, 0, "group", "Connection reset by peer"),
        Failure(1, 0, "exit", "its process exited (killed by signal 9)"),
    ]
    steps = {(1, 0): Step(5, "all-to-all, round 3 of 5", None)}
    evidence = seen(failures=failures, steps=steps)
    assert communication_failed(evidence)
    assert diagnose(evidence) == (
        "worker 0 of peer 1 (b, 10.0.0.2) (all-to-all, round 3 of 5): its process exited (killed "
        "by signal 9)"
    )


def test_a_lost_peer_explains_failed_connections():
    failures = [Failure(0, 0, "group", "Connection reset by peer")]
    text = diagnose(seen(failures=failures, losses={(0, 2): silent(2)}))
    assert text.startswith("peer 2 (c, 10.0.0.3) stopped responding")


def test_two_peers_whose_nics_move_nothing():
    steps = {
        (0, 0): Step(4, "exchange with peer 2", 2),
        (1, 0): Step(3, "exchange with peer 2", 2),
        (2, 0): Step(3, "exchange with peer 1", 1),
    }
    text = diagnose(seen(steps=steps, stalled=10.2, backend="nccl"))
    assert text.startswith(
        "peer 1 (b, 10.0.0.2) and peer 2 (c, 10.0.0.3) exchange no data: stalled for "
        "10 s, although heartbeats over TCP arrive from every pod"
    )
    assert "NCCL_IB_HCA" in text


def test_a_round_that_does_not_end():
    steps = {(0, 0): Step(8, "all-to-all, round 4 of 5", None)}
    steps |= {(2, 0): Step(7, "all-to-all, round 3 of 5", None)}
    text = diagnose(seen(steps=steps, stalled=10))
    assert text.startswith("peer 2 (c, 10.0.0.3) made no progress in: all-to-all, round 3 of 5")
    assert "NCCL" not in text
    assert position(seen(steps=steps)).endswith("peer 2 (c, 10.0.0.3) in: all-to-all, round 3 of 5")


def test_workers_that_never_began():
    assert diagnose(seen(stalled=10)) == "no worker started within 10 s"


def test_a_connection_that_failed_while_all_are_heard():
    failure = Failure(0, 0, "group", "Read error: Connection timed out")
    steps = {(0, 0): Step(2, "exchange with peer 2", 2)}
    text = diagnose(seen(failures=[failure], steps=steps))
    assert text.startswith(
        "worker 0 of peer 0 (a, 10.0.0.1) (exchange with peer 2): Read error: Connection timed out"
    )
    assert "compare the MTUs" in text

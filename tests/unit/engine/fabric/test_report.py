"""The table of a check that passed."""

from serving.engine.fabric.facts import Facts
from serving.engine.fabric.report import Findings, Measured, table


def findings(network="", devices=()):
    facts = {
        index: Facts(index, f"pod-{index}", f"node-{index}", devices=devices, memlock="unlimited")
        for index in (0, 1)
    }
    measured = {
        (peer, worker): Measured(
            rates={1 - peer: 10e9 if peer else 20e9},
            seconds=0.5 if (peer, worker) == (1, 1) else 0.1,
            checked=2**20,
            network=network,
            deep_ep="started",
        )
        for peer in (0, 1)
        for worker in (0, 1)
    }
    return Findings(
        backend="nccl",
        workers=2,
        size=2**26,
        rounds=5,
        facts=facts,
        addresses={0: "10.0.0.1", 1: "10.0.0.2"},
        measured=measured,
    )


def test_rates():
    one = findings()
    # Two workers; the slower of both directions.
    assert one.pair_rates() == {(0, 1): 20e9}
    middle, slowest = one.all_to_all_rate()
    assert middle == 2**26 * 3 / 4 / 0.1
    assert slowest == 2**26 * 3 / 4 / 0.5


def test_the_table():
    text = table(findings("IB", ("mlx5_0:1 InfiniBand 400 Gbit/s ACTIVE",)))
    for part in (
        "node-1",
        "mlx5_0:1 InfiniBand 400 Gbit/s ACTIVE",
        "0-1     20.000",
        "4 workers (2 per peer), nccl over IB",
        "contents: 4 MiB compared",
        "DeepEP over NVSHMEM: started",
    ):
        assert part in text
    assert "warning" not in text


def test_nccl_over_sockets_in_spite_of_devices_is_a_warning():
    assert "warning: NCCL used TCP sockets on peers 0, 1" in table(
        findings("Socket", ("mlx5_0:1",))
    )
    assert "warning" not in table(findings("Socket"))

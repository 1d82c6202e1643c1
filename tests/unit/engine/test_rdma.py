"""RDMA devices: read from a copy of the kernel's tree, and named exactly for NCCL and NVSHMEM."""

from pathlib import Path

import pytest

from serving.engine.rdma import (
    CHOICE,
    NCCL,
    NVSHMEM,
    Host,
    fastest,
    hca_environment,
    ports,
    usable,
)
from serving.errors import SettingsError


class Machine:
    """The /sys and /dev of a machine, in a folder."""

    def __init__(self, root: Path) -> None:
        self.host = Host(root / "sys", root / "dev")
        self.count = 0
        for folder in ("sys/class/infiniband", "sys/class/infiniband_verbs", "dev"):
            (root / folder).mkdir(parents=True)

    def device(self, name, *, state="ACTIVE", layer="InfiniBand", rate=400, given=True, number=1):
        # As in the kernel's tree, where the class holds links to the devices.
        real = self.host.sys / "devices" / name
        folder = real / "ports" / str(number)
        folder.mkdir(parents=True)
        link = self.host.sys / "class/infiniband" / name
        if not link.is_symlink():
            link.symlink_to(real)
        states = {"DOWN": 1, "INIT": 2, "ARMED": 3, "ACTIVE": 4}
        (folder / "state").write_text(f"{states[state]}: {state}\n")
        (folder / "link_layer").write_text(f"{layer}\n")
        (folder / "rate").write_text(f"{rate} Gb/sec (4X NDR)\n")
        verbs = f"uverbs{self.count}"
        self.count += 1
        (self.host.sys / "class/infiniband_verbs" / verbs).mkdir()
        (self.host.sys / "class/infiniband_verbs" / verbs / "ibdev").write_text(f"{name}\n")
        if given:
            (self.host.dev / "infiniband").mkdir(exist_ok=True)
            (self.host.dev / "infiniband" / verbs).touch()
        return self


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def hgx(machine):
    """Eight compute ports, two slower ones for storage, one that is down."""
    for number in range(8):
        machine.device(f"mlx5_{number}")
    machine.device("mlx5_8", layer="Ethernet", rate=200).device("mlx5_9", rate=100)
    return machine.device("mlx5_10", state="DOWN")


ALL_EIGHT = ",".join(f"mlx5_{number}:1" for number in range(8))


def test_a_machine_without_devices(machine):
    assert ports(machine.host) == usable(machine.host) == fastest(()) == ()
    assert hca_environment({}, machine.host) == {}
    assert ports(Host(Path("/nonexistent"), Path("/nonexistent"))) == ()


def test_ports_in_the_order_of_their_numbers(machine):
    found = ports(hgx(machine).host)
    assert [port.device for port in found] == [f"mlx5_{number}" for number in range(11)]
    assert str(found[0]) == "mlx5_0:1 InfiniBand 400 Gbit/s ACTIVE"
    assert (found[10].active, found[8].layer, found[9].gigabits) == (False, "Ethernet", 100.0)


def test_auto_takes_the_fastest_active_ports_and_names_them_exactly(machine):
    assert hca_environment({CHOICE: "auto"}, hgx(machine).host) == {
        NVSHMEM: ALL_EIGHT,
        NCCL: f"={ALL_EIGHT}",
    }


def test_auto_takes_only_what_the_pod_was_given(machine):
    machine.device("mlx5_0").device("mlx5_1", given=False)
    assert hca_environment({CHOICE: "AUTO"}, machine.host)[NVSHMEM] == "mlx5_0:1"


def test_auto_among_prefixes(machine):
    machine.device("mlx5_0").device("rdmap0", layer="Ethernet", rate=200)
    found = hca_environment({CHOICE: "auto:rdma, efa"}, machine.host)
    assert found == {NVSHMEM: "rdmap0:1", NCCL: "=rdmap0:1"}
    with pytest.raises(SettingsError, match=r"among efa: usable ports: mlx5_0:1 InfiniBand 400"):
        hca_environment({CHOICE: "auto:efa"}, machine.host)


def test_roce_where_there_is_no_infiniband(machine):
    machine.device("mlx5_bond_0", layer="Ethernet", rate=400).device("mlx5_2", rate=100)
    assert hca_environment({CHOICE: "auto"}, machine.host)[NVSHMEM] == "mlx5_bond_0:1"


def test_a_device_with_two_ports(machine):
    machine.device("mlx4_0").device("mlx4_0", number=2)
    assert hca_environment({CHOICE: "mlx4_0"}, machine.host)[NVSHMEM] == "mlx4_0:1,mlx4_0:2"
    assert hca_environment({CHOICE: "mlx4_0:2"}, machine.host)[NVSHMEM] == "mlx4_0:2"


def test_a_list_names_both(machine):
    found = hca_environment({CHOICE: "mlx5_1, mlx5_0:1,mlx5_1"}, hgx(machine).host)
    assert found == {NVSHMEM: "mlx5_1:1,mlx5_0:1", NCCL: "=mlx5_1:1,mlx5_0:1"}


def test_what_is_set_already_wins_and_is_checked(machine):
    hgx(machine)
    set_already = {NVSHMEM: "mlx5_3", CHOICE: "auto"}
    assert hca_environment(set_already, machine.host) == {NCCL: f"={ALL_EIGHT}"}
    assert hca_environment({NVSHMEM: "mlx5_0:1,mlx5_1", NCCL: "=mlx5_0"}, machine.host) == {}
    assert hca_environment({NVSHMEM: "^mlx5_9", NCCL: "^mlx5_9"}, machine.host) == {}
    # NCCL takes prefixes unless the list begins with =.
    assert hca_environment({NCCL: "mlx5"}, machine.host) == {}


def test_a_prefix_in_nvshmems_list_is_replaced_by_the_names_it_means(machine):
    """NVSHMEM compares whole names, unlike NCCL."""
    machine.device("mlx5_0").device("mlx5_1", given=False).device("mlx5_10").device("rdmap0")
    for prefix in ("mlx5", "mlx5_"):
        found = hca_environment({NVSHMEM: prefix, NCCL: "mlx5"}, machine.host)
        assert found == {NVSHMEM: "mlx5_0:1,mlx5_10:1"}
    found = hca_environment({NVSHMEM: "rdmap0,mlx5:1", CHOICE: "auto"}, machine.host)
    assert found[NVSHMEM] == "rdmap0:1,mlx5_0:1,mlx5_10:1"
    # An existing device that is not usable is not a prefix, and a number not part of another.
    for name in ("mlx5_1", "rdmap00"):
        with pytest.raises(SettingsError):
            hca_environment({NVSHMEM: name}, machine.host)
    machine.device("hfi1_20")
    with pytest.raises(SettingsError, match="device hfi1_2 does not exist"):
        hca_environment({NVSHMEM: "hfi1_2"}, machine.host)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({NVSHMEM: "ib"}, r"NVSHMEM_HCA_LIST=ib: device ib does not exist; usable ports"),
        ({NVSHMEM: "mlx5:2"}, r"device mlx5:2 does not exist"),
        (
            {NVSHMEM: "mlx5_0,mlx5_77"},
            r"device mlx5_77 does not exist; usable ports: mlx5_0:1 InfiniBand",
        ),
        ({NVSHMEM: "mlx5_0:2"}, r"device mlx5_0:2 does not exist"),
        ({NVSHMEM: "mlx5_10"}, r"port mlx5_10:1 is DOWN, not ACTIVE"),
        ({NVSHMEM: ","}, r"no device given"),
        ({NCCL: "=mlx5"}, r"NCCL_IB_HCA==mlx5: device mlx5 does not exist; usable ports"),
        ({NCCL: "ibp"}, r"device ibp does not exist; usable ports"),
        ({CHOICE: "mlx5_0,eth0"}, r"MOE_SERVING_RDMA_HCA=mlx5_0,eth0: device eth0 does not exist"),
    ],
)
def test_names_that_are_not_there_are_refused_with_what_is(machine, environment, says):
    with pytest.raises(SettingsError, match=says):
        hca_environment(environment, hgx(machine).host)


def test_why_nothing_is_usable(machine):
    with pytest.raises(SettingsError, match="has no RDMA device"):
        hca_environment({CHOICE: "auto"}, machine.host)
    machine.device("mlx5_0", state="INIT")
    with pytest.raises(SettingsError, match=r"no RDMA port is active: mlx5_0:1 .* INIT"):
        hca_environment({CHOICE: "auto"}, machine.host)
    machine.device("mlx5_1", given=False)
    with pytest.raises(SettingsError, match=r"must request the RDMA resource"):
        hca_environment({CHOICE: "auto"}, Host(machine.host.sys, Path("/nonexistent")))
    with pytest.raises(SettingsError, match="this pod has no access to mlx5_1"):
        hca_environment({CHOICE: "mlx5_1"}, machine.host)

"""The checks of a rank before it reads weights."""

import json
import os
import subprocess
import sys
import types

import pytest

from serving.engine import rank as rank_module
from serving.engine.ray import rank as ray_rank
from serving.engine.ray.rendezvous import GangMember
from serving.engine.rdma import CHOICE, NCCL, NVSHMEM, Host
from serving.engine.start_checks import fabric_environment
from serving.errors import SettingsError
from serving.settings import Settings
from tests.support.waiting import PATIENCE

LOW = 2**23


def settings(kind=None, *, ranks=2, platform="gpu", name="all2all_backend", engine="vllm"):
    args = {} if kind is None else {name: kind}
    return Settings(
        platform=platform,
        engine={"kind": engine, "args": args},
        group={"data_parallel": ranks},
    )


def here(name):
    return types.ModuleType(name)


def missing(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def bare(tmp_path):
    return Host(tmp_path / "sys", tmp_path / "dev", tmp_path / "proc")


@pytest.fixture
def wired(bare):
    port = bare.sys / "class/infiniband/mlx5_0/ports/1"
    port.mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    (port / "link_layer").write_text("InfiniBand\n")
    (port / "rate").write_text("400 Gb/sec\n")
    verbs = bare.sys / "class/infiniband_verbs/uverbs0"
    verbs.mkdir(parents=True)
    (verbs / "ibdev").write_text("mlx5_0\n")
    (bare.dev / "infiniband").mkdir(parents=True)
    (bare.dev / "infiniband/uverbs0").touch()
    return bare


def check(given, host, *, environment=None, memlock=None, modules=here):
    return fabric_environment(
        given, environment or {}, host=host, memlock=lambda: memlock, import_module=modules
    )


@pytest.mark.parametrize("name", ["all2all_backend", "all2all-backend"])
@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_an_image_without_the_package_is_refused(bare, name, platform):
    with pytest.raises(SettingsError, match=r"deepep_low_latency needs DeepEP .* not installed"):
        check(settings("deepep_low_latency", name=name, platform=platform), bare, modules=missing)


def test_what_exchanges_nothing_needs_no_package(bare):
    for one in (
        settings("deepep_low_latency", ranks=1),
        settings("allgather_reducescatter"),
        settings(),
        settings("deepep_low_latency", engine="fake"),
    ):
        assert check(one, bare, modules=missing) == {}


def test_devices_are_named_exactly(wired):
    found = check(settings("deepep_low_latency"), wired, environment={CHOICE: "auto"})
    assert found == {NVSHMEM: "mlx5_0:1", NCCL: "=mlx5_0:1"}
    assert check(settings(), wired, environment={NVSHMEM: "mlx5"}) == {NVSHMEM: "mlx5_0:1"}
    with pytest.raises(SettingsError, match=r"NVSHMEM_HCA_LIST=ibp: .* usable ports: mlx5_0:1"):
        check(settings(), wired, environment={NVSHMEM: "ibp"})


def test_low_memlock_is_refused_where_rdma_is_a_must(wired, caplog):
    with pytest.raises(SettingsError, match=r"deepep_low_latency uses RDMA, .* 8 MiB"):
        check(settings("deepep_low_latency"), wired, memlock=LOW)
    assert check(settings("allgather_reducescatter"), wired, memlock=LOW) == {}
    assert "LimitMEMLOCK" in caplog.text
    caplog.clear()
    assert check(settings("deepep_low_latency"), wired, memlock=None) == {}
    assert not caplog.records


def test_memlock_does_not_matter_without_devices(bare, caplog):
    assert check(settings("deepep_low_latency"), bare, memlock=LOW) == {}
    assert not caplog.records


class Store:
    """Keeps what a rank writes."""

    def __init__(self):
        self.values = {}

    def put(self, key, value):
        self.values[key] = value

    def get(self, key):
        return self.values.get(key)

    def keys(self, prefix):
        return [key for key in self.values if key.startswith(prefix)]

    def delete(self, key):
        self.values.pop(key, None)


async def test_a_rank_checks_before_it_meets_its_group(monkeypatch):
    """The start fails immediately instead of after loading, and the board has the reason."""
    store = Store()
    monkeypatch.setattr(ray_rank, "GcsStore", lambda: store)
    monkeypatch.setattr(
        rank_module, "make_engine", lambda *_: pytest.fail("an engine was made all the same")
    )
    member = GangMember("app", "gang", 0, 2, ("a", "b"))
    rank = ray_rank.GangRank(settings("deepep_low_latency", platform="cpu"), member, "127.0.0.1")
    with pytest.raises(SettingsError, match="needs DeepEP"):
        await rank.start()
    (report,) = [json.loads(value) for key, value in store.values.items() if "stage/" in key]
    assert report["error_type"] == "SettingsError"
    assert "--build-arg DEEPEP=build" in report["error"]


def test_a_local_rank_checks_too(tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text(
        "engine: {args: {all2all_backend: deepep_high_throughput}}\ngroup: {data_parallel: 2}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "serving.engine.local_rank", "--config", str(config)],
        env=os.environ, capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 1
    assert "deepep_high_throughput needs DeepEP" in done.stderr


def test_it_brings_nothing_heavy():
    """On CPU the start does not import torch for it."""
    code = (
        "import sys; from serving.engine.start_checks import fabric_environment\n"
        "from serving.settings import Settings\n"
        "fabric_environment(Settings(group={'data_parallel': 2}))\n"
        "assert not {'torch', 'vllm', 'ray'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)

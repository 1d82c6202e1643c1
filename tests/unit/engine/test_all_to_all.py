"""All-to-all kinds: all of vLLM's are known, and a missing package is an error before loading."""

import types
from typing import get_args

import pytest
from vllm.config.parallel import All2AllBackend

from serving.engine.all_to_all import DEFAULT, KINDS, require
from serving.errors import SettingsError


def nothing(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_every_kind_of_this_vllm_is_known():
    assert set(KINDS) == set(get_args(All2AllBackend))


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.module])
def test_kinds_that_take_nothing(name):
    assert require(name, nothing) == KINDS[name]


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.module])
def test_a_missing_package_is_refused_with_the_remedy(name):
    with pytest.raises(SettingsError) as caught:
        require(name, nothing)
    text = str(caught.value)
    assert text.startswith(f"engine.args.all2all_backend: {name} needs {KINDS[name].package}")
    assert "not installed" in text
    assert "deploy/images/engine-gpu.Dockerfile" in text
    assert DEFAULT in text
    assert ("--build-arg DEEPEP=build" in text) == (KINDS[name].module == "deep_ep")


def test_a_package_that_does_not_load_is_told_apart():
    def broken(name):
        raise ImportError("libnvshmem_host.so.3: cannot open shared object file\nmore")

    with pytest.raises(SettingsError, match=r"import failed: ImportError: libnvshmem_host.so.3"):
        require("deepep_low_latency", broken)

    def lacks(name):
        raise ModuleNotFoundError("No module named 'nvshmem'", name="nvshmem")

    with pytest.raises(SettingsError, match="import failed: No module named 'nvshmem'"):
        require("deepep_high_throughput", lacks)


def test_a_package_that_is_too_old():
    old = types.ModuleType("deep_ep")
    with pytest.raises(SettingsError, match="too old: it lacks ElasticBuffer"):
        require("deepep_v2", lambda _: old)
    assert require("deepep_low_latency", lambda _: old) == KINDS["deepep_low_latency"]


def test_kinds_of_another_vllm_are_left_to_it():
    assert require("something_new", nothing) is None


def test_in_earnest_the_package_is_missing_here():
    with pytest.raises(SettingsError, match="deep_ep"):
        require("deepep_low_latency")

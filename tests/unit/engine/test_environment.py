"""The environment of a rank: quiet, offline, and on the right network interface."""

import os

import pytest

from serving.engine.environment import (
    apply_environment,
    engine_environment,
    interface_of,
    network_environment,
)
from serving.errors import EngineError
from serving.settings import EngineSettings, Platform, Settings, TelemetrySettings


@pytest.mark.parametrize(
    ("level", "want"),
    [("info", "WARNING"), ("debug", "DEBUG"), ("error", "ERROR")],
)
def test_vllm_is_quiet_unless_asked(level, want):
    settings = Settings(telemetry=TelemetrySettings(log_level=level))
    assert engine_environment(settings)["VLLM_LOGGING_LEVEL"] == want


def test_the_environment_of_a_rank():
    settings = Settings(engine=EngineSettings(threads_per_rank=3))
    environment = engine_environment(settings)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["VLLM_HOST_IP"] == "127.0.0.1"
    assert environment["GLOO_SOCKET_IFNAME"] == "lo"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert "OMP_NUM_THREADS" not in engine_environment(Settings(platform=Platform.GPU))
    elsewhere = engine_environment(settings, host="192.0.2.1")
    assert elsewhere["VLLM_HOST_IP"] == "192.0.2.1"
    assert "GLOO_SOCKET_IFNAME" not in elsewhere


def test_what_a_user_exported_wins_and_preloads_add_up(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("LD_PRELOAD", "/lib/a.so /lib/b.so")
    monkeypatch.delenv("MOE_TEST_NEW", raising=False)
    apply_environment(
        {"OMP_NUM_THREADS": "1", "LD_PRELOAD": "/lib/b.so:/lib/c.so", "MOE_TEST_NEW": "x"},
    )
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert os.environ["LD_PRELOAD"] == "/lib/a.so:/lib/b.so:/lib/c.so"
    assert os.environ.pop("MOE_TEST_NEW") == "x"


def test_loopback_has_an_interface() -> None:
    interface = interface_of("127.0.0.1")
    assert network_environment("127.0.0.1") == {
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": f"={interface}",
    }


def test_a_foreign_address_is_an_error_that_names_it() -> None:
    with pytest.raises(EngineError, match=r"192\.0\.2\.77"):
        interface_of("192.0.2.77")

"""The application by import path: its arguments, its errors, the resulting deployment."""

from typing import Any

import pytest

from serving.engine.serve_app import build
from serving.errors import SettingsError


def test_the_settings_reach_the_deployment() -> None:
    app = build({"settings": {"group": {"data_parallel": 3}, "ray": {"app_name": "a"}}})
    deployment = app._bound_deployment
    assert deployment.name == "ranks"
    assert deployment._deployment_config.gang_scheduling_config.gang_size == 3
    name, settings = deployment.init_args
    assert name == "a"
    assert settings["group"]["data_parallel"] == 3


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_SERVING_GROUP__DATA_PARALLEL", "5")
    app = build({"settings": {"group": {"data_parallel": 3}}})
    assert app._bound_deployment.init_args[1]["group"]["data_parallel"] == 3


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        pytest.param({}, "settings: Field required", id="none"),
        pytest.param({"settings": {}, "groups": 2}, "groups: Extra inputs", id="unknown"),
        pytest.param({"settings": {"grop": {}}}, "grop: Extra inputs", id="no-setting"),
        pytest.param(
            {"settings": {"models": [{"name": "a", "path": "/"}, {"name": "b", "path": "/"}]}},
            "several pools are configured",
            id="several-pools",
        ),
    ],
)
def test_refusals(arguments: dict[str, Any], part: str) -> None:
    with pytest.raises(SettingsError, match=part):
        build(arguments)

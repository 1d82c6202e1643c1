"""A child process gets exactly the same settings."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cli.local.handover import environment_without_settings, write_settings
from serving.settings import Settings, load_settings


@given(
    count=st.integers(0, 5),
    model_len=st.none() | st.integers(16, 9999),
    args=st.dictionaries(st.text("abc", min_size=1), st.booleans() | st.integers() | st.text()),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    model_len: int | None,
    args: dict[str, object],
) -> None:
    settings = Settings(
        group={"count": count},
        engine={"max_model_len": model_len, "args": args},
        link={"routers": ["a:1", "b:2"]},
    )
    path = tmp_path_factory.mktemp("s") / "settings.yaml"
    write_settings(settings, path)
    assert load_settings(path) == settings


def test_only_settings_leave_the_environment() -> None:
    kept = {
        "PATH": "/bin",
        "MOE_SERVING_STATE_DIR": "/s",
        "MOE_SERVING_ENGINEER": "me",
        "RAY_ADDRESS": "x",
    }
    settings = {
        "MOE_SERVING_PLATFORM": "gpu",
        "MOE_SERVING_GROUP": "{}",
        "MOE_SERVING_GROUP__COUNT": "3",
        "moe_serving_engine__args__x": "1",
    }
    assert environment_without_settings(kept | settings) == kept


def test_the_receiver_is_not_overruled_by_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_SERVING_GROUP__COUNT", "3")
    path = tmp_path / "settings.yaml"
    write_settings(load_settings(None, {"group": {"count": 5}}), path)
    env = environment_without_settings()
    assert "MOE_SERVING_GROUP__COUNT" not in env
    monkeypatch.delenv("MOE_SERVING_GROUP__COUNT")
    assert load_settings(path).group.count == 5

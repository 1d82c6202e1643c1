"""Settings from flags."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cli.options import settings_from
from serving.errors import SettingsError
from serving.flags.messages import FlagError
from serving.settings import BUNDLED_MODEL, Settings


@pytest.mark.parametrize(
    ("flags", "read", "expected"),
    [
        pytest.param({"groups": 3}, lambda s: s.group.count, 3, id="groups"),
        pytest.param({"groups": 0}, lambda s: s.group.count, 0, id="no-groups"),
        pytest.param({"ranks": 4}, lambda s: s.group.data_parallel, 4, id="ranks"),
        pytest.param({"port": 81}, lambda s: s.router.rest_port, 81, id="port"),
        pytest.param({"grpc_port": 82}, lambda s: s.router.grpc_port, 82, id="grpc-port"),
        pytest.param({"speculative": "mtp"}, lambda s: s.engine.speculative, "mtp", id="mtp"),
        pytest.param({"model": "/m"}, lambda s: s.model.path, "/m", id="model"),
        pytest.param({"ranks": None}, lambda s: s.group.data_parallel, 2, id="not-given"),
    ],
)
def test_shortcuts(flags, read, expected):
    assert read(settings_from(**flags)) == expected


@pytest.mark.parametrize(
    ("texts", "path", "name"),
    [
        pytest.param(["/m"], "/m", "pocket-r1", id="path-keeps-the-name"),
        pytest.param(["pocket-r1"], str(BUNDLED_MODEL), "pocket-r1", id="bundled"),
        pytest.param(["mine=/m"], "/m", "mine", id="name"),
        pytest.param(["mine=pocket-r1"], str(BUNDLED_MODEL), "mine", id="bundled-renamed"),
        pytest.param(["nothing"], "nothing", "pocket-r1", id="hub-id"),
    ],
)
def test_one_model(texts, path, name):
    settings = settings_from(models=texts)
    assert (settings.model.path, settings.model.name, settings.models) == (path, name, ())


def test_several_models_share_the_flags_of_group_and_engine():
    settings = settings_from(models=["pocket-r1", "b=/x/y", "/some/folder/"], ranks=1)
    assert [(model.name, model.path) for model in settings.models] == [
        ("pocket-r1", str(BUNDLED_MODEL)),
        ("b", "/x/y"),
        ("folder", "/some/folder/"),
    ]
    assert {model.pools[0].group.data_parallel for model in settings.models} == {1}


def test_the_same_model_twice_is_refused_with_its_place():
    with pytest.raises(SettingsError, match=r"models\[1\].name: 'pocket-r1' is already"):
        settings_from(models=["pocket-r1", "pocket-r1"])


def test_a_join_port_is_dialled_by_the_local_ranks():
    settings = settings_from(join_port=6000)
    assert settings.router.join_port == 6000
    assert settings.link.routers == ("127.0.0.1:6000",)


def test_routers_that_were_named_win_over_the_join_port():
    settings = settings_from(join_port=6000, sets=["link.routers=[a:1, b:2]"])
    assert settings.link.routers == ("a:1", "b:2")


@pytest.mark.parametrize(
    ("item", "read", "expected"),
    [
        pytest.param("group.count=5", lambda s: s.group.count, 5, id="number"),
        pytest.param("engine.dtype=bfloat16", lambda s: s.engine.dtype, "bfloat16", id="text"),
        pytest.param("ray.address=null", lambda s: s.ray.address, None, id="null"),
        pytest.param("router.tool_parser=~", lambda s: s.router.tool_parser, None, id="tilde"),
        pytest.param(
            "engine.args.enable_prefix_caching=true",
            lambda s: s.engine.args,
            {"enable_prefix_caching": True},
            id="engine-argument",
        ),
        pytest.param("model.name=a=b", lambda s: s.model.name, "a=b", id="equals-in-value"),
    ],
)
def test_set(item, read, expected):
    assert read(settings_from(sets=[item])) == expected


def test_set_wins_over_a_shortcut_and_the_later_over_the_earlier():
    settings = settings_from(groups=1, sets=["group.count=2", "group.count=3"])
    assert settings.group.count == 3


def test_the_file_is_read(tmp_path: Path):
    file = tmp_path / "s.yaml"
    file.write_text("group: {count: 9}")
    assert settings_from(file).group.count == 9
    assert settings_from(file, groups=1).group.count == 1


@pytest.mark.parametrize(
    "item", ["group.count", "=1", "group..count=1", ".=1", "group.count=[", "group=1", "a.b.c=1"]
)
def test_what_cannot_be_set_is_named(item: str):
    with pytest.raises(SettingsError):
        settings_from(sets=[item])


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"port": 65536}, "--port 65536: must be at most 65535"),
        ({"grpc_port": -1}, "--grpc-port -1: must be at least 0"),
        ({"ranks": 0}, "--ranks 0: must be at least 1"),
        ({"speculative": "x"}, "--speculative x: Input should be 'none' or 'mtp'"),
    ],
)
def test_a_flag_is_named_whose_setting_refuses_its_value(given, error):
    with pytest.raises(FlagError) as refused:
        settings_from(**given)
    assert str(refused.value) == error


def test_a_value_is_no_group():
    with pytest.raises(SettingsError, match="conflicts with the value set for group"):
        settings_from(sets=["group=1", "group.count=2"])


@given(st.text(max_size=30))
def test_any_text_is_settings_or_a_settings_error(item: str):
    with contextlib.suppress(SettingsError):
        assert isinstance(settings_from(sets=[item]), Settings)

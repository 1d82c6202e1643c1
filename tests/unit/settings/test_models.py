"""Settings of several models: defaults of pools, unique names, and the locations of errors."""

import pytest
import yaml

from serving.errors import SettingsError
from serving.settings import Settings, load_settings

ONE = {"name": "one", "path": "/one"}


def models(*entries, **groups):
    return load_settings(flags={"models": list(entries), **groups})


def test_a_pool_takes_what_it_does_not_set_from_group_engine_and_router(tmp_path):
    file = tmp_path / "settings.yaml"
    pools = [
        {"name": "small", "group": {"count": 3}, "engine": {"args": {"b": 2, "c": 3}}},
        {"name": "large", "group": {"data_parallel": 16}},
    ]
    file.write_text(
        yaml.safe_dump(
            {
                "group": {"data_parallel": 4, "count": 2},
                "engine": {"max_num_seqs": 9, "args": {"a": 1, "b": 1}},
                "router": {"tool_parser": None},
                "models": [ONE | {"pools": pools}, {"name": "two", "path": "/two"}],
            }
        )
    )
    settings = load_settings(file)
    small, large = settings.models[0].pools
    assert (small.group.count, small.group.data_parallel) == (3, 4)
    assert (large.group.count, large.group.data_parallel) == (2, 16)
    assert small.engine.args == {"a": 1, "b": 2, "c": 3}
    assert large.engine.args == {"a": 1, "b": 1}
    assert small.engine.max_num_seqs == large.engine.max_num_seqs == 9
    assert settings.models[1].tool_parser is None
    assert settings.models[1].reasoning_parser == "deepseek_r1"
    (default,) = settings.models[1].pools
    assert (default.name, default.group.data_parallel) == ("default", 4)


def test_settings_written_for_a_child_process_are_read_unchanged():
    settings = models(ONE | {"pools": [{"group": {"count": 5}}]}, group={"data_parallel": 1})
    assert Settings(**settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        pytest.param([ONE, ONE], "models[1].name: 'one' is already", id="same-name"),
        pytest.param(
            [ONE, {"name": "two", "path": "/", "aliases": ["x", "one"]}],
            "models[1].aliases[1]: 'one' is already a name or alias of models[0]",
            id="alias-is-a-name",
        ),
        pytest.param(
            [ONE | {"aliases": ["one"]}], "models[0].aliases[0]: 'one'", id="alias-of-itself"
        ),
        pytest.param(
            [ONE, {"name": "two", "path": "/", "pools": [{"group": {"data_parallel": 0}}]}],
            "models[1].pools[0].group.data_parallel: Input should be greater",
            id="value-in-a-pool",
        ),
        pytest.param(
            [ONE | {"pools": [{}, {}]}],
            "models[0].pools[1].name: another pool of the model is named default",
            id="same-pool",
        ),
        pytest.param([ONE | {"pools": []}], "models[0].pools: ", id="no-pool"),
        pytest.param(
            [ONE | {"pools": [{"name": "No Spaces"}]}], "models[0].pools[0].name: ", id="pool-name"
        ),
        pytest.param(
            [ONE | {"pools": [{"engine": {"args": {"data-parallel-rank": 1}}}]}],
            "models[0].pools[0].engine.args: cannot set data_parallel_rank",
            id="reserved-argument",
        ),
        pytest.param(
            [{"name": "a/b", "path": "/"}, {"name": "a-b", "path": "/"}],
            "models[1].pools[0].name: the Ray Serve application",
            id="same-application",
        ),
        pytest.param(
            [ONE | {"adapters": [{"name": "x", "path": "/x"}, {"name": "x", "path": "/y"}]}],
            "models[0].adapters[1].name: another adapter is named x",
            id="same-adapter",
        ),
        pytest.param(
            [ONE, {"name": "two", "path": "/", "adapters": [{"name": "one", "path": "/x"}]}],
            "models[1].adapters[0].name: 'one' is already a name or alias of models[0]",
            id="adapter-is-a-model",
        ),
        pytest.param(
            [ONE | {"adapters": [{"name": "../x", "path": "/x"}]}],
            "models[0].adapters[0].name: String should match",
            id="path-in-an-adapters-name",
        ),
        pytest.param(
            [ONE | {"lora": {"max_rank": 9}}], "models[0].lora.max_rank: ", id="rank-of-adapters"
        ),
        pytest.param([ONE | {"pool": []}], "models[0].pool: Extra inputs", id="unknown-key"),
        pytest.param([{"path": "/"}], "models[0].name: Field required", id="no-name"),
        pytest.param(["one"], "models[0]: Input should be", id="not-a-mapping"),
        pytest.param([ONE | {"pools": [7]}], "models[0].pools[0]: Input should be", id="no-pool"),
        pytest.param([ONE | {"pools": 7}], "models[0].pools: Input should be", id="no-pools"),
    ],
)
def test_an_error_names_its_place(entries, error):
    with pytest.raises(SettingsError) as caught:
        models(*entries)
    assert f"invalid settings: {error}" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "error"),
    [
        (
            {"adapters": [{"name": "x", "path": "/x"}, {"name": "x", "path": "/y"}]},
            "adapters[1].name: another adapter is named x",
        ),
        (
            {"adapters": [{"name": "pocket-r1", "path": "/x"}]},
            "adapters[0].name: 'pocket-r1' is a name of the model",
        ),
    ],
    ids=["same-adapter", "adapter-is-the-model"],
)
def test_adapters_of_the_short_form_have_names_of_their_own(model, error):
    with pytest.raises(SettingsError) as caught:
        load_settings(flags={"model": model})
    assert error in str(caught.value)


def test_the_short_form_and_models_are_not_combined():
    with pytest.raises(SettingsError, match="model cannot be combined with models"):
        models(ONE, model={"name": "other"})

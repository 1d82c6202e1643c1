"""The served models: the short form is one model with one pool, and each pool has a short form."""

import pytest

from serving.errors import SettingsError
from serving.settings import Settings, pool_settings, served_models


def test_the_short_form_is_one_model_with_one_pool():
    settings = Settings(model={"name": "m", "path": "/m", "aliases": ["n"]}, group={"pool": "blue"})
    (model,) = served_models(settings)
    assert (model.names, model.place) == (("m", "n"), "model")
    (pool,) = model.pools
    assert pool.name == "blue"
    assert pool.settings is model.settings is settings


def test_each_pool_has_settings_in_the_short_form():
    settings = Settings(
        group={"count": 2},
        router={"tool_parser": "hermes"},
        models=[
            {"name": "org/a", "path": "/a", "tool_parser": None, "aliases": ["a"]},
            {
                "name": "b",
                "path": "/b",
                "pools": [{"name": "x", "group": {"count": 7}}, {"name": "y"}],
            },
        ],
    )
    first, second = served_models(settings)
    assert (first.place, second.place) == ("models[0]", "models[1]")
    assert first.settings.model.aliases == ("a",)
    assert first.settings.router.tool_parser is None
    assert second.settings.router.tool_parser == "hermes"
    x, y = (pool.settings for pool in second.pools)
    assert second.settings is x
    assert (x.model.name, x.model.path, x.models) == ("b", "/b", ())
    assert (x.group.pool, x.group.count) == ("x", 7)
    assert (y.group.pool, y.group.count) == ("y", 2)
    apps = [pool.settings.ray.app_name for model in (first, second) for pool in model.pools]
    assert apps == ["moe-serving-org-a-default", "moe-serving-b-x", "moe-serving-b-y"]


def test_each_pool_runs_the_adapters_of_its_model():
    adapters = [{"name": "x", "path": "/x"}]
    settings = Settings(
        models=[
            {"name": "a", "path": "/a", "adapters": adapters, "lora": {"slots": 2}},
            {"name": "b", "path": "/b", "lora": {"folder": "/f"}},
            {"name": "c", "path": "/c"},
        ]
    )
    a, b, c = (model.settings.model for model in served_models(settings))
    assert (a.adapters[0].name, a.lora.slots, a.runs_adapters) == ("x", 2, True)
    assert (b.adapters, b.runs_adapters) == ((), True)
    assert not c.runs_adapters


def test_the_short_form_of_a_pool_is_valid_on_its_own():
    settings = Settings(models=[{"name": "a", "path": "/a", "pools": [{"name": "p"}]}])
    (model,) = served_models(settings)
    again = Settings(**model.settings.model_dump(mode="json"))
    assert again == model.settings
    (served,) = served_models(again)
    assert (served.name, served.pools[0].name) == ("a", "p")


TWO = Settings(
    models=[
        {"name": "org/a", "path": "/a"},
        {"name": "b", "path": "/b", "pools": [{"name": "x"}, {"name": "y"}]},
    ]
)


@pytest.mark.parametrize(
    ("chosen", "model", "pool"),
    [
        pytest.param("org/a", "org/a", "default", id="the only pool of a model"),
        pytest.param("org/a/default", "org/a", "default", id="model and pool"),
        pytest.param("b/y", "b", "y", id="second pool"),
    ],
)
def test_a_pool_is_chosen_by_model_and_name(chosen, model, pool):
    settings = pool_settings(TWO, chosen)
    assert (settings.model.name, settings.group.pool, settings.models) == (model, pool, ())


@pytest.mark.parametrize("chosen", [None, "b", "b/z", "a", ""])
def test_without_a_choice_the_pools_are_listed(chosen):
    with pytest.raises(SettingsError, match="choose one of org/a/default, b/x, b/y"):
        pool_settings(TWO, chosen)


def test_the_only_pool_needs_no_choice():
    short = Settings(model={"name": "m"})
    assert pool_settings(short) is short
    assert pool_settings(short, "m/default") is short
    one = Settings(models=[{"name": "m", "path": "/m"}])
    assert pool_settings(one).model.name == "m"


def test_a_model_has_its_own_objectives_of_batches():
    settings = Settings(
        batch={"itl_slo": 0.1, "ttft_slo": 2.0},
        models=[
            {"name": "a", "path": "/a", "batch": {"ttft_slo": 0.5}},
            {"name": "b", "path": "/b"},
        ],
    )
    a, b = (model.settings.batch for model in served_models(settings))
    assert (a.itl_slo, a.ttft_slo) == (0.1, 0.5)
    assert (b.itl_slo, b.ttft_slo) == (0.1, 2.0)

"""The catalog of a model's adapters: start-up checks, and changes at run time."""

import pytest

from serving.errors import InvalidRequest, ModelNotFound, SettingsError
from serving.fleet.adapters import AdapterCatalog
from serving.settings import ModelSettings
from tests.support.adapters import write_adapter


def catalog_of(parent, *names, place="model", **lora):
    entries = [{"name": name, "path": str(parent / name)} for name in names]
    return AdapterCatalog(ModelSettings(adapters=entries, lora=lora), place)


def test_adapters_of_the_settings_are_checked_with_their_place(tmp_path):
    write_adapter(tmp_path / "a", seed=1)
    catalog = catalog_of(tmp_path, "a")
    (adapter,) = catalog
    assert (adapter.name, adapter.path, adapter.folder) == ("a", str(tmp_path / "a"), "")
    assert adapter.key == f"a@{adapter.digest}"
    assert catalog.get("a") is adapter
    write_adapter(tmp_path / "b", peft_type="IA3")
    with pytest.raises(SettingsError, match=r"models\[2\]\.adapters\[1\] \(b\): .*IA3"):
        catalog_of(tmp_path, "a", "b", place="models[2]")


def test_adapters_are_added_replaced_and_removed(tmp_path):
    write_adapter(tmp_path / "a", seed=1)
    write_adapter(tmp_path / "b", seed=2)
    catalog = catalog_of(tmp_path, folder=str(tmp_path))
    changes = []
    catalog.subscribe(lambda: changes.append(len(catalog)))
    assert catalog.loadable
    one = catalog.read("x", str(tmp_path / "a"))
    assert one.folder == "a"
    catalog.add(one)
    other = catalog.read("x", "b")
    with pytest.raises(InvalidRequest, match="'x' is already loaded"):
        catalog.add(other)
    catalog.add(other, replace=True)
    assert catalog.get("x") == other
    catalog.remove("x")
    assert changes == [1, 1, 0]
    with pytest.raises(ModelNotFound, match="'x' does not exist"):
        catalog.remove("x")


def test_without_a_folder_no_adapter_is_loaded_at_run_time(tmp_path):
    catalog = catalog_of(tmp_path)
    assert not catalog.loadable
    with pytest.raises(InvalidRequest, match=r"set lora\.folder"):
        catalog.read("x", "a")


@pytest.mark.parametrize("path", ["../other", "/etc", "none", "."])
def test_wrong_folders_are_refused_at_run_time(tmp_path, path):
    (tmp_path / "root").mkdir()
    write_adapter(tmp_path / "other")
    catalog = catalog_of(tmp_path, folder=str(tmp_path / "root"))
    with pytest.raises(InvalidRequest, match="adapter 'x'"):
        catalog.read("x", path)


def test_the_number_of_adapters_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("serving.fleet.adapters.MAX_ADAPTERS", 1)
    write_adapter(tmp_path / "a")
    catalog = catalog_of(tmp_path, "a", folder=str(tmp_path))
    with pytest.raises(InvalidRequest, match="has 1 adapters, the maximum"):
        catalog.add(catalog.read("x", "a"))
    catalog.add(catalog.read("a", "a"), replace=True)

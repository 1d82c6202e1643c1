"""Checks of adapters' files: good ones, and each way in which they are refused."""

import json

import numpy as np
import pytest

from serving.link.adapter_files import (
    CONFIG,
    WEIGHTS,
    AdapterBase,
    AdapterError,
    check_adapter,
    copy_adapter,
    folder_inside,
)
from serving.settings import BUNDLED_MODEL
from tests.support.adapters import write_adapter, write_safetensors

BASE = AdapterBase(frozenset({"pocket-r1"}), str(BUNDLED_MODEL), 16)
Q = "base_model.model.model.layers.0.self_attn.q_proj"
GOOD = {f"{Q}.lora_A.weight": np.zeros((8, 128)), f"{Q}.lora_B.weight": np.zeros((384, 8))}


def test_a_good_adapter_has_a_digest_of_its_content(tmp_path):
    one = check_adapter(write_adapter(tmp_path / "one", seed=1), BASE)
    again = check_adapter(write_adapter(tmp_path / "again", seed=1), BASE)
    other = check_adapter(write_adapter(tmp_path / "other", seed=2), BASE)
    assert (one.folder, one.rank) == (tmp_path / "one", 8)
    assert one.digest == again.digest != other.digest


def test_a_copy_is_the_same_adapter_and_private(tmp_path):
    folder = write_adapter(tmp_path / "one")
    copy_adapter(folder, tmp_path / "copies" / "one")
    assert check_adapter(tmp_path / "copies" / "one", BASE).digest == (
        check_adapter(folder, BASE).digest
    )
    assert (tmp_path / "copies" / "one").stat().st_mode & 0o777 == 0o700
    with pytest.raises(AdapterError, match="cannot be copied: No such file"):
        copy_adapter(tmp_path / "none", tmp_path / "copies" / "none")


@pytest.mark.parametrize(
    ("config", "error"),
    [
        pytest.param({"peft_type": "IA3"}, "peft_type is 'IA3'", id="other-method"),
        pytest.param({"bias": "all"}, "bias must be 'none'", id="bias"),
        pytest.param({"use_dora": True}, "use_dora not supported", id="dora"),
        pytest.param({"modules_to_save": ["lm_head"]}, "modules_to_save not", id="whole-modules"),
        pytest.param({"r": "8"}, "r is '8', must be a positive integer", id="rank-is-text"),
        pytest.param({"r": True}, "r is True", id="rank-is-bool"),
        pytest.param({"r": 32}, "rank 32 is above 16", id="rank-too-high"),
        pytest.param({"r": 4}, "has the shapes [8, 128]", id="rank-of-other-weights"),
        pytest.param({"lora_alpha": None}, "lora_alpha is None", id="no-alpha"),
        pytest.param({"lora_alpha": float("nan")}, "lora_alpha is nan", id="alpha-nan"),
        pytest.param(
            {"base_model_name_or_path": "Qwen/Qwen3-8B"},
            "was made for 'Qwen/Qwen3-8B', not for pocket-r1",
            id="another-base",
        ),
        pytest.param({"base_model_name_or_path": ["x"]}, "was made for ['x']", id="base-is-list"),
    ],
)
def test_a_wrong_configuration_is_refused(tmp_path, config, error):
    with pytest.raises(AdapterError) as caught:
        check_adapter(write_adapter(tmp_path / "one", **config), BASE)
    assert error in str(caught.value)
    assert CONFIG in str(caught.value) or WEIGHTS in str(caught.value)


@pytest.mark.parametrize(
    "named", ["", None, "pocket-r1", "someone/Pocket-R1", "/models/other/pocket-r1/"]
)
def test_the_base_model_may_be_named_in_several_ways(tmp_path, named):
    check_adapter(write_adapter(tmp_path / "one", base_model_name_or_path=named), BASE)


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        pytest.param({}, "contains no weights", id="empty"),
        pytest.param({"weight": np.zeros((1, 1))}, "unexpected tensor 'weight'", id="other"),
        pytest.param({f"{Q}.lora_A.weight": np.zeros((8, 128))}, "q_proj has no lora_B", id="half"),
        pytest.param(
            GOOD | {f"{Q}.lora_B.weight": np.zeros((128, 8))},
            "changes weights of shape [128, 128], the model's have [384, 128]",
            id="shape",
        ),
        pytest.param(
            {name.replace("layers.0", "layers.7"): each for name, each in GOOD.items()},
            "belongs to a layer that only drafts tokens",
            id="behind-the-last-layer",
        ),
        pytest.param(
            {name.replace("layers.0", "blocks.0"): each for name, each in GOOD.items()},
            "the model has no module model.blocks.0.self_attn.q_proj",
            id="module-of-another-model",
        ),
        pytest.param(
            {name.replace("q_proj", "kv_b_proj"): each for name, each in GOOD.items()},
            "kv_b_proj cannot be adapted",
            id="absorbed",
        ),
        pytest.param(
            {
                name.replace("self_attn.q_proj", "mlp.experts.0.up_proj"): each
                for name, each in GOOD.items()
            },
            "experts.0.up_proj cannot be adapted",
            id="expert",
        ),
    ],
)
def test_wrong_weights_are_refused(tmp_path, tensors, error):
    folder = write_adapter(tmp_path / "one")
    write_safetensors(folder / WEIGHTS, tensors)
    with pytest.raises(AdapterError) as caught:
        check_adapter(folder, BASE)
    assert error in str(caught.value)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_truncated_weights_are_refused(tmp_path, kept):
    folder = write_adapter(tmp_path / "one")
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:kept])
    with pytest.raises(AdapterError, match="is corrupt"):
        check_adapter(folder, BASE)


@pytest.mark.parametrize("broken", [b"[]", b'{"a": 1}', b"{" * 5000, b'{"a":{"shape":[Infinity]}}'])
def test_unreadable_headers_are_refused(tmp_path, broken):
    folder = write_adapter(tmp_path / "one")
    (folder / WEIGHTS).write_bytes(len(broken).to_bytes(8, "little") + broken)
    with pytest.raises(AdapterError, match="is corrupt"):
        check_adapter(folder, BASE)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_unreadable_configurations_are_refused(tmp_path, content):
    folder = write_adapter(tmp_path / "one")
    (folder / CONFIG).write_text(content)
    with pytest.raises(AdapterError, match="is not"):
        check_adapter(folder, BASE)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(AdapterError, match="none: cannot be read: No such file"):
        check_adapter(tmp_path / "none", BASE)
    folder = write_adapter(tmp_path / "one")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="does not exist; other formats"):
        check_adapter(folder, BASE)


def test_shapes_are_not_compared_with_a_model_that_is_not_a_folder(tmp_path):
    folder = write_adapter(tmp_path / "one", base_model_name_or_path="")
    check_adapter(folder, AdapterBase(frozenset({"m"}), "org/model", 8))


def test_folders_inside_are_relative(tmp_path):
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    root = str(tmp_path / "root")
    assert folder_inside(root, "a/b") == "a/b"
    assert folder_inside(root, f"{root}/a") == "a"
    assert folder_inside(root, "a/../a/b") == "a/b"


@pytest.mark.parametrize("path", ["..", ".", "", "../other", "/etc", "link", "a\0b", "a/../.."])
def test_paths_that_lead_outside_are_refused(tmp_path, path):
    (tmp_path / "root").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "other")
    with pytest.raises(AdapterError):
        folder_inside(str(tmp_path / "root"), path)


def test_shapes_are_not_compared_with_packed_weights(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    write_safetensors(model / "model.safetensors", {"layers.0.q_proj.weight_packed": np.zeros(4)})
    (model / "config.json").write_text('{"num_hidden_layers": 2}')
    folder = write_adapter(tmp_path / "one", base_model_name_or_path="")
    for module, error in (("layers.0.q_proj", None), ("layers.0.k_proj", "has no module")):
        tensors = {
            f"base_model.model.{module}.lora_A.weight": np.zeros((8, 4)),
            f"base_model.model.{module}.lora_B.weight": np.zeros((4, 8)),
        }
        write_safetensors(folder / WEIGHTS, tensors)
        base = AdapterBase(frozenset({"m"}), str(model), 8)
        if error is None:
            check_adapter(folder, base)
        else:
            with pytest.raises(AdapterError, match=error):
                check_adapter(folder, base)


def test_a_model_without_a_number_of_layers_has_no_unused_ones(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    write_safetensors(model / "model.safetensors", {"layers.9.q_proj.weight": np.zeros((4, 4))})
    (model / "config.json").write_text("{}")
    folder = write_adapter(tmp_path / "one", base_model_name_or_path="")
    tensors = {
        "base_model.model.layers.9.q_proj.lora_A.weight": np.zeros((8, 4)),
        "base_model.model.layers.9.q_proj.lora_B.weight": np.zeros((4, 8)),
    }
    write_safetensors(folder / WEIGHTS, tensors)
    check_adapter(folder, AdapterBase(frozenset({"m"}), str(model), 8))
    assert json.loads((folder / CONFIG).read_text())["r"] == 8

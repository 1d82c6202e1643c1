import dataclasses
import json

import pytest

from loadtest.simulation.__main__ import main
from loadtest.simulation.calibration import FOLDER, load_calibration, save_calibration
from serving.errors import InvalidRequest
from tests.unit.loadtest.simulation.worlds import calibration

SMALL = ["--load", "1:4", "--minutes", "0.5", "--max-groups", "4", "--sample", "1"]


def test_the_table_of_a_small_fleet(capsys):
    assert main(SMALL) == 0
    said = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in said.splitlines() if line.startswith("|")]
    assert rows[2:] == [
        "our policy", "fixed 1", "fixed 2", "fixed 3", "fixed 4", "queue 5 waiting",
        "queue 64 ongoing",
    ]  # fmt: skip
    assert "ASSUMED, not measured on such machines" in said
    assert "SUBSAMPLED" not in said


def test_a_sample_is_said_to_be_one(capsys):
    assert main([*SMALL[:-1], "2", "--scalers", "policy", "--reasons"]) == 0
    assert "SUBSAMPLED: every 2th group" in capsys.readouterr().out


def test_our_policys_settings_can_be_set(capsys):
    arguments = [*SMALL, "--scalers", "policy", "--set", "max_groups=1", "--set", "min_groups=1"]
    assert main(arguments) == 0
    assert "| 1-1 " in " ".join(capsys.readouterr().out.split())


def test_a_setting_that_does_not_exist_is_refused(capsys):
    assert main([*SMALL, "--set", "no_such=1"]) == 1
    assert "no_such" in capsys.readouterr().err


def test_an_unknown_calibration_names_those_there_are(capsys):
    assert main([*SMALL, "--calibration", "no-such"]) == 1
    assert "deepseek-r1-16gpu" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_the_calibrations_that_are_kept_can_be_read(file):
    found = load_calibration(file.stem)
    assert found.name == file.stem
    assert found.source
    assert json.loads(file.read_text())["measured"] is found.measured


def test_what_is_saved_is_read_again(tmp_path):
    file = tmp_path / "one.json"
    save_calibration(calibration(), file)
    assert load_calibration(str(file)) == calibration()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"ranks": 0}, id="no rank"),
        pytest.param({"startup": -1.0}, id="starts before it is asked for"),
        pytest.param({"kv_tokens": 1000}, id="longest sequence does not fit"),
    ],
)
def test_what_no_group_can_be_is_refused(change):
    with pytest.raises(InvalidRequest):
        dataclasses.replace(calibration(), **change)

"""The end of ``make test``'s output: failed tests and runs."""

import pytest

from tests import suite
from tests.support import failures

NAMES = (*suite.ENGINE_RUNS, "units")


def runs(*failures: str) -> list[suite.Run]:
    """Return ended runs; all failures are the last one's."""
    made = [suite.Run(name, (), status=0, seconds=1234.5) for name in NAMES]
    if failures:
        made[-1].status, made[-1].failures = 1, list(failures)
    return made


def test_without_failures_it_is_the_table_of_runs() -> None:
    lines = suite.summary(runs())
    assert len(lines) == len(NAMES)
    assert all(line.endswith("passed in 1234 s, CPU 0 s") for line in lines)


def test_a_failure_has_its_run_test_and_message() -> None:
    failure = "tests/unit/test_x.py::test_y[z] - assert 2 == 1"
    lines = suite.summary(runs(failure))
    assert lines[:3] == ["failed: 1", f"units: {failure}", ""]
    assert lines[-1] == "  units | FAILED (1) in 1234 s, CPU 0 s"


@pytest.mark.parametrize("count", [1, 7, 8, 20, 30, 31, 5000])
def test_it_is_short_whatever_fails(count: int) -> None:
    lines = suite.summary(runs(*(f"test {number} - {'x' * 5000}" for number in range(count))))
    assert sum(len(line) + 1 for line in lines) <= suite.SUMMARY
    listed = [line for line in lines if line.startswith("units: test ")]
    assert all(suite.SHORTEST_LINE <= len(line) <= suite.LINE for line in listed)
    assert len(listed) == min(count, len(listed), suite.LISTED)
    assert (count == len(listed)) != (f"… and {count - len(listed)} more, listed above" in lines)


def test_failures_are_read_from_pytest(tmp_path, capsys) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError('no\\nanswer')\n"
        "def test_passes(): pass\n"
        "def test_fails(): raise ValueError('word ' * 19 + 'word')\n"
        "def test_breaks(broken): pass\n",
        "utf-8",
    )
    options = ("-n", "1", "-p", "no:schemathesis", "-p", "no:kmock", "-p", "no:cacheprovider")
    run = suite.Run("some", (*options, str(file)), own_folder=False)
    run([])
    assert run.status == 1
    fails, breaks = run.failures
    assert fails.endswith(f"test_some.py::test_fails - ValueError: {'word ' * 19}word")
    assert breaks.endswith("test_some.py::test_breaks - OSError: no … answer")
    assert "   some | " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("ValueError: no", "ValueError: no"),
        ("assert 1 == 2\n + where 1 = f()", "assert 1 == 2"),
        ("AssertionError: a\nassert False", "AssertionError: a"),
        (
            f"RuntimeError: up: {'x' * 50}\n\n[ 9.1s] ray: up\nerror: port 5 is in use\n\n",
            f"RuntimeError: up: {'x' * 42} … error: port 5 is in use",
        ),
        ("", ""),
    ],
)
def test_a_message_in_one_line(message: str, line: str) -> None:
    assert failures.in_one_line(message) == line


def test_a_run_without_a_report_is_a_failure(capsys) -> None:
    run = suite.Run("some", ("--no-such-option",), own_folder=False)
    run([])
    (failure,) = run.failures
    assert failure
    assert "no-such-option" in capsys.readouterr().out

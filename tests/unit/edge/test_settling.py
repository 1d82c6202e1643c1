import resource

import pytest

from serving.edge.settling import FILES, allow_many_connections

FOR_EVER = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "after"),
    [
        pytest.param((1024, 4096), (4096, 4096), id="up to the hard limit"),
        pytest.param((1024, FOR_EVER), (FILES, FOR_EVER), id="no hard limit"),
        pytest.param((FILES + 1, FILES + 2), None, id="enough"),
        pytest.param((FOR_EVER, FOR_EVER), None, id="no limit"),
    ],
)
def test_the_limit_of_open_files_is_raised_never_lowered(limits, after, monkeypatch):
    done = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: done.append(given))
    allow_many_connections()
    assert done == ([] if after is None else [after])

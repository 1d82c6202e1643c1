"""``moe-serving load``: help, errors and credentials."""

import pytest

from loadtest import runner
from loadtest.arguments import parse
from serving.cli.main import main


def test_its_own_help_is_shown(capsys):
    assert main(["load", "run", "--help"]) == 0
    assert "Usage: moe-serving load run" in capsys.readouterr().out


def test_a_wrong_option_is_a_wrong_command_line(capsys):
    assert main(["load", "run", "--rate", "none"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: --rate none: a rate must be a number of requests/s"
    )


def test_errors_end_as_those_of_other_commands(capsys):
    assert main(["load", "run", "--rate", "1", "--rest-url", "http://127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("error: the server is not available: ")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        pytest.param([], "local-key", id="this-machine"),
        pytest.param(["--rest-url", "http://127.0.0.1:1"], None, id="elsewhere"),
        pytest.param(["--grpc-address", "127.0.0.1:1"], None, id="elsewhere-grpc"),
        pytest.param(["--rest-url", "http://127.0.0.1:1", "--api-key", "k"], "k", id="given"),
    ],
)
async def test_the_key_of_the_local_run_goes_nowhere_else(words, key, tmp_path, monkeypatch):
    (tmp_path / "key").write_text("local-key\n")
    (tmp_path / "settings.yaml").write_text(
        f"security: {{keys_file: x, operator_key_file: {tmp_path / 'key'}}}\n"
    )
    seen = []

    class Stopped(Exception):
        pass

    class Client:
        def __init__(self, _where, access):
            seen.append(access.api_key)

        async def models(self):
            raise Stopped

        async def close(self):
            pass

    monkeypatch.setattr(runner, "AsyncRestClient", Client)
    monkeypatch.setattr(runner, "AsyncGrpcClient", Client)
    options = parse(["run", "--rate", "1", *words], "load")
    with pytest.raises(Stopped):
        await runner.run_load(options, "x", tmp_path)
    assert set(seen) == {key}

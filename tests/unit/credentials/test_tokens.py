"""Join tokens: valid files, accepted tokens, and secrecy."""

import pytest

from serving.credentials.tokens import (
    bearer_of,
    join_metadata,
    load_join_tokens,
    new_token,
    read_tokens,
)
from serving.errors import SettingsError

OLD, NEW = "o" * 20, "n" * 20


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"# rotated on Monday\n{NEW}\n\n  {OLD}  \n")
    return str(path)


def test_all_lines_are_accepted_and_the_first_is_sent(file):
    tokens = load_join_tokens(file)
    assert tokens.accept(NEW)
    assert tokens.accept(OLD)
    assert join_metadata(file) == (("authorization", f"Bearer {NEW}"),)


@pytest.mark.parametrize(
    "shown", [None, "", NEW[:-1], NEW + "n", "# rotated on Monday", "ñ" * 20, "\udcff"]
)
def test_anything_else_is_not_accepted(file, shown):
    assert not load_join_tokens(file).accept(shown)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", "no join token", id="empty"),
        pytest.param("# only a comment\n", "no join token", id="comment"),
        pytest.param("short", "token 1", id="short"),
        pytest.param(f"{NEW}\n{'with space ' * 3}", "token 2", id="space"),
        pytest.param("ñ" * 20, "ASCII", id="not-ascii"),
    ],
)
def test_a_file_of_something_else_is_refused_without_quoting_it(tmp_path, text, problem):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(SettingsError, match=problem) as caught:
        read_tokens(str(path))
    assert not text.strip() or text.strip() not in str(caught.value)


def test_new_tokens_differ_and_are_accepted(tmp_path):
    first, second = new_token(), new_token()
    assert first != second
    (tmp_path / "t").write_text(first)
    assert load_join_tokens(str(tmp_path / "t")).accept(first)


def test_secrets_are_not_shown(file):
    assert NEW not in repr(load_join_tokens(file))


def test_no_file_sends_nothing():
    assert join_metadata(None) == ()


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("abc", None),
        ("", None),
    ],
)
def test_bearer(header, token):
    assert bearer_of({"authorization": header}) == token


def test_no_header_has_no_token():
    assert bearer_of({}) is None

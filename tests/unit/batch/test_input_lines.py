import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batch.input_lines import InvalidLine, parse_line, split_lines
from tests.support.batches import CHATS, line


def whole(**changes):
    fields = json.loads(line()) | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    ("data", "code", "custom_id"),
    [
        pytest.param(b"{", "invalid_json_line", None, id="no JSON"),
        pytest.param(b"\xff", "invalid_json_line", None, id="no UTF-8"),
        pytest.param(b"[" * 100_000, "invalid_line", None, id="deep"),
        pytest.param(b"[]", "invalid_line", None, id="no object"),
        pytest.param(whole(custom_id=...), "invalid_line", None, id="no id"),
        pytest.param(whole(custom_id=7), "invalid_line", None, id="id is a number"),
        pytest.param(whole(custom_id=""), "invalid_custom_id", None, id="empty id"),
        pytest.param(whole(custom_id="x" * 513), "invalid_custom_id", None, id="long id"),
        pytest.param(whole(custom_id="a\0"), "invalid_custom_id", None, id="NUL in id"),
        pytest.param(whole(body=...), "invalid_line", "a", id="no body"),
        pytest.param(whole(body=[]), "invalid_body", "a", id="body is a list"),
        pytest.param(whole(method="GET"), "invalid_method", "a", id="method"),
        pytest.param(whole(url="/v1/completions"), "mismatched_endpoint", "a", id="endpoint"),
        pytest.param(line(stream=True), "stream_unsupported", "a", id="stream"),
        pytest.param(line(background=True), "background_unsupported", "a", id="background"),
    ],
)
def test_an_invalid_line_has_a_code_and_its_custom_id(data, code, custom_id):
    with pytest.raises(InvalidLine) as failure:
        parse_line(data, CHATS)
    assert (failure.value.code, failure.value.custom_id) == (code, custom_id)


def test_the_body_is_passed_on_unchanged():
    body = b'{ "messages": [],  "x": 1e400, "stream": false}'
    data = b'{"custom_id":"\\u00e9","method":"POST","url":"' + CHATS.encode() + b'","body":' + body
    found = parse_line(data + b"}", CHATS)
    assert (found.custom_id, found.body) == ("\u00e9", body)


def system(text, question):
    return [{"role": "system", "content": text}, {"role": "user", "content": question}]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param(system("s", "1"), system("s", "2"), True, id="same system message"),
        pytest.param(system("s", "1"), system("t", "1"), False, id="other system message"),
        pytest.param(system("s", "1")[1:], system("s", "1")[1:], True, id="same question"),
        pytest.param(system("s", "1")[1:], system("s", "2")[1:], False, id="other question"),
    ],
)
def test_lines_whose_prompts_begin_alike_have_the_same_prefix(one, other, same):
    prefixes = {parse_line(line(messages=each), CHATS).prefix for each in (one, other)}
    assert (len(prefixes) == 1) is same


@given(st.lists(st.binary(max_size=12), max_size=8), st.lists(st.integers(1, 20), max_size=8))
def test_lines_do_not_depend_on_how_the_file_is_split(parts, cuts):
    content = b"\n".join(parts)
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(content[at : at + cut])
        at += cut
    pieces.append(content[at:])
    found = list(split_lines(pieces, 6))
    for each in found:
        held = content[each.start : each.start + each.length]
        assert b"\n" not in held
        assert each.data == (held if len(held) <= 6 else None)
        assert each.number == content[: each.start].count(b"\n") + 1
    expected = [text for text in content.split(b"\n") if len(text) > 6 or text.strip()]
    assert [content[each.start : each.start + each.length] for each in found] == expected

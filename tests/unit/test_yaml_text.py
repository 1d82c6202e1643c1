"""YAML from users: values, rejected texts with their line, and independence of other packages."""

import pytest
import yaml

from serving import yaml_text
from serving.yaml_text import MAX_DEPTH, NotYaml, read_yaml


def test_values_are_typed_or_text():
    text = "a: 1\nb: [x, 0.1, 16:30]\n"
    assert read_yaml(text) == {"a": 1, "b": ["x", 0.1, 990]}
    assert read_yaml(text, scalars_as_text=True) == {"a": "1", "b": ["x", "0.1", "16:30"]}


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "key 'a' occurs twice"),
        ("- {a: 1}\n- {b: {c: 1,\n  c: 2}}\n", 3, "key 'c' occurs twice"),
        ('a: 1\n"a": 2\n', 2, "key 'a' occurs twice"),
        ("a: {x: 1}\nb: [1]\nc: d\nb: 2\n", 4, "key 'b' occurs twice"),
        ("? [1, 2]\n: a\nx: 1\nx: 2\n", 4, "key 'x' occurs twice"),
        ("a: [\n", 2, "did not find expected node content"),
        ("\n" + "[" * (MAX_DEPTH + 1), 2, "nested more than"),
        ("a: 2027-13-01", None, "malformed value"),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_refused_texts_name_the_line(text, line, problem, as_text):
    if as_text and "2027" in text:
        assert read_yaml(text, scalars_as_text=True) == {"a": "2027-13-01"}
        return
    with pytest.raises(NotYaml, match=problem) as caught:
        read_yaml(text, scalars_as_text=as_text)
    assert caught.value.line == line


@pytest.mark.parametrize(
    "text",
    [
        "a: a\nb: a\n",  # a value is no key
        "- {a: 1}\n- {a: 2}\n",
        "a: {a: {a: 1}}\n",
        "x: &x {a: 1}\ny: {<<: *x, b: 2}\nz: *x\n",
        "[" * MAX_DEPTH + "]" * MAX_DEPTH,
        "a: 1\n---\n"[:5],
        "",
    ],
)
def test_what_is_no_repetition_is_read_like_pyyaml(text):
    assert read_yaml(text) == yaml.safe_load(text)


def test_changes_of_pyyamls_loaders_do_not_matter(monkeypatch):
    """Some packages change how every file in the process is read."""
    for loader in (yaml_text._Loader.__bases__[0], yaml_text._TextLoader.__bases__[0]):
        monkeypatch.setattr(loader, "yaml_implicit_resolvers", {})
        monkeypatch.setattr(loader, "yaml_constructors", {})
    assert read_yaml("a: 1\nb: true\n") == {"a": 1, "b": True}
    assert read_yaml("a: 1\n", scalars_as_text=True) == {"a": "1"}

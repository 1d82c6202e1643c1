import json
from itertools import islice

import pytest

from loadtest.trace import Request, load_trace
from loadtest.workload import Calibration, Range, Synthetic, from_trace, text
from serving.errors import InvalidRequest


def test_equal_keys_give_equal_beginnings():
    assert text("a", 50).startswith(text("a", 20))
    assert text("a", 20) != text("b", 20)


def test_sessions_share_their_beginning_and_nothing_else():
    workload = Synthetic(Range(20, 20), Range(5, 9), turns=2, shared=30, lengths="1", texts="1")
    first, second = islice(workload.sessions(Calibration()), 2)
    assert first.system == second.system
    assert len(first.system.split()) == 30
    assert len({turn.text for session in (first, second) for turn in session.turns}) == 4
    assert all(5 <= turn.max_tokens <= 9 for turn in first.turns)
    assert next(workload.sessions(Calibration())) == first


def test_equal_lengths_of_other_texts():
    sessions = [
        list(islice(Synthetic(Range(9, 99), Range(1, 9), texts=texts).sessions(Calibration()), 5))
        for texts in ("a", "b")
    ]
    asked = [[turn for session in run for turn in session.turns] for run in sessions]
    lengths = [[(len(t.text.split()), t.max_tokens) for t in run] for run in asked]
    assert lengths[0] == lengths[1]
    assert len(set(lengths[0])) > 1
    assert not {turn.text for turn in asked[0]} & {turn.text for turn in asked[1]}


def test_calibration_is_the_line_through_both_probes():
    calibration = Calibration.of((8, 20), (108, 170))
    assert calibration.per_word == 1.5
    assert calibration.fixed == 8
    assert calibration.words(170) == 108
    assert Calibration.of((8, 0), (108, 0)) == Calibration()  # a server that reports no usage


def test_equal_blocks_of_a_trace_are_equal_texts():
    requests = [Request(5.0, 24, 3, (1, 2, 3)), Request(7.0, 20, 4, (1, 2, 9))]
    (at_a, a), (at_b, b) = from_trace(requests, Calibration(), block=8, speed=2.0)
    assert (at_a, at_b) == (0.0, 1.0)
    words_a, words_b = a.turns[0].text.split(), b.turns[0].text.split()
    assert (len(words_a), len(words_b)) == (24, 20)
    assert words_a[:16] == words_b[:16]
    assert words_a[16:20] != words_b[16:20]


def test_csv_and_json_lines(tmp_path):
    table = tmp_path / "trace.csv"
    table.write_text("timestamp,prompt_tokens,output_tokens\n2024-01-01 00:00:02,600,7\n"
                     "2024-01-01 00:00:01,10,8\n")  # fmt: skip
    first, second = load_trace(table)
    assert (second.at - first.at, first.output_tokens, len(second.blocks)) == (1.0, 8, 2)
    assert not set(first.blocks) & set(second.blocks)
    lines = tmp_path / "trace.jsonl"
    entry = {"timestamp": 1500, "input_length": 9, "output_length": 2, "hash_ids": [4]}
    lines.write_text(json.dumps(entry) + "\n")
    assert load_trace(lines) == [Request(1.5, 9, 2, (4,))]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        pytest.param("a.csv", "time,prompt_tokens\n1,2\n", "prompt|output|timestamp", id="column"),
        pytest.param("a.csv", "timestamp,prompt_tokens,output_tokens\n", "no request", id="empty"),
        pytest.param("a.csv", "timestamp,prompt_tokens,output_tokens\nx,1,1\n", "x", id="number"),
        pytest.param("a.jsonl", "[]\n", "is invalid", id="not-an-object"),
        pytest.param("a.jsonl", "{}\n", "timestamp", id="field"),
        pytest.param("a.jsonl", "[" * 100_000, "recursion", id="nested"),
        pytest.param(
            "a.csv", "timestamp,prompt_tokens,output_tokens\n1,1000000000000,1\n",
            "1000000000000 and 1, must be whole numbers from 0 to 10,000,000", id="long",
        ),
        pytest.param("none", None, "No such file", id="file"),
    ],
)  # fmt: skip
def test_a_bad_trace_is_one_clear_error(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidRequest, match=says):
        load_trace(tmp_path / name)

import re
from html.parser import HTMLParser

import pytest

from loadtest.charts import Chart, Mark, Series, cdf, rates
from loadtest.fleet_watch import FleetEvent, changes
from loadtest.report import html
from loadtest.run import Run, Stage
from loadtest.slo import Slo, Trial
from serving.errors import InvalidRequest
from tests.unit.loadtest.records import record


def some_run(**changes):
    run = Run(
        "http://x", "m", "loadtest run", 0.0, Slo(ttft=0.2),
        [record(index, stage=index // 5) for index in range(10)]
        + [record(10, stage=1, error="broken", message="<script>alert(1)</script>", first=None)],
        [Stage(n, f"{n + 1} requests/s", n + 1, "requests/s", 5.0 * n, 0.0, 5.0) for n in (0, 1)],
        [FleetEvent(3.0, "fault", "g0 is fenced: <b>")],
    )  # fmt: skip
    for name, value in changes.items():
        setattr(run, name, value)
    return run


class _Balance(HTMLParser):
    """Collects tags; fails on unclosed ones and on external resources."""

    VOID = frozenset({"meta", "br", "i"})

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        assert tag not in {"script", "link", "img", "iframe"}
        assert not {"src", "href"} & {name for name, _ in attributes}
        if tag not in {"meta", "br", "th", "circle"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        if tag != "th":
            assert self.open.pop() == tag


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({}, ["missed", "g0 is fenced: &lt;b&gt;", "against load"], id="sweep"),
        pytest.param({"stopped": "interrupted"}, ["Partial:", "interrupted"], id="partial"),
        pytest.param(
            {"trials": [Trial(4.0, True, 1.0, "probe")], "answer": 4.0},
            [
                "banner good'>Highest rate that met the objective: 4 requests/s",
                "rates tried",
                "result: 4<",
                "<td>met</td>",
            ],
            id="search",
        ),
        pytest.param(
            {"trials": [Trial(4.0, True, 1.0, "probe")], "stopped": "interrupted"},
            ["did not finish; highest rate of a met trial: 4 requests/s"],
            id="search-cut-off",
        ),
        pytest.param(
            {"trials": [Trial(4.0, True, 1.0, "probe"), Trial(4.0, True, 1.0, "probe", 2)]},
            ["</i>search 2<", "<th>search", "<td>2</td><td>2</td><td>probe</td>"],
            id="searches-in-turn",
        ),
        pytest.param(
            {"trials": [Trial(4.0, False, 0.9, "probe")]},
            ["No rate met the objective"],
            id="no-rate",
        ),
        pytest.param({"records": [], "stages": [], "events": []}, ["nothing to show"], id="empty"),
    ],
)
def test_the_report_is_whole_and_loads_nothing(changes, words):
    page = html(some_run(**changes))
    parser = _Balance()
    parser.feed(page)
    assert not parser.open
    assert "alert(1)</script>" not in page
    for word in words:
        assert word in page


def test_loads_that_are_tried_again_are_dots_and_told_apart():
    stages = [Stage(n, "4 requests/s", 4.0, "requests/s", 5.0 * n, 0.0, 5.0) for n in (0, 1)]
    page = html(some_run(stages=stages))
    assert "4 requests/s, stage 2</span>" in page
    against = page[page.index("TTFT against load") : page.index("ITL against load")]
    assert "<path" not in against
    assert "<circle" in against


def test_only_a_search_shows_rates_that_were_tried():
    assert "rates tried" not in html(some_run())


def test_a_run_is_read_back_as_it_was(tmp_path):
    run = some_run(trials=[Trial(4.0, True, 1.0, "probe")], answer=4.0, notes=["x"])
    run.save(tmp_path)
    assert Run.load(tmp_path) == run
    with pytest.raises(InvalidRequest):
        Run.load(tmp_path / "none")
    (tmp_path / "records.jsonl").write_text("{}\n")
    with pytest.raises(InvalidRequest, match="not a moe-serving load record"):
        Run.load(tmp_path)


def test_workers_are_joined_and_other_runs_are_not():
    one, other = some_run(), some_run(stopped="interrupted")
    joined = Run.joined([one, other])
    assert len(joined.records) == 22
    assert joined.stopped == "interrupted"
    with pytest.raises(InvalidRequest, match="different stages"):
        Run.joined([one, some_run(stages=[])])


def test_marks_limits_and_values_that_are_no_numbers():
    chart = Chart(
        "t", "x", "y",
        [Series("s", [(0, 1), (1, float("nan")), (2, 100)])], [Mark(1, "fault")], [(50, "limit")],
        log_y=True,
    )  # fmt: skip
    drawn = chart.svg()
    assert "nan" not in drawn
    assert "<title>fault</title>" in drawn
    assert "limit" in drawn


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_marks_without_room_share_a_name():
    marks = [Mark(x, "m", name=str(number)) for number, x in enumerate((10, 11, 50, 90), 1)]
    found = texts(Chart("t", "x", "y", [Series("s", [(0, 1), (100, 1)])], marks).svg())
    assert [text for text in found if text in {"1", "2", "3", "4", "1–2"}][-3:] == ["1–2", "3", "4"]


@pytest.mark.parametrize(
    ("values", "log", "ticks"),
    [
        pytest.param((3, 18), False, ["0", "5", "10", "15", "20"], id="from-zero"),
        pytest.param((0, 34_000), False, ["0", "10k", "20k", "30k", "40k"], id="large"),
        pytest.param((22, 91), True, ["20", "30", "50", "70", "100"], id="one-decade"),
        pytest.param(
            (53, 2600), True, ["50", "100", "200", "500", "1000", "2000", "5000"], id="log"
        ),
        pytest.param((47, 310), True, ["20", "50", "100", "200", "500"], id="edge"),
        pytest.param((31, 42), True, ["30", "35", "40", "45"], id="narrow"),
        pytest.param((7, 7), True, ["7"], id="one-value"),
    ],
)
def test_the_vertical_axis_ends_at_round_numbers(values, log, ticks):
    points = list(enumerate(values))
    drawn = Chart("t", "x", "y", [Series("s", points)], log_y=log).svg()
    assert re.findall(r"text-anchor=end>([^<]*)<", drawn) == ticks


def test_a_series_without_points_has_no_key():
    drawn = Chart("t", "x", "y", [Series("there", [(0, 1)]), Series("not there", [])]).svg()
    assert "not there" not in drawn


def test_cdf_ends_at_one_and_is_thin():
    points = cdf([float(value) for value in range(5000)])
    assert points[-1] == (4999.0, 1.0)
    assert len(points) <= 202
    assert cdf([]) == []


@pytest.mark.parametrize(
    ("times", "steps"),
    [
        pytest.param([], [], id="none"),
        pytest.param([2.5, 0.1, 0.9], [(0, 2), (1, 0), (2, 1), (3, 1)], id="seconds"),
        pytest.param([0.5, 1.0, 299.0], [(0, 1), (2, 0)], id="two-seconds-a-step"),
    ],
)
def test_rates_stand_where_they_were(times, steps):
    found = rates(times)
    assert [(round(at), round(rate)) for at, rate in found[: len(steps)]] == steps


def test_a_step_is_drawn_from_its_own_time_on():
    drawn = Chart("t", "x", "y", [Series("s", [(0, 1), (1, 3), (2, 3)], "step")]).svg()
    assert re.findall(r"[MHV][\d. ]+", drawn)[:4] == ["M60.0 156.7", "H283.0", "V22.0", "H506.0"]


def group(state="ready", epoch="e1", name="g0", reason=""):
    return {"group_id": name, "epoch": epoch, "state": state, "reason": reason}


@pytest.mark.parametrize(
    ("before", "after", "events"),
    [
        pytest.param([group()], [group()], [], id="nothing"),
        pytest.param([], [group("joining")], [("scaling", "g0 added (joining)")], id="new"),
        pytest.param(
            [group()], [group("fenced", reason="r")], [("fault", "g0 is fenced: r")], id="fenced"
        ),
        pytest.param([group("fenced")], [group()], [("ready", "g0 is ready")], id="back"),
        pytest.param(
            [group("fenced")], [group("joining", "e2")], [("fault", "g0 restarted (joining)")],
            id="new-epoch",
        ),
        pytest.param(
            [group()], [group("draining")], [("scaling", "g0 is draining")], id="draining"
        ),
        pytest.param([group("draining")], [], [("scaling", "g0 removed: over")], id="drained"),
        pytest.param([group()], [], [("fault", "g0 removed: over")], id="lost"),
    ],
)  # fmt: skip
def test_what_happens_to_the_fleet(before, after, events):
    last = {**group("gone", reason="over"), "since_unix_seconds": 1.0}
    found = changes({"groups": before}, {"groups": after, "history": [last]}, 2.0)
    assert [(event.kind, event.label) for event in found] == events

"""The report in a browser, wide and narrow: no text is cut off, no elements overlap.

The test runs the Chromium that .ci/tools fetched, or one on the PATH, and is otherwise skipped.
"""

import json
import re
import subprocess
from html import escape, unescape

import pytest

from loadtest.fleet_watch import FleetEvent
from loadtest.report import html
from loadtest.run import Run, Stage
from loadtest.slo import Slo
from tests.support.browser import FLAGS, browser_or_skip
from tests.support.waiting import PATIENCE
from tests.unit.loadtest.records import record

WIDTHS = (360, 390, 768, 900, 1400)
LOOK = """
const found = {};
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument, svgs = [...page.querySelectorAll("svg")];
  const of = (svg) => [...svg.querySelectorAll("text")];
  const box = (one) => one.getBoundingClientRect();
  const inside = (a, b) => a.left >= b.left - 1 && a.right <= b.right + 1
    && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
  // A line's box has room above and below its letters.
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
    && a.top < b.bottom - 4 && b.top < a.bottom - 4;
  found[frame.width] = {
    charts: svgs.length,
    wider: page.documentElement.scrollWidth - frame.clientWidth,
    cut: svgs.flatMap((svg) => of(svg).filter((t) => !inside(box(t), box(svg)))
      .map((t) => t.textContent)),
    covered: svgs.flatMap((svg) => of(svg).flatMap((a, i, all) => all.slice(i + 1)
      .filter((b) => meet(box(a), box(b))).map((b) => a.textContent + " / " + b.textContent))),
    smallest: Math.min(...svgs.map((svg) => parseFloat(getComputedStyle(of(svg)[0]).fontSize)
      * box(svg).width / svg.viewBox.baseVal.width)),
  };
}
document.querySelector("pre").textContent = JSON.stringify(found);
"""


def some_run():
    """Four rates, the last with failures; a group that joins, is lost and joins again."""
    rates, records = (2, 5, 10, 20), []
    for stage, rate in enumerate(rates):
        for number in range(10 * rate):
            at = 10.0 * stage + number / rate
            ttft = 0.02 * (1 + rate / 5) * (1 + number % 7 / 5)
            lost = {"error": "broken", "message": "no group is ready", "first": None}
            changes = lost if 34 < at < 35 else {"first": at + ttft}
            end = at + ttft + 0.2 + rate / 100
            at_all = {"stage": stage, "intended": at, "sent": at, "end": end}
            records.append(record(len(records), **at_all, **changes))
    events = [(12, "scaling"), (13, "ready"), (34, "fault"), (34.5, "fault"), (39, "ready")]
    return Run(
        "http://127.0.0.1:8000", "pocket-r1", "loadtest run --rate 2,5,10,20 " * 4, 0.0,
        Slo(ttft=0.06, itl=0.04), records,
        [
            Stage(number, f"{rate} requests/s, poisson", rate, "requests/s", 10.0 * number, 0.0, 10)
            for number, rate in enumerate(rates)
        ],
        [FleetEvent(at, kind, "g1 is as it is: rank 1 lost its link") for at, kind in events],
    )  # fmt: skip


@pytest.fixture
def browser():
    return browser_or_skip()


def test_nothing_is_cut_covered_or_too_small(browser, tmp_path):
    report = escape(html(some_run()), quote=True)
    frames = "".join(
        f'<iframe width={width} height=900 frameborder=0 srcdoc="{report}"></iframe>'
        for width in WIDTHS
    )
    page = tmp_path / "page.html"
    script = f"<script>addEventListener('load',()=>{{{LOOK}}})</script>"
    page.write_text(f"<!doctype html><meta charset=utf-8>{frames}<pre></pre>{script}", "utf-8")
    done = subprocess.run(
        [browser, "--headless", *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    [text] = re.findall(r"<pre>(.*?)</pre>", done.stdout)
    found = json.loads(unescape(text))
    assert list(map(int, found)) == list(WIDTHS)
    for seen in found.values():
        assert seen.pop("smallest") >= 9  # CSS pixels
        assert seen == {"charts": 9, "wider": 0, "cut": [], "covered": []}

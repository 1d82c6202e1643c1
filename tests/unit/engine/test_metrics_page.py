"""A rank's own metrics page: its port, its threads, and how often it is rendered."""

import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from serving.engine.metrics_page import MetricsPage, RenderedPage
from serving.engine.metrics_page import open_page as page_of
from serving.errors import SettingsError
from serving.settings import TelemetrySettings
from tests.support.clock import ManualClock
from tests.support.waiting import PATIENCE

HOST = "127.0.0.1"


def read(page, path="/metrics"):
    with urllib.request.urlopen(f"http://{page.address}{path}", timeout=PATIENCE) as response:
        return response.headers["content-type"], response.read().decode()


@pytest.fixture
def open_page():
    pages = []

    def start(port, **arguments):
        pages.append(MetricsPage(HOST, port, **arguments))
        return pages[-1]

    yield start
    for page in pages:
        page.close()


@pytest.fixture
def free_port(open_page):
    return int(open_page(0).address.rpartition(":")[2]) + 1


def test_it_shows_the_metrics_of_its_process(open_page, free_port):
    registry = CollectorRegistry()
    Gauge("vllm:num_requests_running", "", ["engine"], registry=registry).labels("1").set(3)
    page = open_page(free_port, render=lambda: generate_latest(registry))
    kind, text = read(page)
    assert kind.startswith("text/plain; version=0.0.4")
    assert 'vllm:num_requests_running{engine="1"} 3.0' in text.splitlines()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        read(page, "/")


def test_by_default_those_of_prometheus_own_registry(open_page, free_port):
    assert "process_resident_memory_bytes" in read(open_page(free_port))[1]


def test_ranks_of_one_node_get_a_port_each(open_page, free_port):
    pages = [open_page(free_port, render=lambda name=name: name) for name in (b"a", b"b", b"c")]
    assert len({page.address for page in pages}) == 3
    assert [read(page)[1] for page in pages] == ["a", "b", "c"]


def test_an_address_that_is_not_ours_is_an_error_that_names_the_setting():
    with pytest.raises(SettingsError, match=r"telemetry.rank_metrics_port.*192\.0\.2\.1"):
        MetricsPage("192.0.2.1", 9000)


def test_after_close_nobody_listens(free_port):
    page = MetricsPage(HOST, free_port)
    page.close()
    with pytest.raises(urllib.error.URLError):
        read(page)


def test_many_scrapes_render_once_a_second():
    clock, rendered = ManualClock(10.0), []

    def render():
        rendered.append(clock.now)
        return b"%d" % len(rendered)

    page = RenderedPage(render, clock)
    threads = [threading.Thread(target=page.text) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (page.text(), rendered) == (b"1", [10.0])
    clock.now += 1.0
    assert (page.text(), rendered) == (b"2", [10.0, 11.0])


def test_off_by_default():
    assert page_of(TelemetrySettings(), HOST) is None


def test_on_with_a_port(free_port):
    page = page_of(TelemetrySettings(rank_metrics_port=free_port), HOST)
    assert int(page.address.rpartition(":")[2]) in range(free_port, free_port + 64)
    page.close()

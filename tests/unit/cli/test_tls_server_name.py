"""--tls-server-name: a router whose certificate has another name than its address."""

import asyncio
import http.server
import json
import ssl
import threading

import aiohttp
import grpc
import httpx
import pytest
import trustme

from serving.api.v1 import fleet_pb2, fleet_pb2_grpc
from serving.cli.main import main
from serving.client.credentials import Access
from serving.client.rest import RestClient
from serving.errors import NotReady
from tests.support.waiting import PATIENCE
from tests.unit.cli.ops.test_operate import FakeRouter
from tests.unit.credentials.certificates import issue

NAME = "r1-moe-serving-rest.prod.svc"
FLEET = {"model": "m", "inflight_requests": 0, "groups": []}


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def files(tmp_path, authority):
    return issue(tmp_path, authority, "router", NAME)


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(FLEET).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def served(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    return thread


@pytest.fixture
def port(files):
    """A router's REST port, over TLS."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # do not report clients that reject the certificate
    thread = served(server)
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def status(port, files, *more, scheme="https"):
    url = f"{scheme}://127.0.0.1:{port}"
    return main(["status", "--rest-url", url, "--ca-file", str(files.ca), "--json", *more])


def test_status_with_the_name(port, files, capsys):
    assert status(port, files, "--tls-server-name", NAME) == 0
    assert json.loads(capsys.readouterr().out)["fleet"] == FLEET


def test_the_name_may_be_in_the_environment(port, files, monkeypatch):
    monkeypatch.setenv("MOE_SERVING_TLS_SERVER_NAME", NAME)
    assert status(port, files) == 0


@pytest.mark.parametrize("more", [(), ("--tls-server-name", "other.svc")])
def test_another_name_is_refused_and_the_option_named(port, files, more, capsys):
    assert status(port, files, *more) == 1
    assert "--tls-server-name" in json.loads(capsys.readouterr().out)["reason"]


def test_an_unknown_authority_is_refused_and_the_option_named(port, tmp_path, capsys):
    other = issue(tmp_path, trustme.CA(), "other", NAME)
    assert status(port, other, "--tls-server-name", NAME) == 1
    assert "--ca-file" in json.loads(capsys.readouterr().out)["reason"]


def test_plain_http_to_a_port_with_tls(port, files, capsys):
    assert status(port, files, scheme="http") == 1
    assert "cannot reach the router" in json.loads(capsys.readouterr().out)["reason"]


def test_tls_to_a_plain_port(files):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = served(server)
    try:
        with pytest.raises(NotReady, match="does not use TLS"):
            RestClient(f"https://127.0.0.1:{server.server_port}").get_json("/fleet", 20.0)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_is_no_http_is_an_error_in_words():
    class Odd(http.server.BaseHTTPRequestHandler):
        def handle(self):
            self.rfile.readline()
            self.wfile.write(b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    thread = served(server)
    try:
        with pytest.raises(NotReady, match="https:// address"):
            RestClient(f"http://127.0.0.1:{server.server_port}").get_json("/fleet", 20.0)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_other_clients_ask_by_the_name_too(port, files):
    context = Access(ca_file=str(files.ca), server_name=NAME).ssl_context()
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    url = f"https://127.0.0.1:{port}/fleet"
    with httpx.Client(verify=context, trust_env=False, timeout=PATIENCE) as client:
        assert client.get(url).json() == FLEET

    async def asked():
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
            session.get(url) as answer,
        ):
            return json.loads(await answer.text())

    assert asyncio.run(asked()) == FLEET
    with (
        pytest.raises(httpx.ConnectError),
        httpx.Client(
            verify=Access(ca_file=str(files.ca), server_name="other.svc").ssl_context(),
            trust_env=False,
            timeout=PATIENCE,
        ) as client,
    ):
        client.get(url)


def test_drains_over_grpc_ask_by_the_name_too(files, capsys):
    from concurrent import futures

    server = grpc.server(futures.ThreadPoolExecutor(2))
    router = FakeRouter()
    fleet_pb2_grpc.add_FleetServiceServicer_to_server(router, server)
    key = [(files.key.read_bytes(), files.cert.read_bytes())]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(key))
    server.start()
    words = ["cordon", "g0", "--grpc-address", f"127.0.0.1:{port}", "--ca-file", str(files.ca)]
    try:
        assert main([*words, "--tls-server-name", NAME]) == 0
    finally:
        server.stop(None)
    assert ("Cordon", fleet_pb2.CordonRequest(group_id="g0")) in router.calls

"""Small fake routers over REST and gRPC for tests of clients, and a request to send to them."""

import json
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import grpc

from serving.api.v1 import inference_pb2, inference_pb2_grpc
from serving.client.chat import GenerateRequest, Message
from tests.support.waiting import PATIENCE


def asked(*messages, max_tokens=None):
    """Return a request with these messages, each a role and a text."""
    return GenerateRequest(tuple(Message(role, text) for role, text in messages), max_tokens)


def chunk(delta: dict) -> bytes:
    """Return a chat chunk as a server-sent event."""
    body = {
        "id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
    }  # fmt: skip
    return f"data: {json.dumps(body)}\n\n".encode()


@contextmanager
def rest_router(status: int, data: bytes, kind: str = "text/event-stream"):
    """Run a REST server that answers each POST with ``data``; yield its address and the bodies."""
    bodies: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Inference(inference_pb2_grpc.InferenceServiceServicer):
    """Streams a fixed answer or fails; if ``endless``, waits for the client to cancel."""

    def __init__(self, failure: grpc.StatusCode | None = None, *, endless: bool = False):
        self.failure = failure
        self.endless = endless
        self.requests: list[inference_pb2.ChatRequest] = []
        self.ended = Event()

    def ChatStream(self, request, context):  # noqa: N802  named by the proto
        self.requests.append(request)
        context.add_callback(self.ended.set)
        if self.failure is not None:
            context.abort(self.failure, "its own words")
        delta = inference_pb2.ChatChoiceDelta
        for part in (delta(reasoning_content="hm"), delta(content="2")):
            yield inference_pb2.ChatStreamResponse(choices=[part])
        if self.endless:
            self.ended.wait(PATIENCE)


@contextmanager
def grpc_router(servicer: Inference):
    """Run a gRPC server; yield its address."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait(PATIENCE)

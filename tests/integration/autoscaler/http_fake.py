"""A small HTTP server in a thread, for fakes of the autoscaler's peers."""

import http.server
import json
import threading


class HttpFake:
    """Subclasses implement the responses; ``url`` and ``address`` are the address of the server."""

    def __init__(self):
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self._answer(None)

            def do_POST(self):
                self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def _answer(self, sent):
                status, content = fake.answer(self.path, sent)
                text = isinstance(content, str)
                body = (content if text else json.dumps(content)).encode()
                self.send_response(status)
                kind = "text/plain; version=0.0.4" if text else "application/json"
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.address}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def answer(self, path, sent):
        """Return status and content (a string, or an object for JSON); a GET has ``sent`` None."""
        raise NotImplementedError

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

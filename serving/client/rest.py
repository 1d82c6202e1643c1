"""A blocking REST client for commands.

Uses only the standard library, so that ``status`` and ``up`` need not import an HTTP library.
"""

import contextlib
import http.client
import json
import ssl
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from serving.client.chat import Delta, GenerateOptions, GenerateRequest
from serving.client.chunks import DONE, body_of, data_of, parse_chunk, path_of
from serving.client.credentials import NO_ACCESS, Access
from serving.client.errors import ClientError, class_of_status, message_of
from serving.errors import DeadlineExceeded, EngineError, NotReady

CONNECT_TIMEOUT = 5.0
"""Time after which an address that does not respond counts as unreachable, seconds."""
_HTTP_OK = 200
_UNREACHABLE = (OSError, http.client.HTTPException, ValueError)
_NAME_MISMATCH = frozenset({62, 64})
"""OpenSSL's codes X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
_UNTRUSTED_CA = frozenset({18, 19, 20, 21})
"""OpenSSL's codes for self-signed certificates and untrusted issuers."""


class RestClient:
    """Client of a router's REST API; opens a connection per call and ignores proxies."""

    def __init__(self, url: str, access: Access = NO_ACCESS) -> None:
        """Create the client.

        Args:
            url: ``http[s]://host:port``; a trailing ``/v1`` is dropped.
            access: Key and certificates.
        """
        self.url = base_url(url)
        self._access = access

    def get_json(self, path: str, timeout: float = CONNECT_TIMEOUT) -> tuple[int, Any]:
        """Return status and decoded body of GET ``path``; None for a body that is not JSON.

        Args:
            path: Route, with a leading slash.
            timeout: Timeout for connecting and for each read, seconds.

        Raises:
            NotReady: No router responds at the address.
        """
        try:
            with self.response("GET", path, timeout) as answer:
                return answer.status, decoded(answer.read())
        except _UNREACHABLE as error:
            raise NotReady(
                f"cannot reach the router at {self.url}{path}: {_reason(error)}"
            ) from error

    def generate(self, request: GenerateRequest, options: GenerateOptions) -> Iterator[Delta]:
        """Yield the answer as it arrives; closing the iterator cancels the request.

        Raises:
            ServingError: The request failed; the text contains the server's message or the address.
        """
        started = False
        body = json.dumps(body_of(request, options)).encode()
        session = {} if request.session is None else {"x-session-id": request.session}
        try:
            with self.response("POST", path_of(options), options.timeout, body, session) as answer:
                if answer.status != _HTTP_OK:
                    detail = message_of(decoded(answer.read()) or answer.reason)
                    raise class_of_status(answer.status)(
                        f"{self.url} returned HTTP {answer.status}: {detail}"
                    )
                started = True
                for line in answer:
                    data = data_of(line)
                    if data == DONE:
                        return
                    if data is not None:
                        yield parse_chunk(data)
        except ClientError as error:
            raise EngineError(f"the response stream failed: {error}") from error
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self.url} did not respond in time") from error
        except ConnectionRefusedError as error:
            raise NotReady(f"cannot connect to {self.url}: connection refused") from error
        except _UNREACHABLE as error:
            what = "lost the connection" if started else "cannot connect"
            raise NotReady(f"{what} to {self.url}: {_reason(error)}") from error
        raise EngineError(f"{self.url} closed the stream before [DONE]")

    @contextlib.contextmanager
    def response(
        self,
        method: str,
        path: str,
        timeout: float,
        body: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request, yield the response, and close the connection at the end.

        Args:
            method: HTTP method.
            path: Route, with a leading slash.
            timeout: Timeout for each read and write, seconds.
            body: The body, JSON unless ``headers`` has a content-type. A body in parts needs a
                content-length.
            headers: Further headers, in lower case.

        Raises:
            OSError: The connection fails.
            HTTPException: The response is not HTTP.
        """
        address = urlsplit(self.url)
        host, connecting = address.hostname or "", min(timeout, CONNECT_TIMEOUT)
        connection: http.client.HTTPConnection
        if address.scheme == "https":
            context = self._access.ssl_context()
            connection = http.client.HTTPSConnection(
                host, address.port, timeout=connecting, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, address.port, timeout=connecting)
        sent = {**self._access.headers(), **(headers or {})}
        if body is not None:
            sent.setdefault("content-type", "application/json")
        try:
            connection.connect()
            connection.sock.settimeout(timeout)
            connection.request(method, address.path + path, body, sent)
            yield connection.getresponse()
        finally:
            connection.close()


def base_url(url: str) -> str:
    """Return an address without trailing slash and ``/v1``, which users copy from SDK settings."""
    return url.rstrip("/").removesuffix("/v1")


def decoded(body: bytes) -> Any:
    """Return a decoded JSON body, or None if it is empty or not JSON."""
    try:
        return json.loads(body) if body.strip() else None
    except ValueError:
        return None


def _reason(error: BaseException) -> str:
    """Return the reason for a failure and, for TLS, the remedy."""
    if isinstance(error, http.client.BadStatusLine):
        return f"{error}: not an HTTP response; if the server uses TLS, use an https:// address"
    if not isinstance(error, ssl.SSLError):
        return str(getattr(error, "strerror", None) or error) or type(error).__name__
    code = getattr(error, "verify_code", None)
    if code in _NAME_MISMATCH:
        return f"{error}: pass the host name in the certificate with --tls-server-name NAME"
    if code in _UNTRUSTED_CA:
        return f"{error}: pass the CA certificate with --ca-file FILE (ca.crt of the TLS secret)"
    if "WRONG_VERSION_NUMBER" in str(error) or "RECORD_LAYER_FAILURE" in str(error):
        return f"{error}: the server does not use TLS; use an http:// address"
    return str(error) or type(error).__name__

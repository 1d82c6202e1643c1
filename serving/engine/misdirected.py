"""Response to HTTP requests that reach a rank through Ray Serve's proxy.

On Kubernetes, every node runs a Serve proxy, because KubeRay marks a pod ready only when the
proxy's ``/-/healthz`` returns 200, which requires an application with a route. Clients must send
requests to the routers instead. The response states this, without reading the request body or
calling the engine.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.responses import Response

STATUS = 421
"""HTTP status Misdirected Request: this server cannot answer the request."""
REASON = "MISDIRECTED_REQUEST"
MESSAGE = (
    "this Ray Serve port serves only health checks (/-/healthz); "
    "send requests to the router's REST or gRPC Service"
)


def answer() -> "Response":
    """Return the error in the JSON shape of the router's REST errors."""
    from starlette.responses import JSONResponse

    error = {
        "message": MESSAGE,
        "type": "MisdirectedRequestError",
        "param": None,
        "code": STATUS,
        "reason": REASON,
    }
    return JSONResponse({"error": error}, status_code=STATUS)

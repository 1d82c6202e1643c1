"""The answer to an HTTP request that reaches a rank through Ray Serve's proxy.

Serve's proxies run on every node of a Kubernetes cluster because KubeRay asks them
``/-/healthz`` before it calls a pod ready; they answer 200 only if an application has a route.
No client is meant to use that route: requests go to the routers. The answer says so and costs
the rank nothing but itself: the body of the request is not read, the engine is not asked.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.responses import Response

STATUS = 421
"""Misdirected Request: this server does not answer for what was asked."""
REASON = "MISDIRECTED_REQUEST"
MESSAGE = (
    "this port of Ray Serve is for health checks (/-/healthz) and carries no requests; "
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

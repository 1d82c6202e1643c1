"""Error responses of an API server: Status objects with a code and a reason.

Messages follow the recorded exchanges and, where those are silent, the constructors of
k8s.io/apimachinery/pkg/api/errors.
"""

from typing import Any

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class ApiError(Exception):
    """A rejected request; ``status()`` returns the response body."""

    def __init__(
        self, code: int, message: str, reason: str | None = None, details: dict | None = None
    ):
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = REASONS.get(code, "") if reason is None else reason
        self.details = details or {}

    def status(self) -> dict[str, Any]:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            **({"reason": self.reason} if self.reason else {}),
            **({"details": self.details} if self.details else {}),
            "code": self.code,
        }


def _details(kind, name, **more):
    found = {"name": name, "group": kind.group, "kind": kind.plural} | more
    return {key: value for key, value in found.items() if value}


def bad_request(message):
    return ApiError(400, message)


def not_found(kind, name):
    return ApiError(404, f'{kind.resource} "{name}" not found', details=_details(kind, name))


def no_such_path():
    """A path that the server does not serve; the response is plain text (recorded)."""
    return ApiError(404, "404 page not found", "")


def already_exists(kind, name):
    message = f'{kind.resource} "{name}" already exists'
    return ApiError(409, message, "AlreadyExists", _details(kind, name))


def conflict(kind, name, why=None):
    why = why or (
        "the object has been modified; please apply your changes to the latest version and try "
        "again"
    )
    message = f'Operation cannot be fulfilled on {kind.resource} "{name}": {why}'
    return ApiError(409, message, details=_details(kind, name))


def invalid(kind, name, problems):
    """Return the error for invalid values; ``problems`` are (reason, path, message) each."""
    sentences = [f"{path}: {sentence}" for _, path, sentence in problems]
    message = sentences[0] if len(sentences) == 1 else f"[{', '.join(sentences)}]"
    label = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    causes = [
        {"reason": reason, "message": sentence, "field": path}
        for reason, path, sentence in problems
    ]
    details = {"name": name, "group": kind.group, "kind": kind.kind, "causes": causes}
    details = {key: value for key, value in details.items() if value}
    return ApiError(422, f'{label} "{name}" is invalid: {message}', details=details)


def wrong_uid(kind, name, given, uid):
    """A DELETE whose precondition names another object (recorded)."""
    label = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    message = (
        f'Operation cannot be fulfilled on {label} "{name}": the UID in the precondition ({given}) '
        f"does not match the UID in record ({uid}). The object might have been deleted and then "
        "recreated"
    )
    return ApiError(409, message, details=_details(kind, name) | {"kind": kind.kind})


def invalid_patch():
    """A JSON patch that cannot be applied, such as a ``test`` that does not hold."""
    return ApiError(422, "the server rejected our request due to an error in our request")


def forbidden(user, verb, kind, namespace, name="", subresource=""):
    resource = f"{kind.plural}/{subresource}" if subresource else kind.plural
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    quoted = f'{kind.resource} "{name}"' if name else kind.resource
    message = (
        f'{quoted} is forbidden: User "{user}" cannot {verb} resource "{resource}" '
        f'in API group "{kind.group}" {where}'
    )
    return ApiError(403, message, details=_details(kind, name))


def expired(since, oldest):
    return ApiError(410, f"too old resource version: {since} ({oldest})")

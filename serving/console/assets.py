"""The console's static files, compressed once, and the security headers of every response."""

import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

STATIC = Path(__file__).with_name("static")
INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    # The page creates elements and sets their text; no string is ever parsed as HTML or script.
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
SECURITY_HEADERS = {
    "content-security-policy": "; ".join(_POLICY),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
"""Headers of every response of the console except errors, which are JSON."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One static file."""

    content: bytes
    media_type: str
    compressed: bytes = field(init=False)
    """The content in gzip format."""
    etag: str = field(init=False)

    def __post_init__(self) -> None:
        """Compress the content; the same content always gives the same bytes."""
        object.__setattr__(self, "compressed", gzip.compress(self.content, 9, mtime=0))
        digest = hashlib.sha256(self.content).hexdigest()[:32]
        object.__setattr__(self, "etag", f'"{digest}"')


def _files() -> Iterator[Path]:
    return (path for path in STATIC.rglob("*") if path.suffix in _TYPES)


@cache
def assets() -> dict[str, Asset]:
    """Return all files by their path below /console/. The first call reads and compresses them.

    Only paths in the result are served, so no request can read a file outside the folder.
    """
    return {
        path.relative_to(STATIC).as_posix(): Asset(path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(_files())
    }

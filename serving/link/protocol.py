"""Properties that both ends of a link must share: protocol version and model files."""

import hashlib
import json
from pathlib import Path

PROTOCOL_VERSION = 2
"""Version of the protocol; incremented by every change that an older peer would misinterpret."""

SERVED_VERSIONS = (1, PROTOCOL_VERSION)
"""Versions of ranks that a router serves, so that routers can be upgraded before ranks."""

_FINGERPRINT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


def model_fingerprint(path: str) -> str:
    """Return a digest of the model's configuration and tokenizer files.

    Token ids have the same meaning on a rank and a router with equal fingerprints.

    Args:
        path: Directory of the model. If it has none of these files, ``path`` is treated as a model
            hub id, and the id itself is digested.
    """
    folder = Path(path)
    digest = hashlib.sha256()
    found = False
    for name in _FINGERPRINT_FILES:
        file = folder / name
        if file.is_file():
            found = True
            # Canonical JSON: white space and the order of keys do not matter.
            content = json.dumps(json.loads(file.read_text("utf-8")), sort_keys=True)
            digest.update(f"{name}\0{content}\0".encode())
    if not found:
        digest.update(path.encode())
    return digest.hexdigest()[:16]


def adapter_key(name: str, digest: str) -> str:
    """Return what identifies an adapter's weights: equal keys are equal files.

    Args:
        name: Name of the adapter.
        digest: Digest of its files.
    """
    return f"{name}@{digest}"

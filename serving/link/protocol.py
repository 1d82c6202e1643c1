"""What both ends of the link must agree on before the first request."""

import hashlib
import json
from pathlib import Path

PROTOCOL_VERSION = 1
"""Raised when a change makes an older peer misunderstand a newer one."""

_FINGERPRINT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


def model_fingerprint(path: str) -> str:
    """Digest the model's configuration and tokenizer files in folder ``path``.

    A rank and a router with equal fingerprints mean the same by a token id. For a hub id
    (no such folder) the id itself is digested: both sides then name the same thing.
    """
    folder = Path(path)
    digest = hashlib.sha256()
    found = False
    for name in _FINGERPRINT_FILES:
        file = folder / name
        if file.is_file():
            found = True
            # Canonical JSON: white space and key order mean nothing.
            content = json.dumps(json.loads(file.read_text("utf-8")), sort_keys=True)
            digest.update(f"{name}\0{content}\0".encode())
    if not found:
        digest.update(path.encode())
    return digest.hexdigest()[:16]

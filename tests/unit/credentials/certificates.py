"""Throw-away authorities and certificates for tests."""

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Files:
    """One certificate with its key and authority, on disk."""

    cert: Path
    key: Path
    ca: Path


def issue(folder: Path, ca: trustme.CA, name: str = "cert", *hosts: str) -> Files:
    """Write a certificate of ``ca`` for ``hosts`` (loopback by default); replaces an old one."""
    made = ca.issue_cert(*(hosts or ("127.0.0.1", "localhost")))
    files = Files(folder / f"{name}.pem", folder / f"{name}.key", folder / f"{name}-ca.pem")
    files.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    files.key.write_bytes(made.private_key_pem.bytes())
    files.ca.write_bytes(ca.cert_pem.bytes())
    return files

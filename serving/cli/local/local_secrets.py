"""The secrets of a run on this machine, made by ``up`` so that nobody has to type any."""

import os
from pathlib import Path

from serving.credentials.tokens import new_token
from serving.errors import SettingsError
from serving.settings import Settings

JOIN_TOKEN = "join-token"  # noqa: S105  a file's name
OPERATOR_KEY = "operator-key"


def with_local_secrets(settings: Settings, folder: Path) -> Settings:
    """Return the settings with what router, ranks and ``up`` need to know each other.

    A join token, unless the user has one; and where keys are asked for, an operator's key for
    ``up``, ``status`` and ``drain``. Both are new at every start, in files of ``folder`` that
    only their owner can read; the settings name the files.

    Raises:
        SettingsError: clients of the router must show certificates, and ``up`` has none.
    """
    security, link = settings.security, settings.link
    if security.tls_client_ca_file is not None and security.operator_tls_cert_file is None:
        raise SettingsError(
            "security.tls_client_ca_file: moe-serving up has to ask its own router, too: set "
            "security.operator_tls_cert_file and security.operator_tls_key_file to a client's "
            "certificate and key"
        )
    if security.join_token_file is None:
        made = _write(folder / JOIN_TOKEN)
        security = security.model_copy(update={"join_token_file": made})
    if link.token_file is None:
        link = link.model_copy(update={"token_file": security.join_token_file})
    if security.keys_file is not None and security.operator_key_file is None:
        made = _write(folder / OPERATOR_KEY)
        security = security.model_copy(update={"operator_key_file": made})
    return settings.model_copy(update={"security": security, "link": link})


def _write(path: Path) -> str:
    # A new file each time: one that is there may be readable by others.
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as out:
        out.write(new_token() + "\n")
    return str(path.resolve())

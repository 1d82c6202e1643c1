"""The router under test, and the clients' API keys."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from serving.edge.auth.keys import digest_of, new_key


@dataclass(frozen=True)
class Keys:
    """API keys of a client."""

    user: str = ""
    """Key with role user; empty if the router requires none."""
    narrow: str = ""
    """Key of a tenant with one concurrent request; empty if there is none."""
    admin: str = ""
    """Key with role admin; empty if there is none."""


@dataclass(frozen=True)
class Target:
    """A router."""

    url: str
    """REST address, without /v1."""
    grpc: str
    """Address, host:port."""
    model: str
    keys: Mapping[str, Keys] = field(default_factory=dict)
    """Keys by client; other clients use ``common``."""
    common: Keys = Keys()

    def environment(self, client: str) -> dict[str, str]:
        """Return the environment variables of a client's script."""
        keys = self.keys.get(client, self.common)
        return {
            "CLIENT_URL": self.url.rstrip("/"),
            "CLIENT_GRPC": self.grpc,
            "CLIENT_MODEL": self.model,
            "CLIENT_KEY": keys.user,
            "CLIENT_NARROW_KEY": keys.narrow,
            "CLIENT_ADMIN_KEY": keys.admin,
        }


def make_keys(clients: Iterable[str]) -> tuple[dict[str, Keys], dict[str, Any]]:
    """Create keys for each client; return them, and their entries of a key file."""
    made: dict[str, Keys] = {}
    entries: list[dict[str, Any]] = []
    tenants: dict[str, Any] = {}
    for index, client in enumerate(clients):
        made[client] = keys = Keys(new_key(), new_key(), new_key())
        for kind, key in (("user", keys.user), ("narrow", keys.narrow), ("admin", keys.admin)):
            name = f"client-{index}-{kind}"
            entries.append({"id": name, "hash": digest_of(key), "tenant": name})
        entries[-1]["roles"] = ["admin"]
        tenants[f"client-{index}-narrow"] = {"concurrent_streams": 1}
    return made, {"keys": entries, "tenants": tenants}


def add_to(text: str, added: Mapping[str, Any]) -> str:
    """Return the text of a key file with more keys and tenants."""
    content = yaml.safe_load(text) or {}
    keys = [*(content.get("keys") or ()), *added["keys"]]
    tenants = {**(content.get("tenants") or {}), **added["tenants"]}
    return yaml.safe_dump({"keys": keys, "tenants": tenants})

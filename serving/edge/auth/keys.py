"""The key file: hashes of API keys, with tenants, roles and expiry dates.

    keys:
      - id: alice-laptop            names the key in messages and logs
        hash: sha256:9f86d08...     hash of the complete key
        tenant: alice               tenant whose quota and fair share the key uses
        roles: [user, explain]      default: [user]
        priorities: [standard]      default: all
        expires: 2027-01-31         optional; the key is invalid from this date on
    tenants:                      omitted limits come from the admission settings
      alice: {requests_per_minute: 600, concurrent_streams: 16, weight: 2}

Plain SHA-256 is sufficient. Slow password hashes (argon2, bcrypt) protect guessable secrets. These
keys are 256 random bits, which cannot be guessed at any speed, and the hash must be computed for
every request.

Keys are looked up by digest. Lookup timing could at most reveal something about stored digests,
from which a key cannot be computed; the final comparison is constant-time anyway.
"""

import datetime as dt
import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.admission.quotas import LimitsOf, TenantLimits
from serving.credentials.tokens import read_tokens
from serving.credentials.watched import Watched, read_text
from serving.errors import SettingsError
from serving.request_context import Priority
from serving.settings import SecuritySettings
from serving.yaml_text import NotYaml, read_yaml

PREFIX = "moe-"
"""Prefix of all generated keys; lets secret scanners recognize them."""
HASH_PREFIX = "sha256:"
MAX_KEY_LENGTH = 512
OPERATOR = "operator"
"""Id and tenant of the key in ``security.operator_key_file``."""

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"


class Role(StrEnum):
    """Role of an API key."""

    USER = "user"
    """Use the model."""
    METRICS = "metrics"
    """Read /metrics."""
    EXPLAIN = "explain"
    """Read routing explanations (x-explain-routing)."""
    ADMIN = "admin"
    """All routes and RPCs, including /fleet and FleetService."""


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of the key file; the key itself is not stored."""

    id: str
    tenant: str
    roles: frozenset[Role]
    priorities: frozenset[Priority]
    expires: float | None = None
    """Unix time from which the key is invalid, seconds. None: never."""
    digest: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Keys and tenants of one version of the key file."""

    keys: Mapping[str, Key]
    """Keys by digest."""
    tenants: Mapping[str, Mapping[str, Any]]
    """Limits in the file (fields of ``TenantLimits``), by tenant."""

    def find(self, presented: str, now: float) -> Key | None:
        """Return the entry of a key, or None if unknown or expired at ``now`` (Unix time)."""
        if len(presented) > MAX_KEY_LENGTH:
            return None
        digest = digest_of(presented)
        key = self.keys.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            return None
        return key if key.expires is None or now < key.expires else None

    def limits_of(self, tenant: str, default: TenantLimits) -> TenantLimits:
        """Return a tenant's limits; limits omitted in the file are taken from ``default``."""
        return replace(default, **self.tenants.get(tenant, {}))


def new_key() -> str:
    """Return a new random key (256 bits)."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """Return a key's hash in the format of the key file."""
    data = key.encode("utf-8", "surrogateescape")
    return HASH_PREFIX + hashlib.sha256(data).hexdigest()


def watch_keys(settings: SecuritySettings) -> Watched[KeyRing] | None:
    """Load the key file and watch it for changes; return None if none is configured.

    Raises:
        SettingsError: a file is missing or invalid.
    """
    file, operator = settings.keys_file, settings.operator_key_file
    if file is None:
        return None
    return Watched("API keys", (file, operator), lambda: load_keys(file, operator))


def limits_with(keys: Watched[KeyRing] | None, default: LimitsOf) -> LimitsOf:
    """Return a lookup of tenant limits in the current key file, falling back to ``default``."""
    if keys is None:
        return default
    return lambda tenant: keys.value.limits_of(tenant, default(tenant))


def load_keys(file: str, operator_file: str | None = None) -> KeyRing:
    """Read a key file.

    Args:
        file: path of the key file.
        operator_file: file with one plaintext key that is granted role admin.

    Raises:
        SettingsError: a file is missing or invalid; the message has the position but never a hash
            or key.
    """
    ring = parse_keys(read_text(file, "API keys"), file)
    if operator_file is None:
        return ring
    digest = digest_of(read_tokens(operator_file)[0])
    operator = Key(OPERATOR, OPERATOR, frozenset({Role.ADMIN}), frozenset(Priority), digest=digest)
    return KeyRing({**ring.keys, digest: operator}, ring.tenants)


def parse_keys(text: str, where: str = "keys") -> KeyRing:
    """Parse the content of a key file.

    Args:
        text: the content.
        where: file name for error messages.

    Raises:
        SettingsError: the content is invalid.
    """
    try:
        content = read_yaml(text)
    except NotYaml as error:
        line = "" if error.line is None else f", line {error.line}"
        raise SettingsError(f"{where}{line}: invalid YAML") from None
    try:
        read = _File.model_validate(_without_empty(content))
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc']) or 'file'}: {item['msg']}"
            for item in error.errors(include_input=False)
        ]
        raise SettingsError(f"{where}: " + "; ".join(lines)) from None
    return _ring(read, where)


def _without_empty(content: Any) -> Any:
    """Return the content without top-level names that have no value, such as a bare ``keys:``."""
    if content is None:
        return {}
    if not isinstance(content, dict):
        return content
    return {name: value for name, value in content.items() if value is not None}


def _ring(read: "_File", where: str) -> KeyRing:
    keys: dict[str, Key] = {}
    ids: set[str] = set()
    for entry in read.keys:
        if entry.id in ids:
            raise SettingsError(f"{where}: duplicate key id {entry.id}")
        if entry.hash in keys:
            raise SettingsError(f"{where}: {keys[entry.hash].id} and {entry.id} have the same hash")
        ids.add(entry.id)
        keys[entry.hash] = Key(
            entry.id,
            entry.tenant,
            frozenset(entry.roles),
            frozenset(Priority[name.upper()] for name in entry.priorities),
            _unix_time(entry.expires),
            entry.hash,
        )
    tenants = {name: limits.model_dump(exclude_unset=True) for name, limits in read.tenants.items()}
    return KeyRing(keys, tenants)


def _unix_time(moment: dt.datetime | dt.date | None) -> float | None:
    if moment is None:
        return None
    if not isinstance(moment, dt.datetime):
        moment = dt.datetime.combine(moment, dt.time())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return moment.timestamp()


class _Model(BaseModel):
    # Messages must not show input, which may be a key entered instead of its hash.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class _Entry(_Model):
    id: str = Field(pattern=_NAME)
    hash: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    tenant: str = Field(pattern=_NAME)
    roles: Sequence[Role] = (Role.USER,)
    priorities: Sequence[Annotated[str, Field(pattern="^(interactive|standard|batch)$")]] = Field(
        tuple(item.name.lower() for item in Priority), min_length=1
    )
    expires: dt.datetime | dt.date | None = None


class _Limits(_Model):
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    concurrent_streams: int | None = Field(None, ge=1)
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)


class _File(_Model):
    keys: list[_Entry] = []
    tenants: dict[Annotated[str, Field(pattern=_NAME)], _Limits] = {}

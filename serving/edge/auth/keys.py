"""API keys: their hashes, tenants, roles and expiry dates, from the key file (``key_file``).

Plain SHA-256 is sufficient. Slow password hashes (argon2, bcrypt) protect guessable secrets. These
keys are 256 random bits, which cannot be guessed however fast the hash is, and the hash must be
computed for every request.

Keys are looked up by digest. Lookup timing could reveal at most parts of the stored digests, from
which a key cannot be computed, and the final comparison takes constant time.
"""

import datetime as dt
import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from pydantic import ValidationError

from serving.admission.budgets import BudgetsOf
from serving.admission.quotas import LimitsOf, TenantLimits
from serving.credentials.tokens import read_tokens
from serving.credentials.watched import Watched, read_text
from serving.edge.auth.key_file import KeyEntry, KeyFile, Role, TenantEntry
from serving.errors import SettingsError
from serving.ledger.budget import Budget, Scope, units
from serving.request_context import Priority, ReasoningPolicy
from serving.settings import SecuritySettings
from serving.yaml_text import NotYaml, RepeatedKey, read_yaml

PREFIX = "moe-"
"""Prefix of all generated keys; lets secret scanners recognize them."""
HASH_PREFIX = "sha256:"
MAX_KEY_LENGTH = 512
OPERATOR = "operator"
"""Id and tenant of the key in ``security.operator_key_file``."""


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of the key file; the key itself is not stored."""

    id: str
    tenant: str
    roles: frozenset[Role]
    priorities: frozenset[Priority]
    expires: float | None = None
    """Unix time from which the key is invalid, seconds. None if the key does not expire."""
    reasoning: ReasoningPolicy | None = None
    """Defaults and caps for reasoning, merged from the key and its tenant. None means
    unrestricted."""
    digest: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Keys and tenants of one version of the key file."""

    keys: Mapping[str, Key]
    """Keys by digest."""
    tenants: Mapping[str, Mapping[str, Any]]
    """Limits in the file (fields of ``TenantLimits``), by tenant."""
    budgets: Mapping[tuple[Scope, str], Sequence[Budget]] = field(default_factory=dict)
    """Budgets of tenants and keys that have any."""
    reasoning: Mapping[str, ReasoningPolicy] = field(default_factory=dict)
    """Policies of keys that have any, by id."""

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

    def budgets_of(self, tenant: str, key_id: str | None) -> Sequence[Budget]:
        """Return the budgets that apply to a request."""
        if not self.budgets:
            return ()
        of_tenant = self.budgets.get((Scope.TENANT, tenant), ())
        of_key = () if key_id is None else self.budgets.get((Scope.KEY, key_id), ())
        return (*of_tenant, *of_key)


def new_key() -> str:
    """Return a new random key (256 bits)."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """Return a key's hash in the format of the key file."""
    data = key.encode("utf-8", "surrogateescape")
    return HASH_PREFIX + hashlib.sha256(data).hexdigest()


def watch_keys(
    settings: SecuritySettings, no_budgets: str | None = None
) -> Watched[KeyRing] | None:
    """Load the key file and watch it for changes; return None if none is configured.

    Args:
        settings: Settings that name the files.
        no_budgets: Why budgets cannot be counted, which makes files with budgets invalid. None if
            they can be counted.

    Raises:
        SettingsError: A file is missing or invalid.
    """
    file, operator = settings.keys_file, settings.operator_key_file
    if file is None:
        return None

    def load() -> KeyRing:
        ring = load_keys(file, operator)
        if ring.budgets and no_budgets is not None:
            raise SettingsError(f"{file}: {no_budgets}")
        return ring

    return Watched("API keys", (file, operator), load)


def budgets_with(keys: Watched[KeyRing] | None) -> BudgetsOf:
    """Return a function that looks up budgets in the current key file."""
    if keys is None:
        return lambda _tenant, _key_id: ()

    def budgets_of(tenant: str, key_id: str | None) -> Sequence[Budget]:
        return keys.value.budgets_of(tenant, key_id)

    return budgets_of


def limits_with(keys: Watched[KeyRing] | None, default: LimitsOf) -> LimitsOf:
    """Return a lookup of tenant limits in the current key file, falling back to ``default``."""
    if keys is None:
        return default
    return lambda tenant: keys.value.limits_of(tenant, default(tenant))


def load_keys(file: str, operator_file: str | None = None) -> KeyRing:
    """Read a key file.

    Args:
        file: Path of the key file.
        operator_file: File with one plaintext key that is granted role admin.

    Raises:
        SettingsError: A file is missing or invalid; the message contains the position but never a
            hash or key.
    """
    ring = parse_keys(read_text(file, "API keys"), file)
    if operator_file is None:
        return ring
    digest = digest_of(read_tokens(operator_file)[0])
    operator = Key(OPERATOR, OPERATOR, frozenset({Role.ADMIN}), frozenset(Priority), digest=digest)
    return replace(ring, keys={**ring.keys, digest: operator})


def parse_keys(text: str, where: str = "keys") -> KeyRing:
    """Parse the content of a key file.

    Args:
        text: The content.
        where: File name for error messages.

    Raises:
        SettingsError: The content is invalid.
    """
    try:
        content = read_yaml(text)
    except NotYaml as error:
        line = "" if error.line is None else f", line {error.line}"
        # The reason could quote a key.
        reason = "a name occurs twice" if isinstance(error, RepeatedKey) else "invalid YAML"
        raise SettingsError(f"{where}{line}: {reason}") from None
    try:
        read = KeyFile.model_validate(_without_empty(content))
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


def _ring(read: KeyFile, where: str) -> KeyRing:
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
            _reasoning(entry, read.tenants.get(entry.tenant)),
            entry.hash,
        )
    tenants = {
        name: limits.model_dump(exclude_unset=True, exclude={"budgets", "reasoning"})
        for name, limits in read.tenants.items()
    }
    given = (
        *((Scope.TENANT, name, limits.budgets) for name, limits in read.tenants.items()),
        *((Scope.KEY, entry.id, entry.budgets) for entry in read.keys),
    )
    budgets = {
        (scope, name): tuple(
            Budget(scope, name, period, _units(limits.soft), _units(limits.hard))
            for period, limits in periods.items()
        )
        for scope, name, periods in given
        if periods
    }
    policies = {key.id: key.reasoning for key in keys.values() if key.reasoning is not None}
    return KeyRing(keys, tenants, budgets, policies)


def _reasoning(key: KeyEntry, tenant: TenantEntry | None) -> ReasoningPolicy | None:
    """Merge the fields of a tenant and of its key; the key's fields take precedence."""
    fields = {} if tenant is None else tenant.reasoning.model_dump(exclude_unset=True)
    fields |= key.reasoning.model_dump(exclude_unset=True)
    return ReasoningPolicy(**fields) if fields else None


def _units(amount: Decimal | None) -> int | None:
    return None if amount is None else units(amount)


def _unix_time(moment: dt.datetime | dt.date | None) -> float | None:
    if moment is None:
        return None
    if not isinstance(moment, dt.datetime):
        moment = dt.datetime.combine(moment, dt.time())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return moment.timestamp()

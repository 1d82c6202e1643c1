"""Who calls, and may he: the one decision behind the REST middleware and the gRPC interceptor."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from serving.clock import Clock
from serving.credentials.tokens import bearer_of
from serving.edge.auth.keys import KeyRing
from serving.edge.auth.permissions import ROLES_OF, Need, Role
from serving.errors import PermissionDenied, Unauthenticated
from serving.request_context import Priority

API_KEY = "x-api-key"
"""Where Anthropic's clients put their key."""
SECRET_HEADERS = frozenset({"authorization", API_KEY})
"""What goes no further than here."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The one who calls, as far as a key says."""

    tenant: str = "anonymous"
    roles: frozenset[Role] = frozenset()
    priorities: frozenset[Priority] = frozenset(Priority)

    def may(self, need: Need) -> bool:
        """Tell whether one of the roles is enough."""
        return need is Need.NOTHING or not self.roles.isdisjoint(ROLES_OF[need])


STRANGER = Identity(priorities=frozenset())
"""Somebody without a key where keys are asked for: health pages and nothing else."""
ANYONE = Identity(roles=frozenset(Role))
"""Everybody where no keys are asked for."""

identity_var: ContextVar[Identity] = ContextVar("serving.edge.identity", default=STRANGER)
"""Who made the call that the current context works on."""


class Authenticator:
    """Knows the keys; without any everybody is anonymous and may do everything."""

    def __init__(self, keys: Callable[[], KeyRing] | None, clock: Clock) -> None:
        """Ask ``keys`` at every call, as the file may have changed; none asks for no keys."""
        self._keys = keys
        self._clock = clock

    def authenticate(self, headers: Mapping[str, str], need: Need) -> Identity:
        """Return who calls.

        Args:
            headers: REST headers or gRPC metadata; names in lower case, or any case if the
                mapping ignores case.
            need: what is asked for by that which is called.

        Raises:
            Unauthenticated: no key, an unknown or an expired one; which is not said.
            PermissionDenied: the key's roles are not enough.
        """
        if self._keys is None:
            return ANYONE
        presented = bearer_of(headers) or headers.get(API_KEY)
        key = self._keys().find(presented, self._clock.time()) if presented else None
        if key is None:
            if need is Need.NOTHING:
                return STRANGER
            raise Unauthenticated(
                "no valid API key: send it as 'authorization: Bearer KEY'"
                if presented
                else "an API key is needed: send it as 'authorization: Bearer KEY'"
            )
        identity = Identity(key.tenant, key.roles, key.priorities)
        if not identity.may(need):
            raise PermissionDenied(f"this API key may not do that: it takes {need.value}")
        return identity


@contextmanager
def identified(identity: Identity) -> Iterator[None]:
    """Let the block's code see who calls."""
    token = identity_var.set(identity)
    try:
        yield
    finally:
        identity_var.reset(token)

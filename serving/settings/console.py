"""Settings of the web console."""

from pydantic import Field

from serving.settings.base import Seconds, SettingsGroup


class ConsoleSettings(SettingsGroup):
    """The web console, which a router serves at /console (deploy/docs/console.md)."""

    enabled: bool = True
    """Whether to serve the console. Its page is public; all data that it shows requires an API key
    with the matching role, unless the router has no keys file."""
    interval: Seconds = 1.0
    """Interval between two snapshots that the router sends to open consoles, seconds."""
    max_streams: int = Field(64, ge=1)
    """Maximum number of consoles that receive snapshots at the same time; further ones are rejected
    with 429."""
    stall_timeout: Seconds = 20.0
    """Time that a console may leave snapshots unread before it is disconnected, seconds."""

"""``moe-serving keys``: creates and lists API keys."""

import datetime as dt
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from serving.cli.local.state import state_folder
from serving.cli.options import ConfigOption, SetOption, settings_from
from serving.edge.auth.key_file import Role
from serving.edge.auth.keys import Key, KeyRing, digest_of, new_key, parse_keys
from serving.errors import InvalidRequest, SettingsError
from serving.request_context import Priority

_HEADER = "# API keys of moe-serving, hashed; deploy/docs/security.md\n"
_KEYS_LINE = re.compile(r"^keys:[ \t]*(\[\][ \t]*)?(#.*)?$", re.MULTILINE)


class Action(StrEnum):
    """Subcommands."""

    NEW = "new"
    LIST = "list"


def keys_command(
    action: Annotated[
        Action, typer.Argument(help="Create a key, or list the keys of the key file.")
    ],
    tenant: Annotated[
        str | None,
        typer.Option(
            "--tenant", help="new: Tenant of the key, for quotas and fair shares. Required."
        ),
    ] = None,
    key_id: Annotated[
        str | None,
        typer.Option(
            "--id",
            help="new: Id of the key in the file.",
            show_default="TENANT-1, TENANT-2, …",
        ),
    ] = None,
    roles: Annotated[
        list[Role] | None,
        typer.Option("--role", help="new: Role of the key. Repeatable.", show_default="user"),
    ] = None,
    priorities: Annotated[
        list[str] | None,
        typer.Option(
            "--priority",
            metavar="interactive|standard|batch",
            help="new: Priority that requests may use. Repeatable.",
            show_default="all",
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires",
            metavar="DATE",
            help="new: Expiry, 2027-01-31 or 2027-01-31T12:00:00Z.",
            show_default="never",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="FILE",
            help="Key file; created if missing.",
            show_default="security.keys_file, else keys.yaml in the state directory",
        ),
    ] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Create an API key, or list the keys of the key file.

    A new key is printed once; only its hash is stored. Routers reload the file when it changes.

    For example:

      moe-serving keys new --tenant alice

      moe-serving keys new --tenant ops --role admin --file keys.yaml

      moe-serving up --set security.keys_file=keys.yaml
    """
    settings = settings_from(config, sets)
    named = settings.security.keys_file
    path = file or (Path(named) if named else state_folder() / "keys.yaml")
    if action is Action.LIST:
        ring = parse_keys(_read(path, missing=None), str(path))
        for line in key_lines(ring, dt.datetime.now(dt.UTC).timestamp()):
            print(line)
        return
    if tenant is None:
        raise InvalidRequest("moe-serving keys new requires --tenant")
    entry: dict[str, Any] = {"id": key_id or "", "tenant": tenant}
    entry["roles"] = [role.value for role in roles or (Role.USER,)]
    if priorities:
        entry["priorities"] = priorities
    if expires:
        entry["expires"] = expires
    key, name = add_key(path, entry)
    print(key)
    typer.echo(
        f"key {name} of {tenant}, roles {', '.join(entry['roles'])}, in {path}\n"
        "The key is not shown again. To require keys, start routers with "
        f"--set security.keys_file={path}",
        err=True,
    )


def add_key(path: Path, entry: dict[str, Any]) -> tuple[str, str]:
    """Create a key and add its hash to the file; return the key and its id.

    The rest of the file, including comments, is unchanged.

    Raises:
        SettingsError: The file cannot be used, or the entry is invalid.
    """
    text = _read(path, missing=_HEADER + "keys:\n")
    before = parse_keys(text, str(path))
    key = new_key()
    name = entry["id"] or _free_id(before, entry["tenant"])
    entry = {**entry, "id": name, "hash": digest_of(key)}
    after_text = with_entry(text, entry)
    after = parse_keys(after_text, str(path))
    if {**after.keys} != {**before.keys, entry["hash"]: after.keys.get(entry["hash"])}:
        raise SettingsError(
            f"cannot add to {path} without changing its other entries; add the entry by hand"
        )
    _write(path, after_text)
    return key, name


def with_entry(text: str, entry: dict[str, Any]) -> str:
    """Return the text of a key file with a new entry at the start of its list."""
    found = _KEYS_LINE.search(text)
    if found is None:
        return f"{text.rstrip()}\nkeys:\n{_item(entry, '  ')}".lstrip("\n")
    rest = text[found.end() :].lstrip("\n")
    # Items of a list share an indentation; YAML also allows the indentation of the list's key.
    listed = re.match(r"(?:[ \t]*(?:#.*)?\n)*([ ]*)-\s", rest)
    indent = listed[1] if listed else "  "
    head = text[: found.start()] + "keys:" + (f"  {found[2]}" if found[2] else "")
    return f"{head}\n{_item(entry, indent)}{rest}"


def key_lines(ring: KeyRing, now: float) -> list[str]:
    """Return the table of keys, without their hashes."""
    rows: list[tuple[str, ...]] = [("id", "tenant", "roles", "priorities", "expires")]
    rows += [_row(key, now) for key in sorted(ring.keys.values(), key=lambda key: key.id)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _row(key: Key, now: float) -> tuple[str, ...]:
    if key.expires is None:
        expires = "never"
    else:
        expires = dt.datetime.fromtimestamp(key.expires, dt.UTC).strftime("%Y-%m-%d %H:%MZ")
        expires += " (expired)" if key.expires <= now else ""
    everything = key.priorities == frozenset(Priority)
    names = sorted(item.name.lower() for item in key.priorities)
    return (
        key.id,
        key.tenant,
        ",".join(sorted(key.roles)),
        "all" if everything else ",".join(names),
        expires,
    )


def _item(entry: dict[str, Any], indent: str) -> str:
    text = yaml.safe_dump([entry], sort_keys=False, default_flow_style=None, width=1000)
    return "".join(f"{indent}{line}\n" for line in text.splitlines())


def _free_id(ring: KeyRing, tenant: str) -> str:
    taken = {key.id for key in ring.keys.values()}
    number = 1
    while f"{tenant}-{number}" in taken:
        number += 1
    return f"{tenant}-{number}"


def _read(path: Path, missing: str | None) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        if missing is None:
            raise SettingsError(
                f"{path} does not exist: create it with moe-serving keys new"
            ) from None
        return missing
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    """Replace the file atomically, so that routers never read a partial file."""
    # Replace the target of a symbolic link, not the link.
    path = path.resolve()
    part = path.with_name(f".{path.name}.part")
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
        part.replace(path)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}") from error

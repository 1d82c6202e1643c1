"""Results as data, and the page that shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.clients.clients import CLIENTS
from tests.clients.features import GROUPS, TITLES
from tests.clients.runner import Result

_SIGNS = {"passed": "✓", "failed": "✗"}


def to_data(results: Sequence[Result], when: str, **about: Any) -> dict[str, Any]:
    """Return the data of the page.

    Args:
        results: one per client.
        when: date of the run.
        about: machine and engine.
    """
    return {
        **about,
        "clients": [
            {
                "when": when,
                "name": result.client.name,
                "language": result.client.language,
                "versions": result.versions,
                "features": {
                    name: {"status": outcome.status}
                    | ({"reason": outcome.reason} if outcome.reason else {})
                    for name, outcome in sorted(result.outcomes.items())
                },
            }
            for result in results
        ],
    }


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``new``, and the other clients of ``old``, in the order of the table."""
    known = {each["name"]: each for data in (old, new) for each in data.get("clients", ())}
    listed = [known[client.name] for client in CLIENTS if client.name in known]
    return {**new, "clients": listed}


def markdown(data: Mapping[str, Any]) -> str:
    """Return the page: versions, a table for each group of features, and the reasons."""
    notes = _Notes()
    clients = data["clients"]
    tables = [_table(group, clients, notes) for group in GROUPS]
    parts = [_head(data), _versions(clients), *_missing(clients), *filter(None, tables)]
    return "\n\n".join([*parts, notes.text()]) + "\n"


def _head(data: Mapping[str, Any]) -> str:
    machine = data["machine"]
    return (
        "# Tested clients\n\n"
        "The tables show released, unmodified clients with a router and two expert-parallel vLLM "
        f"ranks of `{data['model']}`; `make clients` runs them and writes this page. ✓ means that "
        "the feature was tested and works, and ✗ that it fails. A number refers to the list "
        "of reasons why a feature is missing or fails.\n\n"
        f"Run on {_dates(data['clients'])} with vLLM {data['vllm']} on {machine['cores']} cores "
        f"({machine['cpu']}), Python {machine['python']}, Node {data['node']}."
    )


def _missing(clients: Sequence[Mapping[str, Any]]) -> list[str]:
    known = {client["name"] for client in clients}
    left = [client.name for client in CLIENTS if client.name not in known]
    return [f"Not run yet: {', '.join(left)}."] if left else []


def _dates(clients: Sequence[Mapping[str, Any]]) -> str:
    dates = sorted({client["when"] for client in clients})
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"


def _versions(clients: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| client | language | packages |", "|---|---|---|"]
    for client in clients:
        packages = ", ".join(f"{name} {version}" for name, version in client["versions"].items())
        lines.append(f"| {client['name']} | {client['language']} | {packages} |")
    return "\n".join(lines)


def _table(group: str, clients: Sequence[Mapping[str, Any]], notes: "_Notes") -> str:
    groups = {client.name: client.groups for client in CLIENTS}
    columns = [client for client in clients if group in groups[client["name"]]]
    if not columns:
        return ""
    shown = [client for client in columns if not _without(group, client)]
    lines = [f"## {TITLES[group]}", ""]
    if shown:
        lines.append("| | " + " | ".join(client["name"] for client in shown) + " |")
        lines.append("|---|" + ":---:|" * len(shown))
        for feature, title in GROUPS[group].items():
            found = [client["features"].get(f"{group}.{feature}") for client in shown]
            lines.append(f"| {title} | " + " | ".join(_cell(each, notes) for each in found) + " |")
        lines.append("")
    lines += [
        f"- Not {client['name']}: {reason}."
        for client in columns
        if (reason := _without(group, client))
    ]
    return "\n".join(lines).rstrip()


def _without(group: str, client: Mapping[str, Any]) -> str:
    """Return why a client has no features of a group; empty if it has some."""
    found = [f for name, f in client["features"].items() if name.startswith(f"{group}.")]
    reasons = {each.get("reason", "") for each in found if each["status"] == "reason"}
    alone = len(reasons) == 1 and all(each["status"] == "reason" for each in found)
    return reasons.pop() if alone else ""


def _cell(found: Mapping[str, Any] | None, notes: "_Notes") -> str:
    if found is None:
        return ""
    if found["status"] in _SIGNS:
        return _SIGNS[found["status"]]
    return f"[{notes.number(found['reason'])}](#reasons)"


class _Notes:
    """Numbers reasons in order of appearance."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, reason: str) -> int:
        return self._numbers.setdefault(reason, len(self._numbers) + 1)

    def text(self) -> str:
        lines = [f"{number}. {reason}" for reason, number in self._numbers.items()]
        return "\n".join(["## Reasons", "", *lines])

"""Response bodies other than single objects: lists and Status objects."""

from typing import Any

from aiohttp import web

from tests.kube.errors import ApiError
from tests.kube.kinds import Kind

Item = dict[str, Any]


def list_of(kind: Kind, items: list[Item], revision: int) -> Item:
    return {
        "kind": f"{kind.kind}List",
        "apiVersion": kind.api_version,
        "metadata": {"resourceVersion": str(revision)},
        "items": items,
    }


def success(kind: Kind, item: Item) -> Item:
    details = {
        "name": item["metadata"]["name"],
        "group": kind.group,
        "kind": kind.plural,
        "uid": item["metadata"]["uid"],
    }
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": {key: value for key, value in details.items() if value},
    }  # fmt: skip


def refusal(error: ApiError) -> web.Response:
    if error.code == 404 and not error.reason:
        return web.Response(status=404, text=f"{error.message}\n")
    return web.json_response(error.status(), status=error.code)

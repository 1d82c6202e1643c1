"""The OpenAPI document: generated on demand, once, from the routes at the time of its creation."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import FastAPI

from serving.edge.rest import openapi
from serving.edge.rest.openapi import ApiDocument


@pytest.fixture
def app() -> FastAPI:
    """An app with one GET route."""
    app = FastAPI()
    app.add_api_route("/fleet", lambda: None, methods=["GET"])
    return app


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[FastAPI]:
    """The apps whose document has been generated."""
    found: list[FastAPI] = []

    def describe(app: FastAPI) -> dict[str, object]:
        found.append(app)
        return app.openapi()

    monkeypatch.setattr(openapi, "describe", describe)
    return found


def test_it_is_generated_once_and_only_if_it_is_needed(
    app: FastAPI, generated: list[FastAPI]
) -> None:
    document = ApiDocument(app)
    assert generated == []
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: document(), range(4)))
    assert len(generated) == 1
    assert all(each is made[0] for each in made)
    assert set(made[0]["paths"]["/fleet"]) == {"get"}


def test_later_changes_of_the_app_do_not_change_it(app: FastAPI, generated: list[FastAPI]) -> None:
    document = ApiDocument(app)
    app.openapi = document  # type: ignore[method-assign]
    app.add_api_route("/late", lambda: None, methods=["GET"])
    for route in app.routes:
        route.methods.add("HEAD")  # type: ignore[attr-defined]
    assert set(app.openapi()["paths"]) == {"/fleet"}
    assert set(app.openapi()["paths"]["/fleet"]) == {"get"}
    assert len(generated) == 1

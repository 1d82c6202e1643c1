"""Number of errors of an invalid body; valid bodies are not changed."""

from typing import Annotated

import pytest
from fastapi import Body, FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, model_validator
from vllm.exceptions import VLLMValidationError

from serving.errors import InvalidRequest
from serving.vllm_adapter.routes import fail_fast


class Part(BaseModel):
    text: str


class Other(BaseModel):
    number: int


class Request(BaseModel):
    items: list[Part | Other | list[int]]
    names: set[str] = set()


@pytest.fixture
def client():
    app = FastAPI()

    @app.post("/one")
    def one(request: Request) -> list[str]:
        return [type(each).__name__ for each in request.items]

    @app.post("/two")
    def two(a: Annotated[Request, Body()], b: Annotated[list[int], Body()]) -> int:
        return len(a.items) + len(b)

    fail_fast(app)
    return TestClient(app)


@pytest.mark.parametrize("items", [[1] * 1000, [{}] * 1000, [[None] * 1000], [{"text": 1}] * 50])
def test_a_wrong_list_has_the_errors_of_one_item(client, items):
    answer = client.post("/one", json={"items": items})
    assert answer.status_code == 422
    assert 0 < len(answer.json()["detail"]) <= 4


def test_so_do_several_bodies(client):
    answer = client.post("/two", json={"a": {"items": [1] * 99}, "b": ["x"] * 99})
    assert answer.status_code == 422
    assert 0 < len(answer.json()["detail"]) <= 5


def test_good_bodies_are_taken_as_before(client):
    items = [{"text": "x"}, {"number": 1}, [1, 2]]
    answer = client.post("/one", json={"items": items, "names": ["a", "b"]})
    assert answer.json() == ["Part", "Other", "list"]
    assert client.post("/two", json={"a": {"items": items}, "b": [1]}).json() == 4


def test_an_app_without_bodies_is_no_surprise():
    with pytest.raises(RuntimeError, match="no body field"):
        fail_fast(FastAPI())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AttributeError("no such attribute"), InvalidRequest),
        (KeyError("key"), InvalidRequest),
        (VLLMValidationError("too many"), VLLMValidationError),
    ],
)
def test_an_exception_of_a_validator_is_an_invalid_request(error, expected):
    class Breaking(BaseModel):
        @model_validator(mode="before")
        @classmethod
        def check(cls, _data):
            raise error

    app = FastAPI()

    @app.post("/")
    def post(_request: Breaking) -> None: ...

    fail_fast(app)
    with pytest.raises(expected):
        TestClient(app).post("/", json={})

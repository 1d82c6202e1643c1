"""Live responses compared with the published APIs: every difference is listed with its reason."""

import gzip
import json
from pathlib import Path

import jsonschema
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.contract.checker import Checker
from tests.contract.differences import ADDED_FIELDS, DIFFERENCES, UNKNOWN_FIELDS
from tests.integration.edge.contract_cases import CASES, PATHS

pytestmark = pytest.mark.asyncio(loop_scope="session")

_FOLDER = Path(__file__).parents[2] / "contract"


def record(name: str) -> dict:
    """Read the record of a published API."""
    content: dict = json.loads(gzip.decompress((_FOLDER / f"{name}.json.gz").read_bytes()))
    return content


def record_for(operation: str) -> dict:
    return record("anthropic" if "/v1/messages" in operation else "openai")


def data_of(text: str) -> list:
    parts = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data:")]
    return [json.loads(part) for part in parts if part != "[DONE]"]


async def answered(edge, case, *, stream: bool) -> list:
    """Return the answer of a case, or its events."""
    edge.engine.script = case.script
    body = {**case.body, **({"stream": True, **case.streamed} if stream else {})}
    answer = await edge.rest.post(PATHS[case.operation], json=body)
    assert answer.status_code == 200, answer.text
    return data_of(answer.text) if stream else [answer.json()]


async def found(edge, operation: str, *, stream: bool) -> set[str]:
    """Return all differences in the answers to an operation's cases."""
    published = record_for(operation)
    checker, schemas = Checker(published["schemas"]), published["operations"][operation]
    schema = (schemas["event"] if stream else None) or schemas["answer"]
    differences = set()
    for case in CASES.values():
        if case.operation != operation:
            continue
        for content in await answered(edge, case, stream=stream):
            differences |= checker.differences(content, schema)
    return differences


@pytest.mark.parametrize("operation", sorted({case.operation for case in CASES.values()}))
@pytest.mark.parametrize("what", ["answer", "event"])
async def test_answers_differ_as_listed(edge, operation, what):
    differences = await found(edge, operation, stream=what == "event")
    listed = DIFFERENCES[f"{operation} {what}"]
    assert differences == listed.keys()


# -- the SDK's types as a second oracle -----------------------------------------------------------

SDK_TYPES = {
    "POST /chat/completions": (ChatCompletion, ChatCompletionChunk),
    "POST /completions": (Completion, Completion),
    "POST /responses": (Response, ResponseStreamEvent),
}


OLDER_THAN_THE_DOCUMENT = {"name"}
"""Of response.function_call_arguments.done: in the document, not in the types of the SDK."""


def additions(value: object, path: str = "") -> set[str]:
    """Return the paths of fields that are missing in an SDK's model."""
    if isinstance(value, list):
        return {each for item in value for each in additions(item, f"{path}[]")}
    if not isinstance(value, BaseModel):
        return set()
    extra = {f"{path}.{name}".lstrip(".") for name in value.model_extra or ()}
    known = {
        each
        for name in type(value).model_fields
        for each in additions(getattr(value, name), f"{path}.{name}")
    }
    return extra | known


def unfinished(content: dict) -> bool:
    """Return whether the SDK's type cannot represent an event of a text."""
    return content.get("object") == "text_completion" and any(
        choice["finish_reason"] is None for choice in content["choices"]
    )


@pytest.mark.parametrize("operation", SDK_TYPES)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_sdk_takes_every_answer_strictly(edge, operation, stream):
    adapter = TypeAdapter(SDK_TYPES[operation][stream])
    listed = {each.partition(": ")[0] for each in DIFFERENCES[f"{operation} answer"]}
    listed |= {each.partition(": ")[0] for each in DIFFERENCES[f"{operation} event"]}
    for case in CASES.values():
        if case.operation != operation:
            continue
        for content in await answered(edge, case, stream=stream):
            if unfinished(content):
                content = {**content, "choices": []}  # noqa: PLW2901
            taken = adapter.validate_json(json.dumps(content), strict=True)
            unknown = {each.lstrip(".") for each in additions(taken)}
        assert unknown <= listed | OLDER_THAN_THE_DOCUMENT


async def test_models_are_the_documents(edge):
    published = record("openai")
    checker = Checker(published["schemas"])
    schema = published["operations"]["GET /models"]["answer"]
    content = (await edge.rest.get("/v1/models")).json()
    added = {
        f"data[].{name}: is added" for name in ("max_model_len", "parent", "permission", "root")
    }
    assert checker.differences(content, schema) == added
    for model in content["data"]:
        TypeAdapter(Model).validate_json(json.dumps(model), strict=True)


# -- errors ---------------------------------------------------------------------------------------

WRONG = [
    ("/v1/chat/completions", {"model": "other", "messages": []}),
    ("/v1/chat/completions", {"messages": 5}),
    ("/v1/completions", {"prompt": "x", "max_tokens": -1}),
    ("/v1/responses", {"input": "x", "stream": True, "temperature": -1}),
    ("/v1/messages", {"model": "other", "messages": [], "max_tokens": 5}),
    ("/v1/messages/count_tokens", {"messages": 5}),
    ("/nowhere", {}),
]


@pytest.mark.parametrize(("path", "body"), WRONG)
async def test_errors_are_the_documents(edge, path, body):
    published = record_for(f"POST {path}")
    checker = Checker(published["schemas"])
    content = (await edge.rest.post(path, json=body)).json()
    differences = checker.differences(content, published["schemas"]["ErrorResponse"])
    listed = {
        "error.code: is integer",  # vLLM's, the HTTP status
        "error.reason: is added",  # ours, for programs
        "error.param: is added",  # the invalid field
        "request_id: null",
        "request_id: is missing",
    }
    assert differences <= listed


# -- /openapi.json --------------------------------------------------------------------------------


def local(path: str) -> str:
    return path if path.startswith("/v1") else f"/v1{path}"


@pytest.mark.parametrize("name", ["openai", "anthropic"])
async def test_openapi_has_the_operations_and_fields_of_the_document(edge, name):
    ours = (await edge.rest.get("/openapi.json")).json()
    published = record(name)
    checker = Checker(published["schemas"])
    for operation, schemas in published["operations"].items():
        method, path = operation.split()
        described = ours["paths"][local(path).replace("{model}", "{model_id}")][method.lower()]
        if schemas["request"] is None:
            continue
        content = described["requestBody"]["content"]["application/json"]
        request = ours["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
        theirs, known = checker.fields(schemas["request"]).keys(), request["properties"].keys()
        assert theirs - known == UNKNOWN_FIELDS[operation].keys()
        assert known - theirs <= ADDED_FIELDS.keys()


async def test_openapi_describes_the_answers(edge):
    ours = (await edge.rest.get("/openapi.json")).json()

    def check(path: str, status: str, content: dict, kind: str = "application/json") -> None:
        schema = ours["paths"][path]["post"]["responses"][status]["content"][kind]["schema"]
        jsonschema.validate(content, {**schema, "components": ours["components"]})

    for case in CASES.values():
        path = PATHS[case.operation]
        check(path, "200", (await answered(edge, case, stream=False))[0])
        for event in await answered(edge, case, stream=True):
            if case.operation in {"POST /chat/completions", "POST /completions"}:
                check(path, "200", event, "text/event-stream")
    for path, body in WRONG[:-1]:
        answer = await edge.rest.post(path, json=body)
        check(path, str(answer.status_code), answer.json())
    text = json.dumps(ours)
    assert "HTTPValidationError" not in text
    assert '"422"' not in text

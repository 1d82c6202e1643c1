"""Files and batches of a whole router, with the official SDK and over REST."""

import asyncio
import io
import json
import re

import httpx
import openai
import pytest
import pytest_asyncio
from sqlalchemy.exc import OperationalError

from serving.cli.main import main
from serving.edge.auth.keys import digest_of
from serving.telemetry import metrics
from tests.integration.edge.stand import stand_settings, standing
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALICE, BOB, CAROL, DAVE = (
    f"moe-key-of-{name}-in-this-test" for name in ("alice", "bob", "carol", "dave")
)
KEYS = f"""
keys:
  - {{id: alice-1, tenant: alice, hash: "{digest_of(ALICE)}"}}
  - {{id: bob-1, tenant: bob, hash: "{digest_of(BOB)}"}}
  - {{id: carol-1, tenant: carol, hash: "{digest_of(CAROL)}",
     budgets: {{day: {{hard: 0.000001}}}}}}
  - {{id: dave-1, tenant: dave, hash: "{digest_of(DAVE)}",
     reasoning: {{max_reasoning_effort: low}}}}
"""
TARIFF = "{currency: USD, models: {pocket-r1: {cached: 1, uncached: 1, output: 1}}}"
CHATS, TEXTS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
BODIES = {
    CHATS: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
    TEXTS: {"prompt": "hi", "max_tokens": 4},
    RESPONSES: {"input": "hi", "max_output_tokens": 4},
}
MAX_FILE = 2**20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand(tmp_path_factory):
    """A router with keys and one fake rank."""
    folder = tmp_path_factory.mktemp("batches")
    (folder / "keys.yaml").write_text(KEYS)
    (folder / "tariff.yaml").write_text(TARIFF)
    settings = stand_settings(
        security={"keys_file": str(folder / "keys.yaml")},
        ledger={
            "directory": str(folder / "ledger"),
            "tariff_file": str(folder / "tariff.yaml"),
            "budget_timeout": PATIENCE,
        },
        batch={
            "directory": str(folder / "batches"),
            "interval": 0.05,
            "max_file_bytes": MAX_FILE,
            # No line runs beside another request.
            "max_step_growth": 0,
        },
    )
    async with standing(settings, token_delay=0.005) as made:
        yield made


def sdk_of(stand, key):
    base = f"{stand.router.addresses.rest}/v1"
    return openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0, timeout=PATIENCE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sdk(stand):
    async with sdk_of(stand, ALICE) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rest(stand):
    async with httpx.AsyncClient(
        base_url=stand.router.addresses.rest,
        headers={"authorization": f"Bearer {ALICE}"},
        timeout=PATIENCE,
    ) as client:
        yield client


def lines_of(endpoint, *numbers, **body):
    return "\n".join(
        json.dumps(
            {
                "custom_id": f"id-{number}",
                "method": "POST",
                "url": endpoint,
                "body": {"model": "pocket-r1", **BODIES[endpoint], **body},
            }
        )
        for number in numbers
    ).encode()


async def submit(sdk, content, endpoint=CHATS, **fields):
    file = await sdk.files.create(file=io.BytesIO(content), purpose="batch")
    return await sdk.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **fields
    )


async def ended(sdk, batch):
    async def done():
        found = await sdk.batches.retrieve(batch.id)
        return found if found.status in {"completed", "failed", "expired", "cancelled"} else None

    return await eventually(done, f"the end of {batch.id}", interval=0.02)


async def lines_in(sdk, file_id):
    text = (await sdk.files.content(file_id)).text
    return [json.loads(each) for each in text.splitlines()]


@pytest.mark.parametrize("endpoint", [CHATS, TEXTS, RESPONSES])
async def test_the_sdk_runs_a_batch(stand, sdk, endpoint):
    batch = await submit(sdk, lines_of(endpoint, *range(5)), endpoint, metadata={"a": "b"})
    assert (batch.status, batch.metadata) == ("validating", {"a": "b"})
    found = await ended(sdk, batch)
    assert found.status == "completed"
    assert found.request_counts.model_dump() == {"total": 5, "completed": 5, "failed": 0}
    assert found.error_file_id is None
    assert found.created_at <= found.in_progress_at <= found.finalizing_at <= found.completed_at
    results = await lines_in(sdk, found.output_file_id)
    assert [each["custom_id"] for each in results] == [f"id-{n}" for n in range(5)]
    for each in results:
        assert each["response"]["status_code"] == 200
        assert each["response"]["body"]["model"] == "pocket-r1"
        assert each["response"]["body"]["usage"]["total_tokens"] > 0
    listed = [each.id async for each in sdk.batches.list(limit=1)]
    assert batch.id in listed
    assert {found.input_file_id, found.output_file_id} <= {
        each.id async for each in sdk.files.list(limit=1)
    }
    await sdk.files.delete(found.output_file_id)
    with pytest.raises(openai.NotFoundError):
        await sdk.files.retrieve(found.output_file_id)


async def test_lines_that_fail_do_not_stop_others(sdk):
    content = b"\n".join(
        [
            lines_of(CHATS, 1),
            b"no JSON",
            lines_of(CHATS, 1),
            lines_of(TEXTS, 2),
            lines_of(CHATS, 3, model="unknown"),
            lines_of(CHATS, 4, temperature=-1),
            lines_of(CHATS, 5, stream=True),
            lines_of(CHATS, 6),
        ]
    )
    found = await ended(sdk, await submit(sdk, content))
    assert found.request_counts.model_dump() == {"total": 8, "completed": 2, "failed": 6}
    assert [each.line for each in found.errors.data] == [2, 3, 4, 7]
    errors = await lines_in(sdk, found.error_file_id)
    codes = [
        each["error"]["code"] if each["error"] else each["response"]["status_code"]
        for each in errors
    ]
    assert codes == [
        "invalid_json_line",
        "duplicate_custom_id",
        "mismatched_endpoint",
        404,
        400,
        "stream_unsupported",
    ]


async def test_lines_are_in_the_ledger_of_their_tenant(stand, sdk):
    found = await ended(sdk, await submit(sdk, lines_of(CHATS, *range(3))))
    assert found.status == "completed"
    prefix = f"{found.id}-"

    def recorded():
        try:
            with stand.router.ledger.database.connect() as connection:
                rows = connection.exec_driver_sql(
                    "SELECT tenant, key_id, priority, protocol, route, request_id "
                    "FROM ledger_requests"
                ).all()
        except OperationalError:  # its tables are created with the first record
            return []
        return [row[:5] for row in rows if row.request_id.startswith(prefix)]

    await eventually(lambda: len(recorded()) == 3, "the records")
    assert recorded() == [("alice", "alice-1", "batch", "batch", CHATS)] * 3


async def test_a_key_may_reason_in_its_lines_as_elsewhere(stand):
    async with sdk_of(stand, DAVE) as sdk:
        found = await ended(sdk, await submit(sdk, lines_of(CHATS, 0, reasoning_effort="high")))
        (line,) = await lines_in(sdk, found.error_file_id)
    assert line["response"]["status_code"] == 403
    assert line["response"]["body"]["error"]["reason"] == "PERMISSION_DENIED"


async def test_lines_spend_the_budget_of_their_key(stand):
    async with sdk_of(stand, CAROL) as sdk:
        # The first spends it; those that wait for its reservation to end are refused then.
        found = await ended(sdk, await submit(sdk, lines_of(CHATS, *range(4))))
        assert found.request_counts.model_dump() == {"total": 4, "completed": 1, "failed": 3}
        lines = await lines_in(sdk, found.error_file_id)
        with pytest.raises(openai.APIStatusError, match="is used up") as refused:
            await sdk.chat.completions.create(model="pocket-r1", **BODIES[CHATS])
    for line in lines:
        assert line["response"]["status_code"] == refused.value.status_code == 402
        assert line["response"]["body"]["error"]["reason"] == "BUDGET_EXCEEDED"


async def test_lines_give_way_to_a_request_and_continue_where_they_were(stand, sdk, rest):
    long = {"max_tokens": 80, "ignore_eos": True, "temperature": 0}
    prompts = [[{"role": "user", "content": f"line {number}"}] for number in range(6)]
    content = b"\n".join(
        lines_of(CHATS, number, messages=prompt, **long) for number, prompt in enumerate(prompts)
    )
    preempted = metrics.BATCH_PREEMPTIONS._value.get()
    batch = await submit(sdk, content)
    await eventually(lambda: stand.running == 6, "all lines")
    body = {"model": "pocket-r1", **BODIES[CHATS], "max_tokens": 40, "ignore_eos": True}
    asked = asyncio.create_task(rest.post(CHATS, json=body))
    await eventually(lambda: stand.running == 1, "the lines to give way")
    assert (await asked).status_code == 200
    assert metrics.BATCH_PREEMPTIONS._value.get() >= preempted + 6
    found = await ended(sdk, batch)
    assert found.request_counts.completed == 6
    results = await lines_in(sdk, found.output_file_id)
    for result, prompt in zip(results, prompts, strict=True):
        alone = await rest.post(CHATS, json={"model": "pocket-r1", "messages": prompt, **long})
        body = result["response"]["body"]
        assert body["choices"] == alone.json()["choices"]
        assert body["usage"]["completion_tokens"] == 80


async def test_a_batch_can_be_cancelled(stand, sdk):
    await stand.leave()
    batch = await submit(sdk, lines_of(CHATS, *range(3)))
    await eventually(lambda: stand.router.batches.scheduler.waiting == 3, "the lines")
    assert (await sdk.batches.cancel(batch.id)).status == "cancelling"
    found = await ended(sdk, batch)
    assert (found.status, found.request_counts.completed) == ("cancelled", 0)
    errors = await lines_in(sdk, found.error_file_id)
    assert [each["error"]["code"] for each in errors] == ["batch_cancelled"] * 3
    with pytest.raises(openai.ConflictError):
        await sdk.batches.cancel(batch.id)
    await eventually(lambda: stand.idle, "the end of the lines")
    await stand.join("g9", step=2)


async def test_another_tenant_sees_nothing(stand, sdk):
    batch = await ended(sdk, await submit(sdk, lines_of(CHATS, 1)))
    ids = {"file_id": batch.output_file_id, "batch_id": batch.id}
    async with httpx.AsyncClient(
        base_url=stand.router.addresses.rest,
        headers={"authorization": f"Bearer {BOB}"},
        timeout=PATIENCE,
    ) as bob:
        walked = 0
        for path, operations in stand.openapi["paths"].items():
            if not path.startswith(("/v1/files", "/v1/batches")):
                continue
            for method in operations:
                walked += 1
                body = {
                    "input_file_id": batch.input_file_id,
                    "endpoint": CHATS,
                    "completion_window": "1h",
                }
                answer = await bob.request(method, path.format(**ids), json=body)
                if (method, path) == ("post", "/v1/files"):
                    continue  # an upload names no object
                if "{" in path or method == "post":
                    assert answer.status_code == 404, (method, path)
                    assert answer.json()["error"]["reason"] == "RESOURCE_NOT_FOUND"
                else:
                    assert answer.json()["data"] == [], (method, path)
        assert walked == 9
    assert (await sdk.batches.retrieve(batch.id)).status == "completed"


@pytest.mark.parametrize(
    "path", ["files/%00", "batches/a%20b", "files?after=%00", "files/x/content"]
)
async def test_what_cannot_be_an_id_is_not_found(rest, path):
    answer = await rest.get(f"/v1/{path}")
    assert (answer.status_code, answer.json()["error"]["reason"]) == (404, "RESOURCE_NOT_FOUND")


async def test_a_key_is_required(stand):
    async with httpx.AsyncClient(base_url=stand.router.addresses.rest, timeout=PATIENCE) as nobody:
        for path in ("/v1/files", "/v1/batches", "/v1/files/x/content"):
            assert (await nobody.get(path)).status_code == 401


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint must be"),
        ({"completion_window": "8d"}, "completion_window must be"),
        ({"completion_window": "soon"}, "completion_window must be"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after"),
        ({"input_file_id": None}, "input_file_id"),
    ],
)
async def test_an_invalid_batch_is_refused(rest, body, words):
    given = {"input_file_id": "file-1", "endpoint": CHATS, "completion_window": "1h"} | body
    answer = await rest.post("/v1/batches", json=given)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "INVALID_REQUEST")
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("files", "data", "status"),
    [
        pytest.param({"file": b"x"}, {"purpose": "fine-tune"}, 400, id="purpose"),
        pytest.param({"file": b"x"}, {}, 400, id="no purpose"),
        pytest.param({"other": b"x"}, {"purpose": "batch"}, 400, id="no file"),
        pytest.param([("file", b"x"), ("file", b"y")], {"purpose": "batch"}, 400, id="two files"),
        pytest.param({"file": b"x"}, {"purpose": "x" * 5000}, 400, id="long field"),
        pytest.param({"file": b"x" * (MAX_FILE + 2**17)}, {"purpose": "batch"}, 413, id="large"),
        pytest.param(
            {"file": b"x"},
            {"purpose": "batch", "expires_after[anchor]": "now"},
            400,
            id="expiry",
        ),
    ],
)
async def test_an_invalid_upload_leaves_nothing(stand, rest, files, data, status):
    before = stand.router.batches.store.files.sizes()
    answer = await rest.post("/v1/files", files=files, data=data)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["reason"] == "INVALID_REQUEST"
    assert stand.router.batches.store.files.sizes() == before


async def test_a_compressed_upload_is_refused(rest):
    answer = await rest.post("/v1/files", content=b"x", headers={"content-encoding": "gzip"})
    assert answer.status_code == 415


async def test_an_upload_that_is_cut_off_leaves_nothing(stand, rest):
    before = stand.router.batches.store.files.sizes()

    async def parts():
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nabc'
        await eventually(
            lambda: stand.router.batches.store.files.sizes() != before, "the beginning"
        )
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await rest.post(
            "/v1/files",
            content=parts(),
            headers={"content-type": "multipart/form-data; boundary=x"},
        )
    await eventually(
        lambda: stand.router.batches.store.files.sizes() == before, "the end of the upload"
    )


async def test_a_large_file_has_the_same_content(rest):
    content = bytes(range(256)) * 3000
    answer = await rest.post("/v1/files", files={"file": content}, data={"purpose": "batch"})
    file = answer.json()
    assert file["bytes"] == len(content)
    found = await rest.get(f"/v1/files/{file['id']}/content")
    assert found.content == content
    head = await rest.head(f"/v1/files/{file['id']}/content")
    assert head.headers["content-length"] == str(len(content))
    deleted = await rest.delete(f"/v1/files/{file['id']}")
    assert deleted.json() == {"id": file["id"], "object": "file", "deleted": True}


async def test_the_latencies_of_lines_are_not_those_of_clients(sdk):
    def observed():
        samples = metrics.TIME_TO_FIRST_TOKEN.collect()[0].samples
        return next(each.value for each in samples if each.name.endswith("_count"))

    before = observed()
    await ended(sdk, await submit(sdk, lines_of(CHATS, *range(3))))
    assert observed() == before


async def test_the_command_submits_and_fetches(stand, tmp_path, capfdbinary):
    lines, found, errors = (tmp_path / name for name in ("lines.jsonl", "found", "errors"))
    lines.write_bytes(lines_of(CHATS, *range(3)) + b"\nno JSON")
    flags = ["--rest-url", stand.router.addresses.rest, "--api-key", ALICE]

    async def run(*words):
        code = await asyncio.to_thread(main, ["batch", *map(str, words), *flags])
        return code, capfdbinary.readouterr()

    code, said = await run("submit", lines, "--wait", "--window", "30m")
    assert code == 0, said.err
    # The router, in this process, logs to the same place.
    shown = re.search(r"^(batch-\w+)  (completed.*)\n(.*)$", said.out.decode(), re.MULTILINE)
    assert shown is not None
    batch_id, summary, problem = shown.groups()
    assert summary == "completed  4 of 4 lines, 1 failed"
    assert problem.startswith("  invalid_json_line: line 4: not valid JSON")
    assert (await run("results", batch_id, "--output", found))[0] == 0
    assert [json.loads(each)["custom_id"] for each in found.read_bytes().splitlines()] == [
        "id-0",
        "id-1",
        "id-2",
    ]
    assert (await run("results", batch_id, "--errors", "--output", errors))[0] == 0
    assert len(errors.read_bytes().splitlines()) == 1
    code, said = await run("status")
    assert batch_id in said.out.decode()
    code, said = await run("cancel", batch_id)
    assert code != 0
    assert b"completed" in said.err
    code, said = await run("results", "batch-unknown")
    assert code != 0
    assert b"there is no batch" in said.err
    code, said = await run("submit", tmp_path / "missing")
    assert code != 0
    assert b"does not exist" in said.err

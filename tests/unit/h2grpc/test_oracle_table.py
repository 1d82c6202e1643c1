"""ADR 12's table of differences from grpc.aio equals that of the tests."""

from pathlib import Path

from tests.unit.h2grpc import test_oracle, test_oracle_context, test_oracle_endings

ADR = Path(__file__).parents[3] / "deploy/docs/adr/0012-a-grpc-server-on-h2.md"
BEGIN, END = "<!-- differences: begin -->\n", "<!-- differences: end -->"


def table() -> str:
    """Return the table of the page."""
    lines = ["| case | status | reason |", "|---|---|---|"]
    for case, (*_, code, reason) in test_oracle.DIFFERENT.items():
        lines.append(f"| {case} | `{code.name}` | {reason} |")
    endings = test_oracle_endings.DIFFERENT | test_oracle_endings.UNCOMPARED
    for case, (code, reason) in endings.items():
        lines.append(f"| handler: {case} | `{code.name}` | {reason} |")
    for case, reason in test_oracle_context.DIFFERENT.items():
        lines.append(f"| {case} | | {reason} |")
    return "\n".join(lines) + "\n"


def test_the_page_has_the_table():
    page = ADR.read_text("utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0] == table()

"""The table of requests."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "ledger_requests",
        sa.Column("record_id", sa.String, primary_key=True),
        sa.Column("finished_us", sa.BigInteger, nullable=False),
        *(
            sa.Column(name, sa.String, nullable=name == "key_id")
            for name in (
                "request_id",
                "tenant",
                "key_id",
                "model",
                "priority",
                "protocol",
                "route",
                "outcome",
            )
        ),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in (
                "prompt_tokens",
                "cached_tokens",
                "output_tokens",
                "rank_us",
                "duration_us",
            )
        ),
        sa.Column("resumptions", sa.Integer, nullable=False),
        *(
            sa.Column(name, sa.BigInteger)
            for name in ("reasoning_tokens", "drafted_tokens", "accepted_tokens", "ttft_us")
        ),
        sa.Column("adapter", sa.String),
        sa.Column("pool", sa.String),
    )
    op.create_index("ix_ledger_requests_finished_us", "ledger_requests", ["finished_us"])

"""The table of the capacity and busy time of groups."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "ledger_capacity",
        sa.Column("slot", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("group_id", sa.String, primary_key=True),
        sa.Column("seconds", sa.Integer, nullable=False),
        sa.Column("gpus", sa.Integer, nullable=False),
        sa.Column("busy_us", sa.BigInteger, nullable=False),
    )

"""Runs the revisions on the connection that ``serving.ledger.database`` passes."""

from alembic import context

from serving.ledger.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table="ledger_schema",
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()

"""Alembic's revisions of the ledger's schema, run by ``serving.ledger.database``."""

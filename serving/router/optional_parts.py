"""The parts of a router that settings can leave out: ledger, budgets, batches and console.

Each is imported only where it is used, because its libraries take time to import.
"""

import contextlib
from typing import TYPE_CHECKING

from serving.clock import Clock
from serving.edge.gate import DrainGate
from serving.edge.rest.server import RestServer
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.admission.budgets import Budgets
    from serving.admission.quotas import LimitsOf
    from serving.batch.service import BatchService
    from serving.console.routes import Console
    from serving.edge.auth.security import Security
    from serving.fleet.operations import FleetOperations
    from serving.ledger.ledger import Ledger
    from serving.ledger.view import LedgerView
    from serving.router.models import RouterModels


def console_of(
    settings: Settings,
    clock: Clock,
    models: "RouterModels",
    operator: "FleetOperations",
    gate: DrainGate,
    security: "Security",
    ledger: "LedgerView | None",
) -> "Console":
    """Create the web console."""
    from serving.console.routes import Console, ConsoleSources
    from serving.console.spending import Spending

    keys = security.keys
    sources = ConsoleSources(
        fleet=models.fleet.snapshot,
        requests=models.requests,
        positions=models.positions,
        explain_all=lambda on: models.explain_all(on=on),
        inflight=lambda: gate.inflight,
        operator=operator,
        models=models.status,
        tariff=None if ledger is None else ledger.tariff,
        spending=None
        if ledger is None
        else Spending(ledger, None if keys is None else lambda: keys.value, clock),
        batches=settings.batch.directory is not None,
        grpc_port=settings.router.grpc_port,
        drain_timeout=settings.router.drain_timeout,
    )
    return Console(sources, settings.console, clock)


def ledger_of(settings: Settings, clock: Clock) -> "Ledger | None":
    """Create the ledger; None if it is not configured.

    Raises:
        SettingsError: A setting of the ledger is invalid.
    """
    if settings.ledger.directory is None:
        return None
    from serving.ledger.ledger import Ledger

    return Ledger(settings.ledger, clock, settings.telemetry.tenant_labels)


def budgets_of(
    settings: Settings, security: "Security", ledger: "Ledger", clock: Clock
) -> "Budgets":
    """Create the budgets of the key file, which are reserved in the ledger's database."""
    from serving.admission.budgets import Budgets
    from serving.ledger.budget_store import BudgetStore

    tariff = ledger.database.tariff
    budgets = Budgets(
        security.budgets_of(),
        BudgetStore(ledger.database),
        clock,
        record_ids=ledger.record_ids,
        timeout=settings.ledger.budget_timeout,
        down=settings.ledger.budget_down,
        currency=tariff.currency,
    )
    if security.keys is not None and security.keys.value.budgets:
        budgets.start()
    return budgets


def batches_of(
    settings: Settings,
    clock: Clock,
    models: "RouterModels",
    limits_of: "LimitsOf",
    undo: contextlib.AsyncExitStack,
) -> "BatchService | None":
    """Create the service for files and batches; None if it is not configured.

    Raises:
        SettingsError: A setting is invalid, or the storage cannot be used.
    """
    if settings.batch.directory is None:
        return None
    from serving.batch.scheduler import ModelSource
    from serving.batch.service import BatchService

    counters = models.counters()
    batches = BatchService(
        settings.batch,
        clock,
        sources={
            name: ModelSource(snapshot, batch, counters[name])
            for name, (snapshot, batch) in models.batch_inputs().items()
        },
        weight_of=lambda tenant: limits_of(tenant).weight,
        max_line_bytes=settings.router.max_body_bytes,
    )
    undo.push_async_callback(batches.stop)
    models.run_beside(batches.scheduler.by_model)
    return batches


def run_batches(
    batches: "BatchService | None",
    rest: RestServer,
    security: "Security",
    undo: contextlib.AsyncExitStack,
) -> None:
    """Start running batches, once requests can be served."""
    if batches is None:
        return
    from serving.edge.rest.line_call import LineCall

    batches.start(LineCall(rest.app, batches.scheduler, security.reasoning_of))
    undo.push_async_callback(batches.pause)

"""A stored run: stages, records, events and outcome, in one directory."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtest.fleet_watch import FleetEvent
from loadtest.record import Record, read_records, to_line, write_parquet
from loadtest.slo import Slo, Trial
from loadtest.statistics import Summary, summarize
from serving.client.errors import InvalidRequest

RECORDS, RUN, REPORT = "records.jsonl", "run.json", "report.html"


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a run with one load."""

    index: int
    label: str
    """Description of the load, such as "5 requests/s" or "16 streams"."""
    load: float
    """Requests/s or streams; the horizontal axis of charts."""
    unit: str
    began: float
    """Seconds since the run began."""
    warmup: float
    seconds: float
    """Duration, including the warm-up, seconds."""


@dataclass(slots=True)
class Run:
    """A run, with all data that its report shows."""

    server: str
    model: str
    command: str
    began_unix_seconds: float
    slo: Slo
    records: Sequence[Record]
    stages: list[Stage] = field(default_factory=list)
    events: list[FleetEvent] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    answer: float | None = None
    """Result of a search, requests/s."""
    stopped: str = ""
    """Reason why the run ended early, with a partial report; empty if it did not."""
    notes: list[str] = field(default_factory=list)

    def summary(self, stage: Stage) -> Summary:
        """Return the summary of a stage."""
        records = [record for record in self.records if record.stage == stage.index]
        return summarize(records, self.slo, stage.seconds - stage.warmup)

    @property
    def found(self) -> str:
        """The result of a search as a sentence; empty for other runs."""
        if not self.trials:
            return ""
        if self.answer is not None:
            return f"highest rate that met the objective: {self.answer:.3g} requests/s ({self.slo})"
        if not self.stopped:
            return f"no rate met the objective ({self.slo})"
        best = max((trial.rate for trial in self.trials if trial.held), default=None)
        so_far = "none" if best is None else f"{best:.3g} requests/s"
        return f"the search did not finish; highest rate of a met trial: {so_far} ({self.slo})"

    def save(self, folder: Path) -> list[Path]:
        """Write the run into a directory; return the files.

        Raises:
            InvalidRequest: The files cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            records = folder / RECORDS
            with records.open("w", encoding="utf-8") as lines:
                lines.writelines(to_line(record) + "\n" for record in self.records)
            content = {
                item.name: getattr(self, item.name)
                for item in dataclasses.fields(self)
                if item.name != "records"
            }
            (folder / RUN).write_text(json.dumps(content, default=asdict, indent=1) + "\n", "utf-8")
            parquet = folder / "records.parquet"
            wrote = write_parquet(self.records, parquet)
        except OSError as error:
            raise InvalidRequest(f"cannot write to {folder}: {error.strerror}") from error
        return [records, folder / RUN, *([parquet] if wrote else [])]

    @classmethod
    def joined(cls, runs: Sequence["Run"]) -> "Run":
        """Return the runs of several workers (``--shard``) as one run.

        Raises:
            InvalidRequest: The runs have different stages.
        """
        first = runs[0]
        stages = [(stage.label, stage.seconds) for stage in first.stages]
        if any([(stage.label, stage.seconds) for stage in run.stages] != stages for run in runs):
            raise InvalidRequest(
                "the runs have different stages: they are not workers of the same run"
            )
        records = sorted((r for run in runs for r in run.records), key=lambda r: r.intended)
        return dataclasses.replace(
            first,
            records=records,
            stopped="; ".join(sorted({run.stopped for run in runs if run.stopped})),
            notes=[*first.notes, f"Merged from {len(runs)} workers."],
        )

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """Return the run that ``save`` wrote.

        Raises:
            InvalidRequest: The directory has no run.
        """
        try:
            content: dict[str, Any] = json.loads((folder / RUN).read_text("utf-8"))
            content["slo"] = Slo(**content["slo"])
            content["stages"] = [Stage(**stage) for stage in content["stages"]]
            content["events"] = [FleetEvent(**event) for event in content["events"]]
            content["trials"] = [Trial(**trial) for trial in content["trials"]]
            return cls(records=list(read_records([folder / RECORDS])), **content)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(f"no moe-serving load run in {folder}: {error}") from error

"""What each rank is doing while its gang starts, for whoever waits for it.

Ray Serve knows of a replica only that it is "starting". A rank therefore writes its stage
into the store that the gang meets in, and ``moe-serving up`` shows it. After the start
nobody reads it: health is the router's business.
"""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum

from serving.clock import Clock
from serving.engine.ray.rendezvous import GangMember, KeyValueStore, sweep


class Stage(StrEnum):
    """Where a rank is on its way to serving."""

    PLACED = "placed"
    MEETING = "meeting its peers"
    LOADING = "loading the model"
    JOINING = "joining the router"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class RankReport:
    """The last word of one rank."""

    gang_id: str
    rank: int
    world_size: int
    stage: Stage
    node: str
    pid: int
    made_at: float
    """Seconds since the Unix epoch, by the rank's own clock."""
    error_type: str = ""
    """Class name of the error, with stage failed."""
    error: str = ""
    """One line."""


class StageBoard:
    """The reports of one application's ranks."""

    def __init__(self, store: KeyValueStore, app: str) -> None:
        self._store = store
        self._prefix = f"stage/{app}/"

    def write(self, member: GangMember, report: RankReport) -> None:
        """Replace the rank's report."""
        key = f"{self._prefix}{member.incarnation}/{report.rank}"
        self._store.put(key, json.dumps(asdict(report)).encode())

    def remove(self, member: GangMember) -> None:
        """Remove the rank's report."""
        self._store.delete(f"{self._prefix}{member.incarnation}/{member.rank}")

    def read(self, since: float = 0.0) -> tuple[RankReport, ...]:
        """Return reports made at or after ``since``, by gang and rank, oldest gang first."""
        reports = []
        for key in self._store.keys(self._prefix):
            value = self._store.get(key)
            if value is None:
                continue
            fields = json.loads(value)
            report = RankReport(**{**fields, "stage": Stage(fields["stage"])})
            if report.made_at >= since:
                reports.append(report)
        first: dict[str, float] = {}
        for report in reports:
            first[report.gang_id] = min(report.made_at, first.get(report.gang_id, report.made_at))
        reports.sort(key=lambda report: (first[report.gang_id], report.gang_id, report.rank))
        return tuple(reports)

    def sweep(self, now: float) -> None:
        """Remove reports of gangs long gone."""
        sweep(self._store, (self._prefix,), now)


class StageWriter:
    """One rank's pen."""

    def __init__(
        self, board: StageBoard, member: GangMember, node: str, pid: int, clock: Clock
    ) -> None:
        self._board = board
        self._member = member
        self._node = node
        self._pid = pid
        self._clock = clock

    def enter(self, stage: Stage) -> None:
        """Say that the rank reached ``stage``."""
        self._write(stage, "", "")

    def fail(self, error: BaseException) -> None:
        """Say why the rank could not start."""
        text = " ".join(str(error).split()) or type(error).__name__
        self._write(Stage.FAILED, type(error).__name__, text)

    def _write(self, stage: Stage, error_type: str, error: str) -> None:
        member = self._member
        self._board.write(
            member,
            RankReport(
                gang_id=member.gang_id,
                rank=member.rank,
                world_size=member.world_size,
                stage=stage,
                node=self._node,
                pid=self._pid,
                made_at=self._clock.time(),
                error_type=error_type,
                error=error,
            ),
        )

"""Progress of each rank while its gang starts.

Ray Serve reports only that a replica is "starting". Each rank therefore writes its stage to the
store of the rendezvous, and ``moe-serving up`` shows it. After the start, the stage is not used;
health is reported through the router.
"""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum

from serving.clock import Clock
from serving.engine.ray.rendezvous import GangMember, KeyValueStore, sweep


class Stage(StrEnum):
    """Stages of a rank's start."""

    PLACED = "placed"
    MEETING = "connecting to its peers"
    LOADING = "loading the model"
    JOINING = "joining the router"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class RankReport:
    """The latest report of one rank."""

    gang_id: str
    rank: int
    world_size: int
    stage: Stage
    node: str
    pid: int
    made_at: float
    """Time of the report by the rank's clock, seconds since the Unix epoch."""
    error_type: str = ""
    """Class name of the error; empty unless the stage is ``FAILED``."""
    error: str = ""
    """Error message in one line."""


class StageBoard:
    """Reports of the ranks of one application."""

    def __init__(self, store: KeyValueStore, app: str) -> None:
        """Use ``store`` for the reports of Serve application ``app``."""
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
        """Return reports made at or after ``since``, sorted by gang (oldest first) and rank."""
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
        """Remove reports older than ``KEEP_SECONDS``; ``now`` in seconds since the Unix epoch."""
        sweep(self._store, (self._prefix,), now)


class StageWriter:
    """Writes the reports of one rank."""

    def __init__(
        self, board: StageBoard, member: GangMember, node: str, pid: int, clock: Clock
    ) -> None:
        """Write to ``board`` for ``member``, process ``pid`` on the node with address ``node``."""
        self._board = board
        self._member = member
        self._node = node
        self._pid = pid
        self._clock = clock

    def enter(self, stage: Stage) -> None:
        """Report that the rank has reached ``stage``."""
        self._write(stage, "", "")

    def fail(self, error: BaseException) -> None:
        """Report why the rank could not start."""
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

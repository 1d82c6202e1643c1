"""Validation of a batch: reads its input file, and inserts each line into the database.

A line that cannot be run is answered at once, with an error that contains its number; the others
run. If the process ends before the validation does, another one starts it again.
"""

import time
from collections.abc import Callable

from serving.batch.batches import BatchTable
from serving.batch.files import FileStore
from serving.batch.input_lines import InvalidLine, RawLine, parse_line, split_lines
from serving.batch.lines import LineTable, NewLine, Superseded
from serving.batch.records import Batch, Problem
from serving.batch.result_lines import content_of
from serving.errors import ResourceNotFound

_SLICE = 256
"""Lines per transaction; parsing them takes about 2 ms."""
_PAUSE = 0.001
"""Pause between slices, which leaves the interpreter to the event loop, seconds."""
_PROBLEMS = 100
"""Number of invalid lines that the batch itself lists; the error file has all."""


class Validator:
    """Validates batches. Its functions block."""

    def __init__(
        self,
        files: FileStore,
        batches: BatchTable,
        lines: LineTable,
        *,
        max_lines: int,
        max_line_bytes: int,
        stopping: Callable[[], bool],
    ) -> None:
        """Create a validator.

        Args:
            files: Has the input files.
            batches: The batches.
            lines: Receives the lines.
            max_lines: Maximum number of lines that are run.
            max_line_bytes: Maximum length of a line, bytes.
            stopping: Returns whether the process is about to end.
        """
        self._files = files
        self._batches = batches
        self._lines = lines
        self._max_lines = max_lines
        self._max_line_bytes = max_line_bytes
        self._stopping = stopping

    def validate(self, batch: Batch) -> None:
        """Validate a batch that this process owns; ends early if it loses the batch.

        Raises:
            ServingError: The storage or the database fails; the batch stays as it is.
        """
        try:
            self._validate(batch)
        except Superseded:
            return
        except ResourceNotFound as error:
            self._batches.fail(batch.batch_id, [Problem("input_file_lost", str(error))])
            self._lines.clear(batch.batch_id)

    def _validate(self, batch: Batch) -> None:
        self._lines.clear(batch.batch_id)
        found = _Lines(batch, self._lines)
        for raw in split_lines(self._files.parts(batch.input_file_id), self._max_line_bytes):
            if self._stopping():
                return
            found.total += 1
            try:
                line = self._line(raw, batch.endpoint, found.total)
            except InvalidLine as error:
                line = found.rejected(NewLine(raw.number, raw.start, raw.length), error)
            found.add(line)
        found.flush()
        found.problems.sort(key=lambda problem: problem.line or 0)
        if found.total > found.invalid:
            self._batches.validated(batch.batch_id, found.total, found.invalid, found.problems)
            return
        empty = Problem("empty_file", "the input file has no lines")
        self._batches.fail(batch.batch_id, found.problems or [empty])
        self._lines.clear(batch.batch_id)

    def _line(self, raw: RawLine, endpoint: str, count: int) -> NewLine:
        """Validate a line.

        Raises:
            InvalidLine: The line cannot be run.
        """
        if count > self._max_lines:
            raise InvalidLine(
                "too_many_lines", f"a batch has at most {self._max_lines} lines (batch.max_lines)"
            )
        if raw.data is None:
            raise InvalidLine(
                "line_too_long",
                f"the line has {raw.length} bytes, the limit is {self._max_line_bytes} "
                "(router.max_body_bytes)",
            )
        line = parse_line(raw.data, endpoint)
        return NewLine(raw.number, raw.start, raw.length, line.custom_id, line.prefix)


class _Lines:
    """Inserts the lines of a batch into the database, one slice at a time."""

    def __init__(self, batch: Batch, lines: LineTable) -> None:
        self._batch_id = batch.batch_id
        self._lines = lines
        self._slice: list[NewLine] = []
        self.total = self.invalid = 0
        self.problems: list[Problem] = []

    def add(self, line: NewLine) -> None:
        self._slice.append(line)
        if len(self._slice) >= _SLICE:
            self.flush()

    def flush(self) -> None:
        if not self._slice:
            return
        duplicates = [
            self.rejected(
                each,
                InvalidLine(
                    "duplicate_custom_id", "an earlier line has the same custom_id", each.custom_id
                ),
            )
            for each in self._lines.add(self._batch_id, self._slice)
        ]
        if duplicates:
            self._lines.add(self._batch_id, duplicates)
        self._slice.clear()
        time.sleep(_PAUSE)

    def rejected(self, line: NewLine, error: InvalidLine) -> NewLine:
        """Count an invalid line, and return it with its answer."""
        self.invalid += 1
        message = f"line {line.line}: {error}"
        if len(self.problems) < _PROBLEMS:
            self.problems.append(Problem(error.code, message, line.line))
        fault = {"code": error.code, "message": message, "line": line.line}
        answer = content_of(error.custom_id, error=fault)
        return NewLine(line.line, line.start, line.length, answer=answer)

"""Readers for file and directory flags; they check access, not content."""

import os
from pathlib import Path

from serving.flags.messages import BadValue


class ReadableFile:
    """An existing file that the user can read."""

    def __call__(self, text: str) -> Path:
        """Return the path.

        Raises:
            BadValue: The file is missing, a directory, or not readable.
        """
        path = _path(text, self)
        if not path.exists():
            raise BadValue(f"no such file; {self}")
        if path.is_dir():
            raise BadValue(f"is a directory; {self}")
        if not os.access(path, os.R_OK):
            raise BadValue(f"permission denied; {self}")
        return path

    def __str__(self) -> str:
        return "must be a readable file"


class ReadableDirectory:
    """An existing directory that contains certain files."""

    def __init__(self, *names: str, of: str = "") -> None:
        """Require certain files in the directory.

        Args:
            names: Names of the required files.
            of: The command that writes such directories, for the error message.
        """
        self.names = names
        self._of = of

    def __call__(self, text: str) -> Path:
        """Return the path.

        Raises:
            BadValue: The directory or a required file is missing.
        """
        path = _path(text, self)
        if not path.exists():
            raise BadValue(f"no such directory; {self}")
        if not path.is_dir():
            raise BadValue(f"not a directory; {self}")
        missing = [name for name in self.names if not (path / name).exists()]
        if missing:
            raise BadValue(f"contains no {missing[0]}; {self}")
        return path

    def __str__(self) -> str:
        return f"must be a directory{f' written by {self._of}' if self._of else ''}"


class OutputDirectory:
    """A directory to write to; it need not exist, and the command creates it."""

    def __call__(self, text: str) -> Path:
        """Return the path.

        Raises:
            BadValue: The nearest existing parent is a file, or is not writable by the user.
        """
        path = _path(text, self)
        existing = next(one for one in (path, *path.absolute().parents) if one.exists())
        if not existing.is_dir():
            raise BadValue(f"{existing} is not a directory; {self}")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise BadValue(f"no permission to write to {existing}; {self}")
        return path

    def __str__(self) -> str:
        return "must be a writable directory; it is created if missing"


def _path(text: str, reader: object) -> Path:
    """Return the path if it is valid for the file system, otherwise raise ``BadValue``."""
    if not text.strip() or "\0" in text:
        raise BadValue(str(reader))
    path = Path(text)
    try:
        path.exists()
    except OSError as error:
        raise BadValue(f"{(error.strerror or 'unusable').lower()}; {reader}") from None
    return path

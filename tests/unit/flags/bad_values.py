"""Values that the flag parsers must reject."""

import math
from pathlib import Path

from serving.flags.paths import OutputDirectory, ReadableDirectory, ReadableFile
from serving.flags.values import (
    Choice,
    CommaSeparated,
    GrpcAddress,
    HttpUrl,
    Number,
    Pair,
    Text,
    WholeNumber,
)

NOT_NUMBERS = ("", " ", "x", "1x", "nan", "inf", "-inf", "-1", "1e999", "0x10", "١", "1_0", "--")
NOT_ADDRESSES = (
    "", "x", "localhost:8000", "ftp://h", "http://", "http://h:0", "http://h:70000", "http://h:x",
    "http://h h", "http://h:", "file:///etc/passwd", "http://[::1", "http://h/?a=1",
)  # fmt: skip
NOT_HOST_PORTS = ("", "h", ":1", "h:", "h:0", "h:65536", "h:x", "http://h:1", "h h:1", "h:-1")


def bad_values(reads: object, folder: Path) -> list[str]:
    """Return the values that a parser must reject, by its kind."""
    file = folder / "file"
    file.write_text("")
    no_path = ["", "a\0b", "n" * 5000]
    fixed: dict[type, list[str]] = {
        Text: ["", " ", "a\nb", "\x1b[31m"],
        HttpUrl: list(NOT_ADDRESSES),
        GrpcAddress: list(NOT_HOST_PORTS),
        ReadableFile: [*no_path, str(folder), str(folder / "missing")],
        OutputDirectory: [*no_path, str(file), str(file / "below")],
        ReadableDirectory: [*no_path, str(file), str(folder), str(folder / "missing")],
    }
    if isinstance(reads, WholeNumber):
        return [*NOT_NUMBERS[:-1], "1.5", str(reads.at_least - 1), str(reads.at_most + 1)]
    if isinstance(reads, Number):
        over = [] if math.isinf(reads.at_most) else [f"{reads.at_most * 2:f}"]
        return [*NOT_NUMBERS, *over, *(["0"] if reads.above == 0 else [])]
    if isinstance(reads, CommaSeparated):
        return ["1,", ",", "1,,2", *bad_values(reads.part, folder)]
    if isinstance(reads, Pair):
        reversed_pair = f"9{reads.sign}1" if reads.sign == "/" or reads.single else "0:0"
        return [*NOT_NUMBERS, "1:2:3", ":", "1:", ":1", "1/", reversed_pair]
    if isinstance(reads, Choice):
        return ["", "x", reads.words[0].upper(), reads.words[0][:-1]]
    return fixed[type(reads)]

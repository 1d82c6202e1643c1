import asyncio
import io

from loadtest.generator import Generator
from loadtest.progress import Progress
from tests.unit.loadtest.records import record


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(out):
    generator = Generator(None, None)
    generator.begin()
    progress = Progress(generator, out)
    progress.stage = "5 requests/s"
    for listener in generator.listeners:
        listener(record())
        listener(record(1, error="broken", first=None))
    return progress


async def test_a_terminal_sees_one_line_that_is_cleared_in_the_end():
    out = Terminal()
    showing = asyncio.create_task(shown(out).show())
    await asyncio.sleep(0)
    showing.cancel()
    await asyncio.wait({showing})
    assert "5 requests/s  0 in flight  1 done  1 failed  11 tok/s  TTFT p50 100" in out.getvalue()
    assert out.getvalue().endswith("\r\x1b[2K")


async def test_a_file_sees_nothing():
    out = io.StringIO()
    await shown(out).show()
    assert not out.getvalue()

"""Helpers of tests that load a tiny server."""

from loadtest.arguments import parse


def options(server, *words, command="run"):
    """Return the options of a run on the server, as parsed from a command line."""
    line = [command, "--rest-url", server.url, "--warmup", "0", "--output-tokens", "3", *words]
    return parse(line, "loadtest")


async def been_asked(server, times):
    """Wait until the server has received ``times`` requests."""
    while len(server.app.asked) < times:
        server.app.asked_for.clear()
        await server.app.asked_for.wait()

"""What tests that run against a tiny server share."""

from loadtest.arguments import parse


def options(server, *words, command="run"):
    """Return the options of a run against it, as the command line gives them."""
    line = [command, "--url", server.url, "--warmup", "0", "--output-tokens", "3", *words]
    return parse(line, "loadtest")


async def been_asked(server, times):
    """Wait until so many requests have come."""
    while len(server.app.asked) < times:
        server.app.asked_for.clear()
        await server.app.asked_for.wait()

"""Name resolution with a timeout."""

import asyncio
import socket
import threading


async def resolve(host: str, limit: float) -> str:
    """Return the first address of ``host``.

    The lookup runs in a thread that is not joined, because the system's resolver cannot be
    interrupted and can block for half a minute.

    Args:
        host: Name or address.
        limit: Maximum time to wait, seconds.

    Raises:
        OSError: The name does not resolve in time; the message contains the reason.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()

    def settle(address: str | None, error: OSError | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(address or "")

    def look_up() -> None:
        address, failure = None, None
        try:
            address = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError as error:
            failure = OSError(f"the name {host} does not resolve: {error.strerror or error}")
        try:
            loop.call_soon_threadsafe(settle, address, failure)
        except RuntimeError:
            return  # the check is over

    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    try:
        async with asyncio.timeout(limit):
            return await answer
    except TimeoutError:
        raise OSError(f"the lookup of {host} timed out after {limit:g} s") from None

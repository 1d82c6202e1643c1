"""A servicer whose methods end in all possible ways, in all six forms of handlers.

A form is the way in which messages are exchanged, and an ending is the handler's last action: every
ending is tried in every form.
"""

import asyncio
import contextlib
from itertools import permutations
from typing import NamedTuple

import grpc
import grpc.aio

CODE = grpc.StatusCode
SET = (("set", "before"),)
MORE = (("at", "the end"), ("raw-bin", b"\0\xff"))
ALL_BYTES = "".join(map(chr, range(256))) + "漢字 \U0001f600 100% %41"


class Status(NamedTuple):
    """Like ``grpc.Status``."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple


SETTERS = {
    "code": lambda context: context.set_code(CODE.NOT_FOUND),
    "details": lambda context: context.set_details("not found"),
    "trailing": lambda context: context.set_trailing_metadata(SET),
}


async def returns(context):
    pass


def _sets(names):
    async def sets(context):
        for name in names:
            SETTERS[name](context)

    return sets


def _then(first, last):
    async def both(context):
        await first(context)
        await last(context)

    return both


def _raises(error):
    async def raises(context):
        raise error

    return raises


def _aborts(*args, **kwargs):
    async def aborts(context):
        await context.abort(*args, **kwargs)

    return aborts


def _trails(*pairs):
    async def trails(context):
        context.set_trailing_metadata(pairs)

    return trails


def _initial(*pairs):
    async def initial(context):
        await context.send_initial_metadata(pairs)

    return initial


async def sets_again(context):
    for code, details in ((CODE.ABORTED, "first"), (CODE.DATA_LOSS, "second")):
        context.set_code(code)
        context.set_details(details)
        context.set_trailing_metadata((("set", details),))


async def sets_and_takes_back(context):
    context.set_code(CODE.ABORTED)
    context.set_code(CODE.OK)


async def aborts_with_status(context):
    await context.abort_with_status(Status(CODE.NOT_FOUND, "gone", MORE))


async def aborts_and_continues(context):
    with contextlib.suppress(grpc.aio.AbortError):
        await context.abort(CODE.NOT_FOUND, "gone")


async def aborts_and_writes(context):
    await aborts_and_continues(context)
    await context.write(b"too late")


async def aborts_twice(context):
    await aborts_and_continues(context)
    await context.abort(CODE.INTERNAL, "again")


async def raises_abort_error(context):
    raise grpc.aio.AbortError("x")


async def sets_details_that_are_no_text(context):
    context.set_code(CODE.NOT_FOUND)
    context.set_details(b"x")


async def initial_twice(context):
    await context.send_initial_metadata((("early", "x"),))
    await context.send_initial_metadata((("early", "y"),))


async def bad_then_raises(context):
    context.set_trailing_metadata((("UPPER", "x"),))
    raise ValueError("x")


NONE_OF_A_PAIR = (42, {}, {"error": "error"}, [{"error": "error"}])


async def no_pairs(context):
    refused = 0
    for each in NONE_OF_A_PAIR:
        try:
            context.set_trailing_metadata(each)
        except TypeError:
            refused += 1
    context.set_trailing_metadata((("refused", str(refused)),))


ENDINGS = {
    "returns": returns,
    **{
        "sets-" + "-".join(names): _sets(names)
        for count in (1, 2, 3)
        for names in permutations(SETTERS, count)
    },
    "sets-again": sets_again,
    "sets-and-takes-back": sets_and_takes_back,
    "sets-a-number": lambda context: asyncio.sleep(0, context.set_code(5)),
    "sets-no-code": lambda context: asyncio.sleep(0, context.set_code(99)),
    "sets-cancelled": lambda context: asyncio.sleep(0, context.set_code(CODE.CANCELLED)),
    "details-of-all-bytes": _aborts(CODE.DATA_LOSS, ALL_BYTES),
    "raises": _raises(ValueError("x")),
    "raises-not-implemented": _raises(NotImplementedError()),
    "sets-and-raises": _then(_sets(SETTERS), _raises(ValueError("x"))),
    "trailing-and-raises": _then(_sets(["trailing"]), _raises(ValueError("x"))),
    "aborts": _aborts(CODE.NOT_FOUND, "gone"),
    "aborts-with-metadata": _aborts(CODE.NOT_FOUND, "gone", MORE),
    "aborts-with-status": aborts_with_status,
    "aborts-without-details": _aborts(CODE.NOT_FOUND),
    "aborts-with-no-code": _aborts(99, "gone"),
    "aborts-and-continues": aborts_and_continues,
    "aborts-and-writes": aborts_and_writes,
    "aborts-twice": aborts_twice,
    "sets-and-aborts": _then(_sets(SETTERS), _aborts(CODE.DATA_LOSS, "gone")),
    "sets-and-aborts-without-details": _then(_sets(SETTERS), _aborts(CODE.DATA_LOSS)),
    "sets-and-aborts-with-metadata": _then(_sets(SETTERS), _aborts(CODE.DATA_LOSS, "", MORE)),
    "aborts-with-bytes": _aborts(CODE.NOT_FOUND, b"gone"),
    "sets-bytes": sets_details_that_are_no_text,
    "raises-abort-error": raises_abort_error,
    **{
        f"initial-{name}": _initial((name, value))
        for name, value in {"content-type": "x", "te": "x", "content-length": "9"}.items()
    },
    "initial": _initial(("early", "x"), ("early-bin", b"\xfe")),
    "initial-twice": initial_twice,
    "initial-and-aborts": _then(_initial(("early", "x")), _aborts(CODE.ABORTED, "gone")),
    "trailing-metadata-all-kinds": _trails(
        ("a", "1"), ("a", "2"), ("b-bin", b""), ("c.d_e-f", "~ !")
    ),
    "trailing-metadata-nothing": _trails(),
    "trailing-metadata-no-pairs": no_pairs,
    **{
        f"trailing-metadata-{name}": _trails(pair)
        for name, pair in {
            "upper-case": ("UPPER", "x"),
            "no-name": ("", "x"),
            "space-in-name": ("a b", "x"),
            "line-feed": ("a", "x\ny"),
            "not-ascii": ("a", "ä"),
            "bytes": ("a", b"x"),
            "text-as-binary": ("a-bin", "text"),
            "a-number": ("a", 1),
            "empty": ("a", ""),
            "grpc-name": ("grpc-x", "y"),
            "pseudo": (":path", "x"),
            "te": ("te", "x"),
            "content-type": ("content-type", "x"),
            "content-length": ("content-length", "9"),
            "connection": ("connection", "close"),
            "upgrade": ("upgrade", "h2c"),
        }.items()
    },
    "bad-trailing-and-raises": bad_then_raises,
    "initial-upper-case": _initial(("UPPER", "x")),
}


class Forms:
    """Handlers of all forms with one ending; they record the context in ``seen``."""

    def __init__(self, ending):
        self.ending = ending

    async def uu(self, request, context):
        await self.ending(context)
        return request

    async def us_writes(self, request, context):
        await context.write(request)
        await self.ending(context)

    async def us_yields(self, request, context):
        yield request
        await self.ending(context)

    async def su(self, requests, context):
        got = [each async for each in requests]
        await self.ending(context)
        return b"".join(got)

    async def ss_writes(self, requests, context):
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)
        await self.ending(context)

    async def ss_yields(self, requests, context):
        async for request in requests:
            yield request
        await self.ending(context)


FORMS = ("uu", "us_writes", "us_yields", "su", "ss_writes", "ss_yields")


def behaviours():
    """Return all handlers by name: form, then ending."""
    return {
        f"{form}_{name}": getattr(Forms(ending), form)
        for name, ending in ENDINGS.items()
        for form in FORMS
    }

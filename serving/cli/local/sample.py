"""The sample question that ``up`` asks when it is ready."""

from typing import TextIO

from serving.client.credentials import NO_ACCESS, Access
from serving.client.rest import stream_chat

QUESTION = "What is 17+25?"


def ask_sample(
    base_url: str, model: str, out: TextIO, timeout: float = 60.0, access: Access = NO_ACCESS
) -> None:
    """Ask the question and print reasoning (dimmed on a terminal) and answer as they come.

    Raises:
        NotReady: the router did not answer.
    """
    dim, bold, reset = ("\x1b[2m", "\x1b[1m", "\x1b[0m") if out.isatty() else ("", "", "")
    out.write(f"\n{bold}you:{reset} {QUESTION}\n")
    last = ""
    for kind, text in stream_chat(base_url, model, QUESTION, timeout, access):
        if kind != last:
            # Answers begin with the line breaks that followed the reasoning.
            text = text.lstrip()  # noqa: PLW2901
            if not text:
                continue
            out.write(f"{reset}\n" if last else "")
            out.write(f"{dim}reasoning: " if kind == "reasoning" else f"{bold}answer:{reset} ")
            last = kind
        out.write(text)
        out.flush()
    out.write(f"{reset}\n\n" if last else "(no answer)\n\n")
    out.flush()

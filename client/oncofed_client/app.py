"""Flower's ClientApp as a relay: the bytes of a message go to a handler, the handler's bytes go back. It decides nothing.

What the handler is depends on where it runs: in a simulation a `Site` in the same process, in a deployment the way to the
site's daemon.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from oncofed_shared.flower_records import NAME, STEP, pack, unpack

__all__ = ["FAILED", "Handle", "relay"]

Handle = Callable[[bytes], bytes]
# Not one of Flower's own codes.
FAILED = 1000


def relay(connect: Callable[[Context], Handle], name: Callable[[Context], str]) -> ClientApp:
    """Make a ClientApp.

    Args:
        connect: gives the handler of the node that a context describes.
        name: what this node is called; asked once at the start of a run.

    Returns:
        An app that answers both kinds of message of `flower_records`. Whatever goes wrong is answered with the kind of
        error and its place in the code, never with its text, which could hold a patient's value.
    """
    app = ClientApp()

    def answer(message: Message, work: Handle) -> Message:
        started = time.perf_counter()
        try:
            content = work(unpack(message.content))
        except Exception as error:  # noqa: BLE001 - what is not answered here, Flower would send with its text
            return Message(Error(FAILED, _place(error)), reply_to=message)
        return Message(pack(content, seconds=time.perf_counter() - started), reply_to=message)

    @app.query(NAME.removeprefix("query."))
    def tell(message: Message, context: Context) -> Message:
        return answer(message, lambda _: name(context).encode())

    @app.query(STEP.removeprefix("query."))
    def step(message: Message, context: Context) -> Message:
        # Within `answer`, because connecting can fail too.
        return answer(message, lambda content: connect(context)(content))  # noqa: PLW0108

    return app


def _place(error: Exception) -> str:
    """An exception without its text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"

"""Signals that ask a run to end: heard from before its folder is made until its last file is written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Heard:
    """What one run, or several that share a program, has heard; a context in which it listens.

    The first signal asks for an orderly end; a second Ctrl-C leaves at once.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        """Args: `say`, shows that a signal was heard; None only where nobody listens."""
        self.stopped_by: str | None = None  # a signal's name
        self._say = say
        self._handlers: dict[int, Any] = {}  # those before ours

    def __enter__(self) -> Heard:
        if threading.current_thread() is threading.main_thread():  # else signals belong to the program that called us
            self._handlers = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: Any) -> None:
        if self.stopped_by and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped_by = signal.Signals(number).name
        if self._say is not None:
            self._say(f"{self.stopped_by}: finishing the update and saving; Ctrl-C again leaves at once")

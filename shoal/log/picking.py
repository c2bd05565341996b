"""Which console suits where stderr goes: a live table, plain lines, or nothing."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from shoal.log import console, live, plain


def pick(quiet: bool = False, stream: TextIO | None = None, every: float = 10.0) -> console.Console:
    """The console that suits where stderr goes: live table on a terminal, else plain lines.

    Args:
        quiet: Show nothing at all.
        stream: Instead of ``sys.stderr``.
        every: Seconds between plain lines.

    Returns:
        A console.
    """
    target = stream or sys.stderr
    if quiet or target is None:  # a service may run without stderr
        return plain.Quiet()
    if suits_a_table(target):
        return live.Live(target)
    return plain.Plain(target, every)


def suits_a_table(stream: TextIO) -> bool:
    """Whether there is a person with a capable terminal at the other end."""
    env = os.environ
    return (
        stream.isatty()
        and env.get("CI", "").lower() in ("", "0", "false")
        and not env.get("NO_COLOR")
        and env.get("TERM", "") not in ("", "dumb", "unknown")
        and (stream.encoding or "").lower().replace("-", "").startswith("utf8")
    )

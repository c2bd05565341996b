"""Letting go of what may raise: everything is closed, what was raised is told as a fault, and undoes nothing.

Viewers that are gone and sockets that were cut raise when a simulator is closed, once all there was to learn is learnt.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable

KIND = "closing a simulator raised; nothing is undone by it"

Close = Callable[[], object]


def every(closes: Iterable[Close]) -> None:
    """Call all of them, whatever they raise.

    Args:
        closes: One a simulator.

    Raises:
        Exception: The first that was raised, once all were called; a note on it says how many raised.
    """
    raised: list[Exception] = []
    count = 0
    for close in closes:
        count += 1
        try:
            close()
        except Exception as error:  # noqa: BLE001  whatever a simulator raises, the others are closed
            raised.append(error)
    if raised:
        raised[0].add_note(f"({len(raised)} of {count} raised when they were closed)")
        raise raised[0]


def told(close: Close, on_fault: Callable[[str, str], None]) -> None:
    """Close one thing; what it raises goes to `on_fault`, as ``(kind, traceback)``, and no further."""
    try:
        close()
    except Exception:  # noqa: BLE001  its work is done
        on_fault(KIND, traceback.format_exc())

"""The errors a person can cause or must act on, each with the exit code the command line ends with.

A message is one line: what was given, what is allowed, what to do. The command line prints it without a traceback;
any other exception is a bug and keeps its traceback (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ShoalError(Exception):
    """Base of every expected error. ``exit_code`` is what the process ends with."""

    exit_code = 1


class Refused(ShoalError):
    """The request cannot be carried out as given; nothing was created or changed (exit code 2)."""

    exit_code = 2


class Unfit(ValueError):
    """A policy came out with which nobody should act: numbers in it, or what it gives, are not finite.

    No person's mistake: a runtime counts it, and goes on with the policy before.
    """


class GaveUp(ShoalError):
    """The run could not be kept going: a crash loop, or a diverged learner (exit code 3)."""

    exit_code = 3


class NoCheckpoint(ShoalError):
    """The run folder holds no usable checkpoint, or one of a newer schema (exit code 4)."""

    exit_code = 4


class NotBegun(ShoalError):
    """A run was asked to end before its first step: nothing was learned that could be lost (exit code 75)."""

    exit_code = 75


def unknown(kind: str, given: str, allowed: Iterable[str], remedy: str = "") -> Refused:
    """The refusal for a name that is not in a list: what was given, the nearest known name, what is allowed.

    Args:
        kind: What the name stands for, e.g. ``"preset"``.
        given: The name as typed.
        allowed: Every name that would have been taken.
        remedy: What to do, added as a last sentence.

    Returns:
        The error, to be raised by the caller.
    """
    names = sorted(allowed)
    near = nearest(given, names)
    hint = f"; did you mean {near!r}?" if near else ""
    shown = ", ".join(names) if len(names) <= 16 else f"{', '.join(names[:16])}, and {len(names) - 16} more"
    tail = f" {remedy}" if remedy else ""
    return Refused(f"unknown {kind} {given!r}{hint} (known: {shown or 'none'}){tail}")


def nearest(given: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant; None if none is like it."""
    names = sorted(names)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.65) or _near_in_any_case(given, names)
    # Of names that are equally near, the one that begins alike.
    near.sort(key=lambda name: (-difflib.SequenceMatcher(None, name, given).ratio(), name[:1] != given[:1]))
    return near[0] if near else None


def _near_in_any_case(given: str, names: Iterable[str]) -> list[str]:
    """``"cartpole"`` -> ``["CartPole-v1"]``; of several versions the last one."""
    lowered = {name.lower(): name for name in names}
    found = difflib.get_close_matches(given.lower(), sorted(lowered, reverse=True), n=3, cutoff=0.65)
    best = [name for name in found if name.rpartition("-v")[0] == found[0].rpartition("-v")[0] or name == found[0]]
    return [lowered[max(best)]] if best else []

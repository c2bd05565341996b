"""What is kept out: every message is checked before any rule sees it, and turned away with a reason that is counted.

`check` never raises, whatever arrives, and allocates nothing for a message of the wrong length. The sender is whom the
carrier authenticated, never whom the message names.
"""

from __future__ import annotations

from typing import NamedTuple

from shoal.runtimes.federated import message

REASONS = (
    "type",  # no bytes at all
    "size",  # truncated or oversized
    "header",  # another protocol, direction or kind of message
    "spec",  # of other tensors: a key, a shape or a dtype that is not the global part's
    "run",  # of another run
    "party",  # bears another's number
    "kind",  # of update than was asked for
    "not_finite",
    "counts",  # outside their declared ranges
    "outcome",  # unknown, or tensors that are not 0 beside one that says there are none
    "outputs",  # action distributions that are none
    "round",  # a round or version that was never given out
    "late",  # of a round that is closed
    "duplicate",  # a second message, or the same again
    "unasked",  # nothing was asked of this party
    "stale",  # computed from a version too long ago
    "norm",  # above the declared bound
)


class Expected(NamedTuple):
    """What the message of a pending job must say."""

    run: bytes
    party: int  # as the carrier authenticated it
    round: int
    base: int
    kind: int
    env_steps: int = message.MOST  # at most, of one round
    updates: int = message.MOST
    max_norm: float = 0.0  # 0: no bound
    choices: int = 0  # of outputs, how many probabilities make a distribution; 0: they are no distributions


def check(spec: message.Spec, body: object, expected: Expected) -> tuple[message.Up | None, str]:
    """Take a message or turn it away.

    Args:
        spec: Of what was to be sent.
        body: As it arrived, whatever it is.
        expected: Of the job that this party has.

    Returns:
        The message and "", or None and one of `REASONS`.
    """
    up, reason = read(spec, body)
    if up is None:
        return None, reason
    reason = _addressed(up, expected) or _holds(up, expected)
    return (None, reason) if reason else (up, "")


def read(spec: message.Spec, body: object) -> tuple[message.Up | None, str]:
    """A message as it stands, whomever it is for: it and "", or None and one of `REASONS`."""
    try:
        return message.decode_up(spec, body), ""  # type: ignore[arg-type]  # what is no bytes is turned away there
    except message.Malformed as malformed:
        return None, malformed.reason


def _addressed(up: message.Up, expected: Expected) -> str:
    told = up.header
    if told.run != expected.run:
        return "run"
    if told.party != expected.party:
        return "party"
    if up.outcome == message.FAILED:  # a party that could not read its job cannot name it
        return ""
    if told.round < expected.round:
        return "late"
    if (told.round, told.base) != (expected.round, expected.base):
        return "round"
    return "" if told.kind == expected.kind else "kind"


def _holds(up: message.Up, expected: Expected) -> str:
    if up.env_steps > expected.env_steps or up.updates > expected.updates:
        return "counts"
    if up.outcome != message.OK:
        return "outcome" if up.vector.any() else ""
    if up.updates < 1:  # an update of nothing
        return "counts"
    if expected.choices and not _distributions(up, expected.choices):
        return "outputs"
    if expected.max_norm and message.norm(up.vector) > expected.max_norm:
        return "norm"
    return ""


def _distributions(up: message.Up, choices: int) -> bool:
    rows = up.vector.astype("<f8").reshape(-1, choices)
    return bool((rows >= 0).all() and (abs(rows.sum(axis=1) - 1.0) < 1e-3).all())

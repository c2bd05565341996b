"""What the rounds of a federation keep to, and what one step makes of the updates that came: pure functions."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from shoal.core import errors
from shoal.runtimes.federated import applying, message, robust

KINDS = {"gradient": message.GRADIENT, "delta": message.DELTA, "outputs": message.OUTPUTS}
FACTOR = 3.0  # of a median: that of norms bounds an update, that of rounds a deadline
SILENT = 0.01  # of the median norm: a shorter update says nothing


class Rules(NamedTuple):
    """How rounds are held."""

    mode: str = "gradient"  # or "delta", "outputs"
    asynchronous: bool = False
    aggregator: str = "auto"  # of `robust.RULES`; "auto": the mean, or `robust.DEFAULT` where hostile > 0
    hostile: int = 0  # parties that may be (f)
    max_norm: float = 0.0  # an update above it is turned away; 0: where hostile > 0, scaled down to 3 median norms
    participation: float = 1.0  # chance of each party to be in a round's cohort
    quorum: int = 0  # updates without which a round fails, never below what the rule needs; 0: half of the cohort
    deadline_s: float = 0.0  # seconds of a round (asynchronously of a job); 0: 3 median rounds
    shortest_s: float = 30.0  # a deadline that nobody gave is no shorter: a pause of the machine is no vanished party
    max_lag: int = 8  # versions; an update computed from an older one is dropped
    buffer: int = 1  # updates of a step, asynchronously
    optimiser: applying.Numbers = applying.Numbers()  # of gradients: the experiment's; of deltas: "sgd" or "adam"
    eta: float = 1.0  # of deltas that are added as they are, synchronously
    alpha: float = 0.6  # of any step, asynchronously
    settings: message.Settings = message.Settings()  # what parties are told
    env_steps: int = message.MOST  # of a party in one round, at most
    updates: int = message.MOST
    choices: int = 0  # of outputs: how many probabilities make one distribution; 0: they are no distributions
    coins: bytes = b""  # secret of the cohorts; b"": the system's randomness (a simulation gives its own)


class Global(NamedTuple):
    """What a step changes."""

    theta: np.ndarray  # [d] f32
    kept: applying.Statistics  # of the server's optimiser


class Came(NamedTuple):
    """The updates of one step, by the party's number."""

    updates: np.ndarray  # [n, d]
    norms: np.ndarray  # [n] f64, () of masked ones
    lags: tuple[int, ...]  # versions since each was computed
    parties: tuple[int, ...] = ()  # whose they are
    cohort: tuple[int, ...] = ()  # who was asked
    round: int = 0


class Release(Protocol):
    """What takes the place of the rule where nobody may see single updates: the server's noise, a masked sum."""

    def __call__(self, came: Came) -> np.ndarray | None:
        """The mean that may be released, ``[d]`` f32; None: the round is aborted, and nothing changes."""
        ...


def check(rules: Rules, parties: int) -> None:
    """Refuse rules that cannot hold.

    Args:
        rules: How rounds are held.
        parties: How many there are.

    Raises:
        Refused: An unknown mode, more updates asked for than there are parties, or a robust rule that would see too
            few of them.
    """
    if rules.mode not in KINDS:
        raise errors.unknown("value of runtime.exchange", rules.mode, KINDS)
    for name, wanted in (("quorum", rules.quorum), ("buffer", rules.buffer if rules.asynchronous else 0)):
        if wanted > parties:
            raise errors.Refused(f"runtime.{name}={wanted}, but there are {parties} parties; give {parties} at most")
    seen = rules.buffer if rules.asynchronous else rules.quorum or parties
    aggregator = robust.chosen(rules.aggregator, rules.hostile)
    robust.check(aggregator, rules.hostile, seen, "buffer" if rules.asynchronous else "quorum")


def drawn(rules: Rules, round: int, party: int) -> bool:
    """Whether a party is in a round's cohort: a coin of its own from the secret, so nobody can choose or foresee it."""
    if rules.participation >= 1.0:
        return True
    told = rules.coins + round.to_bytes(8, "little") + party.to_bytes(4, "little")
    return int.from_bytes(hashlib.sha256(told).digest()[:6], "little") < rules.participation * (1 << 48)


def spoken(rules: Rules, came: Came) -> Came:
    """Where hostile parties are allowed for: without the updates that say nothing, by their norm.

    Among noisy updates nothing is nearest to everybody: rules that look for neighbours would find it, and the step
    would shrink.

    Args:
        rules: How rounds are held.
        came: The updates of a step.
    """
    if not rules.hostile or not came.norms.size:
        return came
    kept = np.flatnonzero(came.norms > SILENT * np.median(came.norms))
    lags, parties = tuple(came.lags[i] for i in kept), tuple(came.parties[i] for i in kept)
    return came._replace(updates=came.updates[kept], norms=came.norms[kept], lags=lags, parties=parties)


def bound(rules: Rules, past: Sequence[float], norms: np.ndarray) -> float:
    """What norms are scaled down to: 3 x the median over the last rounds' medians and this one's; 0: nothing is.

    Args:
        rules: How rounds are held.
        past: Medians of the norms of the rounds before.
        norms: Of this one, as they came.
    """
    if not rules.hostile or rules.max_norm or not norms.size:
        return 0.0
    return FACTOR * statistics.median([*past, float(np.median(norms))])


def step(
    rules: Rules, now: Global, came: Came, most: float, clock: float, release: Release | None
) -> tuple[Global, str]:
    """Aggregate the updates and step.

    Args:
        rules: How rounds are held.
        now: Before it.
        came: The updates.
        most: Norm that they are scaled down to; 0: they are not.
        clock: Environment steps of a party before this round.
        release: What takes the place of the rule; None: the rule.

    Returns:
        What is then, and ""; or as before and why: "aborted", or "not_finite".
    """
    updates, share = robust.bounded(came.updates, came.norms, most) if most else came.updates, 1.0
    if rules.asynchronous and not release:
        weights, share = stale(rules, came.lags)
        updates = (updates * weights[:, None]).astype(np.float32)
    with np.errstate(all="ignore"):  # what overflows is seen below
        combine = robust.RULES[rules.aggregator].combine
        one = release(came) if release else combine(updates, rules.hostile)
        if one is None:
            return now, "aborted"
        after = _applied(rules, now, one, clock, share)
    whole = message.finite(after.theta) and all(message.finite(array) for array in after.kept.values())
    return (after, "") if whole else (now, "not_finite")


def stale(rules: Rules, lags: Sequence[int]) -> tuple[np.ndarray, float]:
    """What staleness takes off, where updates are applied as they come: s(τ) = (1 + τ)^(-1/2) of each.

    An optimiser that divides by the size of what it is given, as Adam does, would undo a weight that all of its updates
    have in common, and N parties would take N full steps where rounds take one. So there the weights only say how
    updates count beside each other, and what they have in common is of the step.

    Args:
        rules: How rounds are held.
        lags: τ of each update.

    Returns:
        What each update is multiplied by ``[n]``, and what the optimiser's step is: α and the mean of s(τ).
    """
    weights = (1.0 + np.array(lags)) ** -0.5
    if rules.mode != "gradient" and rules.optimiser.rule != "adam":
        return weights, 1.0
    return weights / weights.mean(), rules.alpha * float(weights.mean())


def _applied(rules: Rules, now: Global, one: np.ndarray, clock: float, share: float) -> Global:
    optimiser = rules.optimiser._replace(learning_rate=rules.optimiser.learning_rate * share)
    if rules.mode == "gradient":
        return Global(*applying.stepped(optimiser, now.kept, now.theta, one, clock))
    if rules.mode == "outputs":  # the mean of decisions is what parties are sent
        return now._replace(theta=one)
    if rules.optimiser.rule == "adam":
        return Global(*applying.fed_adam(optimiser, now.kept, now.theta, one))
    return now._replace(theta=now.theta + np.float32(rules.alpha if rules.asynchronous else rules.eta) * one)

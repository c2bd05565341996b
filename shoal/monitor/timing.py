"""Where the time of actors and learner goes, and what a faster policy can therefore gain (Amdahl).

A stopwatch reads the clock once where one thing ends and the next begins, so that nothing lies between two names and
the parts add up to the wall-clock. Times are seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from typing import NamedTuple

ACTOR = ("inference", "env", "wait", "load")  # policy; simulators; a full queue; taking a new snapshot
LEARNER = ("wait", "update", "publish")  # an empty queue; learning; handing out a snapshot

FINEST, DECADES, PER_DECADE = 1e-7, 10, 100  # bins of `Quantiles`: 100 ns to 1000 s, each 2.3 % wide
BINS = DECADES * PER_DECADE


class Stopwatch:
    """Adds every stretch of time to a name. One reading of the clock a stretch: cheap enough for every step."""

    __slots__ = ("_begun", "_clock", "_last", "names", "spent")

    def __init__(self, names: Sequence[str], clock: Callable[[], float] = time.perf_counter) -> None:
        """Args: `names` of what is told apart (`ACTOR`, `LEARNER`); `clock` in seconds. Starts at once."""
        self.names = tuple(names)
        self._clock = clock
        self.spent = dict.fromkeys((*self.names, "other"), 0.0)
        self._begun = self._last = clock()

    def lap(self, name: str) -> float:
        """What ends now was this: adds the time since the last lap to `name` (or ``"other"``) and returns it."""
        now = self._clock()
        took = now - self._last
        self._last = now
        self.spent[name] += took
        return took

    def split(self) -> dict[str, float]:
        """Seconds by name, ``inference_s`` and so on and ``other_s``, up to this moment; their sum is `wall_s`."""
        self.lap("other")
        return {f"{name}_s": took for name, took in self.spent.items()}

    @property
    def wall_s(self) -> float:
        """Seconds from the beginning to the last lap."""
        return self._last - self._begun


def joined(splits: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Splits of several processes, or lives of one, added up by name."""
    names = dict.fromkeys(name for one in splits for name in one)
    return {name: sum(one.get(name, 0.0) for one in splits) for name in names}


class Quantiles:
    """Median and other quantiles of many times in bounded memory: counts in bins that are evenly wide on a log scale.

    What is told is the middle of a bin, at most 1.2 % off.
    """

    __slots__ = ("counts",)

    def __init__(self, counts: MutableSequence[int] | None = None) -> None:
        """Args: `counts`, ``[BINS]`` to add to, such as memory shared with another process; None: of its own."""
        self.counts: MutableSequence[int] = [0] * BINS if counts is None else counts

    def add(self, seconds: float) -> None:
        """Counts one; shorter than `FINEST` counts as that, longer than the last bin as the last."""
        place = int(math.log10(seconds / FINEST) * PER_DECADE) if seconds > FINEST else 0
        self.counts[min(place, BINS - 1)] += 1

    def quantile(self, share: float) -> float | None:
        """Seconds that this share of all times does not pass; None of nothing."""
        wanted, passed = share * sum(self.counts), 0
        for i, count in enumerate(self.counts):
            passed += count
            if count and passed >= wanted:
                return float(FINEST * 10 ** ((i + 0.5) / PER_DECADE))
        return None

    def told(self, unit: float = 1.0) -> dict[str, float | None]:
        """`median` and `p95`; `unit` in seconds (1e-6 tells microseconds)."""
        found = {"median": self.quantile(0.5), "p95": self.quantile(0.95)}
        return {name: None if value is None else value / unit for name, value in found.items()}


# ------------------------------------------------------------------------------------------------ Amdahl


def reduction(f: float, s: float) -> float:
    """Share of the wall-clock that goes away if a share `f` of it becomes `s` times faster: R = f (1 - 1/s)."""
    return f * (1 - 1 / s)


def speed_up(f: float, s: float) -> float:
    """How many times faster the whole becomes: 1 / (1 - f + f/s)."""
    return 1 / (1 - f + f / s)


def share_behind(r: float, s: float) -> float:
    """The share f that explains a reduction `r` by a speed-up `s`: f = R / (1 - 1/s)."""
    return r / (1 - 1 / s)


def share_before(f: float, s: float) -> float:
    """The share that inference had before it became `s` times faster, from the share `f` that it has now."""
    return f * s / (1 - f + f * s)


class Stages(NamedTuple):
    """A pipeline of actors and a learner: seconds of one actor and of the learner for the same work."""

    inference: float  # of an actor
    around: float  # of an actor: simulators, loading and everything else but waiting
    learner: float  # but waiting

    @property
    def actor(self) -> float:
        """a: what an actor needs."""
        return self.inference + self.around

    def faster(self, s: float) -> Stages:
        """With inference `s` times faster (slower below 1)."""
        return self._replace(inference=self.inference / s)

    def wall(self, synchronous: bool = False) -> float:
        """The slower of both; synchronous: one after the other."""
        return self.actor + self.learner if synchronous else max(self.actor, self.learner)


def stages(per_step: Mapping[str, float], n: int, actors: int, learner: float) -> Stages:
    """Of a batch of `n` steps that `actors` gather: a = (n/W)(t_env + t_inf + t_load).

    Args:
        per_step: Seconds of a step by what they are spent on: `inference`, and any others.
        n: Steps of a learner's batch.
        actors: W.
        learner: Seconds of an update.
    """
    inference = per_step["inference"]
    around = sum(per_step.values()) - inference
    return Stages(inference=n / actors * inference, around=n / actors * around, learner=learner)


def measured_stages(actors: Sequence[Mapping[str, float]], learner: Mapping[str, float]) -> Stages:
    """Of a run, from the splits of its actors (one each) and of its learner: waiting is nobody's work.

    Raises:
        ValueError: There is no actor.
    """
    if not actors:
        raise ValueError("no actor was measured")
    split = joined(actors)
    working = sum(split.values()) - split.get("wait_s", 0.0)
    inference = split.get("inference_s", 0.0)
    mine = sum(learner.values()) - learner.get("wait_s", 0.0)
    return Stages(inference / len(actors), (working - inference) / len(actors), mine)


class Prediction(NamedTuple):
    """What compression should gain."""

    f: float  # share of the baseline's wall-clock that its actors spend in inference
    s: float  # how many times faster inference is
    reduction: float  # of the wall-clock; negative where the packed policy is slower
    bound: str  # "actor" or "learner": who sets the pace once compressed


def predict(now: Stages, s: float, *, packed: bool, synchronous: bool = False) -> Prediction:
    """The reduction to expect from a speed-up.

    Args:
        now: As measured.
        s: Microseconds of the fastest full-precision engine / of the packed one.
        packed: Whether `now` was measured with the packed policy; else with the full one.
        synchronous: Actors and learner take turns instead of working at once.

    Returns:
        R = f (1 - 1/s) where they take turns, 1 - max(a', l)/max(a, l) where they work at once.
    """
    before, after = (now.faster(1 / s), now) if packed else (now, now.faster(s))
    was, becomes = before.wall(synchronous), after.wall(synchronous)
    if was <= 0:
        return Prediction(f=0.0, s=s, reduction=0.0, bound="actor")
    bound = "learner" if after.learner > after.actor else "actor"
    return Prediction(f=before.inference / was, s=s, reduction=1 - becomes / was, bound=bound)


def amdahl(predicted: Prediction | None, full_us: float | None, packed_us: float | None) -> dict[str, float | None]:
    """`actor.amdahl` of the summary; None where nothing could be measured."""
    return {
        "f": None if predicted is None else predicted.f,
        "s": None if predicted is None else predicted.s,
        "predicted_reduction": None if predicted is None else predicted.reduction,
        "full_us": full_us,
        "packed_us": packed_us,
    }

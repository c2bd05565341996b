"""Gymnasium environments that misbehave, registered on import as ``tests.faults.envs:NAME-v0``.

What must happen once in a whole run, whatever the number of processes and restarts, is agreed on by a file: the one
named in the environment variable SHOAL_TEST_ONCE, which the first to misbehave makes.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import pathlib
import signal
import time

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH = 10  # steps of an episode
MISBEHAVES_AT = 60  # steps of one simulator
STORY = "the simulator broke"


class Calm(gymnasium.Env):
    """Episodes of ten steps, reward 1 each; the ground the others stand on."""

    observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.at = 0
        return self.see(), {}

    def see(self):
        return np.array([self.at / LENGTH, self.np_random.random()], np.float32)

    def step(self, action):
        assert self.action_space.contains(int(action))
        self.steps += 1
        self.at += 1
        return self.see(), 1.0, self.at == LENGTH, False, {}


def first():
    """Whether nobody in this run has misbehaved yet."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(os.environ["SHOAL_TEST_ONCE"], os.O_CREAT | os.O_EXCL))
        return True
    return False


class RaisesOnce(Calm):
    def step(self, action):
        if self.steps == MISBEHAVES_AT and first():
            raise RuntimeError(STORY)
        return super().step(action)


class RaisesInReset(Calm):
    def reset(self, *, seed=None, options=None):
        if self.steps >= MISBEHAVES_AT and first():
            raise RuntimeError(STORY)
        return super().reset(seed=seed, options=options)


class RaisesAlways(Calm):
    def step(self, action):
        raise RuntimeError(f"{STORY} at {action}")


class Row(Calm):
    """Declares [2] and gives [1, 2]."""

    def see(self):
        return super().see()[None]


class RowLater(Calm):
    """The same, from the first step on."""

    def see(self):
        return super().see()[None] if self.steps else super().see()


class ResetOnly(Calm):
    """`reset` as before Gymnasium 0.26."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed, options=options)[0]


class FourValues(Calm):
    """`step` as before Gymnasium 0.26."""

    def step(self, action):
        return super().step(action)[:4]


class Unseedable(Calm):
    """`reset` that takes no seed."""

    def reset(self):
        return super().reset()


class RewardArray(Calm):
    """Pays arrays of one number."""

    def step(self, action):
        seen, reward, *rest = super().step(action)
        return seen, np.array([reward]), *rest


class NeedsScenario(Calm):
    """Cannot be made without an argument."""

    def __init__(self, scenario):
        super().__init__()
        self.scenario = scenario


class NoConstructor(Calm):
    """Cannot be made."""

    def __init__(self):
        raise FileNotFoundError("no such scene: kitchen.xml")


WRONG = (Row, RowLater, ResetOnly, FourValues, Unseedable, RewardArray, NeedsScenario, NoConstructor)


class NeverResets(Calm):
    """Can be made and looked at, but not begun."""

    def reset(self, *, seed=None, options=None):
        raise RuntimeError(f"{STORY} at {seed}, {options}")


class Dies(Calm):
    """Takes its process with it, once."""

    def step(self, action):
        if self.steps == MISBEHAVES_AT and first():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class DiesAtWork(Calm):
    """The same, but only in a worker: it can be looked at before, and its run repeated.

    The others hardly move until the one that died is back, so that it still has work to do.
    """

    def __init__(self):
        super().__init__()
        self.works = multiprocessing.parent_process() is not None
        self.died = pathlib.Path(os.environ["SHOAL_TEST_ONCE"])
        self.back = self.died.with_suffix(".back")
        self.second = self.works and self.died.exists()

    def step(self, action):
        if self.second and self.steps == 0:
            self.back.touch()
        if self.works and self.steps == MISBEHAVES_AT and first():
            os.kill(os.getpid(), signal.SIGKILL)
        if self.works and self.died.exists() and not self.back.exists():
            time.sleep(0.05)
        return super().step(action)


class Forgetful(Calm):
    """Random, whatever the seed."""

    def see(self):
        return np.array([self.at / LENGTH, np.random.default_rng().random()], np.float32)


class Slow(Calm):
    """A millisecond a step: a run can be caught in the middle."""

    pause = 0.001

    def step(self, action):
        time.sleep(self.pause)
        return super().step(action)


class TellsSleep(Calm):
    """A millisecond a step; closed in a worker, it leaves the seconds really slept and its steps: SHOAL_TEST_SLEPT."""

    slept = 0.0

    def step(self, action):
        began = time.perf_counter()
        time.sleep(0.001)
        self.slept += time.perf_counter() - began
        return super().step(action)

    def close(self):
        if multiprocessing.parent_process() is not None:
            pathlib.Path(os.environ["SHOAL_TEST_SLEPT"]).write_text(f"{self.slept} {self.steps}")


class SlowOne(Slow):
    """The first simulator that a worker steps takes thirty milliseconds a step, the others three."""

    pause = 0.003

    def step(self, action):
        if self.steps == 0 and multiprocessing.parent_process() is not None and first():
            self.pause = 0.03
        return super().step(action)


class Viscous(Slow):
    """An update takes seconds."""

    pause = 0.5


class Stuck(Calm):
    """One simulator of the run never comes back from a step."""

    def step(self, action):
        if self.steps == MISBEHAVES_AT and first():
            time.sleep(3600.0)
        return super().step(action)


class OpensSlowly(Calm):
    """Takes a minute to be made, but only in a worker: it can be looked at before."""

    def __init__(self):
        super().__init__()
        if multiprocessing.parent_process() is not None:
            time.sleep(60.0)


class PaysNaN(Calm):
    """Every 50th step pays NaN, every 70th shows infinity."""

    def step(self, action):
        seen, reward, terminated, truncated, info = super().step(action)
        if self.steps % 70 == 0:
            seen = np.array([math.inf, 0.0], np.float32)
        return seen, math.nan if self.steps % 50 == 0 else reward, terminated, truncated, info


def lags_on_cart_pole():
    """CartPole-v1, one simulator of which becomes slow."""

    class Slows(gymnasium.Wrapper):
        steps, slow = 0, False

        def step(self, action):
            self.steps += 1
            if self.steps == MISBEHAVES_AT and first():
                self.slow = True
            if self.slow:
                time.sleep(0.05)
            return self.env.step(action)

    return Slows(gymnasium.make("CartPole-v1"))


class PaysMuch(Calm):
    """One step of each simulator pays a thousand times as much."""

    def step(self, action):
        seen, reward, *rest = super().step(action)
        return seen, reward * (1000.0 if self.steps == 500 else 1.0), *rest


class NeverCloses(Calm):
    """Raises whenever it is closed, looked at or stepped; how often is counted in this process."""

    closed = 0

    def close(self):
        type(self).closed += 1
        raise RuntimeError("the viewer is gone")


def only_in_the_parent():
    """An environment whose code is not there for worker processes."""
    if multiprocessing.parent_process() is not None:
        raise ImportError("no module named 'simulator'")
    return Calm()


KINDS = (
    Calm,
    RaisesOnce,
    RaisesInReset,
    RaisesAlways,
    NeverResets,
    *WRONG,
    Dies,
    DiesAtWork,
    Forgetful,
    Slow,
    TellsSleep,
    SlowOne,
    Viscous,
    Stuck,
    OpensSlowly,
    PaysNaN,
    PaysMuch,
    NeverCloses,
)
for kind in KINDS:
    gymnasium.register(f"{kind.__name__}-v0", kind)
gymnasium.register("LagsOnCartPole-v0", lags_on_cart_pole)
gymnasium.register("OnlyInTheParent-v0", only_in_the_parent)

"""Gymnasium environments that do what a script says, registered on import as ``tests.scripted:NAME-v0``.

Every observation tells where it comes from: ``[episode, step]``, both counted from the seeded reset. So a test can
name the observation it must see.
"""

from __future__ import annotations

import sys
import time

import gymnasium
import numpy as np
from gymnasium import spaces

MANY = 1_000_000.0
HEAVY = (  # what a process that only steps a simulator has no use for
    "jax", "jaxlib", "flax", "gymnax", "matplotlib", "pygame", "onnx", "tyro", "rich",
    "shoal.algorithms", "shoal.networks", "shoal.experiment", "shoal.command", "shoal.runs",
)  # fmt: skip


class Script(gymnasium.Env):
    """Episodes whose lengths and endings are listed; the reward of a step is its number."""

    def __init__(self, ends=((3, True, False),), start=0, observation=None, show=None, raises_at=0):
        self.ends = ends  # (length, terminated, truncated) of each episode, cycled
        self.action_space = spaces.Discrete(3, start=start)
        self.observation_space = observation or spaces.Box(0.0, MANY, (2,), np.float32)
        self.show = show or (lambda episode, step: np.array([episode, step], np.float32))
        self.raises_at = raises_at
        self.episode = -1
        self.actions = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.episode = 0 if seed is not None else self.episode + 1
        self.step_number = 0
        return self.show(self.episode, 0), {}

    def step(self, action):
        self.actions.append(action)
        self.step_number += 1
        if self.step_number == self.raises_at:
            raise RuntimeError("the simulator broke")
        length, terminated, truncated = self.ends[self.episode % len(self.ends)]
        over = self.step_number >= length
        seen = self.show(self.episode, self.step_number)
        return seen, float(self.step_number), terminated and over, truncated and over, {}


class Buffer(Script):
    """Hands out the one buffer it overwrites."""

    def __init__(self):
        super().__init__()
        self.buffer = np.zeros(2, np.float32)
        self.show = self.write

    def write(self, episode, step):
        self.buffer[:] = episode, step
        return self.buffer


class Witness(gymnasium.Env):
    """CartPole-v1 whose observation tells of its process: [which of HEAVY it imported, seconds it computed, MB]."""

    def __init__(self):
        self.cart = gymnasium.make("CartPole-v1")
        self.action_space = self.cart.action_space
        self.observation_space = spaces.Box(0.0, MANY, (len(HEAVY) + 2,), np.float32)

    def observation(self):
        with open("/proc/self/status") as file:
            most = next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
        return np.array([*(name in sys.modules for name in HEAVY), time.process_time(), most], np.float32)

    def reset(self, **given):
        self.cart.reset(**given)
        return self.observation(), {}

    def step(self, action):
        return self.observation(), *self.cart.step(action)[1:]


class Unseeded(Script):
    """Ignores its seed."""

    chance = np.random.default_rng(0)

    def __init__(self):
        super().__init__()
        self.show = lambda *_: self.chance.uniform(0.0, 1.0, 2).astype(np.float32)


class Noisy(Script):
    """Begins as its seed says, then moves as it likes."""

    chance = np.random.default_rng(0)

    def __init__(self):
        super().__init__()
        self.show = lambda _, step: self.chance.uniform(0.0, 1.0, 2).astype(np.float32) * (step > 0)


class ResetsInside(Script):
    """Shows the next episode's first observation as the last of this one."""

    def __init__(self):
        super().__init__(show=lambda _, step: np.array([0, step % 3], np.float32))


class Sides(gymnasium.Env):
    """A picture with a bright spot on its left or right side; choosing that side pays 1. Ten steps an episode."""

    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.at = 0
        return self.see(), {}

    def see(self):
        self.side = int(self.np_random.integers(2))
        picture = np.full((36, 36, 1), 87, np.uint8)
        y, x = self.np_random.integers(0, 30), self.np_random.integers(0, 12) + 18 * self.side
        picture[y : y + 6, x : x + 6] = 236
        return picture

    def step(self, action):
        self.at += 1
        reward = float(action == self.side)
        return self.see(), reward, self.at == 10, False, {}


class Reach(Script):
    """A shaped, bounded action."""

    def __init__(self, dtype=np.float32):
        super().__init__()
        self.action_space = spaces.Box(np.array([[-1], [0]], dtype), np.array([[1], [5]], dtype), (2, 1), dtype)


def picture(*shape):
    """Pixels that hold the step number, but for a corner that tells the axes apart."""

    def show(_, step):
        image = np.full(shape, step, np.uint8)
        image[(-1, *[0] * (len(shape) - 1))] = 200
        return image

    return {"observation": spaces.Box(0, 255, shape, np.uint8), "show": show}


def parts(space, show):
    return {"observation": space, "show": show}


SCRIPTS = {
    "Terminates": (Script, {}),
    "Truncates": (Script, {"ends": ((3, False, True),)}),
    "Both": (Script, {"ends": ((3, True, True),)}),
    "AtOnce": (Script, {"ends": ((1, True, False),)}),
    "Mixed": (Script, {"ends": ((2, True, False), (4, False, True), (1, True, True))}),
    "Endless": (Script, {"ends": ((10**9, False, False),)}),
    "Raises": (Script, {"raises_at": 2}),
    "Start": (Script, {"start": 5}),
    "Buffer": (Buffer, {}),
    "Unseeded": (Unseeded, {}),
    "Noisy": (Noisy, {}),
    "ResetsInside": (ResetsInside, {}),
    "Outside": (Script, {"show": lambda *_: np.array([-1, 0], np.float32)}),
    "NotFinite": (Script, {"show": lambda *_: np.array([np.nan, 0], np.float32)}),
    "Reach": (Reach, {}),
    "Keys": (Reach, {"dtype": np.int64}),
    "Double": (
        Script,
        parts(spaces.Box(0, MANY, (2,), np.float64), lambda episode, step: np.array([episode, step], float)),
    ),
    "Matrix": (
        Script,
        parts(spaces.Box(0, MANY, (2, 3), np.float32), lambda *_: np.arange(6, dtype=np.float32).reshape(2, 3)),
    ),
    "OneHot": (Script, parts(spaces.Discrete(4, start=2), lambda _, step: np.int64(2 + step))),
    "Dict": (
        Script,
        parts(
            spaces.Dict({"place": spaces.Box(0, MANY, (2,), np.float32), "door": spaces.Discrete(3)}),
            lambda episode, step: {"place": np.array([episode, step], np.float32), "door": np.int64(1)},
        ),
    ),
    "Tuple": (
        Script,
        parts(
            spaces.Tuple((spaces.Discrete(2), spaces.MultiBinary(2))),
            lambda _, step: (np.int64(step % 2), np.array([1, 0], np.int8)),
        ),
    ),
    "Multi": (Script, parts(spaces.MultiDiscrete([2, 3]), lambda *_: np.array([1, 2]))),
    "Text": (Script, parts(spaces.Text(5), lambda *_: "hello")),
    "DictText": (Script, parts(spaces.Dict({"a": spaces.Text(5)}), lambda *_: {"a": "hello"})),
    "Image": (Script, picture(12, 10, 3)),
    "ChannelFirst": (Script, picture(4, 12, 10)),
    "Grey": (Script, picture(12, 10)),
    "Bytes": (Script, picture(5)),
}


class TupleAction(Script):
    """An action space that is not supported."""

    def __init__(self):
        super().__init__()
        self.action_space = spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2)))


class Orders(gymnasium.Env):
    """Ten orders an episode, of three kinds; an action that is right in both its choices pays 1, any other nothing."""

    observation_space = spaces.Box(0, 1, (3,), np.float32)
    action_space = spaces.MultiDiscrete([2, 4], start=[-1, 5])
    RIGHT = ((-1, 8), (0, 8), (-1, 5))

    def _order(self):
        self.order = int(self.np_random.integers(3))
        return np.eye(3, dtype=np.float32)[self.order]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.served = 0
        return self._order(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        assert action.dtype == np.int64, action
        paid, self.served = float(tuple(action) == self.RIGHT[self.order]), self.served + 1
        return self._order(), paid, self.served == 10, False, {}


SCRIPTS["TupleAction"] = (TupleAction, {})
SCRIPTS["Orders"] = (Orders, {})

for name, (kind, settings) in SCRIPTS.items():
    gymnasium.register(f"{name}-v0", kind, kwargs=settings)
gymnasium.register(
    "Limited-v0", Script, kwargs={"ends": ((9, True, False),)}, max_episode_steps=4, reward_threshold=7.0
)
gymnasium.register("Sides-v0", Sides)
gymnasium.register("Witness-v0", Witness)
gymnasium.register("Old-v1", Script)
gymnasium.register("Old-v2", Script)
gymnasium.register("NeedsPackage-v0", "tests.no_such_module:Env")

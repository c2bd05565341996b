"""What the owners of a set have in common, and in what they differ: numbers, as data.

A draw gives every owner a number theta in [0, 1], his own whatever the number of owners is; the grid spaces them
evenly. What theta does to a simulator is a few lines for each set.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from etils import epy

with epy.lazy_imports():
    import numpy as np

if TYPE_CHECKING:
    Thetas = np.ndarray  # f64 [N], in [0, 1]
    Values = Mapping[str, np.ndarray]  # name of a parameter -> [N]

GRID = -1  # of `draw`: theta evenly spaced from 0 to 1
FLIP = "flip"  # among values: 1 where the owner's actions are in reverse order
NOISE = "noise"  # among values: 1 where the owner's rewards are standard normal, whatever he does


class Compiled(NamedTuple):
    """A set whose simulators are gymnax's; what differs is carried in the environment's state."""

    simulators: tuple[str, ...]  # ids of gymnax; owner i has that of i modulo their number
    values: Callable[[Thetas], Values]  # what differs between owners
    differs: str  # in words, for the notes

    @property
    def alike(self) -> bool:
        """Whether one program serves all of its owners."""
        return len(self.simulators) == 1


@functools.lru_cache(maxsize=8)  # a generator each: drawn once where there are very many
def thetas(name: str, count: int, draw: int) -> np.ndarray:
    """Each owner's theta, f64 [count].

    Args:
        name: Of the set; two sets draw apart.
        count: Owners.
        draw: Which draw, from 0; `GRID`: evenly spaced from 0 to 1, a half for a single one.
    """
    if draw == GRID:
        return np.linspace(0.0, 1.0, count) if count > 1 else np.array([0.5])
    salt = zlib.crc32(name.encode())
    return np.array([np.random.default_rng([salt, draw, owner]).random() for owner in range(count)])


def _alike(theta: Thetas) -> Values:
    del theta
    return {}


def _pole(theta: Thetas) -> Values:
    """Half-pole length 0.1 + 0.8 theta (Jin et al. 2022); gymnax keeps its product with the pole's mass apart."""
    length = 0.1 + 0.8 * theta
    return {"length": length, "polemass_length": 0.1 * length}


def _swapped(theta: Thetas) -> Values:
    """Every other owner's two actions are swapped."""
    return {FLIP: np.arange(len(theta)) % 2}


def _stranger(theta: Thetas) -> Values:
    """The last owner is paid noise."""
    return {NOISE: np.arange(len(theta)) == len(theta) - 1}


def _link(which: int) -> Callable[[Thetas], Values]:
    """Length 0.5 + theta of one link, mass and inertia as ever; its centre of mass, at half of it, is kept apart."""

    def values(theta: Thetas) -> Values:
        length = 0.5 + theta
        return {f"link_length_{which}": length, f"link_com_pos_{which}": 0.5 * length}

    return values


def _rod(theta: Thetas) -> Values:
    """Length 0.5 + theta of the rod (our choice: a set of vectors of actions that needs no MuJoCo)."""
    return {"l": 0.5 + theta}


def _mass(which: int) -> Callable[[Thetas], Values]:
    """Mass 0.5 + theta of one link."""
    return lambda theta: {f"link_mass_{which}": 0.5 + theta}


CARTPOLE, ACROBOT, MOUNTAIN_CAR, PENDULUM = "CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1"
COMPILED: dict[str, Compiled] = {
    "CartPole-same": Compiled((CARTPOLE,), _alike, "nothing but their seeds"),
    "CartPole-lengths": Compiled((CARTPOLE,), _pole, "the half-pole's length, 0.1 to 0.9 m"),
    "CartPole-swapped": Compiled((CARTPOLE,), _swapped, "every other owner's two actions are swapped"),
    "CartPole-stranger": Compiled((CARTPOLE,), _stranger, "the last owner's rewards are pure noise"),
    "Acrobot-same": Compiled((ACROBOT,), _alike, "nothing but their seeds"),
    "Acrobot-links": Compiled((ACROBOT,), _link(1), "the first link's length, 0.5 to 1.5 m"),
    "Acrobot-links-2": Compiled((ACROBOT,), _link(2), "the second link's length, 0.5 to 1.5 m"),
    "Acrobot-masses": Compiled((ACROBOT,), _mass(1), "the first link's mass, 0.5 to 1.5 kg"),
    "Acrobot-masses-2": Compiled((ACROBOT,), _mass(2), "the second link's mass, 0.5 to 1.5 kg"),
    "Pendulum-lengths": Compiled((PENDULUM,), _rod, "the rod's length, 0.5 to 1.5 m"),
    "Spaces": Compiled((CARTPOLE, ACROBOT, MOUNTAIN_CAR), _alike, "the task, and with it what is seen and done"),
}
SOLVED_AT = {CARTPOLE: 475.0, ACROBOT: -100.0, MOUNTAIN_CAR: -110.0, PENDULUM: None}  # Gymnasium's

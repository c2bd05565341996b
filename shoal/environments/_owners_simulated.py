"""Sets whose owners run MuJoCo through Gymnasium: each owner's model is the stock one with a few numbers changed."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

from etils import epy

from shoal import environments
from shoal.core import types
from shoal.environments import _owners_sets, _packages

with epy.lazy_imports():
    import numpy as np
    from gymnasium.envs import mujoco as stock

if TYPE_CHECKING:
    Model = ElementTree.Element


class Simulated(NamedTuple):
    """A set of models."""

    simulator: str  # Gymnasium's id
    model: str  # the file it loads
    values: Callable[[_owners_sets.Thetas], _owners_sets.Values]  # what differs between owners
    change: Callable[[Model, Mapping[str, float]], None]  # writes one owner's values into the model
    differs: str  # in words, for the notes


def _thighs(theta: _owners_sets.Thetas) -> _owners_sets.Values:
    """Half-lengths in whole millimetres, of theta in hundredths; the stock back thigh has 145, a half gives 143."""
    rounded = np.round(theta, 2)
    return {
        "bthigh": np.round(143 + 85 * (rounded - 0.5)) / 1000,
        "fthigh": np.round(133 + 65 * (rounded - 0.5)) / 1000,
    }


def _legs(theta: _owners_sets.Thetas) -> _owners_sets.Values:
    return {"leg_geom": 0.04 + 0.02 * (theta - 0.5)}


def _gravities(theta: _owners_sets.Thetas) -> _owners_sets.Values:
    """Gravity of owner i, from 0: -20 (i + 1) / N, whatever theta is."""
    return {"gravity": -20.0 * (np.arange(len(theta)) + 1) / len(theta)}


def _sized(model: Model, values: Mapping[str, float], at: int) -> None:
    """Capsules whose radius (0) or half-length (1) is changed, where they are."""
    for name, value in values.items():
        geom = next(one for one in model.iter("geom") if one.get("name") == name)
        sizes = geom.get("size", "").split()
        sizes[at] = repr(float(value))
        geom.set("size", " ".join(sizes))


def _pulled(model: Model, values: Mapping[str, float]) -> None:
    next(model.iter("option")).set("gravity", f"0 0 {float(values['gravity'])!r}")


CHEETAH, HOPPER = ("HalfCheetah-v5", "half_cheetah.xml"), ("Hopper-v5", "hopper.xml")
SIMULATED: dict[str, Simulated] = {
    "HalfCheetah-thighs": Simulated(
        *CHEETAH, _thighs, functools.partial(_sized, at=1), "the half-lengths of both thighs, about 0.10 to 0.19 m"
    ),
    "HalfCheetah-gravity": Simulated(*CHEETAH, _gravities, _pulled, "gravity, up to 20 m/s²"),
    "Hopper-legs": Simulated(*HOPPER, _legs, functools.partial(_sized, at=0), "the leg's radius, 0.03 to 0.05 m"),
}


def open(
    env_id: str, of: Simulated, theta: _owners_sets.Thetas, owner: int | None, config: environments.Config
) -> environments.Opened:
    """Open a set, whose episodes are anybody's, or one owner's environment.

    Args:
        env_id: As it was asked for.
        of: The set.
        theta: Of each owner.
        owner: Whose; None: drawn anew at each episode.
        config: How it is shown.

    Raises:
        Refused: MuJoCo is not installed, or a setting is wrong.
    """
    _packages.need(env_id, "mujoco", "mujoco")
    values = of.values(theta)

    def one(at: int) -> environments.Opener:
        return _one(of, {name: float(column[at]) for name, column in values.items()}, config)

    mine = one(owner or 0)
    first = mine.open()
    spec = first.spec._replace(id=env_id, notes=(f"owners differ in: {of.differs}", *first.spec.notes))

    def host() -> types.HostEnv:
        return Anybodys(one, len(theta), spec) if owner is None else Owned(mine, spec)

    return first._replace(spec=spec, make_host=host)


def _one(of: Simulated, values: Mapping[str, float], config: environments.Config) -> environments.Opener:
    """How one owner's simulator is opened, by Gymnasium's adapter; nothing is yet."""
    kind: Any = environments.config_class(of.simulator)
    kwargs = json.dumps({"xml_file": str(_written(of.model, tuple(sorted(values.items())), of))})
    return environments.Opener(of.simulator, kind(observe=config.observe, time_limit=config.time_limit, kwargs=kwargs))


@functools.lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory:
    """Where this process writes models; it goes when the process ends."""
    return tempfile.TemporaryDirectory(prefix="shoal-owners-")


@functools.lru_cache(maxsize=4096)
def _written(file: str, values: tuple[tuple[str, float], ...], of: Simulated) -> Path:
    """One owner's model, as a file."""
    model = ElementTree.parse(Path(stock.__file__).parent / "assets" / file)
    of.change(model.getroot(), dict(values))
    place = Path(_folder().name) / f"{len(list(Path(_folder().name).iterdir()))}-{file}"
    model.write(place)
    return place


class Owned:
    """One owner's simulator under the id it was asked for by."""

    def __init__(self, opener: environments.Opener, spec: types.EnvSpec) -> None:
        self.spec, self._env = spec, opener.host()
        self.step, self.close = self._env.step, self._env.close

    def reset(self, seed: int) -> np.ndarray:
        """See `types.HostEnv`."""
        return self._env.reset(seed)


class Anybodys:
    """Another owner's simulator at each episode."""

    def __init__(self, each: Callable[[int], environments.Opener], count: int, spec: types.EnvSpec) -> None:
        self.spec, self._each, self._count = spec, each, count
        self._open: dict[int, types.HostEnv] = {}
        self._chance = np.random.default_rng(0)

    def reset(self, seed: int) -> np.ndarray:
        """See `types.HostEnv`."""
        self._chance = np.random.default_rng(seed)
        return self._another()

    def step(self, action: types.Action) -> tuple[np.ndarray, types.Outcome]:
        """See `types.HostEnv`."""
        obs, outcome = self._env.step(action)
        if outcome.truncated or outcome.discount == 0:
            obs = self._another()
        return obs, outcome

    def close(self) -> None:
        """See `types.HostEnv`."""
        opened, self._open = self._open, {}
        for env in opened.values():
            env.close()

    def _another(self) -> np.ndarray:
        at = int(self._chance.integers(self._count))
        if at not in self._open:
            self._open[at] = self._each(at).host()
        self._env = self._open[at]
        return self._env.reset(int(self._chance.integers(2**31)))

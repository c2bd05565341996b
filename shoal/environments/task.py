"""Tasks of one step, pure JAX, for rules that learn from a broadcast reward: ``task:NAME-SIZE``.

| name           | what is seen, what is asked                                                                  |
|----------------|----------------------------------------------------------------------------------------------|
| Multiplexer-k  | k address bits, most significant first, and 2^k data bits, all -1 or 1 and fair; which is the |
|                | addressed one? reward 1, or -1                                                                |
| Regression-d   | d standard normal numbers x; the answer is relu(relu(x W0) w1); reward -(action - answer)²    |

Every question is an episode. The last observation, after the answer was given, is the sheet with the solution: of a
regression its first feature is the true answer, the others are 0, so that supervised rules may learn from it; of a
multiplexer it is empty. W0 and w1 are standard normal and fixed, drawn from a seed that is a setting.

Source: the tasks of Chung 2021, arXiv:2010.07893 (stephen-chung-mh/map_prop, whose own weights are another draw).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epy

from shoal import environments
from shoal.core import errors, options, types
from shoal.environments import _device, _spaces

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal.core import prng

PREFIX = "task"
SIZES = {"Multiplexer": (5, 10), "Regression": (8, 1024)}  # the published size, the largest


@dataclasses.dataclass(frozen=True)
class Config(environments.Config):
    """Tasks of one step."""

    weights_seed: int = options.number(11, low=0, high=2**31 - 1)
    """Seed of the fixed weights that make the answers of a regression; answers of 11 have variance 2.5, the median."""


ADAPTER = environments.Adapter(prefix=PREFIX, pure_jax=True, config=Config, sources=())


class State(NamedTuple):
    """The question on the table."""

    obs: Any  # [features]


class Task(NamedTuple):
    """One task."""

    features: int
    action: types.ActionSpec
    ask: Callable[[types.Key], Any]  # -> obs [features]
    judge: Callable[[Any, Any], tuple[Any, Any]]  # (obs, action) -> (reward, solution shown [features])


def names() -> list[str]:
    """The published sizes, with the prefix; others can be opened too."""
    return [f"{PREFIX}:{name}-{size}" for name, (size, _) in SIZES.items()]


def open(env_id: str, config: environments.Config) -> environments.Opened:
    """Open a task (see `environments.open`)."""
    name, _, size = env_id.removeprefix(f"{PREFIX}:").partition("-")
    if name not in SIZES or not size.isdecimal() or not 1 <= int(size) <= SIZES[name][1]:
        raise errors.unknown("environment", env_id, names(), "Sizes go up to Multiplexer-10 and Regression-1024.")
    mine = environments.own(config, Config)
    task = multiplexer(int(size)) if name == "Multiplexer" else regression(int(size), mine.weights_seed)
    layout = _spaces.select(_spaces.vector(task.features), mine.observe)
    spec = types.EnvSpec(
        id=env_id,
        observation=layout.spec,
        action=task.action,
        time_limit=_spaces.time_limit(mine.time_limit, 1),
        solved_at=None,
        on_device=True,
        notes=layout.notes,
        shown=layout.notes,
    )
    env = _truthful(task, spec, layout.chosen or tuple(range(task.features)))
    return environments.Opened(spec=spec, device=env, make_host=_device.host(env))


def multiplexer(k: int) -> Task:
    """The k-bit multiplexer.

    Args:
        k: Address bits.
    """
    powers = [2 ** (k - 1 - at) for at in range(k)]

    def ask(key: types.Key) -> Any:
        return jax.random.rademacher(key, (k + 2**k,), jnp.float32)

    def judge(obs: Any, action: Any) -> tuple[Any, Any]:
        address = jnp.sum((obs[:k] > 0) * jnp.array(powers))
        right = (obs[k + address] > 0) == (action == 1)
        return jnp.where(right, 1.0, -1.0), jnp.zeros_like(obs)

    return Task(k + 2**k, _spaces.actions(2), ask, judge)


def regression(d: int, seed: int) -> Task:
    """A number from d numbers, by a small fixed network.

    Args:
        d: Numbers seen.
        seed: Of the network's weights.
    """

    def answer(obs: Any) -> Any:
        first, second = jax.random.split(prng.key(seed))  # drawn here: importing and opening make no array
        w0, w1 = jax.random.normal(first, (d, d)), jax.random.normal(second, (d,))
        return jax.nn.relu(jax.nn.relu(obs @ w0) @ w1)

    def ask(key: types.Key) -> Any:
        return jax.random.normal(key, (d,))

    def judge(obs: Any, action: Any) -> tuple[Any, Any]:
        true = answer(obs)
        return -((action[0] - true) ** 2), jnp.zeros_like(obs).at[0].set(true)

    return Task(d, _spaces.bounded([-math.inf], [math.inf]), ask, judge)


def _truthful(task: Task, spec: types.EnvSpec, chosen: tuple[int, ...]) -> types.Env:
    """The task as episodes of one step."""
    whole = chosen == tuple(range(task.features))

    def see(obs: Any) -> Any:
        return obs if whole else obs[jnp.array(chosen)]

    def init(key: types.Key) -> tuple[State, Any]:
        obs = task.ask(key)
        return State(obs), see(obs)

    def step(state: State, action: Any, key: types.Key) -> tuple[State, Any, types.Outcome]:
        reward, solution = task.judge(state.obs, action)
        outcome = types.Outcome(jnp.float32(reward), jnp.float32(0.0), jnp.bool_(False), see(solution))
        return *init(key), outcome

    return types.Env(init, step, spec)

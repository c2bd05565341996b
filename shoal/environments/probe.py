"""Probes: tiny pure-JAX environments whose values are known, so that a learner's mistakes show in seconds.

Each isolates one thing a learner must get right. When a probe fails and those above it pass, the fault is in that
thing. After Andy Jones, "Debugging RL, Without the Agonizing Pain", and the probes of rejax.

| name        | what happens                                                | what it tests                        |
|-------------|-------------------------------------------------------------|--------------------------------------|
| constant    | one step, reward 1                                          | the value loss                       |
| observation | one step, the observation is -1 or 1, and so is the reward  | values depend on observations        |
| discount    | two steps, reward 1 at the end                              | bootstrapping and the discount       |
| action      | one step, reward 1 for action 1, else -1                    | the policy gradient, the advantage   |
| match       | one step, reward 1 if the action names the observation      | policies depend on observations      |
| pair        | the same with two choices: paid only if both name it        | several choices at once              |
| truncated   | reward 1 for ever, cut after 10 steps                       | truncation bootstraps                |
| target      | one step, reward falls with the distance to half the cue    | continuous actions                   |
| memory      | a cue at the first step must be named four steps later      | recurrence; chance without a memory  |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epy

from shoal import environments
from shoal.core import errors, types
from shoal.environments import _device, _spaces

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

PREFIX = "probe"
ADAPTER = environments.Adapter(prefix=PREFIX, pure_jax=True, sources=())

RECALL = 4  # steps from the cue of `memory` to the question
CHOICE = _spaces.actions(2)
PAIR = _spaces.several([2, 3])
REACH = _spaces.bounded([-2.0], [2.0])


class State(NamedTuple):
    """The state of every probe."""

    cue: Any  # f32, -1 or 1, drawn at the reset
    time: Any  # int32, steps since the reset


class Probe(NamedTuple):
    """One probe: what is seen, what is paid, when it ends, and the truth about it."""

    see: Callable[[State], Any]  # -> [features]
    pay: Callable[[State, Any], Any]  # (state before the step, action) -> reward
    features: int
    steps: int  # length of an episode
    terminates: bool  # False: it is cut there instead
    action: types.ActionSpec
    truth: Truth


class Truth(NamedTuple):
    """What is known about a probe."""

    optimal_return: float  # undiscounted, the mean over episodes
    value: Callable[[Any, float], Any]  # (obs [..., features], discount factor) -> [...] value of the best policy


def _blank(_: State) -> Any:
    return jnp.ones(1)


def _cue(state: State) -> Any:
    return state.cue[None]


def _clock(state: State) -> Any:
    return state.time[None].astype(jnp.float32)


def _cue_then_question(state: State) -> Any:
    shown = jnp.where(state.time == 0, state.cue, 0.0)
    return jnp.stack([shown, state.time / RECALL])


def _names_cue(state: State, action: Any) -> Any:
    return jnp.where((action == 1) == (state.cue > 0), 1.0, -1.0)


def _both_name_cue(state: State, action: Any) -> Any:
    """The last of each for a cue of 1, the first for one of -1."""
    return jnp.where(jnp.all(action == jnp.where(state.cue > 0, jnp.array([1, 2]), 0)), 1.0, -1.0)


def _recalls_cue(state: State, action: Any) -> Any:
    return jnp.where(state.time == RECALL, _names_cue(state, action), 0.0)


def _near_target(state: State, action: Any) -> Any:
    return -((jnp.clip(action[0], *REACH.low, *REACH.high) - 0.5 * state.cue) ** 2)


def _one(obs: Any, gamma: float) -> Any:
    return 1.0 + 0.0 * gamma * obs[..., 0]


def _until_second_step(obs: Any, gamma: float) -> Any:
    return gamma ** (1.0 - obs[..., 0])


def _for_ever(obs: Any, gamma: float) -> Any:
    return _one(obs, gamma) / (1.0 - gamma)


def _until_question(obs: Any, gamma: float) -> Any:
    return gamma ** (RECALL * (1.0 - obs[..., 1]))


PROBES = {
    "constant": Probe(_blank, lambda *_: 1.0, 1, 1, True, CHOICE, Truth(1.0, _one)),
    "observation": Probe(_cue, lambda state, _: state.cue, 1, 1, True, CHOICE, Truth(0.0, lambda obs, _: obs[..., 0])),
    "discount": Probe(_clock, lambda state, _: state.time, 1, 2, True, CHOICE, Truth(1.0, _until_second_step)),
    "action": Probe(_blank, lambda _, action: 2.0 * action - 1.0, 1, 1, True, CHOICE, Truth(1.0, _one)),
    "match": Probe(_cue, _names_cue, 1, 1, True, CHOICE, Truth(1.0, _one)),
    "pair": Probe(_cue, _both_name_cue, 1, 1, True, PAIR, Truth(1.0, _one)),
    "truncated": Probe(_blank, lambda *_: 1.0, 1, 10, False, CHOICE, Truth(10.0, _for_ever)),
    "target": Probe(_cue, _near_target, 1, 1, True, REACH, Truth(0.0, lambda obs, _: 0.0 * obs[..., 0])),
    "memory": Probe(_cue_then_question, _recalls_cue, 2, RECALL + 1, True, CHOICE, Truth(1.0, _until_question)),
}
TRUTHS = {name: probe.truth for name, probe in PROBES.items()}


def names() -> list[str]:
    """Every probe, with the prefix."""
    return [f"{PREFIX}:{name}" for name in PROBES]


def open(env_id: str, config: environments.Config) -> environments.Opened:
    """Open a probe (see `environments.open`)."""
    name = env_id.removeprefix(f"{PREFIX}:")
    if name not in PROBES:
        raise errors.unknown("environment", env_id, names())
    probe = PROBES[name]
    limit = _spaces.time_limit(config.time_limit, None if probe.terminates else probe.steps)
    layout = _spaces.select(_spaces.vector(probe.features), config.observe)
    spec = types.EnvSpec(env_id, layout.spec, probe.action, limit, None, True, layout.notes, layout.notes)
    env = _truthful(probe, spec, layout.chosen)
    return environments.Opened(spec=spec, device=env, make_host=_device.host(env))


def _truthful(probe: Probe, spec: types.EnvSpec, index: tuple[int, ...]) -> types.Env:
    """The probe with its ends, and a fresh episode after each."""
    shown = np.array(index or range(probe.features))

    def see(state: State) -> Any:
        return jnp.asarray(probe.see(state), jnp.float32)[shown]

    def init(key: types.Key) -> tuple[State, Any]:
        state = State(cue=jax.random.rademacher(key, (), jnp.float32), time=jnp.int32(0))
        return state, see(state)

    def step(state: State, action: Any, key: types.Key) -> tuple[State, Any, types.Outcome]:
        moved = state._replace(time=state.time + 1)
        terminated = (moved.time >= probe.steps) & probe.terminates
        truncated = ~terminated & (moved.time >= (spec.time_limit or np.iinfo(np.int32).max))
        outcome = types.Outcome(
            reward=jnp.asarray(probe.pay(state, action), jnp.float32),
            discount=1.0 - terminated.astype(jnp.float32),
            truncated=truncated,
            next_obs=see(moved),
        )
        state = jax.tree.map(lambda new, old: jnp.where(terminated | truncated, new, old), init(key)[0], moved)
        return state, see(state), outcome

    return types.Env(init, step, spec)

"""Runs rejax's PPO on gymnax's CartPole-v1 inside its own environment: `python rejax_ppo.py`.

Reads one JSON object a line and answers each with one line: a speed (the arguments of `measure`), or with `until` in
it, the time to a score (the arguments of `reach`). `settings` are arguments of `PPO.create`; what is not given stays as
the class has it (64 environments, 64 steps, 8 epochs, 16 minibatches). Its evaluations during training, 128 episodes
every 4,096 steps, are left out of every timed run that does not ask for them.
"""

import importlib.metadata
import json
import sys
import time

import gymnax
import jax
import jax.numpy as jnp
from _score import reached
from rejax import PPO

compiled = {}  # settings -> (executable, seconds of compiling)


class Recorder:
    """An environment whose state also holds the returns of the episodes that ended in the last `length` steps."""

    def __init__(self, env, length):
        self.env, self.length = env, length

    def __getattr__(self, name):
        if name == "env" or name.startswith("__"):  # a copy being made has no `env` yet
            raise AttributeError(name)
        return getattr(self.env, name)

    def reset(self, key, params):
        """The environment's own, with an empty record."""
        obs, state = self.env.reset(key, params)
        return obs, (state, 0, 0.0, jnp.zeros(self.length), jnp.zeros(self.length, bool))

    def step(self, key, state, action, params):
        """The environment's own; it resets itself."""
        inner, at, total, returns, ended = state
        obs, inner, reward, done, info = self.env.step(key, inner, action, params)
        total = total + reward
        returns, ended = returns.at[at].set(total), ended.at[at].set(done)
        return obs, (inner, (at + 1) % self.length, total * (1 - done), returns, ended), reward, done, info


def build(settings, callback, **more):
    """The compiled training, and the seconds of compiling."""
    began = time.perf_counter()
    algorithm = PPO.create(**({"env": "CartPole-v1"} | settings | more), skip_initial_evaluation=True)
    if callback:
        algorithm = algorithm.replace(eval_callback=callback)
    executable = jax.jit(algorithm.train).lower(jax.random.PRNGKey(0)).compile()
    return executable, time.perf_counter() - began


def run(executable, seed):
    """Train once: (state, what the callback returned, seconds)."""
    began = time.perf_counter()
    state, seen = jax.block_until_ready(executable(jax.random.PRNGKey(seed)))
    return state, seen, time.perf_counter() - began


def nothing(_algorithm, _state, _rng):
    """Instead of an evaluation."""
    return 0


def episodes(_algorithm, state, _rng):
    """What the `Recorder` of every environment holds, instead of an evaluation."""
    return state.env_state[3:]


def without(settings):
    """The compiled training without an evaluation."""
    return build(settings, nothing, eval_freq=settings["total_timesteps"])


def measure(*, settings, evaluations=False):
    """One timed training; the first of each kind also compiles and warms up.

    Args:
        settings: Of `PPO.create`.
        evaluations: With its own, as often as it has them by default.
    """
    kind = json.dumps([settings, evaluations], sort_keys=True)
    if kind not in compiled:
        compiled[kind] = build(settings, None) if evaluations else without(settings)
        run(compiled[kind][0], 0)
    executable, compile_s = compiled[kind]
    state, _, train_s = run(executable, 1)
    return {"steps_per_s": int(state.global_step) / train_s, "train_s": train_s, "compile_s": compile_s}


def reach(*, until, seed, settings):
    """A whole training, once. It cannot stop early: only its share up to the score is counted.

    Args:
        until: Mean return of the last 100 episodes.
        seed: Of the run.
        settings: Of `PPO.create`.
    """
    executable, _ = without(settings)
    ready_at = time.monotonic()
    state, _, train_s = run(executable, seed)
    # It keeps no returns of its training. The same seed once more, not timed, with an environment that does.
    env, params = gymnax.make("CartPole-v1")
    algorithm = PPO.create(env="CartPole-v1", **settings)
    recorder = Recorder(env, algorithm.num_steps)
    again, _ = build(
        settings,
        episodes,
        env=recorder,
        env_params=params,
        eval_freq=algorithm.num_steps * algorithm.num_envs,
    )
    _, (returns, ended), _ = run(again, seed)  # [updates, B, T]
    returns, ended = (x.swapaxes(1, 2).reshape(-1, algorithm.num_envs) for x in (returns, ended))
    steps, best = reached(returns, ended, until)
    total = int(state.global_step)
    at = ready_at + train_s * steps / total if steps else None
    return {"solved_at": at, "steps": steps, "env_steps": total, "train_s": train_s, "best_return": best}


names = ("jax", "flax", "optax", "gymnax", "rejax")
print(json.dumps({"versions": {name: importlib.metadata.version(name) for name in names}}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps((reach if "until" in request else measure)(**request)), flush=True)

"""Runs purejaxrl's own `ppo.py` inside its own environment: `python purejaxrl_ppo.py CHECKOUT`.

Reads one JSON object a line and answers each with one line: a speed (the arguments of `measure`), or with `until` in
it, the time to a score (the arguments of `reach`).
"""

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from unittest import mock

# Its wrappers import two simulators at the top that only its other scripts use; one of them no longer imports.
for name in ("brax", "brax.envs", "brax.envs.wrappers", "brax.envs.wrappers.training", "navix"):
    sys.modules[name] = mock.MagicMock()
sys.path.insert(0, str(Path(sys.argv[1]) / "purejaxrl"))

import jax  # noqa: E402
import ppo  # noqa: E402
from _score import reached  # noqa: E402

DEFAULTS = {  # the block under `if __name__ == "__main__"` of its ppo.py, without the printing of every episode
    "LR": 2.5e-4,
    "NUM_ENVS": 4,
    "NUM_STEPS": 128,
    "TOTAL_TIMESTEPS": 500_000,
    "UPDATE_EPOCHS": 4,
    "NUM_MINIBATCHES": 4,
    "GAMMA": 0.99,
    "GAE_LAMBDA": 0.95,
    "CLIP_EPS": 0.2,
    "ENT_COEF": 0.01,
    "VF_COEF": 0.5,
    "MAX_GRAD_NORM": 0.5,
    "ACTIVATION": "tanh",
    "ENV_NAME": "CartPole-v1",
    "ANNEAL_LR": True,
    "DEBUG": False,
}
compiled = {}  # (envs, steps, settings) -> (executable, seconds of compiling)


def build(settings):
    """The compiled training, and the seconds of compiling."""
    began = time.perf_counter()
    executable = jax.jit(ppo.make_train(DEFAULTS | settings)).lower(jax.random.PRNGKey(0)).compile()
    return executable, time.perf_counter() - began


def run(executable, seed):
    """Train once: (metrics, seconds)."""
    began = time.perf_counter()
    out = jax.block_until_ready(executable(jax.random.PRNGKey(seed)))
    return out["metrics"], time.perf_counter() - began


def measure(*, envs, steps, **settings):
    """One timed training; the first of each kind also compiles and warms up.

    Args:
        envs: Parallel environments.
        steps: Environment steps in all.
        settings: Overrides of `DEFAULTS`.
    """
    kind = (envs, steps, *sorted(settings.items()))
    if kind not in compiled:
        compiled[kind] = build(settings | {"NUM_ENVS": envs, "TOTAL_TIMESTEPS": steps})
        run(compiled[kind][0], 0)
    executable, compile_s = compiled[kind]
    metrics, train_s = run(executable, 1)
    done = metrics["returned_episode"]  # [updates, T, envs]
    score = metrics["returned_episode_returns"][-1].mean()
    return {"steps_per_s": done.size / train_s, "train_s": train_s, "compile_s": compile_s, "return": float(score)}


def reach(*, until, seed, **settings):
    """Its whole default training, once. It cannot stop early: only its share up to the score is counted.

    Args:
        until: Mean return of the last 100 episodes.
        seed: Of the run.
        settings: Overrides of `DEFAULTS`.
    """
    executable, _ = build(settings)
    ready_at = time.monotonic()
    metrics, train_s = run(executable, seed)
    ended = metrics["returned_episode"]
    steps, best = reached(
        metrics["returned_episode_returns"].reshape(-1, ended.shape[-1]), ended.reshape(-1, ended.shape[-1]), until
    )
    at = ready_at + train_s * steps / ended.size if steps else None
    return {"solved_at": at, "steps": steps, "env_steps": ended.size, "train_s": train_s, "best_return": best}


names = ("jax", "flax", "optax", "gymnax", "distrax")
print(json.dumps({"versions": {name: importlib.metadata.version(name) for name in names}}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps((reach if "until" in request else measure)(**request)), flush=True)

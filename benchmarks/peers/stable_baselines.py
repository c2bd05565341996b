"""Runs Stable-Baselines3 or its JAX sibling sbx inside their own environments: `python stable_baselines.py sb3|sbx`.

Reads one JSON object a line and answers each with one line: environment steps per second of SAC or TD3 on Gymnasium's
Pendulum-v1 (the arguments of `measure`), or with `until` in it, the time to a score on Gymnasium's CartPole-v1 (the
arguments of `reach`).
"""

import collections
import importlib.metadata
import json
import sys
import time

if sys.argv[1] == "sbx":
    import sbx as library
else:
    import stable_baselines3 as library

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

DEFAULT_THREADS = torch.get_num_threads()
TUNED = {  # CartPole-v1 in rl-baselines3-zoo: (environments, steps, settings)
    "a2c": (8, 500_000, {"ent_coef": 0.0}),
    "ppo": (
        8,
        100_000,
        {
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "ent_coef": 0.0,
            "learning_rate": lambda left: 0.001 * left,
            "clip_range": lambda left: 0.2 * left,
        },
    ),
}


class StopAt(BaseCallback):
    """Ends a training at a mean return of the last 100 episodes."""

    def __init__(self, until):
        super().__init__()
        self.until, self.returns = until, collections.deque(maxlen=100)
        self.solved_at, self.best = None, None

    def _on_step(self):
        ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.returns.extend(ended)
        if ended and len(self.returns) == 100:
            mean = sum(self.returns) / 100
            self.best = max(self.best or mean, mean)
            self.solved_at = time.monotonic() if mean >= self.until else None
        return self.solved_at is None


def make(algorithm, envs, seed, settings):
    """A learner with the library's own `MlpPolicy`."""
    kind = getattr(library, algorithm.upper())
    return kind("MlpPolicy", envs, device="cpu", seed=seed, **settings)


def measure(*, algorithm, steps, threads=None, learning_starts=256, seed=0, **settings):
    """One timed piece of a training, after learning has started.

    Args:
        algorithm: sac or td3; both learn once from 256 transitions at every step, with layers of 256 and 256.
        steps: Environment steps timed.
        threads: Torch's threads; None leaves its default.
        learning_starts: Random steps at the beginning.
        seed: Of the run.
        settings: Other than the library's defaults.
    """
    torch.set_num_threads(threads or DEFAULT_THREADS)
    settings = {"learning_starts": learning_starts, "batch_size": 256, "train_freq": 1, "gradient_steps": 1} | settings
    settings["policy_kwargs"] = {"net_arch": [256, 256]}  # TD3's own in SB3 are 400 and 300
    model = make(algorithm, make_vec_env("Pendulum-v1", n_envs=1, seed=seed), seed, settings)
    model.learn(2 * learning_starts)  # compiles, and warms allocators up
    before = model.num_timesteps
    began = time.perf_counter()
    model.learn(steps, reset_num_timesteps=False)
    train_s = time.perf_counter() - began
    return {"steps_per_s": (model.num_timesteps - before) / train_s, "train_s": train_s}


def reach(*, algorithm, until, seed, threads=None):
    """A training up to a score.

    Args:
        algorithm: a2c or ppo.
        until: Mean return of the last 100 episodes.
        seed: Of the run.
        threads: Torch's threads; None leaves its default.
    """
    torch.set_num_threads(threads or DEFAULT_THREADS)
    environments, steps, settings = TUNED[algorithm]
    model = make(algorithm, make_vec_env("CartPole-v1", n_envs=environments, seed=seed), seed, settings)
    stop = StopAt(until)
    began = time.monotonic()
    model.learn(steps, callback=stop)
    train_s = (stop.solved_at or time.monotonic()) - began
    solved = model.num_timesteps if stop.solved_at else None
    counts = {"steps": solved, "env_steps": model.num_timesteps}
    return {"solved_at": stop.solved_at, "train_s": train_s, "best_return": stop.best} | counts


names = ("torch", "stable-baselines3", "gymnasium", "numpy", *(("sbx-rl", "jax") if sys.argv[1] == "sbx" else ()))
print(json.dumps({"versions": {name: importlib.metadata.version(name) for name in names}}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps((reach if "until" in request else measure)(**request)), flush=True)

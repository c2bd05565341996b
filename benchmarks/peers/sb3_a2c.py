"""Runs Stable-Baselines3's A2C on Gymnasium's CartPole-v1 inside its own environment: `python sb3_a2c.py`.

Reads one JSON object a line (`steps`, `threads`, and settings other than its defaults) and answers each with one line:
environment steps per second of the whole `learn` call. Its CartPole defaults are those of rl-zoo: 8 environments in
one process (`DummyVecEnv`), `MlpPolicy`, entropy coefficient 0, everything else as `A2C` has it.
"""

import importlib.metadata
import itertools
import json
import sys
import time

import torch
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

DEFAULT_THREADS = torch.get_num_threads()


class SharedTrunk(BaseFeaturesExtractor):
    """One trunk for policy and value, which SB3's own `net_arch` cannot say."""

    def __init__(self, space, sizes):
        super().__init__(space, sizes[-1])
        widths = [space.shape[0], *sizes]
        layers = [(torch.nn.Linear(a, b), torch.nn.Tanh()) for a, b in itertools.pairwise(widths)]
        self.layers = torch.nn.Sequential(*[part for layer in layers for part in layer])

    def forward(self, obs):
        """`[B, obs]` -> `[B, features]`."""
        return self.layers(obs)


def policy_settings(sizes, shared):
    """The keyword arguments of `MlpPolicy` for our network; none for SB3's own (two trunks of 64 and 64)."""
    if not sizes:
        return {}
    if not shared:
        return {"net_arch": sizes}
    return {"net_arch": [], "features_extractor_class": SharedTrunk, "features_extractor_kwargs": {"sizes": sizes}}


def measure(*, steps, threads=None, rollout=5, sizes=(), shared=False, seed=0):
    """One timed training.

    Args:
        steps: Environment steps in all, over the 8 environments.
        threads: Torch's threads; None leaves its default.
        rollout: `n_steps`, environment steps per update and environment; SB3's default is 5.
        sizes: Hidden layers; empty for SB3's own network.
        shared: Whether policy and value share them.
        seed: Of the run.
    """
    torch.set_num_threads(threads or DEFAULT_THREADS)
    envs = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
    settings = {"n_steps": rollout, "policy_kwargs": policy_settings(list(sizes), shared)}
    model = A2C("MlpPolicy", envs, ent_coef=0.0, device="cpu", seed=seed, **settings)
    model.learn(1000)  # warms allocators and dispatch up
    began = time.perf_counter()
    model.learn(steps)
    train_s = time.perf_counter() - began
    scores = [episode["r"] for episode in model.ep_info_buffer]
    return {"steps_per_s": model.num_timesteps / train_s, "train_s": train_s, "return": sum(scores) / len(scores)}


names = ("torch", "stable-baselines3", "gymnasium", "numpy")
print(json.dumps({"versions": {name: importlib.metadata.version(name) for name in names}}), flush=True)
for line in sys.stdin:
    print(json.dumps(measure(**json.loads(line))), flush=True)

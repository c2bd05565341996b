"""Runs Stable-Baselines3's A2C inside its own environment: `python sb3_a2c.py`.

Reads one JSON object a line (the arguments of `measure`) and answers each with one line: environment steps per second
of the whole `learn` call. Its own settings are those of rl-zoo, environments in one process (`DummyVecEnv`): on
CartPole-v1 8 of them, `MlpPolicy`, entropy coefficient 0; on Pong 16 with SB3's Atari wrappers and four frames,
`CnnPolicy`, entropy coefficient 0.01, value coefficient 0.25, TensorFlow's RMSProp; the rest as `A2C` has it.
"""

import importlib.metadata
import itertools
import json
import sys
import time

import ale_py
import gymnasium
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecFrameStack

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


class SmallConvolutions(BaseFeaturesExtractor):
    """The convolutions of DQN-2013; SB3's own are those of DQN-2015. Pixels arrive in [0, 1]."""

    def __init__(self, space):
        super().__init__(space, 256)
        first, second = torch.nn.Conv2d(space.shape[0], 16, 8, stride=4), torch.nn.Conv2d(16, 32, 4, stride=2)
        rest = (torch.nn.Flatten(), torch.nn.Linear(32 * 9 * 9, 256), torch.nn.ReLU())
        self.layers = torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU(), *rest)

    def forward(self, obs):
        """`[B, 4, 84, 84]` -> `[B, 256]`."""
        return self.layers(obs)


class FieldConvolutions(BaseFeaturesExtractor):
    """Four small convolutions with ELU and nothing after them, as our torso `universe`."""

    def __init__(self, space):
        super().__init__(space, 32 * 3 * 3)
        layers, inputs = [], space.shape[0]
        for _ in range(4):
            layers += [torch.nn.Conv2d(inputs, 32, 3, stride=2, padding=1), torch.nn.ELU()]
            inputs = 32
        self.layers = torch.nn.Sequential(*layers, torch.nn.Flatten())

    def forward(self, obs):
        """`[B, 1, 42, 42]` -> `[B, 288]`."""
        return self.layers(obs)


def policy_settings(sizes, shared):
    """The keyword arguments of `MlpPolicy` for our network; none for SB3's own (two trunks of 64 and 64)."""
    if not sizes:
        return {}
    if not shared:
        return {"net_arch": sizes}
    return {"net_arch": [], "features_extractor_class": SharedTrunk, "features_extractor_kwargs": {"sizes": sizes}}


def cartpole(sizes, shared, seed):
    """The environments, the policy's name and what else `A2C` is given."""
    rest = {"ent_coef": 0.0, "policy_kwargs": policy_settings(list(sizes), shared)}
    return make_vec_env("CartPole-v1", n_envs=8, seed=seed), "MlpPolicy", rest


def pong(small, size, frames, seed):
    """Likewise; `small` takes our network of that picture instead of SB3's own."""
    gymnasium.register_envs(ale_py)
    wrapped = make_atari_env("PongNoFrameskip-v4", n_envs=16, seed=seed, wrapper_kwargs={"screen_size": size})
    envs = VecFrameStack(wrapped, n_stack=frames)
    policy = {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}
    network = SmallConvolutions if size == 84 else FieldConvolutions
    policy |= {"features_extractor_class": network, "net_arch": []} if small else {}
    return envs, "CnnPolicy", {"ent_coef": 0.01, "vf_coef": 0.25, "policy_kwargs": policy}


def measure(*, steps, threads=None, rollout=5, sizes=(), shared=False, seed=0, atari=None, small=False):
    """One timed training.

    Args:
        steps: Environment steps in all, over all environments.
        threads: Torch's threads; None leaves its default.
        rollout: `n_steps`, environment steps per update and environment; SB3's default is 5.
        sizes: Hidden layers on CartPole; empty for SB3's own network.
        shared: Whether policy and value share them.
        seed: Of the run.
        atari: Pong instead of CartPole, in pictures so high and wide, and so many of them: `[84, 4]`, `[42, 1]`.
        small: On Pong, the network that ours has: that of DQN-2013, or of 42 by 42 that of universe.
    """
    torch.set_num_threads(threads or DEFAULT_THREADS)
    envs, policy, rest = pong(small, *atari, seed) if atari else cartpole(sizes, shared, seed)
    model = A2C(policy, envs, n_steps=rollout, device="cpu", seed=seed, **rest)
    model.learn(envs.num_envs * rollout if atari else 1000)  # warms allocators and dispatch up
    began = time.perf_counter()
    model.learn(steps)
    train_s = time.perf_counter() - began
    envs.close()
    scores = [episode["r"] for episode in model.ep_info_buffer]
    score = sum(scores) / len(scores) if scores else None
    return {"steps_per_s": model.num_timesteps / train_s, "train_s": train_s, "return": score}


names = ("torch", "stable-baselines3", "gymnasium", "numpy", "ale-py")
print(json.dumps({"versions": {name: importlib.metadata.version(name) for name in names}}), flush=True)
for line in sys.stdin:
    print(json.dumps(measure(**json.loads(line))), flush=True)

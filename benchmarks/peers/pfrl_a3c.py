"""Runs PFRL's A3C on CartPole-v1 or Pong inside its own environment: `python pfrl_a3c.py`.

Reads one JSON object a line (the arguments of `measure`) and answers each with one line: environment steps per
second of the whole asynchronous training, over all its processes.
"""

import importlib.metadata
import itertools
import json
import sys
import tempfile
import time
import warnings

import ale_py
import gymnasium
import numpy as np
import pfrl
import torch
from pfrl.utils.async_ import AbnormalExitWarning

warnings.simplefilter("error", AbnormalExitWarning)  # a process that failed must not pass for a fast one


class OldApi:
    """PFRL speaks gym's old interface: `step` returns four values and a time limit is told in `info`."""

    def __init__(self, env, seed):
        self.env = env
        self.env.reset(seed=seed)

    def reset(self):
        """The first observation of an episode."""
        return self.env.reset()[0]

    def step(self, action):
        """The old four values."""
        obs, reward, terminated, truncated, _ = self.env.step(int(action))
        return obs, reward, terminated, {"needs_reset": truncated}

    def close(self):
        """Release the simulator."""
        self.env.close()


def simulator(seed, atari):
    """CartPole-v1, or Pong as PFRL's example has it: frames of 84 by 84, four of them."""
    if not atari:
        return OldApi(gymnasium.make("CartPole-v1"), seed)
    gymnasium.register_envs(ale_py)
    raw = gymnasium.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0)
    return OldApi(gymnasium.wrappers.FrameStackObservation(gymnasium.wrappers.AtariPreprocessing(raw), 4), seed)


def convolutions():
    """The network of PFRL's example `atari/train_a3c.py`: DQN-2013 under a softmax policy and a value."""
    first, second = torch.nn.Conv2d(4, 16, 8, stride=4), torch.nn.Conv2d(16, 32, 4, stride=2)
    trunk = (first, torch.nn.ReLU(), second, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(2592, 256))
    policy = torch.nn.Sequential(torch.nn.Linear(256, 6), pfrl.policies.SoftmaxCategoricalHead())
    return torch.nn.Sequential(*trunk, torch.nn.ReLU(), pfrl.nn.Branched(policy, torch.nn.Linear(256, 1)))


def pixels(obs):
    """Frames as numbers in [0, 1]."""
    return np.asarray(obs, dtype=np.float32) / 255


def model(sizes):
    """One trunk under a softmax policy and a value."""
    layers = [(torch.nn.Linear(a, b), torch.nn.Tanh()) for a, b in itertools.pairwise((4, *sizes))]
    trunk = torch.nn.Sequential(*[part for layer in layers for part in layer])
    policy = torch.nn.Sequential(torch.nn.Linear(sizes[-1], 2), pfrl.policies.SoftmaxCategoricalHead())
    return torch.nn.Sequential(trunk, pfrl.nn.Branched(policy, torch.nn.Linear(sizes[-1], 1)))


def measure(*, steps, workers, rollout, sizes=(), atari=False):
    """One timed training.

    Args:
        steps: Environment steps in all.
        workers: Processes.
        rollout: `t_max`, environment steps per update; 5 in PFRL's examples.
        sizes: Hidden layers on CartPole.
        atari: Pong instead of CartPole; its pictures are those of the paper, whatever is named.
    """
    torch.set_num_threads(1)
    net = convolutions() if atari else model(sizes)
    optimiser = pfrl.optimizers.SharedRMSpropEpsInsideSqrt(net.parameters(), lr=7e-4, eps=1e-1, alpha=0.99)
    seen = {"phi": pixels} if atari else {}
    agent = pfrl.agents.A3C(net, optimiser, t_max=rollout, gamma=0.99, beta=1e-2, max_grad_norm=40.0, **seen)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        pfrl.experiments.train_agent_async(
            folder,
            workers,
            lambda index, test: simulator(2 * index + test, atari),
            steps=steps,
            eval_interval=None,
            agent=agent,
            random_seeds=list(range(workers)),
        )
        train_s = time.perf_counter() - began
    return {"steps_per_s": steps / train_s, "train_s": train_s}


names = ("torch", "pfrl", "gymnasium", "numpy")
print(json.dumps({"versions": {name: importlib.metadata.version(name) for name in names}}), flush=True)
for line in sys.stdin:
    print(json.dumps(measure(**json.loads(line))), flush=True)

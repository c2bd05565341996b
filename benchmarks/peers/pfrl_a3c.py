"""Runs PFRL's A3C on Gymnasium's CartPole-v1 inside its own environment: `python pfrl_a3c.py`.

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

import gymnasium
import pfrl
import torch
from pfrl.utils.async_ import AbnormalExitWarning

warnings.simplefilter("error", AbnormalExitWarning)  # a process that failed must not pass for a fast one


class OldApi:
    """PFRL speaks gym's old interface: `step` returns four values and a time limit is told in `info`."""

    def __init__(self, seed):
        self.env = gymnasium.make("CartPole-v1")
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


def model(sizes):
    """One trunk under a softmax policy and a value."""
    layers = [(torch.nn.Linear(a, b), torch.nn.Tanh()) for a, b in itertools.pairwise((4, *sizes))]
    trunk = torch.nn.Sequential(*[part for layer in layers for part in layer])
    policy = torch.nn.Sequential(torch.nn.Linear(sizes[-1], 2), pfrl.policies.SoftmaxCategoricalHead())
    return torch.nn.Sequential(trunk, pfrl.nn.Branched(policy, torch.nn.Linear(sizes[-1], 1)))


def measure(*, steps, workers, sizes, rollout):
    """One timed training.

    Args:
        steps: Environment steps in all.
        workers: Processes.
        sizes: Hidden layers.
        rollout: `t_max`, environment steps per update; 5 in PFRL's examples.
    """
    torch.set_num_threads(1)
    net = model(sizes)
    optimiser = pfrl.optimizers.SharedRMSpropEpsInsideSqrt(net.parameters(), lr=7e-4, eps=1e-1, alpha=0.99)
    agent = pfrl.agents.A3C(net, optimiser, t_max=rollout, gamma=0.99, beta=1e-2, max_grad_norm=40.0)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        pfrl.experiments.train_agent_async(
            folder,
            workers,
            lambda index, test: OldApi(2 * index + test),
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

"""An environment of your own, trained by worker processes.

python examples/01_your_environment.py
"""

import argparse

import gymnasium
import numpy as np

import shoal


class Corridor(gymnasium.Env):
    """Walk to the right end of a corridor of ten places; every step costs a little."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)  # seeds self.np_random, the only source of randomness
        self.place = int(self.np_random.integers(5))
        return self._seen(), {}

    def step(self, action):
        self.place = max(0, self.place + (1 if action == 1 else -1))
        reached = self.place >= 10
        return self._seen(), 1.0 if reached else -0.02, reached, False, {}

    def _seen(self):
        return np.array([self.place / 10], np.float32)


# At the top of the file, so that every worker process, which imports it, knows the id too. The time limit truncates:
# learning then goes on as if the episode had, see docs/environments.md.
gymnasium.register("Corridor-v0", entry_point=Corridor, max_episode_steps=50, reward_threshold=0.8)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40_000, help="environment steps")
    steps = parser.parse_args().steps

    run = shoal.train("a3c", env="Corridor-v0", workers=2, steps=steps, algorithm={"entropy_cost": 0.02})
    print(f"return {run.summary['return_mean']:.2f} (last 100 episodes), {run.summary['eval_return_mean']:.2f} greedy")
    # From the command line, an environment in a module on the path: shoal train a3c --env my_module:Corridor-v0


if __name__ == "__main__":
    main()

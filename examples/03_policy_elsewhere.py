"""Take a trained policy out of Shoal: an ONNX file, acting without JAX.

python examples/03_policy_elsewhere.py
"""

import argparse
import sys

import gymnasium
import numpy as np
import onnxruntime

import shoal
from shoal.command import cli


def play(path, env_id, episodes):
    """Greedy episodes with nothing but ONNX Runtime, NumPy and Gymnasium."""
    policy = onnxruntime.InferenceSession(path)  # the normaliser, if there is one, is part of the graph
    env = gymnasium.make(env_id)
    for episode in range(episodes):
        obs, _ = env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            batch = np.asarray(obs, np.float32)[None]  # [1, features]
            action, *_ = policy.run(["action"], {"obs": batch})
            obs, reward, terminated, truncated, _ = env.step(int(action[0]))
            total, over = total + reward, terminated or truncated
        print(f"episode {episode}: return {total:g}")
    env.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, help="environment steps; default: as many as the preset was tuned with")
    run = shoal.train("a3c", env="CartPole-v1", workers=2, until="solved", steps=parser.parse_args().steps)

    # The same as: shoal export RUN --format onnx
    path = run.folder / "policy.onnx"
    if cli.main(["export", str(run.folder), "--format", "onnx", "--out", str(path)]):
        sys.exit("the export failed")
    play(path, "CartPole-v1", episodes=3)


if __name__ == "__main__":
    main()

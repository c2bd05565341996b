"""Train A3C on CartPole with two worker processes, read the summary, play a few episodes.

python examples/00_first_agent.py
"""

import argparse

import shoal


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, help="environment steps; default: as many as the preset was tuned with")
    steps = parser.parse_args().steps

    # The same as: shoal train a3c --env CartPole-v1 --workers 2 --until solved
    run = shoal.train("a3c", env="CartPole-v1", workers=2, until="solved", steps=steps)

    # What could not be measured is None, never 0: a short run may not have reached the goal.
    summary = run.summary
    print(f"{summary['env_steps']} steps, {summary['episodes']} episodes, return {summary['return_mean']}")
    print(f"solved at step {summary['solved_at_step']}")
    print(f"report: {run.folder / 'report.html'}")

    # Greedy episodes with the frozen policy; `shoal eval RUN` does the same later, from the folder.
    played = run.evaluate(episodes=5)
    print(f"returns of five greedy episodes: {played.returns}")


if __name__ == "__main__":  # worker processes import this file: only the first process may train
    main()

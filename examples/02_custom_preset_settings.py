"""The same preset with two settings, side by side in one report.

python examples/02_custom_preset_settings.py
"""

import argparse
from pathlib import Path

import shoal
from shoal import report


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000, help="environment steps of each run")
    parser.add_argument("--out", type=Path, default=Path("entropy.html"), help="the report")
    given = parser.parse_args()

    runs = []
    for entropy_cost in (0.0, 0.05):
        for seed in (1, 2):  # runs that differ only in their seed become one curve
            # Settings are given by kind of part; `shoal train a2c --help` lists them all, `config.json` keeps them.
            run = shoal.train(
                "a2c",
                env="gymnax:CartPole-v1",
                seed=seed,
                steps=given.steps,
                algorithm={"entropy_cost": entropy_cost},
                network={"hidden": (32, 32)},
                eval_episodes=0,
                quiet=True,
            )
            print(f"entropy cost {entropy_cost:<4}  seed {seed}  return {run.summary['return_mean']:.0f}")
            runs.append(run.folder)
    print(f"report: {report.write(runs, given.out)}")


if __name__ == "__main__":
    main()

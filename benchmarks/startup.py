"""Seconds from the command to the first learning step, with a cold and with a warm compilation cache.

`startup_s` of the run's summary is the claim. `outside_s` bounds it without trusting it: seconds from the start of the
command to its end, less the seconds of training, so it also holds the saving and the report at the end.
"""

from __future__ import annotations

import tempfile
from typing import Any

import _common

PRESETS = {  # preset -> words of its run; long enough to learn, short enough to be all start-up
    "a3c": ("--env", "CartPole-v1", "--workers", 2),
    "a2c": ("--env", "gymnax:CartPole-v1", "--runtime", "on_device"),
}
KEYS = ("help_s", "train_help_s", "presets.*.cold_s", "presets.*.warm_s", "presets.*.warm_outside_s")


def main() -> None:
    """Measure, and print the record."""
    arguments = _common.parser(__doc__).parse_args()
    repeats = 1 if arguments.quick else 5
    sides = {name: [] for preset in PRESETS for name in (f"{preset} cold", f"{preset} warm")}
    for turn in range(repeats):
        for preset in PRESETS:
            with tempfile.TemporaryDirectory() as cache:
                for state in ("cold", "warm"):  # the second run finds what the first one compiled
                    sides[f"{preset} {state}"].append(summary := start(preset, cache))
                    _common.say(f"round {turn + 1} of {repeats}  {preset} {state:4}  {summary['startup_s']:.2f} s")
    asked = {"help_s": ("--help",), "train_help_s": ("train", "--help")}
    helps = _common.alternate(
        {key: lambda words=words: _common.shoal(*words)[1] for key, words in asked.items()}, repeats
    )

    results: dict[str, Any] = {"presets": {}}
    for preset in PRESETS:
        results["presets"][preset] = {}
        for state in ("cold", "warm"):
            runs = sides[f"{preset} {state}"]
            outside = [run["command_s"] - run["train_s"] for run in runs]
            results["presets"][preset] |= _common.spread(f"{state}_s", [run["startup_s"] for run in runs])
            results["presets"][preset] |= _common.spread(f"{state}_outside_s", outside)
    for key, seconds in helps.items():
        results |= _common.spread(key, seconds)
    _common.finish(arguments, _common.record("startup", arguments, results))


def start(preset: str, cache: str) -> dict[str, Any]:
    """A short run; the summary."""
    return _common.train(preset, *PRESETS[preset], "--steps", 20_000, "--seed", 0, *_common.SHORT, cache=cache)


if __name__ == "__main__":
    main()

"""The compiled training loop on gymnax's CartPole-v1 against purejaxrl's PPO, in environment steps per second.

Both run environments, network and learning in one compiled loop on the same cores; compilation is shown apart.
purejaxrl is a set of scripts and not on the package index: clone it and give its folder by `--purejaxrl` or by
`PUREJAXRL_DIR`. Its own PPO learns four times from every batch where A2C learns once, so it is measured a second time
with one pass over the batch and our rollout length ("one pass"): the fairer, and harder, comparison of the loops.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import _common
import _peers

KEYS = (
    *("ratio_purejaxrl", "ratio_one_pass", "envs.*.a2c_steps_per_s", "envs.*.purejaxrl_steps_per_s"),
    *("envs.*.ratio_purejaxrl", "envs.*.compile_s", "envs.*.purejaxrl_compile_s"),
)
STEPS = {4: 1_000_000, 64: 1_000_000, 1024: 2_000_000}  # environments -> environment steps; purejaxrl's own count is 4
QUICK = {4: 100_000}  # all that --quick measures
PEER = "purejaxrl"


def main() -> None:
    """Measure, and print the record."""
    parser = _common.parser(__doc__)
    parser.add_argument("--purejaxrl", type=Path, default=os.environ.get("PUREJAXRL_DIR"), help="a purejaxrl checkout")
    arguments = parser.parse_args()
    quick = arguments.quick
    measured = {}
    with _peers.Stand() as stand:
        start(stand, arguments.purejaxrl and Path(arguments.purejaxrl))
        for envs, steps in STEPS.items():
            if not quick or envs in QUICK:
                measured[envs] = one_count(stand, envs, QUICK[envs] if quick else steps, quick)
    empty = {key.rpartition(".")[2]: None for key in KEYS if "*" in key}
    results: dict[str, Any] = {"envs": {str(envs): measured.get(envs, empty) for envs in STEPS}}
    for key in ("ratio_purejaxrl", "ratio_one_pass"):  # the claim is the smallest
        results[key] = min((one[key] for one in measured.values() if one[key] is not None), default=None)
    _common.finish(arguments, _common.record("on_device", arguments, results, stand.report))


def start(stand: _peers.Stand, checkout: Path | None) -> None:
    """Start purejaxrl, or note why not, and note which version it is."""
    if checkout is None:
        return stand.fail(PEER, "no checkout given: clone github.com/luchris429/purejaxrl and set PUREJAXRL_DIR")
    script = checkout / "purejaxrl" / "ppo.py"
    if not script.is_file():
        return stand.fail(PEER, f"the checkout given holds no {script.relative_to(checkout)}")
    if stand.start(PEER, str(checkout)):
        ask = ["git", "-C", str(checkout), "rev-parse", "HEAD", "--show-prefix"]
        head, _, inside = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.partition("\n")
        # A prefix means that git found some other repository around the folder.
        commit = head if head and not inside.strip() else None
        stand.report[PEER] |= {"commit": commit, "sha256": hashlib.sha256(script.read_bytes()).hexdigest()}
    return None


def one_count(stand: _peers.Stand, envs: int, steps: int, quick: bool) -> dict[str, Any]:
    """Both sides at one count of environments.

    Args:
        stand: Where purejaxrl runs.
        envs: Parallel environments.
        steps: Environment steps.
        quick: Two rounds, and purejaxrl with its own settings only.
    """
    cache = stand.enter_context(tempfile.TemporaryDirectory())
    cold = shoal(envs, steps, cache)  # of the same steps: the compiled program depends on them
    warm: list[float] = []

    def ours() -> float:
        summary = shoal(envs, steps, cache)
        warm.append(summary["startup_s"])
        return summary["env_steps_per_s"]

    one_pass = {"UPDATE_EPOCHS": 1, "NUM_MINIBATCHES": 1, "NUM_STEPS": rollout_length(cold)}
    sides, compiling = {"a2c": ours}, {}
    for name, settings in {"purejaxrl": {}, "one_pass": one_pass}.items():
        if "error" in stand.report[PEER] or (quick and settings):
            continue
        request = {"envs": envs, "steps": steps} | settings
        try:
            compiling[name] = stand.sessions[PEER].ask(**request)["compile_s"]  # the rounds below find it compiled
        except _peers.PeerError as reason:
            stand.fail(PEER, str(reason))
            continue
        sides[name] = lambda request=request: stand.rate(PEER, **request)
    rates = _common.alternate(sides, 2 if quick else 3)
    rates = {name: rates.get(name, []) for name in ("a2c", "purejaxrl", "one_pass")}

    results = {"compile_s": cold["startup_s"] - min(warm), "warm_startup_s": min(warm)}
    for name, rate in rates.items():
        results |= _common.spread(f"{name}_steps_per_s", rate)
        if name != "a2c":
            results |= _common.spread(f"ratio_{name}", _common.ratios(rates["a2c"], rate))
            results[f"{name}_compile_s"] = compiling.get(name)
    return results


def rollout_length(run: dict[str, Any]) -> int:
    """Environment steps per update and environment in our run."""
    return run["config"]["parts"]["algorithm"]["rollout_length"]


def shoal(envs: int, steps: int, cache: str) -> dict[str, Any]:
    """Train `a2c` in the compiled loop; the summary."""
    words = ("--env", "gymnax:CartPole-v1", "--runtime", "on_device", "--runtime.environments", envs)
    return _common.train("a2c", *words, "--steps", steps, "--seed", 0, *_common.SHORT, cache=cache)


if __name__ == "__main__":
    main()

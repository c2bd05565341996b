"""PPO, SAC and TD3 with the whole loop compiled, against purejaxrl, rejax, sbx and Stable-Baselines3.

Three parts, each kept in the JSON, so that `--only PART` measures one again and leaves the others as they are:

* `ppo`: environment steps per second on gymnax's CartPole-v1, start-up and compilation left out. In every comparison
  both sides have the same environments, rollout, passes, minibatches and networks: once the peer's own CartPole
  settings, then its defaults with 64 and with 1024 environments. `ratio_purejaxrl` and `ratio_rejax` are the smallest.
  rejax once more as it comes, its evaluations during training included (`ratio_rejax_as_it_comes`): what its users see.
* `time_to_475`: seconds from the start of the command to a mean return of 475, see `_time_to_score.py`.
* `off_policy`: SAC and TD3 on Pendulum-v1, see `_off_policy.py`.

purejaxrl is a set of scripts and not on the package index: clone it and give its folder by `--purejaxrl` or by
`PUREJAXRL_DIR`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import _common
import _off_policy
import _peers
import _time_to_score

KEYS = (
    *("ppo_steps_per_s", "ratio_purejaxrl", "ratio_rejax", "ratio_rejax_as_it_comes"),
    *("time_to_475_total_s", "best_peer_time_to_475_total_s", "ratio_time_to_475"),
    *("time_to_475_cold_total_s", "best_peer_time_to_475_cold_total_s", "ratio_time_to_475_cold"),
    *("ratio_sbx_sac", "ratio_sb3_sac", "ratio_sbx_td3", "ratio_sb3_td3"),
    *("compile_s", "cold_start_s", "warm_start_s"),
    *("parts.*.commit", "parts.*.date"),
    *("ppo.*.ours_steps_per_s", "ppo.*.peer_steps_per_s", "ppo.*.ratio", "ppo.*.peer_compile_s"),
    *("time_to_475.*.total_s", "time_to_475.*.cold_total_s", "time_to_475.*.reached"),
    *("off_policy.*.steps_per_s",),
)
PARTS = ("ppo", "time_to_475", "off_policy")


class Work(NamedTuple):
    """What an update is made of, on both sides."""

    environments: int
    rollout: int
    epochs: int
    minibatches: int


class Contest(NamedTuple):
    """One comparison of speed; all have separate networks of two layers of 64 units with tanh."""

    peer: str
    settings: str  # whose they are, for the table
    work: Work
    steps: int
    evaluations: bool = False  # the peer's own during training are in its time; we have none


CONTESTS = {
    "purejaxrl": Contest("purejaxrl", "its own settings", Work(4, 128, 4, 4), 1_000_000),
    "purejaxrl_64": Contest("purejaxrl", "64 environments", Work(64, 128, 4, 4), 1_000_000),
    "purejaxrl_1024": Contest("purejaxrl", "1024 environments", Work(1024, 128, 4, 4), 2_000_000),
    # Its configuration for CartPole, then what its class has by default (64 environments are that default).
    "rejax": Contest("rejax", "its CartPole settings", Work(5, 100, 5, 5), 500_000),
    "rejax_64": Contest("rejax", "64 environments", Work(64, 64, 8, 16), 1_000_000),
    "rejax_1024": Contest("rejax", "1024 environments", Work(1024, 64, 8, 16), 2_000_000),
    # As `PPO.create(env=...)` gives it, evaluations and all: what its users see, but not the same work as ours.
    "rejax_as_it_comes": Contest("rejax", "its class as it comes, evaluating", Work(64, 64, 8, 16), 524_288, True),
}
QUICK = {"purejaxrl": 100_000}  # all that --quick measures


def main() -> None:
    """Measure, and print the record."""
    parser = _common.parser(__doc__)
    parser.add_argument("--purejaxrl", type=Path, default=os.environ.get("PUREJAXRL_DIR"), help="a purejaxrl checkout")
    parser.add_argument("--only", choices=PARTS, help="this part only; the others stay as the JSON has them")
    arguments = parser.parse_args()
    results, peers = earlier(arguments)
    with _peers.Stand() as stand:
        for part in [arguments.only] if arguments.only else PARTS:
            results[part] = measure(part, stand, arguments)
            for name, told in stand.report.items():
                peers[name] = {key: value for key, value in peers.get(name, {}).items() if key != "error"} | told
            now = _common.record("on_device", arguments, {})
            results["parts"][part] = {"commit": now["commit"], "date": now["date"]}
            made = _common.record("on_device", arguments, results | conclude(results), peers)
            if arguments.json:
                _common.save(arguments.json, made)
    _common.finish(arguments, made)


def earlier(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the JSON holds of the parts not measured now, and of the peers; empty parts where it holds nothing."""
    speeds = {name: one_contest(contest, [], [], None) for name, contest in CONTESTS.items()}
    results = {"ppo": speeds, "time_to_475": _time_to_score.blank(), "off_policy": _off_policy.blank(), "parts": {}}
    if not (arguments.only and arguments.json and arguments.json.exists()):
        return results, {}
    record = json.loads(arguments.json.read_text(encoding="utf-8"))
    if record["quick"] or "parts" not in record["results"]:
        return results, {}
    kept = {key: record["results"][key] for key in results}
    return kept | {"ppo": speeds | kept["ppo"]}, record["peers"]  # a comparison may be newer than the record


def measure(part: str, stand: _peers.Stand, arguments: argparse.Namespace) -> dict[str, Any]:
    """One part's numbers."""
    checkout = arguments.purejaxrl and Path(arguments.purejaxrl)
    if part == "ppo":
        return speed(stand, checkout, arguments.quick)
    if part == "time_to_475":
        return _time_to_score.measure(stand, purejaxrl(stand, checkout), arguments.quick)
    return _off_policy.measure(stand, arguments.quick)


def conclude(results: dict[str, Any]) -> dict[str, Any]:
    """The keys at the top, from the parts."""
    made: dict[str, Any] = _common.spread("ppo_steps_per_s", results["ppo"]["purejaxrl"]["ours_steps_per_s_repeats"])
    for peer in ("purejaxrl", "rejax"):  # the claim is the smallest of the three
        same = [name for name, contest in CONTESTS.items() if contest.peer == peer and not contest.evaluations]
        ratios = [results["ppo"][name]["ratio"] for name in same]
        made[f"ratio_{peer}"] = min((ratio for ratio in ratios if ratio is not None), default=None)
    made["ratio_rejax_as_it_comes"] = results["ppo"]["rejax_as_it_comes"]["ratio"]
    return made | _time_to_score.conclude(results["time_to_475"]) | _off_policy.conclude(results["off_policy"])


# ------------------------------------------------------------------------------------------------ purejaxrl's checkout


def purejaxrl(stand: _peers.Stand, checkout: Path | None) -> Path | None:
    """The checkout if it is one, and which version it is in the report; None, and why, if not."""
    if checkout is None:
        stand.fail("purejaxrl", "no checkout given: clone github.com/luchris429/purejaxrl and set PUREJAXRL_DIR")
        return None
    script = checkout / "purejaxrl" / "ppo.py"
    if not script.is_file():
        stand.fail("purejaxrl", "the checkout given holds no purejaxrl/ppo.py")
        return None
    ask = ["git", "-C", str(checkout), "rev-parse", "HEAD", "--show-prefix"]
    head, _, inside = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.partition("\n")
    # A prefix means that git found some other repository around the folder.
    commit = head if head and not inside.strip() else None
    told = {"commit": commit, "sha256": hashlib.sha256(script.read_bytes()).hexdigest()}
    stand.note("purejaxrl", **told)
    return checkout


# ------------------------------------------------------------------------------------------------ environment steps/s


def speed(stand: _peers.Stand, checkout: Path | None, quick: bool) -> dict[str, Any]:
    """All comparisons: name -> numbers."""
    results = {}
    for name, contest in CONTESTS.items():
        ours: list[float] = []
        theirs: list[float] = []
        compile_s = None
        if not quick or name in QUICK:
            steps = QUICK[name] if quick else contest.steps
            ours, theirs, compile_s = one_race(stand, checkout, contest, steps, 1 if quick else 3)
        results[name] = one_contest(contest, ours, theirs, compile_s)
    return results


def one_race(
    stand: _peers.Stand, checkout: Path | None, contest: Contest, steps: int, repeats: int
) -> tuple[list[float], list[float], float | None]:
    """Both sides in turn: (our steps/s, the peer's, the peer's seconds of compiling)."""
    words, compile_s = [], None
    if contest.peer == "purejaxrl":
        checked = purejaxrl(stand, checkout)
        words = [str(checked)] if checked else None
    sides = {"shoal": lambda: ours(contest.work, steps)}
    if words is not None and stand.start(contest.peer, *words):
        asked = request(contest, steps)
        first = stand.answer(contest.peer, **asked)  # compiles; the rounds find it compiled
        if first is not None:
            compile_s = first["compile_s"]
            sides[contest.peer] = lambda: stand.rate(contest.peer, **asked)
    rates = _common.alternate(sides, repeats)
    return rates["shoal"], rates.get(contest.peer, []), compile_s


def one_contest(contest: Contest, ours: list[float], theirs: list[float], compile_s: float | None) -> dict[str, Any]:
    """The numbers of one comparison, nulls where a side was not measured."""
    results: dict[str, Any] = contest._asdict() | {"work": contest.work._asdict(), "peer_compile_s": compile_s}
    results |= _common.spread("ours_steps_per_s", ours) | _common.spread("peer_steps_per_s", theirs)
    return results | _common.spread("ratio", _common.ratios(ours, theirs))


def request(contest: Contest, steps: int) -> dict[str, Any]:
    """What a peer's script is asked."""
    work = contest.work
    if contest.peer == "purejaxrl":
        names = {"NUM_STEPS": work.rollout, "UPDATE_EPOCHS": work.epochs, "NUM_MINIBATCHES": work.minibatches}
        return {"envs": work.environments, "steps": steps} | names
    size = {"num_envs": work.environments, "num_steps": work.rollout, "total_timesteps": steps}
    learning = {"num_epochs": work.epochs, "num_minibatches": work.minibatches, "agent_kwargs": {"activation": "tanh"}}
    return {"settings": size | learning} | ({"evaluations": True} if contest.evaluations else {})


def ours(work: Work, steps: int) -> float:
    """Our environment steps per second."""
    words = (
        *("--env", "gymnax:CartPole-v1", "--runtime", "on_device", "--runtime.environments", work.environments),
        *("--runtime.chunk-steps", 65_536),  # how often the host looks; the peers' loops are not looked at
        *("--algorithm.rollout-length", work.rollout, "--algorithm.epochs", work.epochs),
        *("--algorithm.minibatches", work.minibatches, "--algorithm.value-clip", 0.2),
        *("--algorithm.no-normalise-observations", "--algorithm.no-normalise-returns"),
        *("--network.hidden", 64, 64, "--network.activation", "tanh", "--network.no-shared"),
    )
    summary = _common.train("ppo", *words, "--steps", steps, "--seed", 0, *_common.SHORT)
    return summary["env_steps_per_s"]


if __name__ == "__main__":
    main()

"""Global and local networks across owners against learning alone, one network for all, and pooled experience.

The paper (Shi 2021, arXiv:2109.14998) claims a higher convergence rate and a better performance in the same or similar
environments; how it composes the networks is not known, so every form is measured. All arms of a part have equal
environment steps a party and the same settings, tuned on `independent` with seeds from 1000; seeds 0 to 9, whose owners
are those of draws 0 to 9, are paired, and intervals are of a bootstrap over pairs. `pooled` breaks the boundary between
owners and is an upper bound only. Areas are those under greedy evaluations of every party with its own policy, on a
scale from random actions (0) to solved (1).

Parts run by themselves (`--only same`), arm by arm; what is in the JSON already is not done again. `time` measures what
a round costs this process and is to have a quiet machine. All seeds of an arm share one program (`_owners_study`).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import _common
import _owners_arms
import _owners_numbers as numbers
import _owners_study
import numpy as np

SEEDS, QUICK_SEEDS = 10, 2
EVALUATIONS, EPISODES = 25, 5
BLANK = 0.75  # of alone: what steps to the score are to be at most
HEADS = {  # what other benches measure: which, and the numbers that are told here too
    "consensus": ("consensus", ("auc_ratio_d2", "auc_ratio_d5", "worst")),
    "hostile": ("federation_threats", ("robust_fraction", "mean_fraction")),
    "inversion": ("inversion", ("open_cosine", "private_cosine", "chance_cosine")),
}
STUDIED = (*_owners_arms.PARTS, "newcomer", "spaces", "time")
QUICK = {"same": ("A", "independent")}
ARMS = ("A", "independent", "shared", "pooled")  # beside each other in one set
KEYS = (
    *(f"same.{key}" for key in ("auc_ratio_independent", "low", "high")),
    *(f"similar.{key}" for key in ("auc_ratio_independent", "low", "high", "final_vs_shared")),
    *(f"forms.{form}.{key}" for form in _owners_arms.FORMS for key in ("auc", "final", "worst", "bytes")),
    *(f"{part}.{key}" for part, (_, keys) in HEADS.items() for key in keys),
    *("worst_party_ratio", "bytes_per_round", "round_ms_per_party", "conflict", "scaling", "stranger", "newcomer"),
    *("spaces", "gap_closed", "parts"),
)  # fmt: skip

Arms = dict[str, dict[str, Any]]  # arm -> what became of it


def main() -> None:
    """Measure what is missing, and print the record."""
    parser = _common.parser(__doc__)
    parser.add_argument("--only", choices=STUDIED, metavar="PART", help="this part only: " + ", ".join(STUDIED))
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="of that part, these only")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    arguments = parser.parse_args()
    kept = earlier(arguments)

    def save() -> dict[str, Any]:
        made = _common.record("collaborative", arguments, conclude(kept, SEEDS))
        if arguments.json:
            _common.save(arguments.json, made)
        return made

    for part in wanted(arguments):
        for name, measure in due(part, arguments, kept):
            kept.setdefault(part, {})[name] = measure() | {"commit": _common.commit()}
            _common.say(f"{part}, {name}: {shown(kept[part][name])}")
            save()
    _common.finish(arguments, save())


def wanted(arguments: argparse.Namespace) -> list[str]:
    """The parts to be measured."""
    if arguments.quick:
        return list(QUICK)
    return [arguments.only] if arguments.only else [part for part in STUDIED if part != "time"]


def due(part: str, arguments: argparse.Namespace, kept: Mapping[str, Arms]) -> list[tuple[str, Callable]]:
    """What is missing of a part: (arm, how it is measured)."""
    from shoal import experiment

    experiment.cache()
    asked = jobs(part, arguments.quick)
    if arguments.arms:
        asked = {name: job for name, job in asked.items() if name in arguments.arms}
    there = {} if arguments.fresh else kept.get(part, {})
    return [(name, job) for name, job in asked.items() if name not in there]


def jobs(part: str, quick: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Arm -> how it is measured, of a part."""
    if part in _owners_arms.PARTS:
        chosen = _owners_arms.PARTS[part]
        return {name: lambda name=name: run(part, name, quick) for name in (QUICK[part] if quick else chosen)}  # type: ignore[misc]
    import _owners_others

    return _owners_others.jobs(part)


def run(part: str, name: str, quick: bool) -> dict[str, Any]:
    """One arm, all seeds."""
    arm = _owners_arms.PARTS[part][name]
    seeds, evaluations, episodes = (QUICK_SEEDS, 3, 2) if quick else (SEEDS, EVALUATIONS, EPISODES)
    arm = arm._replace(steps=1_024) if quick else arm
    course = _owners_study.Study(arm, seeds).run(evaluations, episodes)
    return numbers.told(course, arm.env, _owners_arms.SCORED.get(name)) | {"command": command(arm), "seeds": seeds}


def command(arm: _owners_study.Arm) -> str:
    """What trains the same, one seed at a time."""
    runtime = dict(arm.settings.get("runtime", {}))
    given = {kind: runtime if kind == "runtime" else of for kind, of in arm.settings.items()}
    words = [f"shoal train {arm.preset} --env {arm.env} --parties {arm.parties} --steps {arm.parties * arm.steps}"]
    if runtime.pop(_owners_study.POOLED, False):
        return f"pooled: one learner of {words[0]}, {json.dumps(given)}"
    if arm.frozen:
        return f"global layers frozen: {words[0]}"
    for kind, settings in given.items():
        words += [f"--{kind}.{key.replace('_', '-')} {_typed(value)}" for key, value in settings.items()]
    return " ".join(words)


def _typed(value: Any) -> str:
    """A value as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def earlier(arguments: argparse.Namespace) -> dict[str, Arms]:
    """The arms already in the JSON whose command is still the same: part -> arm -> what became of it."""
    if arguments.quick or not (arguments.json and arguments.json.exists()):
        return {}
    found = json.loads(arguments.json.read_text(encoding="utf-8"))["results"]["parts"]
    kept: dict[str, Arms] = {}
    for part, of in found.items():
        asked = _owners_arms.PARTS.get(part)
        kept[part] = {
            name: arm for name, arm in of["arms"].items()
            if asked is None or (name in asked and arm["command"] == command(asked[name]))
        }  # fmt: skip
    return kept


# ------------------------------------------------------------------------------------------------ concluded


def conclude(kept: Mapping[str, Arms], seeds: int) -> dict[str, Any]:
    """All numbers, from the arms that are there; null is what was not measured."""
    same, similar, ablated = kept.get("same", {}), kept.get("similar", {}), kept.get("forms", {})
    found = {
        "same": beside(same, "", _owners_arms.CART) | at_eight(same),
        "similar": together(similar),
        "conflict": conflict(kept.get("conflict", {})),
        "scaling": scaling(kept.get("scaling", {})),
        "stranger": stranger(kept.get("stranger", {})),
        "pace": pace(kept.get("pace", {})),
        "newcomer": newcomer(kept.get("newcomer", {})),
        "spaces": spaces(kept.get("spaces", {})),
        "forms": {form: one_form(ablated, form) for form in _owners_arms.FORMS},
        "dqn": {
            "same": beside(kept.get("same_dqn", {}), "", _owners_arms.CART),
            "similar": beside(kept.get("similar_dqn", {}), "lengths.", _owners_arms.LENGTHS),
            "conflict": conflict(kept.get("conflict_dqn", {})),
        },
        "baselines": {name: ends(one) for name, one in kept.get("baselines", {}).items()},
        **{part: elsewhere(*of) for part, of in HEADS.items()},
    }
    worst = [found["similar"][name]["worst_party_ratio"] for name in ("lengths", "links")]
    known = [one for one in (*worst, found["same"]["worst_party_ratio"]) if one is not None]
    timed = kept.get("time", {}).get("round", {})
    return {
        **found,
        "worst_party_ratio": min(known, default=None),
        "gap_closed": found["similar"]["lengths"]["gap_closed"],
        "bytes_per_round": similar.get("lengths.A", {}).get("bytes_per_round"),
        "round_ms_per_party": timed.get("ms"),
        "parts": {part: {"complete": complete(part, kept, seeds), "arms": kept.get(part, {})} for part in STUDIED},
    }


def complete(part: str, kept: Mapping[str, Arms], seeds: int) -> bool:
    """Whether every arm is there, of all seeds."""
    there = kept.get(part, {})
    names = _owners_arms.PARTS[part] if part in _owners_arms.PARTS else jobs(part, quick=False)
    return all(name in there and there[name].get("seeds", seeds) >= seeds for name in names)


def elsewhere(bench: str, keys: Sequence[str]) -> dict[str, Any]:
    """Numbers from the committed record of another bench; null where there is none."""
    path = _common.RESULTS / f"{bench}.json"
    found = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    return {key: found.get(key) for key in keys} | {"bench": bench}


def beside(arms: Arms, lead: str, env: str) -> dict[str, Any]:
    """Form A beside independent, shared and pooled, in one set."""
    ours, alone, shared, pooled = (arms.get(lead + name) for name in ARMS)
    found = numbers.against(ours, alone)
    lowest = [numbers.scaled(one["worst"], env) for one in (ours, alone) if one]  # returns of Acrobot are negative
    worst = numbers.ratio(*lowest) if len(lowest) == 2 else numbers.ratio([], [])
    ended = numbers.not_below(ours, shared, env, "final")
    return {
        "auc_ratio_independent": found["ratio"], "low": found["low"], "high": found["high"],
        "auc_difference": found["difference"],
        "auc_difference_interval": [found["difference_low"], found["difference_high"]],
        "auc_ratio_shared": numbers.against(ours, shared)["ratio"],
        "final_vs_shared": ended["difference"], "final_vs_shared_low": ended["low"],
        "final_not_below_shared": ended["not_below"],
        "worst_party_ratio": worst["ratio"], "worst_party": numbers.not_below(ours, alone, env, "worst"),
        "gap_closed": numbers.gap(ours, alone, pooled),
        "arms": {name: ends(arms[lead + name]) for name in ARMS if lead + name in arms},
    }  # fmt: skip


def ends(one: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of one arm: area, mean and worst at the end, steps to the score."""
    steps = [float("inf") if each is None else each for each in one["steps_to_solved"]]
    return {
        "auc": statistics.mean(one["area"]), "final": statistics.mean(one["final"]),
        "worst": statistics.mean(one["worst"]), "steps_to_solved": numbers.median(steps),
        "solved_seeds": sum(each is not None for each in one["steps_to_solved"]),
        "bytes": one["bytes_per_round"], "params": one["params"],
    }  # fmt: skip


def at_eight(same: Arms) -> dict[str, Any]:
    """Eight parties in one environment."""
    found = numbers.against(same.get("A8"), same.get("independent8"))
    return {"eight": {"auc_ratio_independent": found["ratio"], "low": found["low"], "high": found["high"]}}


def together(similar: Arms) -> dict[str, Any]:
    """Both sets of similar environments; their seeds are pooled for the ratio, each set is told besides."""
    sets = {
        "lengths": beside(similar, "lengths.", _owners_arms.LENGTHS),
        "links": beside(similar, "links.", _owners_arms.LINKS),
    }
    pairs = [(similar.get(f"{name}.A"), similar.get(f"{name}.independent")) for name in sets]
    there = [(ours, alone) for ours, alone in pairs if ours and alone]
    found = numbers.ratio(
        [one for ours, _ in there for one in ours["area"]], [one for _, alone in there for one in alone["area"]]
    )
    first = next((sets[name] for name in sets if sets[name]["final_vs_shared"] is not None), sets["lengths"])
    return {
        "auc_ratio_independent": found["ratio"], "low": found["low"], "high": found["high"],
        "final_vs_shared": first["final_vs_shared"], **sets,
    }  # fmt: skip


def conflict(arms: Arms) -> dict[str, Any]:
    """How many of the owners, half of which have swapped actions, reach the score in each seed."""
    return {
        name: {
            "solved_parties": one["solved_parties"],
            "all_solved_seeds": sum(count == len(one["final_by_party"][0]) for count in one["solved_parties"]),
            **ends(one),
        }
        for name, one in arms.items()
    }


def scaling(arms: Arms) -> dict[str, Any]:
    """Steps to the score by the number of parties; the ratio of eight to one."""
    found = {name: ends(one) for name, one in arms.items()}
    most, one = (found.get(name, {}).get("steps_to_solved") for name in ("n8", "n1"))
    ratio = most / one if most and one else None
    return {**found, "ratio_8": ratio, "within": None if ratio is None else ratio <= BLANK}


def pace(arms: Arms) -> dict[str, Any]:
    """Simulated seconds to the score where one owner is ten times slower, and how old what was applied was."""
    found = {}
    for name, one in arms.items():
        seconds = [float("inf") if each is None else each for each in one["seconds_to_solved"]]
        applied = [lag for lag, count in enumerate(one["staleness"]) if count]
        found[name] = {
            **ends(one), "seconds_to_solved": numbers.median(seconds), "staleness": one["staleness"],
            "staleness_max": max(applied, default=None),
        }  # fmt: skip
    return found


def stranger(arms: Arms) -> dict[str, Any]:
    """What the three honest owners lose."""
    found = numbers.against(arms.get("with"), arms.get("without"))
    return {"auc_ratio": found["ratio"], "low": found["low"], "high": found["high"]}


def newcomer(arms: Arms) -> dict[str, Any]:
    """A held-out owner that starts from the others' global part, beside one from nothing."""
    found = {name: ends(one) for name, one in arms.items()}
    scratch = found.get("scratch", {}).get("steps_to_solved")
    for name in ("frozen", "unfrozen"):
        steps = found.get(name, {}).get("steps_to_solved")
        found[name] = {**found.get(name, {}), "ratio": steps / scratch if steps is not None and scratch else None}
    return found


def spaces(arms: Arms) -> dict[str, Any]:
    """Form C on three tasks with different spaces, task by task."""
    ours, alone = arms.get("C"), arms.get("independent")
    if not ours or not alone:
        return {"auc_ratio_independent": None, "low": None, "high": None, "tasks": {}}
    found = numbers.ratio(ours["area"], alone["area"])
    tasks = {task: numbers.ratio(ours["tasks"][task], alone["tasks"][task]) for task in ours["tasks"]}
    return {"auc_ratio_independent": found["ratio"], "low": found["low"], "high": found["high"], "tasks": tasks}


def one_form(arms: Arms, form: str) -> dict[str, Any]:
    """A form, by its way of exchange; the first way's numbers stand for it."""
    ways = {way: ends(arms[f"{form}.{way}"]) for way in _owners_arms.WAYS if f"{form}.{way}" in arms}
    first = ways.get("gradient_sync", {})
    return {**{key: first.get(key) for key in ("auc", "final", "worst", "bytes", "params")}, "ways": ways}


def shown(one: Mapping[str, Any]) -> str:
    """For whoever waits."""
    if "area" not in one:
        return json.dumps({key: value for key, value in one.items() if not isinstance(value, list | dict)})
    told = ", ".join(f"{key} {np.mean(one[key]):.3g}" for key in ("area", "final", "worst") if key in one)
    return f"{told}, {one.get('seconds')} s"


if __name__ == "__main__":
    main()

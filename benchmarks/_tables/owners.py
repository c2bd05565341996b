"""Training across owners: forms beside what they are held against, set by set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from _tables import show

ARMS = {"A": "form A", "independent": "independent", "shared": "shared", "pooled": "pooled (breaks the boundary)"}
SETS = {"lengths": "CartPole, pole lengths", "links": "Acrobot, link lengths"}
WAYS = {
    "gradient_sync": "gradients",
    "gradient_async": "gradients, asynchronous",
    "delta_sync": "changes, every 10 updates",
    "delta_async": "changes, asynchronous",
}
PACES = {"sync": "in rounds", "async": "as they come", "async_64": "as they come, up to 64 versions old"}
STARTS = {
    "scratch": "from nothing",
    "frozen": "with the global part of five others, frozen",
    "unfrozen": "the same, unfrozen",
}
NUMBERS = ("area", "final", "worst party", "steps to the score", "seeds that reach it")


def collaborative(results: Mapping[str, Any]) -> str:
    """A table of the sets, of the conflict, of the forms, and sentences."""
    tables = [
        _beside(_sets(results, "A2C")),
        _ratios(results),
        _conflict(results),
        _forms(results["forms"]),
        _rest(results),
    ]
    return "\n\n".join(table for table in tables if table)


def _sets(results: Mapping[str, Any], rule: str) -> list[tuple[str, Mapping[str, Any]]]:
    every = [
        (f"CartPole, the same for 4, {rule}", results["same"]),
        *((f"{name}, {rule}", results["similar"][key]) for key, name in SETS.items()),
        ("CartPole, the same for 4, DQN", results["dqn"]["same"]),
        ("CartPole, pole lengths, DQN", results["dqn"]["similar"]),
    ]
    return [(name, of) for name, of in every if of["arms"]]


def _beside(sets: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    rows = [[f"{name}: {ARMS[arm]}", *_numbers(one)] for name, of in sets for arm, one in of["arms"].items()]
    return show.grid(["parties in", *NUMBERS], rows) if rows else ""


def _numbers(one: Mapping[str, Any]) -> list[str]:
    return [
        *(show.number(one.get(key)) for key in ("auc", "final", "worst", "steps_to_solved")),
        str(one["solved_seeds"]),
    ]


def _ratios(results: Mapping[str, Any]) -> str:
    head = ["form A", "area over independent", "over shared", "end less shared's", "worst party over independent",
            "gap closed to pooled"]  # fmt: skip
    rows = []
    for name, of in _sets(results, "A2C"):
        rows.append([
            name, _interval(of, "auc_ratio_independent", of["low"], of["high"]), show.number(of["auc_ratio_shared"]),
            _signed(of["final_vs_shared"], of["final_vs_shared_low"]), show.number(of["worst_party_ratio"]),
            show.number(of["gap_closed"]),
        ])  # fmt: skip
    eight = results["same"]["eight"]
    if eight["auc_ratio_independent"] is not None:
        ratio = _interval(eight, "auc_ratio_independent", eight["low"], eight["high"])
        rows.append(["CartPole, the same for 8, A2C", ratio, *["–"] * 4])
    return show.grid(head, rows) if rows else ""


def _interval(of: Mapping[str, Any], key: str, low: float | None, high: float | None) -> str:
    bounds = "" if low is None or high is None else f" [{show.number(low)}, {show.number(high)}]"
    return show.number(of[key]) + bounds


def _signed(value: float | None, low: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:+.3g}" + ("" if low is None else f" (at least {low:+.3g})")


def _conflict(results: Mapping[str, Any]) -> str:
    rows = []
    for rule, arms in (("A2C", results["conflict"]), ("DQN", results["dqn"]["conflict"])):
        for name, one in arms.items():
            solved = one["solved_parties"]
            label = "shared" if name == "shared" else f"form {name}"
            rows.append([
                f"{label}, {rule}", show.number(sum(solved) / len(solved)),
                f"{one['all_solved_seeds']} of {len(solved)}", show.number(one["final"]), show.number(one["worst"]),
            ])  # fmt: skip
    head = [
        "half of 4 owners with swapped actions",
        "owners that reach 475",
        "seeds in which all do",
        "final",
        "worst party",
    ]
    return show.grid(head, rows) if rows else ""


def _forms(forms: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{form}, {WAYS[way]}", *_numbers(one), f"{one['params'][0]:,} + {one['params'][1]:,}",
            show.number(one["bytes"]),
        ]
        for form, of in forms.items()
        for way, one in of["ways"].items()
    ]  # fmt: skip
    return show.grid(["form, pole lengths", *NUMBERS, "global + local", "bytes a round"], rows) if rows else ""


def _rest(results: Mapping[str, Any]) -> str:
    scaling, said = results["scaling"], []
    steps = [(name[1:], one["steps_to_solved"]) for name, one in scaling.items() if isinstance(one, Mapping)]
    if steps:
        told = ", ".join(f"{count}: {show.number(value)}" for count, value in steps)
        said.append(
            f"Steps of a party to 475 by the number of parties ({told}): eight over one "
            f"{show.number(scaling['ratio_8'])}."
        )
    new = results["newcomer"]
    if new["frozen"].get("auc") is not None:
        steps = {name: show.number(new.get(name, {}).get("steps_to_solved")) for name in STARTS}
        told = ", ".join(f"{label} {steps[name]}" for name, label in STARTS.items())
        said.append(f"Steps of a new owner with a held-out length to 475: {told}.")
    odd = results["stranger"]
    if odd["auc_ratio"] is not None:
        ratio = _interval(odd, "auc_ratio", odd["low"], odd["high"])
        said.append(f"Area of three honest owners beside one whose rewards are noise, over without it: {ratio}.")
    for name, one in results.get("pace", {}).items():
        said.append(
            f"One owner of five ten times slower, {PACES[name]}: {show.number(one['seconds_to_solved'])} simulated "
            f"seconds to 475 ({one['solved_seeds']} seeds reach it), at the end {show.number(one['final'])}, what was "
            f"applied {show.number(one['staleness_max'])} versions old at most."
        )
    last = results["baselines"]
    if last:
        names = {"at_the_end": "one average at the end", "frozen_random": "a frozen random base"}
        told = ", ".join(f"{names[name]} {show.number(one['final'])}" for name, one in last.items())
        said.append(f"Return at the end, pole lengths: {told}.")
    spaces = results["spaces"]
    if spaces["auc_ratio_independent"] is not None:
        ratio = _interval(spaces, "auc_ratio_independent", spaces["low"], spaces["high"])
        tasks = ", ".join(f"{task} {show.number(one['ratio'])}" for task, one in spaces["tasks"].items())
        said.append(f"Different spaces, form C over independent: {ratio} ({tasks}).")
    missing = [name for name, part in results["parts"].items() if not part["complete"]]
    if missing:
        said.append(f"Not measured yet, or not all of it: {', '.join(missing)}.")
    return "\n".join(f"* {one}" for one in said)


def line(results: Mapping[str, Any]) -> str:
    """Same and similar, and the conflict."""
    told = []
    for name, of in (("the same", results["same"]), ("similar", results["similar"])):
        if of["auc_ratio_independent"] is not None:
            ratio = _interval(of, "auc_ratio_independent", of["low"], of["high"])
            told.append(f"{ratio} in {name} environments")
    clash = results["conflict"]
    solved = ", ".join(
        f"{'' if name == 'shared' else 'form '}{name} {one['all_solved_seeds']} of {len(one['solved_parties'])} seeds"
        for name, one in clash.items()
    )
    said = f"area under the curve of form A over learning alone: {' and '.join(told) or '–'}"
    return said + (
        f"; with actions swapped for half of the owners all of them reach 475 in: {solved}" if solved else ""
    )

"""One update step of a population of 1 to 80 members: one program, JAX member by member, JAX processes, PyTorch.

Given N batches on the device, a call does K steps and its time is divided by K (Flajolet et al. 2022, arXiv:2206.08888,
its protocol; sizes of HalfCheetah, random data, nobody's episode ends). All sides compute the same networks, batches
and rules, which is checked: from the same numbers the two forms in PyTorch reach the parameters that Shoal does. The
rules are Shoal's own, in JAX by itself as well; PyTorch's are written as fast as its own means allow.

Shoal chooses its way as a run does (`auto`), and every way it chooses among is timed beside it. JAX member by member is
a jitted update for each, dispatched in a loop with one wait, as JAX is by default or in the calling thread with one
thread, whichever is faster; `ratio_sequential` is of one step a call, `ratio_sequential_k` of as many as ours. PyTorch
member by member has one thread; all at once, one or as many as it takes, whichever is faster. Every side of a cell is
timed once a round, in random order. `cpu_ms` is processor time, which tells how much of a cell was waiting for others.
Parts (a rule and a width) that were stopped go on.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _common
import _peers

RULES = ("td3", "sac", "dqn")
WIDTHS = {64: 64, 256: 256}  # units of both hidden layers -> transitions of a gradient step
MEMBERS = (1, 2, 4, 8, 16, 32, 80)
STEPS = 8  # a call, where every side is timed
OTHERS, AT = (1, 50), (1, 8, 80)  # other steps a call, and of how many members: Shoal and JAX member by member only
AGAIN = (8, 80)  # members for whom the choice is made once more, with a warm cache
VARIANTS = ("default", "here")  # of JAX member by member
LONGEST = 2_000.0  # milliseconds of a step times K beyond which a cell is left out: nothing is left to amortise
PROCESSES = (2, 4, 8)  # members that are also processes
REPEATS, SECONDS = 5, 0.25
SLOW = 1_500.0  # milliseconds of a step beyond which a side is timed only twice
SIDES = ("auto", "jax_sequential", "jax_sequential_k", "jax_processes", "torch_sequential", "torch_batched")
KEYS = (
    *(f"{rule}.w{width}.n80.{side}_ms" for rule in RULES for width in WIDTHS for side in SIDES),
    *(f"{rule}.w{width}.{ratio}" for rule in RULES for width in WIDTHS for ratio in
      ("ratio_sequential", "ratio_sequential_k", "ratio_torch", "ratio_torch_batched", "within", "choosing_warm_s")),
    *(f"same.{rule}" for rule in RULES),
)  # fmt: skip


class Cell(NamedTuple):
    """One population."""

    rule: str
    width: int
    members: int

    @property
    def request(self) -> dict[str, Any]:
        """As the scripts take it."""
        return {"algorithm": self.rule, "width": self.width, "batch": WIDTHS[self.width], "members": self.members}


def main() -> None:
    """Measure what is missing, and print the record."""
    parser = _common.parser(__doc__)
    parser.add_argument("--only", choices=[f"{rule}.w{width}" for rule in RULES for width in WIDTHS], help="this part")
    parser.add_argument("--any-commit", action="store_true", help="go on even though the code has changed")
    arguments = parser.parse_args()
    results = earlier(arguments)
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as cache, Sides(cache, arguments.quick) as sides:
        checked = RULES[:1] if arguments.quick else RULES
        results["same"] = results["same"] | {rule: sides.same(rule) for rule in checked}

        def save() -> dict[str, Any]:
            made = _common.record("population", arguments, results, sides.report)
            if arguments.json:
                _common.save(arguments.json, made)
            return made

        for rule, width in wanted(arguments):
            part = results[rule][f"w{width}"]
            for members in (1, 80) if arguments.quick else MEMBERS:
                if f"n{members}" not in part or part[f"n{members}"].get("auto_ms") is None:
                    part[f"n{members}"] = timed(sides, Cell(rule, width, members), arguments.quick)
                    results[rule][f"w{width}"] = part = concluded(part)
                    _common.say(f"{rule}, {width} wide, {members} members: {shown(part[f'n{members}'])}")
            part |= {"complete": not arguments.quick, "commit": _common.commit()}
            save()
        _common.finish(arguments, save())


def wanted(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    """The parts to be measured."""
    every = [(rule, width) for rule in RULES for width in WIDTHS]
    if arguments.quick:
        return every[:1]
    return [(rule, width) for rule, width in every if arguments.only in (None, f"{rule}.w{width}")]


def blank() -> dict[str, Any]:
    """Results of nothing."""
    parts = {rule: {f"w{width}": concluded({}) for width in WIDTHS} for rule in RULES}
    return {**parts, "same": dict.fromkeys(RULES)}


def earlier(arguments: argparse.Namespace) -> dict[str, Any]:
    """The results already in the JSON, where they are of this very code."""
    results = blank()
    if arguments.quick or not (arguments.json and arguments.json.exists()):
        return results
    kept = json.loads(arguments.json.read_text(encoding="utf-8"))["results"]
    for rule, width in [(rule, f"w{width}") for rule in RULES for width in WIDTHS]:
        part = kept[rule][width]
        if (
            arguments.any_commit
            or part.get("commit") == _common.commit()
            or (rule, int(width[1:])) not in wanted(arguments)
        ):
            results[rule][width] = part
    return results


# ------------------------------------------------------------------------------------------------ sides


class Sides(_peers.Stand):
    """Every implementation in a process of its own, one at work at a time."""

    def __init__(self, cache: str, quick: bool) -> None:
        super().__init__()
        self._cache, self._quick = cache, quick

    def __enter__(self) -> Sides:
        super().__enter__()
        return self

    def of(self, name: str, *words: str, peer: str, script: str) -> bool:
        """Start one; False if it failed."""
        variables = {"SHOAL_CACHE_DIR": self._cache, "PYTHONPATH": str(_common.ROOT)} if peer == "jax" else {}
        if "here" in words:
            variables["NPROC"] = "1"
        return self.start(name, *words, peer=peer, script=script, variables=variables, may_install=not self._quick)

    def shoal(self, width: int) -> str:
        """The session of our own side."""
        name, threads = f"shoal {width}", 1 if width == 64 else 0
        self.of(name, str(threads), peer="jax", script="../_population.py")
        return name

    def same(self, rule: str) -> float | None:
        """The largest difference between parameters after a few updates, relative to the largest change."""
        import _population_check

        if not self.of("torch", peer="torch", script="torch_population.py"):
            return None
        found = []
        for form in ("in_turn", "batched"):
            with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
                path = Path(folder) / "check.npz"
                begun, ours = _population_check.write(path, rule)
                answer = self.answer("torch", check=str(path), algorithm=rule, width=_population_check.WIDTH, form=form)
                if answer is None:
                    return None
                found.append(_population_check.difference(path, begun, ours))
        return max(found)

    def processes(self, count: int) -> list[str]:
        """Sessions of as many JAX processes."""
        names = [f"process {at}" for at in range(count)]
        for name in names:
            self.of(name, "process", "here", peer="jax", script="jax_population.py")
        return names

    def together(self, names: list[str], **request: Any) -> dict[str, float]:
        """Ask several sessions at the same time; means of what they answer."""
        for name in names:
            print(json.dumps(request), file=self.sessions[name].process.stdin, flush=True)
        answers = [self.sessions[name]._answer() for name in names]
        return {key: statistics.mean(one[key] for one in answers) for key in ("ms", "cpu_ms") if key in answers[0]}


Ask = Callable[[], dict[str, float] | None]


def timed(sides: Sides, cell: Cell, quick: bool) -> dict[str, Any]:
    """All that is told of a population."""
    repeats, seconds = (2, 0.1) if quick else (REPEATS, SECONDS)
    ours, again = sides.shoal(cell.width), cell.members in AGAIN and not quick
    made = sides.answer(ours, **cell.request, again=again)
    if made is None:
        raise RuntimeError(f"Shoal's own side failed: {sides.report['jax']['error']}")

    def all_sides(updates: int, asks: dict[str, Ask]) -> dict[str, Any]:
        for way in made["compile_s"]:
            request = {"way": way, "updates": updates, "seconds": seconds}
            asks[way] = lambda request=request: sides.answer(ours, **request)  # type: ignore[misc]
        return told(rounds(asks, repeats), made)

    jax = functools.partial(in_turn, sides, cell, seconds=seconds, variants=VARIANTS[-1:] if quick else VARIANTS)
    found = all_sides(STEPS, {**jax(1), **jax(STEPS), **processes(sides, cell, seconds), **torch(sides, cell, seconds)})
    choosing = {key: made.get(key) for key in ("chosen", "choosing_s", "choosing_warm_s", "devices")}
    found |= choosing | {"compile_s": made["compile_s"]}
    for updates in OTHERS if cell.members in AT and not quick else ():
        if found["auto_ms"] * updates > LONGEST:
            found[f"k{updates}"] = {"left_out": "a call takes too long for its dispatch to matter"}
        else:
            found[f"k{updates}"] = all_sides(updates, jax(updates))
    return found


def in_turn(sides: Sides, cell: Cell, updates: int, *, seconds: float, variants: Sequence[str]) -> dict[str, Ask]:
    """JAX member by member, warm: name -> one measurement."""
    asks: dict[str, Ask] = {}
    for variant in variants:
        name, request = f"in turn, {variant}", {**cell.request, "updates": updates}
        if sides.of(name, "in_turn", variant, peer="jax", script="jax_population.py") and sides.answer(
            name, **request, seconds=0
        ):
            label = f"jax_sequential{'_k' if updates > 1 else ''}, {variant}"
            asks[label] = lambda name=name, request=request: sides.answer(name, **request, seconds=seconds)  # type: ignore[misc]
    return asks


def processes(sides: Sides, cell: Cell, seconds: float) -> dict[str, Ask]:
    """A process for each of a few members."""
    if cell.members not in PROCESSES:
        return {}
    names, request = sides.processes(cell.members), {**cell.request, "members": 1, "updates": STEPS}
    sides.together(names, **request, seconds=0)
    return {"jax_processes": lambda: sides.together(names, **request, seconds=seconds)}


def torch(sides: Sides, cell: Cell, seconds: float) -> dict[str, Ask]:
    """PyTorch, member by member and all at once."""
    if not sides.of("torch", peer="torch", script="torch_population.py"):
        return {}
    asks: dict[str, Ask] = {}
    for label, form, threads in (
        ("torch_sequential", "in_turn", 1),
        ("torch_batched, 1 thread", "batched", 1),
        ("torch_batched, all threads", "batched", None),
    ):
        request = {**cell.request, "form": form, "threads": threads}
        asks[label] = lambda request=request: sides.answer("torch", **request, seconds=seconds)  # type: ignore[misc]
    return asks


def rounds(asks: dict[str, Ask], repeats: int) -> dict[str, list[dict[str, float]]]:
    """Every side once a round, in an order that is drawn anew."""
    order, draw = list(asks), random.Random(0)
    values: dict[str, list[dict[str, float]]] = {name: [] for name in asks}
    for turn in range(repeats):
        draw.shuffle(order)
        for name in order:
            if turn > 1 and values[name] and values[name][0]["ms"] > SLOW:
                continue
            answer = asks[name]()
            if answer is not None:
                values[name].append(answer)
    return values


def told(values: dict[str, list[dict[str, float]]], made: dict[str, Any]) -> dict[str, Any]:
    """A cell's numbers: each side's better variant, every way, and the choice."""
    found: dict[str, Any] = {}
    for side in SIDES[1:]:
        variants = {name: of for name, of in values.items() if name.partition(",")[0] == side and of}
        best = min(variants, key=lambda name: statistics.median(one["ms"] for one in variants[name]), default=None)
        found |= milliseconds(side, variants.get(best or "", []))
        if best and "," in best:
            found[f"{side}_as"] = best.partition(", ")[2]
    ways = {way: milliseconds("", values[way]) for way in made["compile_s"]}
    chosen = made["chosen"]
    fastest = min(one["ms"] for one in ways.values())
    found |= milliseconds("auto", values[chosen])
    return found | {"within": ways[chosen]["ms"] / fastest, "ways": ways}


def milliseconds(side: str, values: list[dict[str, float]]) -> dict[str, Any]:
    """The median with its quartiles, and the processor's time."""
    lead = f"{side}_" if side else ""
    each = [one["ms"] for one in values]
    quartiles = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else [*each, *each, *each]
    return {
        f"{lead}ms": statistics.median(each) if each else None,
        f"{lead}ms_quartiles": [quartiles[0], quartiles[2]] if each else None,
        f"{lead}cpu_ms": statistics.median(one["cpu_ms"] for one in values) if each else None,
    }


def concluded(part: dict[str, Any]) -> dict[str, Any]:
    """A part with its ratios at 80 members, and the worst of its choices."""
    nothing = {f"{side}_ms": None for side in SIDES}
    part = {"complete": False, "commit": None} | part | {"n80": nothing | part.get("n80", {})}
    most = part["n80"]
    pairs = {
        "ratio_sequential": "jax_sequential",
        "ratio_sequential_k": "jax_sequential_k",
        "ratio_torch": "torch_sequential",
        "ratio_torch_batched": "torch_batched",
    }
    for ratio, side in pairs.items():
        above, below = most[f"{side}_ms"], most["auto_ms"]
        part[ratio] = above / below if above and below else None
    every = [one for at in of_members(part) for one in (at, *steps_of(at))]
    part["within"] = max((one["within"] for one in every if "within" in one), default=None)
    warm = [one["choosing_warm_s"] for one in every if one.get("choosing_warm_s") is not None]
    part["choosing_warm_s"] = max(warm, default=None)
    first = part.get("n1", {}).get("auto_ms")
    part["t80_over_t1"] = most["auto_ms"] / first if first and most["auto_ms"] else None
    return part


def of_members(part: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of a part."""
    return [value for key, value in part.items() if key[0] == "n" and key[1:].isdigit()]


def steps_of(at: dict[str, Any]) -> list[dict[str, Any]]:
    """Those with other steps a call."""
    return [value for key, value in at.items() if key[0] == "k" and key[1:].isdigit()]


def shown(place: dict[str, Any]) -> str:
    """For whoever waits."""
    sides = [f"{side} {place[f'{side}_ms']:.3g}" for side in SIDES if place.get(f"{side}_ms") is not None]
    return f"{', '.join(sides)} ms; {place['chosen']}, {place['within']:.2f} of the best"


if __name__ == "__main__":
    main()

"""What hostile parties can do to a federation: faults of the wire, the cost of guard and robust rules, poison.

Ten parties learn CartPole, each with a pole of its own length (`owners:CartPole-lengths`): parties in similar places
are honest outliers, so every rule is measured without an attacker too. Three of ten then attack in every round. A score
is the return of the honest parties in their own environments, the mean of greedy evaluations over the second half of
the run; the same parties count in the run without attackers, where the plain mean joins all ten. Rules take turns
within a seed; runs that are in the JSON already are not done again. Times are left out where the machine is busy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import _common
import _wire_faults
import numpy as np

import shoal
from shoal.runtimes.federated import hostile, message, robust, server

PARTIES, HOSTILE = 10, (7, 8, 9)
EACH, EVERY = 20_480, 5_000  # environment steps of a party: in all, and between two evaluations
RUNTIME: dict[str, Any] = {
    "name": "federated", "parties": PARTIES, "exchange": "delta", "environments": 4, "evaluate_every": EVERY,
    "episodes": 10,
}  # fmt: skip
PRESET, ENV, FORM = "ppo", "owners:CartPole-lengths", "A"
ATTACKS = tuple(hostile.ATTACKS)
RULES = tuple(robust.RULES)
CLEAN = "mean, nobody hostile"
BUSY = 0.5  # runnable processes a core beside this one, above which times are not taken
MUTATIONS = 10_000
SIZE = 100_000  # floats of an update whose cost is measured
KEYS = (
    "wire.turned_away", "wire.accepted", "wire.crashes", "wire.of", "cost.default_ms", "cost.rules.*.ms",
    "clean.score", "attacks.*.robust_fraction", "attacks.*.mean_fraction", "rules.*.fraction",
    "robust_fraction", "mean_fraction",
)  # fmt: skip

Runs = dict[str, dict[str, dict[str, Any]]]  # name -> seed -> run


def main() -> None:
    """Measure what is missing, and print the record."""
    parser = _common.parser(__doc__)
    parser.add_argument("--only", choices=("wire", "cost", "poison"), help="this part alone")
    parser.add_argument("--seeds", type=int, default=5, help="runs 0 to K-1 of each")
    arguments = parser.parse_args()
    kept = earlier(arguments)
    if arguments.only in (None, "wire"):
        kept["wire"] = wire(1000 if arguments.quick else MUTATIONS)
    if arguments.only in (None, "cost"):
        kept["cost"] = cost(3 if arguments.quick else 25)
    if arguments.only in (None, "poison"):
        for name, seed in due(kept["runs"], 1 if arguments.quick else arguments.seeds, arguments.quick):
            found = run(name, seed, arguments.quick)
            kept["runs"].setdefault(name, {})[str(seed)] = found
            _common.say(f"{name}, seed {seed}: {found['score']:.0f}")
            if arguments.json:
                _common.save(arguments.json, record(arguments, kept))
    _common.finish(arguments, record(arguments, kept))


def earlier(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the JSON holds already, runs of the same command alone."""
    nothing: dict[str, Any] = {"wire": None, "cost": None, "runs": {}}
    if arguments.quick or not (arguments.json and arguments.json.exists()):
        return nothing
    found = json.loads(arguments.json.read_text(encoding="utf-8"))["results"]
    runs = found["runs"] if found["command"] == command() else {}
    return {"wire": found["wire"], "cost": found["cost"], "runs": runs}


# ------------------------------------------------------------------------------------------------ the wire


def wire(mutations: int) -> dict[str, Any]:
    """Every fault by its name, then mutated messages, each against a server that waits for it."""
    spec = message.Spec((("policy/head/bias", (2,)), ("policy/trunk/kernel", (4, 64))))
    one = server.Server(
        spec, np.zeros(spec.size, np.float32), ["a", "b"], server.Rules(mode="delta"), b"a run of 16 byte"
    )
    one.close(1e9)  # so that there is an older round
    random, faults, crashes, accepted = np.random.default_rng(0), {}, 0, 0
    names = list(_wire_faults.faults(spec, _answer(spec, one.job(0))))
    for turn in range(mutations + len(names)):
        good = _answer(spec, one.job(0))
        named = names[turn] if turn < len(names) else None
        body = _wire_faults.faults(spec, good)[named][0] if named else _wire_faults.mutated(spec, good, random)
        try:
            outcome = one.take(0, body, 0.0)
        except Exception as error:  # noqa: BLE001  a crash is what is counted
            crashes, outcome = crashes + 1, f"crashed: {error}"
        accepted += not outcome.startswith(("rejected:", "crashed"))
        if named:
            faults[named] = outcome
    rejected = one.tally.told()["rejected"]
    whole = bool((one.theta == 0).all())
    return {
        "of": mutations, "faults": faults, "turned_away": sum(rejected.values()), "accepted": accepted,
        "crashes": crashes, "reasons": rejected, "unchanged": whole,
    }  # fmt: skip


def _answer(spec: message.Spec, job: bytes, vector: np.ndarray | None = None) -> bytes:
    header = message.decode_down(spec, job).header
    return message.encode_up(
        spec, message.Up(header, np.ones(spec.size, np.float32) if vector is None else vector, 5, 1)
    )


# ------------------------------------------------------------------------------------------------ cost


def cost(repeats: int) -> dict[str, Any]:
    """Milliseconds a party and round of the guard and of every rule, for ten updates of 100,000 floats."""
    load = os.getloadavg()[0]
    if load > 1 + BUSY * (os.cpu_count() or 1):
        told = f"not measured: the machine was busy (load {load:.0f} on {os.cpu_count()} cores)"
        return {"told": told, "default_ms": None, "rules": {rule: {"ms": None} for rule in RULES}}
    updates = np.random.default_rng(0).standard_normal((PARTIES, SIZE)).astype(np.float32)
    sides = {rule: (lambda rule=rule: _timed(rule, updates)) for rule in RULES}
    found = _common.alternate({"guard": lambda: _guarded(updates)} | sides, repeats)
    rules = {rule: _common.spread("ms", found[rule]) for rule in RULES}
    whole = [a + b for a, b in zip(found["guard"], found[robust.DEFAULT], strict=True)]
    return {"told": "", "guard_ms": statistics.median(found["guard"]), "rules": rules} | _common.spread(
        "default_ms", whole
    )


def _timed(rule: str, updates: np.ndarray) -> float:
    began = time.perf_counter()
    robust.RULES[rule].combine(updates, len(HOSTILE))
    return (time.perf_counter() - began) * 1e3 / len(updates)


def _guarded(updates: np.ndarray) -> float:
    spec = message.Spec((("w", (SIZE,)),))
    rules = server.Rules(mode="delta")
    one = server.Server(spec, np.zeros(SIZE, np.float32), [str(i) for i in range(PARTIES)], rules, bytes(16))
    bodies = [_answer(spec, one.job(party), update) for party, update in enumerate(updates)]
    began = time.perf_counter()
    for party, body in enumerate(bodies):
        one.take(party, body, 0.0)
    return (time.perf_counter() - began) * 1e3 / len(updates)


# ------------------------------------------------------------------------------------------------ poison


def names() -> list[str]:
    """Every run of a seed: without attackers, then rules against attacks, then rules without."""
    against = [f"{rule}, {attack}" for attack in ATTACKS for rule in (robust.DEFAULT, "mean")]
    return [CLEAN, *against, *(rule for rule in RULES if rule != "mean")]


def due(runs: Runs, seeds: int, quick: bool) -> Iterator[tuple[str, int]]:
    """What is missing, seed by seed."""
    wanted = [CLEAN] if quick else names()
    for seed in range(seeds):
        yield from ((name, seed) for name in wanted if str(seed) not in runs.get(name, {}))


def settings(name: str) -> dict[str, Any]:
    """Of the runtime, for one of `names`."""
    rule, _, attack = name.partition(", ")
    told = dict(RUNTIME)
    if rule != "mean":
        told |= {"aggregator": rule, "hostile": len(HOSTILE)}
    if attack in hostile.ATTACKS:
        told["attack"] = tuple(f"{party}:{attack}" for party in HOSTILE)
    return told


def command() -> str:
    """What every run has in common, as it is typed."""
    told = {key.replace("_", "-"): value for key, value in RUNTIME.items() if key != "name"}
    given = " ".join(f"--runtime.{key} {value}" for key, value in told.items())
    return (
        f"shoal train {PRESET} --env {ENV} --network.form {FORM} --runtime federated {given} --steps {EACH * PARTIES}"
    )


def run(name: str, seed: int, quick: bool) -> dict[str, Any]:
    """One federation: the score of the honest parties, the worst of them, and what was turned away.

    In this process: programs are compiled once for all of them.
    """
    told = settings(name)
    each = EACH // 10 if quick else EACH
    told["evaluate_every"] = EVERY // 10 if quick else EVERY
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        out = Path(folder) / "run"
        made = shoal.train(
            PRESET, ENV, steps=each * PARTIES, seed=seed, out=out, runtime=told, network={"form": FORM},
            eval_episodes=0, quiet=True,
        )  # fmt: skip
        lines = [json.loads(line) for line in (out / "parties.jsonl").read_text(encoding="utf-8").splitlines()]
    honest = [party for party in range(PARTIES) if party not in HOSTILE]
    late = [line for line in lines if 2 * line["env_steps"] >= lines[-1]["env_steps"]]
    scores = [statistics.fmean(line["returns"][party] for line in late) for party in honest]
    federation = made.summary["federation"]
    return {
        "score": statistics.fmean(scores), "worst": min(scores),
        "curve": [round(statistics.fmean(line["returns"][party] for party in honest), 1) for line in lines],
        "rejected": federation["rejected"], "bounded_fraction": federation["bounded_fraction"],
        "failed_rounds": federation["failed_rounds"], "commit": _common.commit(),
    }  # fmt: skip


def record(arguments: argparse.Namespace, kept: Mapping[str, Any]) -> dict[str, Any]:
    """What is there so far."""
    return _common.record("federation_threats", arguments, conclude(kept))


def conclude(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Fractions of the return without attackers, seed by seed, and the least of each kind over the attacks."""
    runs: Runs = kept["runs"]
    attacks = {
        attack: {
            **_fractions("robust", runs, f"{robust.DEFAULT}, {attack}"),
            **_fractions("mean", runs, f"mean, {attack}"),
        }
        for attack in ATTACKS
    }
    rules = {rule: _fractions("", runs, rule) for rule in RULES if rule != "mean"}
    clean = [one["score"] for one in runs.get(CLEAN, {}).values()]
    least = {
        key: min((of[key] for of in attacks.values() if of[key] is not None), default=None)
        for key in ("robust_fraction", "mean_fraction")
    }
    return {
        "command": command(), "parties": PARTIES, "hostile": len(HOSTILE), "wire": kept["wire"], "cost": kept["cost"],
        "clean": _common.spread("score", clean), "attacks": attacks, "rules": rules, **least,
        "complete": all(name in runs for name in names()), "runs": runs,
    }  # fmt: skip


def _fractions(kind: str, runs: Runs, name: str) -> dict[str, Any]:
    """Of paired seeds: mean score over mean score without attackers, and each seed's own."""
    pairs = _paired(runs.get(CLEAN, {}), runs.get(name, {}))
    prefix = f"{kind}_" if kind else ""
    whole = sum(one for one, _ in pairs)
    return {
        f"{prefix}fraction": sum(other for _, other in pairs) / whole if pairs else None,
        f"{prefix}fractions": [other / one for one, other in pairs],
    }


def _paired(clean: Mapping[str, Any], other: Mapping[str, Any]) -> Sequence[tuple[float, float]]:
    return [(clean[seed]["score"], other[seed]["score"]) for seed in sorted(clean.keys() & other.keys(), key=int)]


if __name__ == "__main__":
    main()

"""Gradient inversion: how much of an owner's observations can be read off what it sends, with defences and without.

Owners of HalfCheetah-v5 with one global part send the change of it after H local updates of actor-critic; three attacks
(`_inversion`) each name one observation behind a message. It is held against the nearest that was really there, beside
the observations behind other owners' messages (chance) and beside guessing the mean. A clip is half the median norm, so
it acts. The private mode is the one of `PRIVATE`; what it gives is the worst of its rows.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import _common
import _inversion as attacks
import jax
import numpy as np

from shoal.runtimes.federated import leaving, unmasking

OWNERS, ITERATIONS = 80, 200
FORMS, BATCHES, UPDATES, SUMS = ("A", "C"), (1, 8, 32), (1, 10), (1, 4)
ROWS = 16  # unknown inputs of gradient matching, at most
MOST = 0.05  # above chance, in the private mode


class Defence(NamedTuple):
    """What is done to an update before it leaves."""

    clipped: bool
    noise: float  # z


DEFENCES = {
    "open": Defence(False, 0.0), "clipped": Defence(True, 0.0), "z=0.1": Defence(True, 0.1),
    "z=0.5": Defence(True, 0.5), "z=1": Defence(True, 1.0),
}  # fmt: skip


class Row(NamedTuple):
    """One kind of message."""

    form: str
    batch: int
    updates: int
    defence: str
    owners: int  # whose sum the attacker sees

    @property
    def name(self) -> str:
        """As in the record."""
        return f"{self.form}.b{self.batch}.h{self.updates}.{self.defence}.n{self.owners}"


OPEN = Row("A", 1, 1, "open", 1)
PRIVATE = tuple(  # 32 local updates, the clip, the critic at home, noise of z >= 0.5; with a secure sum and without
    Row(form, 8, 32, defence, owners) for form in FORMS for defence in ("z=0.5", "z=1") for owners in SUMS
)
TABLE = tuple(
    Row(form, batch, updates, defence, owners)
    for form in FORMS
    for batch in BATCHES
    for updates in UPDATES
    for defence in ("open", "clipped", "z=0.1", "z=1")
    for owners in SUMS
)
BESIDE = tuple(  # the updates of the private mode without its noise: neither their number nor a secure sum is enough
    Row(form, 8, 32, defence, owners) for form in FORMS for defence in ("open", "clipped") for owners in SUMS
)
QUICK = (OPEN, OPEN._replace(form="C"), *PRIVATE[:2])
KEYS = (
    "open_cosine",
    "private_cosine",
    "chance_cosine",
    "open_error",
    "rows.*.cosine",
    "rows.*.chance",
    "rows.*.error",
)


def main() -> None:
    """Measure, and print the record."""
    arguments = _common.parser(__doc__).parse_args()
    owners = 16 if arguments.quick else OWNERS
    rows = QUICK if arguments.quick else (*TABLE, *BESIDE, *PRIVATE)
    results: dict[str, Any] = {}
    for row in rows:
        updates = sent(row.form, row.batch, row.updates, owners)
        results[row.name] = measured(row, updates, 50 if arguments.quick else ITERATIONS)
        told = results[row.name]
        _common.say(f"{row.name:24} {told['attack']:14} {told['cosine']:.3f} (chance {told['chance']:.3f})")
        if arguments.json:
            _common.save(arguments.json, _common.record("inversion", arguments, conclude(results)))
    _common.finish(arguments, _common.record("inversion", arguments, conclude(results)))


class Sent(NamedTuple):
    """What owners send, and what is behind it."""

    updates: np.ndarray  # [N, d]
    states: Any  # of the learners, leaves [N, ...]
    obs: np.ndarray  # [N, H T, 17]
    features: np.ndarray  # [N, H T, in], what the first global layer saw


@functools.cache
def lives(owners: int) -> dict[str, np.ndarray]:
    """Of all owners, as long as the longest message needs."""
    longest = max(row.batch * row.updates for row in (*TABLE, *PRIVATE))
    return attacks.experience(owners, longest, 0)


@functools.lru_cache(maxsize=1)  # rows that differ in their defence alone follow one another
def sent(form: str, batch: int, updates: int, owners: int) -> Sent:
    """What owners would send without any defence."""
    agent = attacks.agent_of(form, batch)
    states = attacks.learners(agent, owners, 1)
    steps = jax.tree.map(lambda leaf: leaf[:, : batch * updates], attacks.lived(agent, states, lives(owners), 2))
    vectors = attacks.sender(agent, updates, batch)(states, steps)
    features = attacks.features(states, steps.obs)
    return Sent(np.asarray(vectors), states, np.asarray(steps.obs), np.asarray(features))


def measured(row: Row, given: Sent, iterations: int) -> dict[str, Any]:
    """All attacks on one kind of message; the best of them, and each."""
    seen = together(defended(given.updates, DEFENCES[row.defence]), row.owners)
    params = jax.tree.map(lambda leaf: leaf[0], given.states.params)
    theta = attacks.layers(params, np.repeat(np.asarray(attacks.scopes.vector(params))[None], len(seen), axis=0))
    truths, features = (leaf.reshape(len(seen), -1, leaf.shape[-1]) for leaf in (given.obs, given.features))
    told = {}
    for name, attack in tried(row, iterations).items():
        found = attack(attacks.layers(params, seen), theta)
        told[name] = attacks.scores(np.asarray(attacks.decoded(given.states, found)), truths)
        told[name]["features"] = attacks.scores(np.asarray(found), features)["cosine"]
    best = max(told, key=lambda name: told[name]["cosine"] - told[name]["chance"])
    return {**row._asdict(), "attack": best, **told[best], "attacks": told}


def tried(row: Row, iterations: int) -> dict[str, Any]:
    """The attacks by name."""
    rows = min(ROWS, row.batch * row.updates * row.owners)
    return {
        "largest unit": attacks.largest,
        "least squares": attacks.least_squares,
        "matching": attacks.matching(rows, iterations),
    }


def defended(updates: np.ndarray, defence: Defence) -> np.ndarray:
    """What leaves, by the code that runs of parties use."""
    bound = 0.5 * float(np.median(np.linalg.norm(updates, axis=1))) if defence.clipped else 0.0
    leave = leaving.Leaving(leaving.Settings(bound, defence.noise), leaving.Seeded(3), None)
    return np.stack([leave(update, party=party, turn=0) for party, update in enumerate(updates)])


def together(updates: np.ndarray, owners: int) -> np.ndarray:
    """What the server sees: each, or sums of several by the secure sum."""
    if owners == 1:
        return updates
    sums, bound = [], float(np.abs(updates).max())
    for at in range(0, len(updates), owners):
        group = range(at, at + owners)
        adding = unmasking.Simulated(4, updates.shape[1], bound)
        adding.begin(at, group)
        sums.append(adding.total(at, {one: adding.masked(at, one, updates[one]) for one in group}))
    return np.stack(sums).astype(np.float32)


def conclude(rows: dict[str, Any]) -> dict[str, Any]:
    """The keys that are told, from the rows that are there."""
    private = [rows[row.name] for row in PRIVATE if row.name in rows]
    worst = max(private, key=lambda row: row["cosine"] - row["chance"], default=None)
    first = rows.get(OPEN.name)
    return {
        "open_cosine": first and first["cosine"],
        "open_error": first and first["error"],
        "private_cosine": worst and worst["cosine"],
        "chance_cosine": worst and worst["chance"],
        "private": worst and worst["cosine"] <= worst["chance"] + MOST,
        "private_mode": "at least 32 local updates, clipped, critic at home, noise of z >= 0.5",
        "rows": rows,
    }


if __name__ == "__main__":
    main()

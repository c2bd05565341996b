"""Membership inference: whether a segment of experience was behind what an owner sent, with defences and without.

The setting is that of `inversion`: owners of HalfCheetah-v5 send the change of one global part after H local updates.
The attacker has a segment of eight steps and asks whether it was among those the message was made from. It computes the
gradient that the segment gives at the global part that was sent out, and takes its cosine with the message: the attack
that canaries of audits are found by (Andrew et al. 2023, arXiv:2302.03098; alignment of gradients as evidence: Li et
al. 2023, arXiv:2306.09273, for rewards and actions). Two attackers: an *insider* has the owner's local layers, the most
that anybody can know; an *outsider*, who takes part himself, puts his own in their place.

Members are a segment of each message; the others are segments of other owners, which the message has nothing of. `auc`
is the chance that a member scores above another (1/2: guessing), `found` the members above all but 1 % of the others
(Carlini et al. 2022, arXiv:2112.03570: what counts is who can be told for sure; guessing: 0.01). The private mode is
that of `inversion`; what it gives is the worst of its rows.
"""

from __future__ import annotations

import functools
from typing import Any

import _common
import _inversion as attacks
import inversion
import jax
import numpy as np

OWNERS, BATCH, OTHERS = 80, 8, 15
FORMS, UPDATES, DEFENCES, SUMS = ("A", "C"), (1, 10, 32), tuple(inversion.DEFENCES), (1, 4)
FALSE = 0.01  # of the others that may be taken for members
MOST = 0.6  # area that the private mode may leave
Row = inversion.Row
OPEN = Row("A", BATCH, 1, "open", 1)
TABLE = tuple(
    Row(form, BATCH, updates, defence, owners)
    for form in FORMS
    for updates in UPDATES
    for defence in DEFENCES
    for owners in SUMS
)
PRIVATE = tuple(row for row in TABLE if row.updates == max(UPDATES) and row.defence in ("z=0.5", "z=1"))
QUICK = (OPEN, *PRIVATE[:2])
WHO = ("insider", "outsider")
KEYS = (
    "open_auc",
    "open_found",
    "private_auc",
    "private_found",
    "private",
    "rows.*.insider.auc",
    "rows.*.outsider.auc",
)


def main() -> None:
    """Measure, and print the record."""
    arguments = _common.parser(__doc__).parse_args()
    owners = 16 if arguments.quick else OWNERS
    results: dict[str, Any] = {}
    for row in QUICK if arguments.quick else TABLE:
        results[row.name] = measured(row, owners)
        told = results[row.name]
        _common.say(f"{row.name:20} " + ", ".join(f"{who} {told[who]['auc']:.3f}" for who in WHO))
    _common.finish(arguments, _common.record("membership", arguments, conclude(results)))


def measured(row: Row, owners: int) -> dict[str, Any]:
    """Both attackers on one kind of message."""
    given = inversion.sent(row.form, row.batch, row.updates, owners)
    seen = inversion.together(inversion.defended(given.updates, inversion.DEFENCES[row.defence]), row.owners)
    told = {}
    for who in WHO:
        found = np.asarray(gradients(row.form, row.batch, row.updates, owners, who))  # [N, 1 + K, d]
        scores = cosines(seen, found[:: row.owners])  # of a sum, the first owner's segment is asked for
        told[who] = judged(scores[:, 0], scores[:, 1:])
    return {**row._asdict(), **told}


@functools.cache
def attacking(form: str, batch: int, owners: int) -> tuple[Any, Any, Any]:
    """The rule, its learners, and what a segment of one update would send; compiled once a form."""
    agent = attacks.agent_of(form, batch)
    return agent, attacks.learners(agent, owners, 1), attacks.sender(agent, 1, batch)


@functools.lru_cache(maxsize=2)  # both attackers of the messages that follow one another
def gradients(form: str, batch: int, updates: int, owners: int, who: str) -> Any:
    """What segments would give at the global part sent out, ``[N, 1 + K, d]``: an own one, and K of other owners.

    The own one is from the middle of the message, neither the first update nor the last.
    """
    agent, states, send = attacking(form, batch, owners)
    at = updates // 2 * batch
    whole = jax.tree.map(lambda leaf: leaf[:, : batch * updates], attacks.lived(agent, states, lives(owners), 2))
    segments = jax.tree.map(lambda leaf: leaf[:, at : at + batch], whole)
    heads = states if who == "insider" else jax.tree.map(lambda leaf: np.roll(leaf, 1, axis=0), states)
    few = min(OTHERS, owners - max(SUMS))
    apart = [0, *range(max(SUMS), max(SUMS) + few)]  # nobody of the same sum
    asked = [jax.tree.map(lambda leaf, by=by: np.roll(leaf, -by, axis=0), segments) for by in apart]
    return np.stack([np.asarray(send(heads, one)) for one in asked], axis=1)


def lives(owners: int) -> dict[str, np.ndarray]:
    """As `inversion` has them."""
    return inversion.lives(owners)


def cosines(seen: np.ndarray, found: np.ndarray) -> np.ndarray:
    """``[M, K]`` of messages ``[M, d]`` with candidates ``[M, K, d]``, in float64."""
    seen, found = np.asarray(seen, np.float64), np.asarray(found, np.float64)
    sizes = np.linalg.norm(seen, axis=1)[:, None] * np.linalg.norm(found, axis=2)
    return np.einsum("md,mkd->mk", seen, found) / np.maximum(sizes, 1e-300)


def judged(members: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """How well scores tell members from others.

    Args:
        members: ``[M]``.
        others: ``[M, K]``.

    Returns:
        ``auc``: the chance that a member scores above another, a tie counting half; ``found``: members above all but
        `FALSE` of the others.
    """
    flat = np.sort(others, axis=None)
    below = (np.searchsorted(flat, members, "left") + np.searchsorted(flat, members, "right")) / 2
    bar = np.quantile(flat, 1.0 - FALSE, method="higher")
    return {"auc": float(below.mean() / len(flat)), "found": float((members > bar).mean())}


def conclude(rows: dict[str, Any]) -> dict[str, Any]:
    """The keys that are told, from the rows that are there."""
    private = [rows[row.name] for row in PRIVATE if row.name in rows]
    first = rows.get(OPEN.name)

    def worst(key: str) -> float | None:
        return max((row[who][key] for row in private for who in WHO), default=None)

    area = worst("auc")
    return {
        "open_auc": first and first["outsider"]["auc"],
        "open_found": first and first["outsider"]["found"],
        "private_auc": area,
        "private_found": worst("found"),
        "private": area is not None and area <= MOST,
        "private_mode": "at least 32 local updates, clipped, critic at home, noise of z >= 0.5",
        "owners": OWNERS,
        "rows": rows,
    }


if __name__ == "__main__":
    main()

"""Membership inference: whether a segment of experience was behind what an owner sent, with defences and without.

The setting is that of `inversion`: owners of HalfCheetah-v5 send the change of one global part after H local updates.
The attacker has a segment of eight steps and asks whether it was among those the message was made from. Two attacks:

* *alignment*: the cosine of the message with the gradient that the segment gives at the global part that was sent out,
  as canaries of audits are found (Andrew et al. 2023, arXiv:2302.03098);
* *span*: how much of the segment's observations lies in the span of the first layer's change, whose columns are sums of
  what that layer saw (the closed form of `inversion`, of several steps); of noise the attacker knows the size.

Two attackers: an *insider* has the owner's local layers, the most that anybody can know; an *outsider*, who takes part
himself, puts his own in their place. Each is told by the better of his attacks. Members are up to eight segments of
each message, the others segments of other owners, which the message has nothing of. `auc` is the chance that a member
scores above another of the same message (guessing: 0.5), with twice its standard error over messages; `found` the
members above all but 1 % of the others (guessing: 0.01; Carlini et al. 2022, arXiv:2112.03570: what counts is who can
be told for sure). The private mode is that of `inversion`; what it gives is the worst of its rows.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import _common
import _inversion as attacks
import inversion
import jax
import numpy as np

OWNERS, BATCH, MEMBERS, OTHERS = 80, 8, 8, 15
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
    "open_insider_auc",
    "private_spread",
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
        _common.say(
            f"{row.name:20} " + ", ".join(f"{who} {told[who]['auc']:.3f} ({told[who]['attack']})" for who in WHO)
        )
    _common.finish(arguments, _common.record("membership", arguments, conclude(results)))


def measured(row: Row, owners: int) -> dict[str, Any]:
    """Both attackers on one kind of message."""
    given = inversion.sent(row.form, row.batch, row.updates, owners)
    sent = inversion.defended(given.updates, inversion.DEFENCES[row.defence])
    seen, told = inversion.together(sent, row.owners), {}
    noise = float(np.std(sent - _clipped(given.updates, row)) * np.sqrt(row.owners))
    for who in WHO:
        asked = candidates(row.form, row.batch, row.updates, owners, who)
        each = slice(None, None, row.owners)  # of a sum, the first owner's segments are asked for
        scores = {"alignment": cosines(seen, asked.gradients[each])}
        scores["span"] = spanned(first_layer(given, seen), asked.features[each], noise)
        found = {name: judged(one[:, : asked.members], one[:, asked.members :]) for name, one in scores.items()}
        best = max(found, key=lambda name: found[name]["auc"])
        told[who] = {"attack": best, **found[best], "attacks": found}
    return {**row._asdict(), **told}


def _clipped(updates: np.ndarray, row: Row) -> np.ndarray:
    return inversion.defended(updates, inversion.DEFENCES[row.defence]._replace(noise=0.0))


class Candidates(NamedTuple):
    """Segments that are asked for, of each message: its own first."""

    gradients: np.ndarray  # [N, M + K, d] at the global part sent out
    features: np.ndarray  # [N, M + K, T, in], what the first global layer would see
    members: int  # M


@functools.cache
def attacking(form: str, batch: int, owners: int) -> tuple[Any, Any, Any]:
    """The rule, its learners, and what a segment of one update would send; compiled once a form."""
    agent = attacks.agent_of(form, batch)
    return agent, attacks.learners(agent, owners, 1), attacks.sender(agent, 1, batch)


@functools.lru_cache(maxsize=2)  # both attackers of the messages that follow one another
def candidates(form: str, batch: int, updates: int, owners: int, who: str) -> Candidates:
    """Segments of each message, spread over its updates, and the middle ones of other owners."""
    agent, states, send = attacking(form, batch, owners)
    steps = attacks.lived(agent, states, _lives(owners, batch * updates), 2)
    heads = states if who == "insider" else jax.tree.map(lambda leaf: np.roll(leaf, 1, axis=0), states)
    own = np.unique(np.linspace(0, updates - 1, min(MEMBERS, updates)).astype(int))
    apart = range(max(SUMS), max(SUMS) + min(OTHERS, owners - max(SUMS)))  # nobody of the same sum
    gradients, seen = [], []
    for update, by in [*((at, 0) for at in own), *((updates // 2, by) for by in apart)]:
        part = jax.tree.map(lambda leaf: np.asarray(leaf)[:, update * batch : (update + 1) * batch], steps)  # noqa: B023
        part = jax.tree.map(lambda leaf: np.roll(leaf, -by, axis=0), part)  # noqa: B023
        gradients.append(np.asarray(send(heads, part)))
        seen.append(np.asarray(attacks.features(heads, part.obs)))
    return Candidates(np.stack(gradients, axis=1), np.stack(seen, axis=1), len(own))


def _lives(owners: int, steps: int) -> dict[str, np.ndarray]:
    return {name: leaf[:, :steps] for name, leaf in inversion.lives(owners).items()}


def cosines(seen: np.ndarray, found: np.ndarray) -> np.ndarray:
    """``[M, K]`` of messages ``[M, d]`` with candidates ``[M, K, d]``, in float64."""
    seen, found = np.asarray(seen, np.float64), np.asarray(found, np.float64)
    sizes = np.linalg.norm(seen, axis=1)[:, None] * np.linalg.norm(found, axis=2)
    return np.einsum("md,mkd->mk", seen, found) / np.maximum(sizes, 1e-300)


def first_layer(given: inversion.Sent, seen: np.ndarray) -> np.ndarray:
    """Kernel and bias of the first global layer in messages ``[M, d]``: ``[M, in + 1, 64]``."""
    layers = attacks.layers(jax.tree.map(lambda leaf: leaf[0], given.states.params), seen)
    return np.concatenate([layers.kernel, np.asarray(layers.bias)[:, None]], axis=1).astype(np.float64)


def spanned(layer: np.ndarray, features: np.ndarray, noise: float) -> np.ndarray:
    """How much of what a first layer sees lies in the span of its change, the mean over a segment: ``[M, K]``.

    Args:
        layer: Of each message, ``[M, in + 1, units]``.
        features: Of candidates, ``[M, K, T, in]``; the bias sees 1.
        noise: Standard deviation of a number of a message; directions that are no longer than it gives count less.
    """
    ones = np.ones((*features.shape[:-1], 1))
    rows = np.concatenate([features, ones], axis=-1).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    directions, sizes, _ = np.linalg.svd(layer, full_matrices=False)
    least = layer.shape[2] * noise**2 + 1e-10 * sizes[:, :1] ** 2
    weights = sizes**2 / (sizes**2 + least)  # [M, r]
    return np.einsum("mktr,mr->mk", np.einsum("mkti,mir->mktr", rows, directions) ** 2, weights) / features.shape[2]


def judged(members: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """How well scores tell members from others.

    Args:
        members: ``[M, m]``, of each message.
        others: ``[M, K]``.

    Returns:
        ``auc``: the chance that a member scores above another of its message, a tie counting half; ``spread``: twice
        its standard error over messages; ``found``: members above all but `FALSE` of the others of all messages.
    """
    above = (members[:, :, None] > others[:, None]) + 0.5 * (members[:, :, None] == others[:, None])
    each = above.mean(axis=(1, 2))
    bar = np.quantile(others, 1.0 - FALSE, method="higher")
    spread = 2.0 * each.std() / np.sqrt(len(each))
    return {"auc": float(each.mean()), "spread": float(spread), "found": float((members > bar).mean())}


def conclude(rows: dict[str, Any]) -> dict[str, Any]:
    """The keys that are told, from the rows that are there."""
    private = [rows[row.name] for row in PRIVATE if row.name in rows]
    first = rows.get(OPEN.name)

    every = [row[who] for row in private for who in WHO]
    worst = max(every, key=lambda one: one["auc"], default=None)
    return {
        "open_auc": first and first["outsider"]["auc"],
        "open_found": first and first["outsider"]["found"],
        "open_insider_auc": first and first["insider"]["auc"],
        "private_auc": worst and worst["auc"],
        "private_spread": worst and worst["spread"],
        "private_found": max((one["found"] for one in every), default=None),
        "private": worst and worst["auc"] <= MOST,
        "private_mode": "at least 32 local updates, clipped, critic at home, noise of z >= 0.5",
        "owners": OWNERS,
        "rows": rows,
    }


if __name__ == "__main__":
    main()

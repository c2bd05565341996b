"""What the run folder of a federation tells: its summary's object, the audit of messages, evaluations and ledger.

Four files beside the common ones, one JSON object a line; keys that are missing are shown as not measured:

* ``audit.jsonl``: a message. ``direction`` (``"up"`` | ``"down"``), ``party`` (its number), ``round``, ``bytes``,
  ``outcome`` (``ok``, ``late``, ``stale``, ``rejected:norm``, ``failed`` ...), ``lag`` (versions between download and
  apply).
* ``parties.jsonl``: an evaluation. ``env_steps`` (of one party, the median), ``each`` (of every party), ``returns``
  (one of each party, null where none).
* ``ledger.jsonl``: a release under differential privacy. ``party``, ``turn`` (which of that party's), ``epsilon`` (of
  all its releases so far).
* ``episodes.csv``: its column ``worker`` is the party's number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shoal.report import groups as experiments
from shoal.report import runs as run_folders

COLUMNS = frozenset(  # of the metrics, which are drawn or summed here
    {
        *("federation.mean", "federation.worst", "federation.version", "federation.took_part"),
    }
)
NONE = "none"  # the exchange of parties that send nothing
FORMS = ("A", "B", "C", "D", "E", "F", "G")
KINDS = ("counted", "idle", "late", "refused")  # what becomes of a message; idle: a party had nothing to say
LATE = ("late", "stale", "duplicate")  # outcomes that are nobody's offence


class Owner(NamedTuple):
    """A party, as the summary tells of it."""

    name: str
    env: str
    steps: float | None
    reached: float | None  # mean return of its last training episodes
    evaluation: float | None


class Evaluations(NamedTuple):
    """Greedy episodes of every party on the way."""

    steps: np.ndarray  # [E] environment steps of a party
    each: np.ndarray  # [E, N] of every party
    returns: np.ndarray  # [E, N] NaN where a party has none


class Messages(NamedTuple):
    """What parties sent up, one entry a message."""

    round: np.ndarray  # [M]
    party: np.ndarray  # [M]
    lag: np.ndarray  # [M] NaN where it was not told
    outcome: np.ndarray  # [M] text


def present(run: run_folders.Run) -> bool:
    """Whether a run is a federation's."""
    return isinstance(run.inner("federation"), Mapping) or (run.path / "audit.jsonl").exists()


def measured(found: Sequence[experiments.Group]) -> list[experiments.Group]:
    """The groups with the runs that are; a group without one is left out."""
    kept = [group._replace(runs=tuple(run for run in group.runs if present(run))) for group in found]
    return [group for group in kept if group.runs]


def number(run: run_folders.Run, *keys: str) -> float | None:
    """A number inside the summary's object; None: not measured."""
    return run_folders.number(run.inner("federation", *keys))


def measure(run: run_folders.Run, name: str, part: str) -> float | None:
    """One of several numbers of a kind, such as the least participation: as an object, or as a name of its own."""
    found = number(run, name, part)
    return number(run, f"{name}_{part}") if found is None else found


def share(run: run_folders.Run, part: str) -> float | None:
    """Share of the parties that took part in a round, least or on average; a count of them is brought to one."""
    given, parties = measure(run, "participation", part), len(owners(run))
    if given is None or not parties:
        return None
    return given / parties if run.inner("federation", "participation") is None else given


def text(run: run_folders.Run, *keys: str) -> str:
    """A name inside the summary's object, "" without."""
    found = run.inner("federation", *keys)
    return found if isinstance(found, str) else ""


def setting(run: run_folders.Run, name: str, part: str = "runtime") -> Any:
    """A setting of the runtime (or another part); None where it is not written."""
    parts = run.config.get("parts")
    given = parts.get(part) if isinstance(parts, Mapping) else None
    return given.get(name) if isinstance(given, Mapping) else None


def rejected(run: run_folders.Run) -> dict[str, float]:
    """Messages that were not let in, by reason; only reasons that occurred."""
    given = run.inner("federation", "rejected")
    pairs = given.items() if isinstance(given, Mapping) else ()
    return {str(reason): count for reason, value in pairs if (count := run_folders.number(value))}


def owners(run: run_folders.Run) -> list[Owner]:
    """The parties in their order; while there is no summary they have numbers for names."""
    given = run.inner("federation", "parties")
    found = [one for one in given if isinstance(one, Mapping)] if isinstance(given, list) else []
    if not found:
        count = run.parties if run.parties > 1 else 0
        return [Owner(str(at), run.env, None, None, None) for at in range(count)]
    return [_owner(at, one, run.env) for at, one in enumerate(found)]


def _owner(at: int, told: Mapping[str, Any], env: str) -> Owner:
    known = [run_folders.number(told.get(key)) for key in ("evaluation", "on_the_way")]
    evaluation = next((value for value in known if value is not None), None)
    steps, reached = (run_folders.number(told.get(key)) for key in ("env_steps", "return"))
    return Owner(str(told.get("name", at)), str(told.get("env", env)), steps, reached, evaluation)


def comparable(run: run_folders.Run) -> bool:
    """Whether returns of the parties are of one scale: their environments are those of one set, and have one shape."""
    sets = {owner.env.rpartition("/")[0] or owner.env for owner in owners(run)}
    return run.inner("federation", "alike") is not False and len(sets) <= 1


def exchanges(run: run_folders.Run) -> bool:
    """Whether anything is sent: parties of the baseline `independent` are alone."""
    return (text(run, "mode") or setting(run, "exchange")) != NONE


def simulated(run: run_folders.Run) -> list[str]:
    """What was only simulated on one machine, as the run told it, or as its settings say."""
    given = run.inner("federation", "simulated")
    found = [str(one) for one in given] if isinstance(given, list) else []
    if setting(run, "noise") and not any("noise" in one or "DP" in one for one in found):
        found.append("the noise of differential privacy comes from the run's seed (simulated DP, no protection)")
    if setting(run, "secure_sum") and not any("mask" in one for one in found):
        found.append("the masks of the secure sum come from the run's seed (simulated masks)")
    if setting(run, "paces"):
        found.append("how slow each party is")
    if setting(run, "attack"):
        found.append("the parties that attack")
    return list(dict.fromkeys(found))


# ------------------------------------------------------------------------------------------------ files


def _lines(run: run_folders.Run, name: str) -> Iterator[Mapping[str, Any]]:
    """The objects of a file, damaged and half-written lines left out; of a repeated account after resume, all."""
    path = run.path / name
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, Mapping):
                yield found


def _number(line: Mapping[str, Any], *names: str) -> float:
    for name in names:
        value = run_folders.number(line.get(name))
        if value is not None:
            return float(value)
    return float("nan")


def evaluations(run: run_folders.Run) -> Evaluations:
    """Those on the way; empty where there were none."""
    steps: list[float] = []
    rows: list[list[float]] = []
    own: list[list[float]] = []
    for line in _lines(run, "parties.jsonl"):
        given = line.get("returns")
        at = _number(line, "env_steps")
        if isinstance(given, list) and given and np.isfinite(at) and (not rows or len(given) == len(rows[0])):
            while steps and at <= steps[-1]:  # a resumed run tells again what came after its checkpoint
                steps.pop()
                rows.pop()
                own.pop()
            steps.append(at)
            told = line.get("each")
            own.append(told if isinstance(told, list) and len(told) == len(given) else [at] * len(given))
            rows.append([float("nan") if (v := run_folders.number(one)) is None else float(v) for one in given])
    shape = (len(steps), len(rows[0]) if rows else 0)
    made = [np.array(table, float).reshape(shape) for table in (own, rows)]
    return Evaluations(np.array(steps, float), *made)


def messages(run: run_folders.Run) -> Messages:
    """What was sent up, and what became of it."""
    found: list[tuple[float, float, float, str]] = []
    for line in _lines(run, "audit.jsonl"):
        if line.get("direction", "up") == "up" and "party" in line:
            at = (_number(line, "round"), _number(line, "party"), _number(line, "lag", "staleness"))
            found.append((*at, str(line.get("outcome", "ok"))))
    found = [one for one in found if np.isfinite(one[0]) and np.isfinite(one[1])]
    numbers = np.array([one[:3] for one in found], float).reshape(len(found), 3)
    return Messages(
        numbers[:, 0].astype(int), numbers[:, 1].astype(int), numbers[:, 2], np.array([one[3] for one in found], str)
    )


def spending(run: run_folders.Run) -> tuple[np.ndarray, np.ndarray]:
    """Releases of a party, and epsilon after each, of the party that has spent most."""
    highest: dict[int, float] = {}
    for line in _lines(run, "ledger.jsonl"):
        at, epsilon = _number(line, "turn") + 1, _number(line, "epsilon")
        if np.isfinite(at) and np.isfinite(epsilon):
            highest[int(at)] = max(epsilon, highest.get(int(at), 0.0))
    rounds = sorted(highest)
    return np.array(rounds, float), np.maximum.accumulate(np.array([highest[at] for at in rounds], float))


def kind(outcome: str) -> str:
    """One of `KINDS`."""
    if outcome == "ok":
        return "counted"
    if outcome == "skipped":
        return "idle"
    return "late" if outcome.removeprefix("rejected:") in LATE else "refused"


def sorted_out(outcomes: Sequence[str]) -> tuple[int, ...]:
    """How many messages became each of `KINDS`."""
    found = [kind(outcome) for outcome in outcomes]
    return tuple(found.count(one) for one in KINDS)


def episodes(run: run_folders.Run, party: int) -> tuple[np.ndarray, np.ndarray]:
    """Of one party: environment steps of a party at the end of each episode, and the mean return of the last ones."""
    mine = run.episodes.get("worker", np.zeros(0)) == party
    steps, returns = run.episodes["env_steps"], run.episodes["episode_return"]
    if len(mine) != len(steps):
        return np.zeros(0), np.zeros(0)
    return steps[mine] / run.parties, experiments.running_mean(returns[mine], experiments.WINDOW)


def lags(run: run_folders.Run) -> dict[str, float]:
    """How often each staleness occurred among what was applied, ascending; {} where nothing was told."""
    given = run.inner("federation", "staleness")
    given = given.get("histogram", {}) if isinstance(given, Mapping) else given
    if isinstance(given, list):
        given = {str(lag): count for lag, count in enumerate(given)}
        last = max((int(lag) for lag, count in given.items() if count), default=0)
        given = {lag: count for lag, count in given.items() if int(lag) <= last}
    if isinstance(given, Mapping) and given:
        counts = {str(label): value for label, one in given.items() if (value := run_folders.number(one)) is not None}
        return dict(sorted(counts.items(), key=lambda item: place(item[0])))
    sent = messages(run)
    known = sent.lag[np.isfinite(sent.lag) & (sent.outcome == "ok")]
    values, amounts = np.unique(known.astype(int), return_counts=True)
    return {str(value): float(amount) for value, amount in zip(values, amounts, strict=True)}


def limit(run: run_folders.Run) -> float | None:
    """The most epsilon that may be spent; None where there is no bound."""
    given = number(run, "max_epsilon")
    given = run_folders.number(setting(run, "max_epsilon")) if given is None else given
    return given or None


def place(label: str) -> float:
    """Where a staleness stands among others; one such as ``16+`` after all."""
    try:
        return float(label)
    except ValueError:
        return float("inf")

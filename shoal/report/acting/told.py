"""What a run told of its actors, learner, compressor and corrector in its summary; and whether compression paid.

Times of a run are brought to shares of its wall-clock: actors and learner live equally long, so their shares can be
laid beside each other however many actors there were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.report import groups as experiments
from shoal.report import runs as run_folders
from shoal.report import words

OBJECTS = ("actor", "learner", "compression", "correction")
ACTOR = ("inference", "env", "load", "other", "wait")  # parts of the time, in the order they are drawn
LEARNER = ("update", "publish", "other", "wait")
COLUMNS = frozenset(  # of the metrics, which are drawn here
    {
        *("kl_compression", "kl_staleness", "ess", "clip_fraction", "weight_mean", "chi2", "action_agreement"),
        *("staleness", "publish_share", "inference_us", "actor_inference_share", "packed_bytes"),
    }
)
FULL = ("", "identity", "full precision")  # levels at which nothing is compressed
LEAST = 0.05  # of the wall-clock: less is lost in what runs of one seed differ by, and does not pay
LATE = 0.02  # share of the learner's time that publishing may take


def present(run: run_folders.Run) -> bool:
    """Whether a run measured any of it; one that is under way has no summary, but its metrics."""
    told = any(isinstance(run.summary.get(name), Mapping) and run.summary[name] for name in OBJECTS)
    return told or any(run.latest(name) is not None for name in ("kl_compression", "actor_inference_share"))


def measured(found: Sequence[experiments.Group]) -> list[experiments.Group]:
    """The groups with the runs that measured any of it; a group without one is left out."""
    kept = [group._replace(runs=tuple(run for run in group.runs if present(run))) for group in found]
    return [group for group in kept if group.runs]


def number(run: run_folders.Run, *keys: str) -> float | None:
    """A number inside the summary's objects; None: not measured."""
    return run_folders.number(run.inner(*keys))


def text(run: run_folders.Run, *keys: str) -> str:
    """A name inside the summary's objects, "" without."""
    found = run.inner(*keys)
    return "" if found is None or isinstance(found, Mapping | list) else str(found)


def listed(run: run_folders.Run, *keys: str) -> list[Any]:
    """A list inside the summary's objects, empty without."""
    found = run.inner(*keys)
    return found if isinstance(found, list) else []


def numbers(run: run_folders.Run, *keys: str) -> dict[str, float]:
    """The numbers of an object inside the summary by name, those that were measured."""
    found = run.inner(*keys)
    pairs = found.items() if isinstance(found, Mapping) else ()
    return {str(name): value for name, given in pairs if (value := run_folders.number(given)) is not None}


def spent(run: run_folders.Run, who: str) -> dict[str, float]:
    """Seconds of the actors together, or of the learner, by part; {} if they were not measured."""
    split = numbers(run, who, "split")
    parts = ACTOR if who == "actor" else LEARNER
    return {part: split[f"{part}_s"] for part in parts if f"{part}_s" in split}


def shares(run: run_folders.Run, who: str) -> dict[str, float]:
    """The same as shares of their time."""
    seconds = spent(run, who)
    total = sum(seconds.values())
    return {part: value / total for part, value in seconds.items()} if total else {}


def busy(run: run_folders.Run, who: str) -> float | None:
    """Share of the time in which they did not wait."""
    parts = shares(run, who)
    return 1.0 - parts.get("wait", 0.0) if parts else None


def faster(run: run_folders.Run) -> float | None:
    """How many times faster than the fastest full-precision engine the policy ran that acted (s)."""
    return number(run, "actor", "amdahl", "s")


def packed(run: run_folders.Run) -> bool:
    """Whether something else acted than the full-precision policy."""
    return level(run) not in FULL


def level(run: run_folders.Run) -> str:
    """What acted: the level at the end, or the compressor."""
    return text(run, "compression", "level") or text(run, "compression", "name")


def before(run: run_folders.Run) -> dict[str, float]:
    """What the parts of the actors' time would be at full precision, in shares of the measured wall-clock.

    Without waiting, so the sum may be above 1: as much slower the run would have been, were it bound by its actors.
    """
    parts, s = shares(run, "actor"), faster(run)
    if not parts or not s:
        return {}
    return {part: share * (s if part == "inference" else 1.0) for part, share in parts.items() if part != "wait"}


def behind_learner(run: run_folders.Run) -> bool:
    """Whether the learner set the pace already at full precision."""
    actors, learner = sum(before(run).values()) or busy(run, "actor"), busy(run, "learner")
    return actors is not None and learner is not None and learner >= actors


def pays(run: run_folders.Run) -> bool | None:
    """Whether compression should gain anything worth its trouble; None: nothing was compressed, or measured."""
    gain = number(run, "actor", "amdahl", "predicted_reduction")
    return None if gain is None or not packed(run) else gain >= LEAST


def verdict(run: run_folders.Run) -> str:
    """In a sentence, whether compression pays here and why; "" where it was not measured."""
    f, gain = (number(run, "actor", "amdahl", key) for key in ("f", "predicted_reduction"))
    if not packed(run):
        return _chance(run)
    if pays(run) is None:
        return ""
    if pays(run):
        said = f"Compression pays: inference takes {words.percent(f)} of the wall-clock at full precision"
        said += f" and is {words.factor(faster(run))} as fast packed, which should save {words.percent(gain)} of it"
        actors, learner = busy(run, "actor"), busy(run, "learner")
        if actors is not None and learner is not None and learner > actors:
            said += ". Now the learner sets the pace, so a policy faster still would gain nothing"
        return f"{said}."
    return f"Compression does not pay here: {reason(run)}."


def verdicts(runs: Sequence[run_folders.Run]) -> list[tuple[bool | None, str]]:
    """The same of several runs of one experiment, with an example of each outcome."""
    if len(runs) == 1:
        said = verdict(runs[0])
        return [(pays(runs[0]), said)] if said else []
    found: list[tuple[bool | None, str]] = []
    for outcome, verb in ((True, "pays"), (False, "does not pay")):
        same = [run for run in runs if pays(run) is outcome]
        if same:
            why = "" if outcome else f": {reason(same[0])}"
            found.append((outcome, f"Compression {verb} in {len(same)} of {words.count(len(runs), 'run')}{why}."))
    chances = [said for run in runs if pays(run) is None and (said := verdict(run))]
    return [*found, *((None, said) for said in chances[:1])]


def reason(run: run_folders.Run) -> str:
    """Why compression does not pay, or would not."""
    s, f = faster(run), number(run, "actor", "amdahl", "f")
    if packed(run) and s is not None and s <= 1:
        full, ours = (number(run, "actor", "amdahl", key) for key in ("full_us", "packed_us"))
        against = f" ({words.number(ours)} µs a decision against {words.number(full)} µs)" if full and ours else ""
        return f"the packed policy is no faster than full precision on its fastest engine{against}"
    if behind_learner(run):
        waited = shares(run, "actor").get("wait", 0.0)
        return f"the learner sets the pace, and actors wait for it {words.percent(waited)} of their time"
    parts = shares(run, "actor")
    f = parts.get("inference") if f is None else f
    most = max((part for part in parts if part != "inference"), key=lambda part: parts[part], default="")
    where = {"env": "the simulators take", "wait": "waiting takes", "load": "loading snapshots takes"}
    rest = f"; {where.get(most, 'other work takes')} {words.percent(parts[most])}" if most else ""
    return f"inference is only {words.percent(f)} of the wall-clock at full precision{rest}"


def _chance(run: run_folders.Run) -> str:
    """What compression could gain for a run that acts at full precision."""
    parts, actors, learner = shares(run, "actor"), busy(run, "actor"), busy(run, "learner")
    if not parts or actors is None or learner is None:
        return ""
    inference = parts.get("inference", 0.0)
    most = 1.0 - max(actors - inference, learner) / max(actors, learner)
    if most < LEAST:
        return f"Compression would not pay here: {reason(run)}."
    said = f"Actors act at full precision and spend {words.percent(inference)} of their time on it"
    return f"{said}: compression could save at most {words.percent(most)} of the wall-clock."

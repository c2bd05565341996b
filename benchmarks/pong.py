"""Pong from pixels on two cores: steps and minutes until the mean of 100 training episodes reaches 0, and 18.

A run is `shoal train PRESET --env ALE/Pong-v5` as the preset has it, one seed after the other; it is asked to end after
`--hours` of wall time, all its lives together. Runs stay in `--folder`, where a second call goes on; what the JSON
holds of other presets and seeds stays in it. `--from-runs` trains nothing: it records runs that were made before, each
under its preset and whatever else it was given. Medians are over all seeds of a preset; one that did not come there
counts as never. A step is four frames.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _common
import numpy as np

from shoal.core import errors, options
from shoal.experiment import presets
from shoal.report import runs as run_folders
from shoal.runs import checkpoint

ENV, FRAMES = "ALE/Pong-v5", 4
PRESETS = ("a3c_lstm", "ppo", "a3c_paper", "a3c", "impala")
RANDOM, GOALS = -20.7, (0, 18)  # Mnih et al. 2015, extended data table 2; means that are waited for, of 21 at most
HOURS, QUICK_HOURS = 3.0, 30 / 3600
SPENT = 0.99  # of its time, from which on a run is not begun again for the rest
WINDOW, POINTS = 100, 200  # episodes of the mean; points of a curve
REACHED = tuple(f"{what}_to_{goal}" for goal in GOALS for what in ("steps", "minutes"))
KEYS = (
    "goals",
    *(f"presets.*.{key}" for key in ("seeds", *(f"reached_{goal}" for goal in GOALS), *REACHED, "curve")),
    *(f"presets.*.runs.*.{key}" for key in ("status", "env_steps", "wall_s", "hours", "shared", "last_mean", *REACHED)),
)
FIGURE = _common.ROOT / "docs" / "images" / "pong.svg"

Runs = dict[str, dict[str, dict[str, Any]]]  # preset with what else it was given -> seed -> run, its curve in it


class Limits(NamedTuple):
    """Under what a run was made."""

    hours: float | None  # of wall time, at most; None: nobody said
    shared: bool | None  # whether other programs had the cores as well; None: nobody said


def main() -> int:
    """Train or go on, or read what was trained; print the record."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # or a run would go on without us
    arguments = _parser().parse_args()
    try:
        kept = earlier(arguments)
        for name, seed, run in read(arguments) if arguments.from_runs else trained(arguments, kept):
            kept.setdefault(name, {})[seed] = run
            told = {key: run[key] for key in ("status", "env_steps", "wall_s", "best_mean", *REACHED)}
            _common.say(f"{name}, seed {seed}: {told}")
            if arguments.json:
                _common.save(arguments.json, _common.record("pong", arguments, conclude(kept)))
    except errors.ShoalError as error:
        _common.say(f"shoal bench pong: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _common.say("shoal bench pong: interrupted; the run is saved, and the same call goes on")
        return 128 + signal.SIGINT
    results = conclude(kept)
    if arguments.json and not arguments.quick:
        committed = arguments.json.resolve() == _common.RESULTS / "pong.json"
        draw(results["presets"], FIGURE if committed else arguments.json.with_suffix(".svg"))
    _common.finish(arguments, _common.record("pong", arguments, results))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _common.parser(__doc__)
    parser.add_argument("--preset", nargs="+", choices=PRESETS, help=f"one or more (default: {PRESETS[0]})")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="one or more (default: 0)")
    parser.add_argument("--hours", type=float, help=f"of wall time a run, at most (default: {HOURS:g})")
    parser.add_argument("--shared", action="store_true", help="say that other programs had the cores as well")
    parser.add_argument("--folder", type=Path, help="of all runs (default: runs/pong)")
    parser.add_argument("--from-runs", type=Path, nargs="+", metavar="FOLDER", help="train nothing, record these runs")
    parser.add_argument("--fresh", action="store_true", help="train again what the JSON holds already")
    return parser


def earlier(arguments: argparse.Namespace) -> Runs:
    """The runs that the JSON holds.

    Raises:
        errors.Refused: It is a file of something else.
    """
    if arguments.quick or not (arguments.json and arguments.json.exists()):
        return {}
    try:
        parts = json.loads(arguments.json.read_text(encoding="utf-8"))["results"]["presets"]
        return {
            name: {seed: run | {"curve": part["curve"][seed]} for seed, run in part["runs"].items()}
            for name, part in parts.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.Refused(
            f"--json {arguments.json} is there and no record of this benchmark ({error!r}); give another file"
        ) from None


# -------------------------------------------------------------------------------------------------------------- runs


def trained(arguments: argparse.Namespace, kept: Runs) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every run that was asked for, once it has ended: (name, seed, run)."""
    seeds, chosen = arguments.seeds or [0], arguments.preset or [PRESETS[0]]
    hours = QUICK_HOURS if arguments.quick else HOURS if arguments.hours is None else arguments.hours
    if not 0 < hours < math.inf:
        raise errors.Refused(f"--hours {hours:g} is no time to train; give more than 0, e.g. --hours {HOURS:g}")
    if min(seeds) < 0:
        raise errors.Refused(f"--seeds {min(seeds)} is below 0; give 0 or more, e.g. --seeds 0 1 2")
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as passing:
        above = Path(passing) if arguments.quick else arguments.folder or Path("runs") / "pong"
        for preset in dict.fromkeys(chosen):
            for seed in dict.fromkeys(seeds):
                folder, there = above / f"{preset}-{seed}", kept.get(preset, {}).get(str(seed))
                if folder.exists() and arguments.fresh:
                    raise errors.Refused(
                        f"{folder} holds a run already: it goes on without --fresh; to begin anew give another --folder"
                    )
                if there and not arguments.fresh and not folder.exists() and settled(there, hours):
                    _common.say(f"{preset}, seed {seed}: in {arguments.json} already; --fresh trains it again")
                    continue
                train(folder, preset, seed, 3600.0 * hours)
                found = run_folders.read(folder)
                run = run_of(found, Limits(hours, arguments.shared)) | {"commit": _common.commit()}
                yield named(found), str(seed), run


def settled(run: Mapping[str, Any], hours: float) -> bool:
    """Whether a run that is in the record would not be longer if it were made again."""
    return run["status"] == "completed" or run["wall_s"] >= SPENT * 3600.0 * hours


def train(folder: Path, preset: str, seed: int, seconds: float) -> None:
    """Begin or go on, and ask for the end when the run has taken so many seconds, but not before it has begun."""
    words = ["train", preset, "--env", ENV, "--seed", seed, "--out", folder]
    begun = folder / "config.json"
    if begun.exists():
        words = ["resume", folder]
        completed, spent = before(folder)
        if completed or spent >= SPENT * seconds:
            return
        seconds -= spent
    words += ["--eval-episodes", 0]
    process = subprocess.Popen([sys.executable, "-m", "shoal", *map(str, words)], stdout=sys.stderr)
    ends = time.monotonic() + seconds
    try:
        while process.poll() is None and (time.monotonic() < ends or not begun.exists()):
            time.sleep(1.0)
    finally:  # whatever ends this, the run is saved and does not outlive it
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait()
    if process.returncode == -signal.SIGTERM and time.monotonic() >= ends:
        return  # asked for the end before it listened: nothing was added to what there is
    if process.returncode < 0:  # had no time to say why
        raise errors.GaveUp(f"shoal {words[0]} was killed by {signal.Signals(-process.returncode).name}")
    if process.returncode not in (0, 75):
        sys.exit(process.returncode)  # it has said why


def before(folder: Path) -> tuple[bool, float]:
    """Whether a run is complete, and the seconds it took."""
    found = run_folders.read(folder)
    status, _, spent = taken(found)
    return status == "completed", spent


def taken(run: run_folders.Run) -> tuple[str, int, float]:
    """How a run ended, its steps and its seconds. One that was killed left no summary, or one of an earlier life."""
    told, last = (int(value or 0) for value in (run.value("env_steps"), run.latest("step")))
    seconds = max(run.value("wall_s") or 0.0, run.latest("wall_s") or 0.0)
    return "unfinished" if last > told else run.status, max(told, last), seconds


def read(arguments: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The runs of `--from-runs`: (name, seed, run).

    Raises:
        errors.Refused: A folder holds no run, or none of this game, or one that is under way or did not begin by
            itself, or two hold the same; nothing was recorded.
    """
    others = ("preset", "seeds", "folder", "fresh")
    if given := [f"--{name}" for name in others if getattr(arguments, name)]:
        raise errors.Refused(f"--from-runs trains nothing, and {given[0]} is for training; give one of the two")
    limits, found = Limits(arguments.hours, arguments.shared), {}
    for run in run_folders.read_all(arguments.from_runs):
        if run.env != ENV:
            raise errors.Refused(f"{run.path} is a run of {run.env}; give runs of {ENV}")
        if run.config.get("start") or run.config.get("schedule"):
            raise errors.Refused(f"{run.path} began from another run; give runs that began by themselves")
        if (run.path / ".lock").exists():
            with checkpoint.lock(run.path):
                pass  # nobody is at it
        key = named(run), str(run.seed)
        if key in found:
            raise errors.Refused(f"{found[key].path} and {run.path} are both {key[0]}, seed {key[1]}; give one of them")
        found[key] = run
    yield from [(*key, run_of(run, limits) | {"commit": None}) for key, run in found.items()]  # it is not told


def named(run: run_folders.Run) -> str:
    """The preset, and the options by which a run differs from what it has for this game now."""
    config, words = run.config, [run.preset]
    chosen = {kind: config["parts"][kind]["name"] for kind in ("runtime", "corrector", "compressor")}
    usual, request = presets.Request(run.preset, ENV), presets.Request(run.preset, ENV, **chosen)
    words += [f"--{kind} {name}" for kind, name in chosen.items() if name != presets.parts(usual)[kind]]
    for kind, given in config["parts"].items():
        ours = json.loads(json.dumps(options.plain(presets.config(request, kind))))
        differ = {field: value for field, value in given.items() if field != "name" and ours.get(field, ()) != value}
        for field, value in differ.items():
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            words.append(f"--{kind}.{field.replace('_', '-')} {shown}")
    preset = presets.find(run.preset)
    tuned = presets.tuned_for(preset, ENV)
    steps = tuned.steps if tuned else preset.steps
    return " ".join([*words, *([] if config["steps"] == steps else [f"--steps {config['steps']}"])])


def run_of(run: run_folders.Run, limits: Limits) -> dict[str, Any]:
    """The numbers of a run, and its curve."""
    steps, returns, walls = (run.episodes[column] for column in ("env_steps", "episode_return", "wall_s"))
    sums = np.cumsum(np.concatenate([[0.0], returns]))
    means = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW if len(returns) >= WINDOW else np.zeros(0)
    steps, minutes = steps[WINDOW - 1 :], walls[WINDOW - 1 :] / 60
    chosen = np.unique(np.linspace(0, len(means) - 1, POINTS).astype(int)) if len(means) else []
    status, env_steps, seconds = taken(run)
    rate = run.value("env_steps_per_s")
    found: dict[str, Any] = {
        "status": status,
        "steps": run.config["steps"],
        "env_steps": env_steps,
        "wall_s": seconds,
        "hours": limits.hours,
        "shared": limits.shared,
        "frames_per_s": FRAMES * rate if rate else None,
        "last_mean": float(means[-1]) if len(means) else None,
        "best_mean": float(means.max()) if len(means) else None,
    }
    for goal in GOALS:
        there = np.flatnonzero(means >= goal)
        found[f"steps_to_{goal}"] = int(steps[there[0]]) if len(there) else None
        found[f"minutes_to_{goal}"] = round(float(minutes[there[0]]), 2) if len(there) else None
    curve = [[int(steps[at]), round(60 * float(minutes[at]), 1), float(means[at])] for at in chosen]
    return found | {"curve": curve, **origin(run)}


def origin(run: run_folders.Run) -> dict[str, Any]:
    """How, when and where a run was made; no path of the machine."""
    words = shlex.split(str(run.config.get("command") or ""))
    shown = ["DIR" if Path(word).is_absolute() else word for word in words]
    try:
        alive = json.loads((run.path / "status.json").read_text(encoding="utf-8"))["heartbeat"]
        day = datetime.datetime.fromtimestamp(alive, datetime.UTC).date().isoformat()
    except (OSError, ValueError, KeyError, TypeError):
        day = None
    keys = ("machine", "versions")
    return {"command": " ".join(shown) or None, "date": day} | {key: run.config.get(key) for key in keys}


# --------------------------------------------------------------------------------------------------------- concluded


def conclude(kept: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """All numbers of the runs that are there, presets in the order of `PRESETS`."""
    parts = {}
    for name in sorted(kept, key=_place):
        runs = dict(sorted(kept[name].items(), key=lambda item: int(item[0])))
        each = list(runs.values())
        parts[name] = {
            "seeds": len(each),
            **{f"reached_{goal}": sum(run[f"steps_to_{goal}"] is not None for run in each) for goal in GOALS},
            **{key: median([run[key] for run in each]) for key in REACHED},
            "curve": {seed: run["curve"] for seed, run in runs.items()},
            "runs": {seed: {key: run[key] for key in run if key != "curve"} for seed, run in runs.items()},
        }
    return {"goals": list(GOALS), "random": RANDOM, "window": WINDOW, "presets": parts}


def _place(name: str) -> tuple[int, str]:
    preset = name.split(maxsplit=1)[0]
    return PRESETS.index(preset) if preset in PRESETS else len(PRESETS), name


def median(values: Sequence[float | None]) -> float | None:
    """The median of what was measured, where nothing counts as never; None if the median is that."""
    found = statistics.median(math.inf if value is None else value for value in values)
    return found if math.isfinite(found) else None


def draw(parts: Mapping[str, Any], out: Path) -> None:
    """The figure of the documentation: the mean of 100 episodes over steps and over minutes; a preset has a hue."""
    import matplotlib
    from matplotlib import figure

    from shoal.report import picture

    grey = picture.HUES[-1]
    drawn = figure.Figure(figsize=(8.2, 3.6), layout="constrained")
    over_steps, over_minutes = drawn.subplots(1, 2, sharey=True)
    every = [*PRESETS, *(name for name in parts if name not in PRESETS)]  # a preset keeps its hue, whoever joins
    for name, part in parts.items():
        hue = picture.HUES[every.index(name) % (len(picture.HUES) - 1)]
        for at, (seed, curve) in enumerate(part["curve"].items()):
            steps, seconds, means = np.array(curve or [[0, 0, np.nan]], dtype=float).T
            label = f"{name} ({_seeds(part)})" if at == 0 else "_"  # once for all seeds
            beside = part["runs"][seed]["shared"]
            style = {"color": hue, "linewidth": 1.1, "linestyle": (0, (4, 1.5)) if beside else "-"}
            over_steps.plot(steps / 1e6, means, label=label, **style)
            over_minutes.plot(seconds / 60, means, **style)
    for axes, label in ((over_steps, "million steps of four frames"), (over_minutes, "minutes")):
        for level in (*GOALS, RANDOM):
            axes.axhline(level, color=grey, linewidth=0.7, alpha=0.7, linestyle=":", zorder=0)
        axes.set(xlabel=label, ylim=(-24, 22), xlim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    over_steps.set_ylabel("mean return, 100 episodes")
    for level, text, side in ((RANDOM, "a random player", "top"), *((goal, f"{goal}", "bottom") for goal in GOALS)):
        over_minutes.annotate(text, (1.0, level), xycoords=("axes fraction", "data"), ha="right", va=side,
                              fontsize=8, color=grey)  # fmt: skip
    if parts:
        drawn.legend(loc="outside upper center", ncols=min(len(parts), 3), frameon=False, fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "shoal"}):
        drawn.savefig(out, dpi=160, metadata={"Date": None} if out.suffix == ".svg" else None)


def _seeds(part: Mapping[str, Any]) -> str:
    """How many; dashes are runs that shared the machine."""
    shared = sum(bool(run["shared"]) for run in part["runs"].values())
    beside = "" if not shared else ", cores shared" if shared == part["seeds"] else f", {shared} of them cores shared"
    return f"{part['seeds']} seed{'s' if part['seeds'] > 1 else ''}{beside}"


if __name__ == "__main__":
    sys.exit(main())

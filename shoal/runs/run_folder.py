"""A run's folder on the disk: its place, ``config.json``, and its newest good checkpoint (docs/run_folder.md)."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epy

from shoal import experiment
from shoal.core import errors, files, processor, types
from shoal.experiment import extending
from shoal.runs import checkpoint
from shoal.runtimes.crew import threads

with epy.lazy_imports():
    import jax

    from shoal import report


def named(made: experiment.Experiment, seeds: Sequence[int], out: str | Path | None) -> Path:
    """Where the run goes: `out`, or ``runs/<preset>-<env>-<seed>-<time>``; of several, the first and last seed."""
    which = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}to{seeds[-1]}"
    name = f"{made.preset}-{made.env}-{which}-{time.strftime('%Y%m%d-%H%M%S')}".replace("/", "_").replace(":", "_")
    return Path(out) if out else Path("runs") / name


def free(folder: Path, *, exact: bool = True) -> Path:
    """The folder, if it can be made; asked before anything slow, and before anything is made.

    Args:
        folder: What it is to be called.
        exact: See `making`.

    Raises:
        Refused: It is there, or cannot be made.
    """
    if exact and os.path.lexists(folder):
        raise errors.Refused(
            f"the output folder {folder} exists; choose another with --out, or continue it with "
            f"`shoal resume {files.typed(folder)}`"
        )
    above = next(parent for parent in folder.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise errors.Refused(f"cannot make the output folder {folder} ({above} is a file); choose another with --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise errors.Refused(
            f"cannot make the output folder {folder} ({above} cannot be written); choose another with --out"
        )
    return folder


@contextlib.contextmanager
def making(folder: Path, *, exact: bool = True) -> Iterator[Path]:
    """Make it, and what is missing above it; what the block writes into it belongs to it.

    Args:
        folder: What it is to be called.
        exact: A person said so. Otherwise a number is added where another run of the same second has the name.

    Yields:
        The folder that was made.

    Raises:
        Refused: It cannot be made, or not be written to; nothing is left of it.
    """
    missing = [path for path in folder.parents if not os.path.lexists(path)]
    made = None
    try:
        made = _made(folder, exact=exact)
        yield made
    except OSError as error:
        if made:
            shutil.rmtree(made, ignore_errors=True)
        for path in missing:
            with contextlib.suppress(OSError):  # never made, or another's by now
                path.rmdir()
        raise errors.Refused(
            f"cannot make the output folder {folder} ({files.reason(error)}); choose another with --out"
        ) from None


def _made(folder: Path, *, exact: bool) -> Path:
    """The first of ``folder``, ``folder-2``, ``folder-3``, ... that nobody has; only the first where it is `exact`."""
    for number in itertools.count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            place.mkdir(parents=True)
            return place
        except FileExistsError:
            if exact:  # made by another process since we looked
                free(folder)
                raise
    raise AssertionError("there is always another number")


def write_config(
    folder: Path, made: experiment.Experiment, command: str, more: Mapping[str, Any] | None = None
) -> None:
    """``config.json``: the experiment as data, how it was asked for, and what the result depends on."""
    about = {
        **proof(made),
        "command": command,
        "versions": versions(),
        "machine": machine(),
        **(more or {}),
    }
    write_json(folder / "config.json", made.to_json() | about)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a run folder.

    Raises:
        Refused: It is not a run folder.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise errors.Refused(
            f"{folder} is not a run folder: there is no such folder; `shoal train` makes one under runs/"
        )
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise errors.Refused(
            f"{folder} is not a run folder: it has no config.json; give the folder that `shoal train` printed"
        ) from None
    except (OSError, ValueError) as error:
        raise errors.Refused(f"{path} cannot be read ({error}); restore it, or train anew") from None
    if not isinstance(data, dict):
        raise errors.Refused(f"{path} is not one of Shoal's: it holds no JSON object")
    return data


def unedited(folder: Path, config: Mapping[str, Any]) -> experiment.Experiment:
    """The experiment of a ``config.json`` that is as it was written.

    Raises:
        Refused: It was edited.
    """
    made = experiment.from_json(config)
    if config.get("experiment_sha256") != digest(made):
        raise errors.Refused(
            f"{folder}/config.json was edited since the run began; restore it, or train anew with `shoal train`"
        )
    return made


def proof(made: experiment.Experiment) -> dict[str, str]:
    """The key of ``config.json`` by which it is known to be unedited."""
    return {"experiment_sha256": digest(made)}


def status(folder: Path) -> str | None:
    """How it ended, as its ``summary.json`` says; None while it has none."""
    try:
        return json.loads((folder / "summary.json").read_text()).get("status")
    except (OSError, ValueError, AttributeError):
        return None


def taken(folder: Path, made: experiment.Experiment) -> int:
    """Environment steps of a run that is complete, of each seed where it holds several; else those asked for."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        return (
            max(run["env_steps"] for run in summary.get("runs", [summary]))
            if status(folder) == "completed"
            else made.steps
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return made.steps


def spent_s(folder: Path) -> float:
    """Seconds of all lives that have ended, as its ``summary.json`` says; 0 while it has none.

    The newest checkpoint does not know of a life that ended before it saved anything.
    """
    try:
        return max(0.0, float(json.loads((folder / "summary.json").read_text())["wall_s"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def digest(made: experiment.Experiment) -> str:
    """SHA-256 of the experiment as data."""
    return hashlib.sha256(json.dumps(made.to_json(), sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """What the result depends on."""
    from importlib import metadata

    packages = {
        name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy", "gymnasium", "gymnax")
    }
    return {"shoal": metadata.version("shoal-rl"), "python": platform.python_version(), **packages}


def machine() -> dict[str, Any]:
    """Processor, cores, memory and instruction sets of this machine."""
    said = processor.told()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": next(iter(processor.values(said, "model name")), platform.processor() or platform.machine()),
        "cores": threads.cores(),
        "memory_gb": round(memory, 1),
        "instruction_sets": processor.instruction_sets(said),
    }


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step, so that nobody ever reads half of it.

    Raises:
        OSError: It cannot be written; what was there is as it was.
    """
    files.replace(path, encoded(data))


def encoded(data: Mapping[str, Any]) -> bytes:
    """As Shoal writes its JSON files."""
    return (json.dumps(data, indent=1) + "\n").encode()


def conclude(folder: Path, summary: Mapping[str, Any], runs: Sequence[Path], say: Callable[[str], None]) -> None:
    """``summary.json``, then ``report.html``: the last files of a run, or of several.

    Those that cannot be written are told in one line, and undo nothing.

    Args:
        folder: Where.
        summary: What it came to.
        runs: The folders the report is about; empty for none.
        say: Told.
    """
    lost: dict[str, str] = {}
    whole = {"summary.json": lambda: encoded(summary), "report.html": lambda: report.body(runs)}
    for name, made in whole.items():
        if name != "report.html" or runs:
            try:
                files.replace(folder / name, made())
            except OSError as error:
                lost[name] = files.reason(error)
    if lost:
        verb = "resume" if "summary.json" in lost else "report"
        names, why = " and ".join(lost), next(iter(lost.values()))
        say(f"warning: {names} could not be written ({why}); make room, then `shoal {verb} {folder}` writes them")


def going_on(
    folder: Path, made: experiment.Experiment, built: experiment.Built, say: Callable[[str], None]
) -> checkpoint.Loaded | None:
    """Where a run goes on: its `newest` good checkpoint; None where none was ever saved, and it begins anew.

    Raises:
        Refused: As `newest`.
        NoCheckpoint: All are damaged.
    """
    if checkpoint.ever(folder / "checkpoints"):
        return newest(folder, made, built, say)
    say(f"the run with seed {made.seed} was never saved: it begins anew")
    return None


def newest(
    folder: Path, made: experiment.Experiment, built: experiment.Built, say: Callable[[str], None]
) -> checkpoint.Loaded:
    """The newest good checkpoint; a damaged one is named and the one before is used.

    Raises:
        Refused: It is another run's.
        NoCheckpoint: None is usable.
    """
    like = built.runtime.like(built.parts, made.seed)
    loaded = checkpoint.newest(folder / "checkpoints", like, say)
    if loaded.meta.get("config_sha256") not in {digest(one) for one in (made, *extending.ancestors(made))}:
        raise errors.Refused(f"{folder} holds checkpoints of another run; restore its own, or train anew")
    return loaded._replace(tree=extending.annealed(loaded.tree, made))


def as_saved(built: experiment.Built, made: experiment.Experiment, saved: checkpoint.Loaded) -> types.Result:
    """What the runtime had come to when it was saved."""
    final = types.Progress(
        env_steps=saved.step, updates=saved.meta["updates"], train_s=0.0, episodes=[], metrics={}, split={}, workers={},
        faults={}, save=lambda: saved.tree,
    )  # fmt: skip
    every = policies(built, made, saved)
    policy = every[0] if every else jax.device_get(built.runtime.policy(built.parts, made.seed, saved.tree))
    return types.Result(policy=policy, final=final, startup_s=0.0, policies=every)


def policies(
    built: experiment.Built, made: experiment.Experiment, saved: checkpoint.Loaded
) -> tuple[types.Policy, ...]:
    """Those of all parties in a checkpoint, in their order; (): nobody trains together."""
    if not experiment.ways(made.runtime, made.configs["runtime"]).parties:
        return ()
    runtime: Any = built.runtime  # a `types.Owning`
    found: tuple[types.Policy, ...] = runtime.policies(built.parts, made.seed, saved.tree)
    return found

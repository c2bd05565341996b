"""A run's folder on the disk: its place, ``config.json``, and its newest good checkpoint (docs/run_folder.md)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epy

from shoal import checkpoint, errors, experiment, types

with epy.lazy_imports():
    import jax


def named(made: experiment.Experiment, seeds: Sequence[int], out: str | Path | None) -> Path:
    """Where the run goes: `out`, or ``runs/<preset>-<env>-<seed>-<time>``; of several, the first and last seed."""
    which = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}to{seeds[-1]}"
    name = f"{made.preset}-{made.env}-{which}-{time.strftime('%Y%m%d-%H%M%S')}".replace("/", "_").replace(":", "_")
    return Path(out) if out else Path("runs") / name


def free(folder: Path) -> Path:
    """The folder, if it can be made; asked before anything slow, and before anything is made.

    Raises:
        Refused: It is there, or cannot be made.
    """
    if os.path.lexists(folder):
        raise errors.Refused(
            f"the output folder {folder} exists; choose another with --out, or continue it with `shoal resume {folder}`"
        )
    above = next(parent for parent in folder.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise errors.Refused(f"cannot make the output folder {folder} ({above} is a file); choose another with --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise errors.Refused(
            f"cannot make the output folder {folder} ({above} cannot be written); choose another with --out"
        )
    return folder


def make(folder: Path) -> None:
    """Make it, and what is missing above it.

    Raises:
        Refused: It cannot be made; nothing is left of it.
    """
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        free(folder)  # made by another process since we looked
    except OSError as error:
        for path in missing:
            with contextlib.suppress(OSError):  # never made, or another's by now
                path.rmdir()
        raise errors.Refused(
            f"cannot make the output folder {folder} ({error.strerror}); choose another with --out"
        ) from None


def write_config(
    folder: Path, made: experiment.Experiment, command: str, more: Mapping[str, Any] | None = None
) -> None:
    """``config.json``: the experiment as data, how it was asked for, and what the result depends on."""
    about = {
        "experiment_sha256": digest(made),
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


def status(folder: Path) -> str | None:
    """How it ended, as its ``summary.json`` says; None while it has none."""
    try:
        return json.loads((folder / "summary.json").read_text()).get("status")
    except (OSError, ValueError, AttributeError):
        return None


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
    """Processor, cores and memory of this machine."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass  # not Linux
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gb": round(memory, 1)}  # fmt: skip


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step, so that nobody ever reads half of it."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    temporary.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(temporary, path)


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
    if loaded.meta.get("config_sha256") != digest(made):
        raise errors.Refused(f"{folder} holds checkpoints of another run; restore its own, or train anew")
    return loaded


def as_saved(built: experiment.Built, made: experiment.Experiment, saved: checkpoint.Loaded) -> types.Result:
    """What the runtime had come to when it was saved."""
    final = types.Progress(saved.step, saved.meta["updates"], 0.0, [], {}, {}, {}, {}, lambda: saved.tree)
    return types.Result(jax.device_get(built.runtime.policy(built.parts, made.seed, saved.tree)), final, 0.0)

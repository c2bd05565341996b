"""Train, resume, evaluate: what the command line and `shoal.train` both call."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from shoal import checkpoint, environments, errors, experiment, log, presets, session, types

with epy.lazy_imports():
    import jax

    from shoal import evaluation, report

EVAL_EPISODES = 20


class Run(NamedTuple):
    """A finished (or interrupted) run."""

    folder: Path
    experiment: experiment.Experiment
    policy: types.Policy
    summary: dict[str, Any]

    def evaluate(self, episodes: int = EVAL_EPISODES, seed: int | None = None) -> evaluation.Evaluation:
        """Play whole episodes with the frozen, greedy policy."""
        built = experiment.build(self.experiment)
        return evaluation.evaluate(built.parts, self.policy, episodes, self.experiment.seed if seed is None else seed)


def train(
    request: presets.Request,
    out: str | Path | None = None,
    *,
    console: log.Console | None = None,
    eval_episodes: int = EVAL_EPISODES,
    since: float | None = None,
    command: str | None = None,
) -> Run:
    """Train a preset.

    Args:
        request: What to train.
        out: The run folder; must not exist. None: ``runs/<preset>-<env>-<seed>-<time>``.
        console: What a person sees; None picks by where stderr goes.
        eval_episodes: Episodes of the evaluation at the end; 0 for none.
        since: ``time.time()`` when the command began.
        command: How the run was asked for, for the report.

    Raises:
        Refused: The request or the folder; nothing was created.
        GaveUp: A crash loop; the folder tells what happened.
    """
    since = since or time.time()
    _check(eval_episodes)
    made, opened = presets.resolve(request)
    folder = _free(_folder(made, out))
    built = _build(made, opened)
    _make(folder)
    config = made.to_json() | {
        "experiment_sha256": session.digest(made),
        "command": command or _command(),
        "versions": session.versions(),
        "machine": session.machine(),
    }
    session.write_json(folder / "config.json", config)
    return _run(folder, made, built, console, eval_episodes, since, resuming=False)


def resume(
    folder: str | Path,
    *,
    console: log.Console | None = None,
    eval_episodes: int = EVAL_EPISODES,
    since: float | None = None,
) -> Run:
    """Continue an interrupted run from its newest good checkpoint.

    Raises:
        Refused: Not a run folder, one in use, or a run that is complete.
        NoCheckpoint: None is usable.
    """
    since = since or time.time()
    folder = Path(folder)
    _check(eval_episodes)
    config = session.read_config(folder)
    made = experiment.from_json(config)
    if config.get("experiment_sha256") != session.digest(made):
        raise errors.Refused(
            f"{folder}/config.json was edited since the run began; restore it, or train anew with `shoal train`"
        )
    if _status(folder) == "completed":
        raise errors.Refused(f"{folder} is complete: nothing is left to do; `shoal train` begins a new run")
    opened = environments.open(made.env, made.configs["environment"])
    experiment.validate(made, opened)
    return _run(folder, made, _build(made, opened), console, eval_episodes, since, resuming=True)


def _check(eval_episodes: int) -> None:
    if eval_episodes < 0:
        raise errors.Refused(f"eval_episodes={eval_episodes} is negative; 0 turns the evaluation off")
    session.save_every()


def _build(made: experiment.Experiment, opened: environments.Opened) -> experiment.Built:
    experiment.cache()
    return experiment.build(made, opened)


def _status(folder: Path) -> str | None:
    try:
        return json.loads((folder / "summary.json").read_text()).get("status")
    except (OSError, ValueError, AttributeError):
        return None


def _folder(made: experiment.Experiment, out: str | Path | None) -> Path:
    name = f"{made.preset}-{made.env}-{made.seed}-{time.strftime('%Y%m%d-%H%M%S')}".replace("/", "_").replace(":", "_")
    return Path(out) if out else Path("runs") / name


def _free(folder: Path) -> Path:
    """The folder, if it can be made; asked before anything slow, and before anything is made."""
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


def _make(folder: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        _free(folder)  # made by another process since we looked
    except OSError as error:
        for path in missing:
            with contextlib.suppress(OSError):  # never made, or another's by now
                path.rmdir()
        raise errors.Refused(
            f"cannot make the output folder {folder} ({error.strerror}); choose another with --out"
        ) from None


def _command() -> str:
    return f"python {shlex.join(sys.argv)}"


def _run(
    folder: Path,
    made: experiment.Experiment,
    built: experiment.Built,
    console: log.Console | None,
    eval_episodes: int,
    since: float,
    *,
    resuming: bool,
) -> Run:
    console = console or log.pick()
    with checkpoint.lock(folder):
        checkpoint.remove_stale(folder / "checkpoints")
        saved = _newest(folder, made, built, console) if resuming else None
        kept = session.Session(folder, made, console, since, saved)
        kept.listen()
        began = time.time() - since
        try:
            if saved and kept.solved_at is not None:
                result = _as_saved(built, made, saved)  # killed after its goal was met: nothing is left to learn
            else:
                tree = saved.tree if saved else None
                result = built.runtime.run(built.parts, made.seed, made.steps, made.goal, kept, tree)
            kept.finish(result)
            summary = kept.summary("interrupted" if kept.stopped_by else "completed", result, began)
            if eval_episodes and not kept.stopped_by:
                summary |= _evaluated(built, made, result.policy, eval_episodes, kept)
            return _written(folder, made, result.policy, summary)
        except BaseException as error:
            failed = kept.summary("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", None, began)
            session.write_json(folder / "summary.json", failed | {"error": f"{type(error).__name__}: {error}"})
            if isinstance(error, errors.GaveUp):
                report.write([folder], folder / "report.html")
            raise
        finally:
            kept.close()


def _evaluated(
    built: experiment.Built, made: experiment.Experiment, policy: types.Policy, episodes: int, kept: session.Session
) -> dict[str, Any]:
    """The evaluation's keys of the summary; a simulator that raises now does not undo the training."""
    try:
        return evaluation.evaluate(built.parts, policy, episodes, made.seed).summary()
    except Exception:  # noqa: BLE001  whatever the simulator raised is told, and the numbers stay null
        kept.fault("the evaluation failed; its numbers are not measured", traceback.format_exc())
        return {}


def _newest(
    folder: Path, made: experiment.Experiment, built: experiment.Built, console: log.Console
) -> checkpoint.Loaded:
    """The newest good checkpoint; a damaged one is named and the one before is used."""
    like = built.runtime.like(built.parts, made.seed)
    loaded = checkpoint.newest(folder / "checkpoints", like, console.note)
    if loaded.meta.get("config_sha256") != session.digest(made):
        raise errors.Refused(f"{folder} holds checkpoints of another run; restore its own, or train anew")
    return loaded


def _as_saved(built: experiment.Built, made: experiment.Experiment, saved: checkpoint.Loaded) -> types.Result:
    """What the runtime had come to when it was saved."""
    final = types.Progress(saved.step, saved.meta["updates"], 0.0, [], {}, {}, {}, {}, lambda: saved.tree)
    return types.Result(jax.device_get(built.runtime.policy(built.parts, made.seed, saved.tree)), final, 0.0)


def _written(folder: Path, made: experiment.Experiment, policy: types.Policy, summary: dict[str, Any]) -> Run:
    session.write_json(folder / "summary.json", summary)
    report.write([folder], folder / "report.html")
    return Run(folder, made, policy, summary)


def load(
    folder: str | Path, say: Callable[[str], None]
) -> tuple[experiment.Built, experiment.Experiment, types.Policy]:
    """The parts and the newest policy of a run folder, which is left as it is.

    Args:
        folder: The run folder.
        say: Told of a damaged checkpoint that was passed over.

    Raises:
        Refused: Not a run folder.
        NoCheckpoint: None is usable.
    """
    folder = Path(folder)
    made = experiment.from_json(session.read_config(folder))
    experiment.cache()
    built = experiment.build(made)
    like = built.runtime.like(built.parts, made.seed)
    saved = checkpoint.newest(folder / "checkpoints", like, say, set_aside=False)
    return built, made, jax.device_get(built.runtime.policy(built.parts, made.seed, saved.tree))

"""The object of ``summary.json`` (docs/run_folder.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epy

from shoal.core import types
from shoal.experiment import presets
from shoal.runs.session import accounts, memory

with epy.lazy_imports():
    from shoal.core import tree

HIDDEN = ("pids", "up", "rss_mb")  # of the workers' numbers, those that say nothing once they have ended


def of(
    kept: accounts.Accounts,
    status: str,
    began_s: float,
    result: types.Result | None,
    final: types.Progress | None,
    replay: Mapping[str, int] | None,
) -> dict[str, Any]:
    """What a run came to; what could not be measured is null.

    Args:
        kept: Of the run.
        status: ``completed``, ``interrupted`` or ``failed``.
        began_s: Seconds from the command to the start of the runtime.
        result: What the runtime returned, if it did.
        final: The last report, if there was one.
        replay: The words on a replay memory, if there is one.
    """
    made, lives = kept.made, kept.lives
    caution = presets.caution(made.preset)
    train_s = (lives.train_s(final) or None) if final else None  # it may never have begun
    workers = {k: v for k, v in final.workers.items() if k not in HIDDEN} if final else {}
    return {
        "run": str(kept.folder),
        "preset": made.preset,
        **({"caution": caution} if caution else {}),
        "env": made.env,
        "seed": made.seed,
        "runtime": made.runtime,
        "status": status,
        "stopped_by": kept.ending.stopped_by,
        "steps": made.steps,
        "env_steps": final.env_steps if final else 0,
        "updates": final.updates if final else 0,
        "wall_s": lives.wall_s,
        "train_s": train_s,
        "startup_s": began_s + result.startup_s if result else None,
        "env_steps_per_s": final.env_steps / train_s if final and train_s else None,
        **_returns(kept),
        "params_sha256": tree.sha256(result.policy.params) if result else None,
        "peak_rss_mb": memory.peak_mb() + final.workers.get("rss_mb", 0.0) if final else None,
        "exact": lives.exact,
        **kept.evaluations.summary(),
        **({"workers": workers} if workers else {}),
        **({"replay": dict(replay)} if replay else {}),
        **({name: dict(told) for name, told in final.subsystems.items()} if final else {}),
        "faults": lives.faults(final) if final else {},
        "split": dict(final.split) if final else {},
    }


def _returns(kept: accounts.Accounts) -> dict[str, Any]:
    """Those on the way, against the goal, and of an evaluation, which is still to come."""
    made, scores = kept.made, kept.scores
    train_mean, train_std = scores.overall()
    return {
        "return_mean": scores.mean,
        "return_std": scores.deviation,
        "best_return_mean": scores.best,
        "train_return_mean": train_mean,
        "train_return_std": train_std,
        "goal": made.goal.target if made.goal else None,
        "solved_at_step": scores.solved_at,
        "eval_return_mean": None,
        "eval_return_std": None,
        "eval_episodes": None,
        "episodes": scores.episodes,
    }

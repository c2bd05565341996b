"""Pong from pixels on two cores: a curve over about two hours, against the published -20.7 of a random player.

`shoal train ppo --env ALE/Pong-v5`, or `a3c` with eight workers, as the preset has it; it is asked to stop after
`--hours` of wall time, all lives of the run together. The run stays in `--folder`, where a second call goes on by
`shoal resume`. The curve is the mean return of the last 100 training episodes. A step is four frames.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _common
import numpy as np

ENV, FRAMES = "ALE/Pong-v5", 4
PRESETS: dict[str, list[str]] = {"ppo": [], "a3c": ["--workers", "8"]}  # and what else is asked of each
RANDOM, TARGET = -20.7, 0.0  # Mnih et al. 2015, extended data table 2; the score asked for
WINDOW, POINTS = 100, 200  # episodes of the mean; points of the curve
KEYS = (
    "status",
    "env_steps",
    "wall_s",
    "frames_per_s",
    "last_mean",
    "best_mean",
    "reached_at_step",
    "reached_at_s",
    "curve",
)
FIGURE = _common.ROOT / "docs" / "images" / "pong.svg"


def main() -> None:
    """Train, or go on training; print the record."""
    parser = _common.parser(__doc__)
    parser.add_argument("--preset", choices=list(PRESETS), default="ppo")
    parser.add_argument("--hours", type=float, default=2.0, help="of wall time, at most")
    parser.add_argument("--folder", type=Path, help="of the run (default: runs/pong-PRESET)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # or the run would go on without us
    seconds = 30.0 if arguments.quick else 3600.0 * arguments.hours
    folder = arguments.folder or Path("runs") / f"pong-{arguments.preset}"
    train(folder, arguments.preset, arguments.seed, seconds)
    results = conclude(folder)
    if not arguments.quick:
        draw(results, FIGURE)
    _common.finish(arguments, _common.record("pong", arguments, results))


def train(folder: Path, preset: str, seed: int, seconds: float) -> None:
    """Begin or go on, and ask for the end when the run has taken so many seconds."""
    words = ["train", preset, "--env", ENV, *PRESETS[preset], "--seed", seed, "--out", folder]
    if (folder / "config.json").exists():
        words = ["resume", folder]
        completed, spent = before(folder)
        seconds -= spent
        if completed or seconds <= 0:
            return
    words += ["--eval-episodes", 0]
    process = subprocess.Popen([sys.executable, "-m", "shoal", *map(str, words)])
    ends = time.monotonic() + seconds
    try:
        while process.poll() is None and time.monotonic() < ends:
            time.sleep(1.0)
    finally:  # whatever ends this, the run is saved and does not outlive it
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait()
    if process.returncode not in (0, 75):
        raise SystemExit(f"shoal {words[0]} ended with {process.returncode}")


def before(folder: Path) -> tuple[bool, float]:
    """Whether a run is complete, and the seconds it took; one that was killed left no summary."""
    if (folder / "summary.json").exists():
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return summary["status"] == "completed", summary["wall_s"]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return False, max((json.loads(line)["wall_s"] for line in lines), default=0.0)


def conclude(folder: Path) -> dict[str, Any]:
    """The numbers of a run folder."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    table = np.loadtxt(folder / "episodes.csv", delimiter=",", skiprows=1, ndmin=2)
    steps, returns, walls = (table[:, at] for at in (0, 1, 4))
    sums = np.cumsum(np.concatenate([[0.0], returns]))
    means = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW if len(returns) >= WINDOW else np.zeros(0)
    ends = slice(WINDOW - 1, None)
    reached = np.flatnonzero(means >= TARGET)
    chosen = np.unique(np.linspace(0, len(means) - 1, POINTS).astype(int)) if len(means) else []
    first = int(reached[0]) if len(reached) else None
    return {
        "status": summary["status"],
        "env_steps": summary["env_steps"],
        "wall_s": summary["wall_s"],
        "frames_per_s": FRAMES * summary["env_steps_per_s"] if summary["env_steps_per_s"] else None,
        "preset": summary["preset"],
        "seed": summary["seed"],
        "last_mean": float(means[-1]) if len(means) else None,
        "best_mean": float(means.max()) if len(means) else None,
        "reached_at_step": None if first is None else int(steps[ends][first]),
        "reached_at_s": None if first is None else float(walls[ends][first]),
        "curve": [[int(steps[ends][at]), round(float(walls[ends][at]), 1), float(means[at])] for at in chosen],
    }


def draw(results: Mapping[str, Any], out: Path) -> None:
    """The figure of the documentation: the mean of 100 episodes over minutes, and over millions of frames."""
    import matplotlib
    from matplotlib import figure

    from shoal.report import picture

    drawn = figure.Figure(figsize=(8.2, 3.6), layout="constrained")
    steps, seconds, means = np.array(results["curve"] or [[0, 0, np.nan]], dtype=float).T
    for axes, x, label in zip(
        drawn.subplots(1, 2, sharey=True),
        (seconds / 60, FRAMES * steps / 1e6),
        ("minutes on two cores", "million frames"),
        strict=True,
    ):
        axes.plot(x, means, color=picture.HUES[0])
        axes.axhline(TARGET, color=picture.HUES[-1], linewidth=0.8, linestyle=":")
        axes.axhline(RANDOM, color=picture.HUES[-1], linewidth=0.8, linestyle="--")
        axes.set(xlabel=label, ylim=(-22, 22), xlim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    drawn.axes[0].set_ylabel("mean return, 100 episodes")
    drawn.axes[1].annotate(
        "a random player", (0.99, RANDOM + 0.6), xycoords=("axes fraction", "data"), ha="right", fontsize=8
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "shoal"}):
        drawn.savefig(out, dpi=160, metadata={"Date": None} if out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()

"""What changed while runs trained: drift, staleness and weights over steps; the controller's decisions are marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shoal.monitor import drift
from shoal.report import columns, figures, markup, svg
from shoal.report import groups as experiments
from shoal.report import runs as run_folders
from shoal.report.acting import told

SMALL = {  # column -> what it is called, and the value at which an alarm goes off
    "weight_mean": ("Mean weight", None),
    "chi2": ("Chi-square of the weights", drift.CHI2_HIGH),
    "staleness": ("Staleness, updates", None),
    "inference_us": ("Inference, µs a decision", None),
    "actor_inference_share": ("Inference, share of the actors' time", None),
    "publish_share": ("Publishing, share of the learner's time", None),
    "packed_bytes": ("Bytes of a snapshot", None),
}
SEVERAL = {  # of several runs every column has a chart of its own
    "kl_compression": ("KL by compression, nats", None),
    "kl_staleness": ("KL by staleness, nats", None),
    "ess": ("Effective sample size", drift.ESS_LOW),
    "action_agreement": ("Same action, share", None),
    "clip_fraction": ("Clipped, share of steps", None),
    **SMALL,
}
SHARES = {"ess": "effective sample size", "action_agreement": "same action", "clip_fraction": "clipped"}
Moments = tuple[figures.Moment, ...]


def alone(run: run_folders.Run, group: experiments.Group) -> tuple[list[markup.Markup], list[markup.Markup]]:
    """Charts of one run: those that stand two in a row, and small ones."""
    decided = moments(run)
    halves = [_apart(run, decided), _shares(run, decided), staleness([group])]
    still = len({*_known(run, "packed_bytes").tolist()}) < 2  # it is in the table
    small = [
        _small(_curves(run, {column: name}), name, alarm, decided)
        for column, (name, alarm) in SMALL.items()
        if column != "packed_bytes" or not still
    ]
    return [one for one in halves if one], [one for one in small if one]


def _apart(run: run_folders.Run, decided: Moments) -> markup.Markup | None:
    curves = _curves(run, {"kl_compression": "compression", "kl_staleness": "staleness"})
    chart = figures.Chart("step", "KL, nats", (figures.HALF,), zero=True, moments=decided)
    caption = "Sample means over the steps looked at; the two add up to how far what acted is from the learner."
    return _figure("How far acting is from learning", curves, chart, caption)


def _shares(run: run_folders.Run, decided: Moments) -> markup.Markup | None:
    weak = _known(run, "ess")
    low = drift.ESS_LOW if len(weak) and weak.min() < 2 * drift.ESS_LOW else None
    chart = figures.Chart(
        "step", "share", (figures.HALF,), low, zero=True, goal_name="ESS alarm below", moments=decided
    )
    caption = "Of the importance weights; of observations on which packed and full policy agree; of steps clipped."
    return _figure("What the correction has left", _curves(run, SHARES), chart, caption)


def several(
    found: Sequence[experiments.Group],
) -> tuple[markup.Markup | None, list[markup.Markup], list[markup.Markup]]:
    """The same of several runs, and the legend of all."""
    charts, key = [], None
    for column, (name, alarm) in SEVERAL.items():
        if any(run.latest(column) is not None for group in found for run in group.runs):
            series = figures.runs_of(found, column, "step")
            key = figures.legend(series)
            made = _small(series, name, alarm, ())
            charts += [made] if made else []
    drawn = staleness(found)
    return key, [drawn] if drawn else [], charts


def staleness(found: Sequence[experiments.Group]) -> markup.Markup | None:
    """How many updates old rollouts were."""
    drawn = columns.lags([(group, _lags(group)) for group in found], "rollouts", "staleness (updates)")
    caption = "Updates of the learner between the version that acted and the one that learned from it."
    return figures.figure("Staleness of the rollouts", drawn, caption) if drawn else None


def moments(run: run_folders.Run) -> Moments:
    """The controller's decisions where they fall on the steps, numbered."""
    step, updates = (experiments.column(run, name) for name in ("step", "updates"))
    known = np.isfinite(step) & np.isfinite(updates)
    made = []
    for i, decision in enumerate(decisions(run), start=1):
        update = run_folders.number(decision.get("update"))
        if update is not None and known.any():
            at = float(np.interp(update, updates[known], step[known]))
            said = f"{i}: {decision.get('from')} to {decision.get('to')}, {decision.get('cause')}"
            made.append(figures.Moment(x=at, hue=0, label=str(i), told=said))
    return tuple(made)


def decisions(run: run_folders.Run) -> list[Mapping[str, object]]:
    """What the controller decided, in order."""
    return [one for one in told.listed(run, "compression", "decisions") if isinstance(one, Mapping)]


def _curves(run: run_folders.Run, names: Mapping[str, str]) -> list[figures.Series]:
    series = []
    for i, (column, name) in enumerate(names.items()):
        if run.latest(column) is not None:
            x, y = svg.thin(experiments.column(run, "step"), experiments.column(run, column), figures.POINTS)
            series.append(figures.Series(name, x, y, i, i, "bold", svg.DASHES[i], legend=name))
    return series


def _figure(title: str, series: Sequence[figures.Series], chart: figures.Chart, caption: str) -> markup.Markup | None:
    if not series:
        return None
    chart = chart._replace(label=series[0].name) if len(series) == 1 else chart
    return figures.figure(title, markup.join(figures.legend(series), figures.plot(series, chart)), caption)


def _small(series: Sequence[figures.Series], name: str, alarm: float | None, decided: Moments) -> markup.Markup | None:
    if not any(np.isfinite(one.y).any() for one in series):
        return None
    near = alarm is not None and any(_reaches(one.y, alarm) for one in series)
    chart = figures.Chart("step", "", (figures.SMALL,), alarm if near else None, goal_name="alarm", moments=decided)
    return figures.figure(name, figures.plot(series, chart))


def _known(run: run_folders.Run, column: str) -> np.ndarray:
    values = experiments.column(run, column)
    return values[np.isfinite(values)]


def _reaches(values: np.ndarray, alarm: float) -> bool:
    """Whether a curve comes near where an alarm goes off; a line far above it would only flatten it."""
    finite = values[np.isfinite(values)]
    return bool(len(finite)) and float(finite.min()) <= 2 * alarm and float(finite.max()) >= alarm / 2


def _lags(group: experiments.Group) -> dict[str, float]:
    total: dict[str, float] = {}
    for run in group.runs:
        for label, count in told.numbers(run, "actor", "staleness_histogram").items():
            total[label] = total.get(label, 0.0) + count
    return total

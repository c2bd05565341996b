"""The numbers of the section: tiles and tables of one run, and several runs in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.report import groups as experiments
from shoal.report import headline, markup, tables, words
from shoal.report import runs as run_folders
from shoal.report.acting import courses, told


def tiles(run: run_folders.Run) -> list[headline.Tile]:
    """The key figures of one run."""
    f, gain = (told.number(run, "actor", "amdahl", key) for key in ("f", "predicted_reduction"))
    full, ours = (told.number(run, "actor", "amdahl", key) for key in ("full_us", "packed_us"))
    us = f"{_us(full)} at full precision, {_us(ours)} packed" if full and ours else ""
    lag = told.numbers(run, "actor", "staleness")
    late = f"95 % within {words.number(lag.get('p95'))}, at most {words.number(lag.get('max'))}" if lag else ""
    kl, waited = (told.number(run, "correction", key) for key in ("kl_compression", "kl_staleness"))
    ours_return, full_return = (told.number(run, "compression", f"return_{key}") for key in ("compressed", "full"))
    against = f"{words.number(full_return)} at full precision, same seeds" if full_return is not None else ""
    inference = told.numbers(run, "actor", "inference_us")
    Tile = headline.Tile
    clear = [
        Tile("Effective sample size", words.percent(told.number(run, "correction", "ess")), _corrector(run)),
        Tile("Staleness, median", _updates(lag.get("median")), late),
    ]
    if not told.packed(run):
        slow = f"95 % within {_us(inference.get('p95'))}" if inference else ""
        return [
            Tile("Inference", words.percent(told.shares(run, "actor").get("inference")), "of the actors' time"),
            Tile("Inference, median", _us(inference.get("median")), slow),
            *clear,
        ]
    return [
        Tile("Inference at full precision", words.percent(f), "of the wall-clock (f)"),
        Tile("Packed policy", words.factor(told.faster(run)), f"as fast (s); {us}" if us else "as fast (s)"),
        Tile("Wall-clock saved, predicted", words.percent(gain), "against the fastest full precision"),
        Tile("Return of the packed policy", words.number(ours_return), against),
        Tile("Same action", words.percent(told.number(run, "compression", "agreement")), "packed and full precision"),
        Tile("KL by compression", _nats(kl), f"by staleness {_nats(waited)}" if waited is not None else ""),
        *clear,
    ]


def _us(value: float | None) -> str:
    return words.brief(None if value is None else 1e-6 * value)


def _nats(value: float | None) -> str:
    return words.MISSING if value is None else f"{words.number(float(f'{value:.2g}'))} nats"


def _updates(value: float | None) -> str:
    return words.MISSING if value is None else words.count(value, "update")


def _corrector(run: run_folders.Run) -> str:
    name, clipped = told.text(run, "correction", "name"), told.number(run, "correction", "clip_fraction")
    return ", ".join(filter(None, (name, f"{words.percent(clipped)} of steps clipped" if clipped is not None else "")))


def snapshots(run: run_folders.Run) -> markup.Markup | None:
    """Bytes and latencies of what the learner hands out."""
    if run.inner("compression") is None:
        return None
    full, ours = (told.number(run, "compression", f"bytes_{which}") for which in ("full", "packed"))
    latency = told.numbers(run, "compression", "publish_latency_s")
    took = told.numbers(run, "compression", "compress_s")
    publish = told.number(run, "learner", "publish_share")
    smaller = f" ({words.factor(full / ours)} smaller)" if full and ours and full > ours else ""
    refused = told.number(run, "compression", "refused")
    rows: list[tuple[str, str]] = [
        ("compressor", told.text(run, "compression", "name") or words.MISSING),
        ("level at the end", told.level(run) or words.MISSING),
        ("bytes at full precision", words.size(full)),
        ("bytes packed", words.size(ours) + smaller),
        ("bytes a second on the wire", words.size(told.number(run, "compression", "bytes_per_s"))),
        ("multiply-adds compressed", words.percent(told.number(run, "compression", "compressed_share"))),
        ("snapshots handed out", words.number(told.number(run, "compression", "publishes"))),
        ("snapshots refused", words.number(refused)),
        ("compressing", _within(took)),
        ("snapshot to first action", _within(latency)),
        *((f"of it {name}", words.brief(latency[part])) for part, name in PARTS.items() if part in latency),
        ("publishing, of the learner's time", words.percent(publish) + _late(publish)),
        ("KL to full precision, exact", _nats(told.number(run, "compression", "kl"))),
    ]
    return _card("Snapshots", rows)


def _within(took: Mapping[str, float]) -> str:
    """Median and 95 % of a duration."""
    slow = f", 95 % within {words.brief(took['p95'])}" if "p95" in took else ""
    return words.brief(took.get("median")) + slow


PARTS = {"compress": "compressing", "transfer": "transfer", "load": "loading"}


def _late(share: float | None) -> str:
    return f", above the goal of {words.percent(told.LATE)}" if share is not None and share > told.LATE else ""


def correction(run: run_folders.Run) -> markup.Markup | None:
    """What the corrector had to work with."""
    if run.inner("correction") is None:
        return None

    def of(*keys: str) -> float | None:
        return told.number(run, "correction", *keys)

    rows = [
        ("corrector", told.text(run, "correction", "name") or words.MISSING),
        ("KL in all", _nats(of("kl_total"))),
        ("of it by compression", _nats(of("kl_compression"))),
        ("of it by staleness", _nats(of("kl_staleness"))),
        ("KL by compression, other estimate (k3)", _nats(of("kl_k3"))),
        ("effective sample size", words.percent(of("ess"))),
        ("effective sample size, as corrected", words.percent(of("ess_corrected"))),
        ("chi-square of the weights", words.three(of("chi2"))),
        ("mean weight", words.three(of("weight_mean"))),
        ("log weight", words.spread(of("log_rho", "mean"), of("log_rho", "std"))),
        ("log weight, largest", words.three(of("log_rho", "max"))),
        ("mean |log π − log μ|", words.three(of("dlogp"))),
        ("steps clipped", words.percent(of("clip_fraction"))),
        ("steps rejected, weight too low", words.percent(of("rejected_low"))),
        ("steps rejected, weight too high", words.percent(of("rejected_high"))),
        ("rollouts learned from", words.number(told.number(run, "actor", "rollouts"))),
        ("rollouts dropped", words.number(told.number(run, "actor", "dropped"))),
    ]
    return _card("Correction", rows)


def _card(name: str, rows: Sequence[tuple[str, str]]) -> markup.Markup:
    table = tables.table(("measure", "value"), [(row, tables.shown(value)) for row, value in rows], "settings")
    return markup.tag("div", markup.tag("div", markup.tag("h3", name), table, class_="card"))


def decisions(run: run_folders.Run) -> markup.Markup | None:
    """The controller's decisions, numbered as the marks in the figures."""
    rows = [
        (str(i), _plain(one.get("update")), markup.join(
            markup.tag("b", f"{one.get('from')} → {one.get('to')}"), markup.tag("small", _plain(one.get("cause")))))
        for i, one in enumerate(courses.decisions(run), start=1)
    ]  # fmt: skip
    if not rows:
        return None
    made = tables.table(("", "update", "decision and cause"), rows, "decisions")
    return markup.join(markup.tag("h3", "Decisions of the controller"), made)


def _plain(value: Any) -> str:
    number = run_folders.number(value)
    return words.number(number) if number is not None else str(value)


HEAD = (
    "run", "does it pay?", "acted", "inference (f)", "faster (s)", "saved, predicted", "saved, measured",
    "KL compression", "KL staleness", "ESS", "same action", "return, packed − full", "publishing", "engine",
)  # fmt: skip


def several(found: Sequence[experiments.Group]) -> markup.Markup:
    """A row for each run: what compression promised, what came of it, and what it cost."""
    rows = []
    for group in found:
        for run, name in zip(group.runs, group.names(), strict=True):
            label = name if len(found) == 1 else f"{group.title}, {name}"
            mark = tables.sample(group.place) if len(found) > 1 else None
            rows.append((markup.join(mark, label), *map(tables.shown, _cells(found, run))))
    return tables.table(HEAD, rows, "numbers several")


def _cells(found: Sequence[experiments.Group], run: run_folders.Run) -> list[str]:
    amdahl = [told.number(run, "actor", "amdahl", key) for key in ("f", "s", "predicted_reduction")]
    ours, full = (told.number(run, "compression", f"return_{key}") for key in ("compressed", "full"))
    return [
        {True: "yes", False: "no", None: "-"}[told.pays(run)],
        told.level(run) or words.MISSING,
        words.percent(amdahl[0]),
        words.factor(amdahl[1]),
        words.percent(amdahl[2]),
        words.percent(saved(found, run)) if told.packed(run) else "baseline",
        _nats(told.number(run, "correction", "kl_compression")),
        _nats(told.number(run, "correction", "kl_staleness")),
        words.percent(told.number(run, "correction", "ess")),
        words.percent(told.number(run, "compression", "agreement")),
        words.MISSING if ours is None or full is None else words.three(ours - full),
        words.percent(told.number(run, "learner", "publish_share")),
        told.text(run, "actor", "engine") or words.MISSING,
    ]


def saved(found: Sequence[experiments.Group], run: run_folders.Run) -> float | None:
    """Measured: wall-clock less for a step than the mean of runs at full precision that differ in nothing else.

    Where there are none, of those whose corrector differs too.
    """
    pace = _pace(run)
    clear = [other for group in found for other in group.runs if not told.packed(other)]
    for apart in (("compressor",), ("compressor", "corrector")):
        same = [other for other in clear if _but_for(other, apart) == _but_for(run, apart)]
        others = [one for other in same if (one := _pace(other)) is not None]
        if pace is not None and others:
            return 1.0 - pace / (sum(others) / len(others))
    return None


def _but_for(run: run_folders.Run, apart: Sequence[str]) -> tuple[str, Any]:
    parts = run.config.get("parts")
    return run.env, {kind: given for kind, given in (parts or {}).items() if kind not in apart}


def _pace(run: run_folders.Run) -> float | None:
    """Seconds of training a step."""
    steps, seconds = run.value("env_steps"), run.value("train_s")
    return seconds / steps if steps and seconds else None

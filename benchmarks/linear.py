"""Ancestors with linear function approximation: learners that exchange weights, and sums over shards of samples.

Learning: Sarsa(λ) on MountainCar-v0, episodes of up to 1,000 steps. Learners take turns: timing leaves no trace,
and each is judged by its first episodes. One learner exchanges nothing: its figures are the same under any scheme.
Speed: spawned processes, steps a second and seconds of solving with several over those with one.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import _common

SCHEMES = ("average", "filtered", "asynchronous")
WORKERS = (1, 2, 4)
METHODS = {"lstd": 1, "lspi": 5}  # method -> rounds that are timed
EPISODES, LAST = 50, 10  # of each learner; those that tell what was learned in the end
SEEDS, QUICK_SEEDS = range(10), range(1)
KEYS = (
    "sarsa.*.*.steps_per_episode",
    "sarsa.*.*.last_steps_per_episode",
    "sarsa.*.*.bytes_per_episode",
    "filtered_bytes_fraction",
    "filtered_score_ratio",
    "sarsa_speed.*.*.steps_per_s",
    "sarsa_speed.*.*.ratio_1",
    "sarsa_speed.*.*.waiting_fraction",
    "batch.*.*.seconds",
    "batch.*.*.ratio_1",
    "batch.*.*.bytes_sent",
)


class Watch:
    """Keeps the lengths of every learner's episodes; ends the run once each has enough."""

    def __init__(self, workers: int, enough: int | None) -> None:
        self.lengths: list[list[int]] = [[] for _ in range(workers)]
        self._enough = enough

    def __call__(self, progress: Any) -> bool:
        """Whether to go on."""
        for episode in progress.episodes:
            self.lengths[episode.worker].append(episode.length)
        return self._enough is None or min(map(len, self.lengths)) < self._enough

    def fault(self, kind: str, message: str) -> None:
        """Nothing is to fail here."""
        raise RuntimeError(f"{kind}\n{message}")


def run(preset: str, steps: int, seed: int, watch: Watch, **settings: Any) -> Any:
    """One run on MountainCar-v0, in this process or started from it; a `types.Result`."""
    from shoal import experiment
    from shoal.experiment import presets

    request = presets.Request(preset, "MountainCar-v0", steps, seed=seed, settings=settings)
    built = experiment.build(presets.resolve(request)[0])
    return built.runtime.run(built.parts, seed, steps, None, watch, None)


def learn(scheme: str, workers: int, seed: int) -> dict[str, float]:
    """Steps per episode of one seed, and what an episode of a learner sends."""
    watch = Watch(workers, EPISODES)
    runtime = {"scheme": scheme, "workers": workers, "spawn": False, "report_s": 0.05}
    result = run("parallel_sarsa", 10**8, seed, watch, runtime=runtime)
    lengths = [each[:EPISODES] for each in watch.lengths]
    sent = result.final.subsystems["communication"]["bytes_sent"] / sum(map(len, watch.lengths))
    return {
        "steps_per_episode": statistics.fmean(itertools.chain(*lengths)),
        "last_steps_per_episode": statistics.fmean(itertools.chain(*(each[-LAST:] for each in lengths))),
        "bytes_per_episode": sent,
    }


def learning(seeds: range) -> dict[str, Any]:
    """Every scheme, number of learners and seed."""
    found: dict[str, Any] = {scheme: {} for scheme in SCHEMES}
    for workers in WORKERS:
        for scheme in SCHEMES if workers > 1 else SCHEMES[:1]:
            each = [learn(scheme, workers, seed) for seed in seeds]
            found[scheme][str(workers)] = {k: v for key in each[0] for k, v in
                                           _common.spread(key, [one[key] for one in each]).items()}  # fmt: skip
            last = found[scheme][str(workers)]["last_steps_per_episode"]
            _common.say(f"{scheme:13} {workers} learners: {last:.0f} steps per episode in the end")
    for scheme in SCHEMES[1:]:
        found[scheme]["1"] = found[SCHEMES[0]]["1"]
    return found


def sarsa_speed(scheme: str, workers: int, steps: int, waiting: dict[tuple[str, int], float]) -> float:
    """Steps a second of all learners; keeps the share of their time that went into waiting."""
    result = run("parallel_sarsa", steps, 0, Watch(workers, None), runtime={"scheme": scheme, "workers": workers})
    waiting[scheme, workers] = result.final.split["waiting"] / (workers * result.final.train_s)
    return result.final.env_steps / result.final.train_s


def solving(method: str, workers: int, samples: int, sent: dict[tuple[str, int], int]) -> float:
    """Seconds of mapping, adding up and solving, once the mappers have their features."""
    algorithm = {"method": method, "rounds": METHODS[method], "tolerance": 0.0}
    watch, runtime = Watch(1, None), {"workers": workers}
    result = run("batch_linear", samples, 0, watch, algorithm=algorithm, runtime=runtime)
    sent[method, workers] = result.final.subsystems["communication"]["bytes_sent"]
    return result.final.split["waiting"] + result.final.split["learning"]


def conclude(sarsa: Any, speeds: Any, waiting: Any, seconds: Any, sent: Any) -> dict[str, Any]:
    """The results.

    Args:
        sarsa: Of `learning`.
        speeds: (scheme, workers) -> steps a second, one a round.
        waiting: (scheme, workers) -> share.
        seconds: (method, workers) -> seconds, one a round.
        sent: (method, workers) -> bytes.
    """
    two = [sarsa[scheme]["2"] for scheme in ("average", "filtered")]
    results: dict[str, Any] = {
        "sarsa": sarsa,
        "filtered_bytes_fraction": two[1]["bytes_per_episode"] / two[0]["bytes_per_episode"],
        "filtered_score_ratio": two[1]["last_steps_per_episode"] / two[0]["last_steps_per_episode"],
        "sarsa_speed": {scheme: {} for scheme in SCHEMES},
        "batch": {method: {} for method in METHODS},
    }
    for (scheme, workers), measured in speeds.items():
        results["sarsa_speed"][scheme][str(workers)] = {
            **_common.spread("steps_per_s", measured),
            **_common.spread("ratio_1", _common.ratios(measured, speeds[scheme, 1])),
            "waiting_fraction": waiting[scheme, workers],
        }
    for (method, workers), measured in seconds.items():
        results["batch"][method][str(workers)] = {
            **_common.spread("seconds", measured),
            **_common.spread("ratio_1", _common.ratios(seconds[method, 1], measured)),
            "bytes_sent": sent[method, workers],
        }
    return results


def main() -> None:
    """Measure, and print the record."""
    from shoal import experiment

    experiment.cache()
    arguments = _common.parser(__doc__).parse_args()
    quick = arguments.quick
    repeats, steps, samples = (1, 20_000, 10_000) if quick else (3, 60_000, 60_000)
    sarsa = learning(QUICK_SEEDS if quick else SEEDS)
    waiting: dict[Any, float] = {}
    sent: dict[Any, int] = {}
    sides: dict[Any, Any] = {
        (scheme, workers): lambda s=scheme, w=workers: sarsa_speed(s, w, steps, waiting)
        for scheme in SCHEMES
        for workers in WORKERS
    }
    sides |= {
        (method, workers): lambda m=method, w=workers: solving(m, w, samples, sent)
        for method in METHODS
        for workers in WORKERS
    }
    named = {f"{what}, {workers}": side for (what, workers), side in sides.items()}
    measured = dict(zip(sides, _common.alternate(named, repeats).values(), strict=True))
    speeds = {key: values for key, values in measured.items() if key[0] in SCHEMES}
    seconds = {key: values for key, values in measured.items() if key[0] in METHODS}
    results = conclude(sarsa, speeds, waiting, seconds, sent)
    _common.finish(arguments, _common.record("linear", arguments, results))


if __name__ == "__main__":
    main()

"""A search for settings of `map_propagation` that beat the published averages; many settings in one compiled program.

Every number searched is a leaf of the learner's state, so that settings and seeds are lanes of one `vmap`. Rounds: half
of the settings are drawn around the published ones, half around the best so far; the last round runs the best few
on more seeds. All seeds are 1000 and up; those of the reported table (0 to 9) are never looked at.

Writes every setting tried with its score, the average return of all its training episodes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("NPROC", "1")  # small products: one thread is faster

import _common
import jax
import jax.numpy as jnp
import numpy as np

from shoal import experiment, presets, registry, seeds
from shoal.runtimes import on_device

SEED = 1000
EPISODES = {"gymnax:CartPole-v1": 1000, "gymnax:Acrobot-v1": 500}
SPREAD = {  # standard deviations of the draws around the published settings, in powers of two
    "actor_rate_1": 1.0, "actor_rate_2": 1.5, "actor_rate_3": 1.5,
    "critic_rate_1": 1.0, "critic_rate_2": 1.5, "critic_rate_3": 1.5,
    "actor_variance": 0.7, "critic_variance": 0.7, "critic_output": 0.7,
    "temperature": 0.7, "end_t": 1.0, "rate_end": 1.0, "trace_left": 0.7, "discount_left": 0.5,
}  # fmt: skip
CLOSER = 0.35  # of that spread around the best


def settings(base: Any, draw: dict[str, float]) -> dict[str, Any]:
    """The algorithm's settings from powers of two (all 0: the published ones)."""
    factor = {name: 2.0**value for name, value in draw.items()}
    found: dict[str, Any] = {}
    for which in ("actor", "critic"):
        rates = [factor[f"{which}_rate_{layer}"] for layer in (1, 2, 3)]
        variance = [factor[f"{which}_variance"]] * 2 + [factor["critic_output"] if which == "critic" else 1.0]
        for name, by in (
            ("rates", rates),
            ("rates_end", [r * factor["rate_end"] for r in rates]),
            ("variance", variance),
        ):
            found[f"{which}_{name}"] = tuple(
                float(f"{value * by[at]:.3g}") for at, value in enumerate(getattr(base, f"{which}_{name}"))
            )
    found["temperature"] = float(f"{base.temperature * factor['temperature']:.3g}")
    found["end_t"] = round(base.end_t * factor["end_t"], -3)
    found["trace"] = float(f"{1 - min(1.0, (1 - base.trace) * factor['trace_left']):.4g}")
    found["discount"] = float(f"{1 - min(1.0, (1 - base.discount) * factor['discount_left']):.4g}")
    return found


class Lanes:
    """One compiled program for any settings."""

    def __init__(self, env: str, lanes: int, per_chunk: int) -> None:
        made, opened = presets.resolve(presets.Request("map_propagation", env))
        experiment.cache()
        self.base = made.configs["algorithm"]
        parts = experiment.build(made, opened).parts
        self._module = registry.load("algorithm", made.algorithm)
        self._lanes, self._per_chunk = lanes, per_chunk
        start = on_device._start(parts, 1)

        def begin(key: Any, layers: Any, hyper: Any) -> Any:
            loop = start(key)
            return loop._replace(state=loop.state._replace(layers=layers, hyper=hyper))

        self._begin = jax.jit(jax.vmap(begin))
        self._chunk = jax.jit(jax.vmap(on_device._chunk(parts, on_device.Plan(1, per_chunk, 1))), donate_argnums=0)

    def run(self, given: Sequence[tuple[dict[str, Any], int]], episodes: int, limit: int) -> list[float]:
        """The average return of the first `episodes` episodes of each (settings, seed), -inf where it diverged."""
        given = [*given, *[given[-1]] * (self._lanes - len(given))]
        configs = [dataclasses.replace(self.base, **one) for one, _ in given]

        def joined(make: Any) -> Any:
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(make, configs))

        depth = len(self.base.actor_rates)
        layers = joined(lambda c: {w: self._module._layers(c, w, depth) for w in ("actor", "critic")})
        init = jnp.stack([seeds.key(seed, "init") for _, seed in given])
        keys = jnp.stack([seeds.key(seed, "run") for _, seed in given])
        loop = self._begin(init, layers, joined(self._module._hyper))
        returns: list[list[float]] = [[] for _ in given]
        for _ in range(math.ceil(limit * episodes / self._per_chunk)):
            loop, told = self._chunk(loop, keys)
            over, found = (np.asarray(x)[..., 0, 0] for x in (told.ended.over, told.ended.episode_return))
            for kept, one, ended in zip(returns, found, over, strict=True):
                kept.extend(one[ended].tolist())
            if min(map(len, returns)) >= episodes:
                break
        return [float(np.mean(kept[:episodes])) for kept in returns]


def main() -> None:
    """Search until the time is over, then look closely at the best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=EPISODES, default="gymnax:CartPole-v1")
    parser.add_argument("--minutes", type=float, default=20.0, help="of the rounds before the last")
    parser.add_argument("--lanes", type=int, default=32)
    parser.add_argument("--first", type=int, default=300, help="episodes of the rounds before the last")
    parser.add_argument("--stream", type=int, default=0, help="of random numbers: searches side by side differ")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    env, rng = arguments.env, np.random.default_rng([SEED, arguments.stream])
    lanes = Lanes(env, arguments.lanes, 5_000)
    limit = 500 if "CartPole" in env else 250  # steps of an episode to be ready for, on average
    tried: list[dict[str, Any]] = []
    began, plain = time.monotonic(), dict.fromkeys(SPREAD, 0.0)
    first = min(arguments.first, EPISODES[env])
    draws = [plain]
    while time.monotonic() - began < 60 * arguments.minutes:
        best = sorted(tried, key=lambda one: -one["score"])[:6]
        while len(draws) < arguments.lanes // 2:
            centre, width = plain, 1.0
            if best and rng.random() < 0.65:
                centre, width = best[rng.integers(len(best))]["draw"], CLOSER
            draws.append({name: centre[name] + width * SPREAD[name] * rng.normal() for name in SPREAD})
        given = [settings(lanes.base, draw) for draw in draws]
        pair = [(one, SEED + at) for one in given for at in range(2)]
        scores = lanes.run(pair, first, limit)
        for at, (one, draw) in enumerate(zip(given, draws, strict=True)):
            two = [s if math.isfinite(s) else -1e9 for s in scores[2 * at : 2 * at + 2]]
            tried.append({"score": float(np.mean(two)), "seeds": two, "draw": draw, "settings": one})
        draws = []
        top = max(tried, key=lambda one: one["score"])
        _common.say(f"{len(tried)} settings, published {tried[0]['score']:.1f}, best {top['score']:.1f}")
        save(arguments, tried, [])
    final: list[dict[str, Any]] = []
    best = sorted(tried, key=lambda one: -one["score"])[:6]
    each = arguments.lanes // 4
    for at in range(0, len(best) + 1, 4):
        some = [*best, tried[0]][at : at + 4]
        pair = [(one["settings"], SEED + 100 + seed) for one in some for seed in range(each)]
        scores = lanes.run(pair, EPISODES[env], limit)
        for place, one in enumerate(some):
            mine = scores[place * each : place * each + each]
            final.append({"mean": float(np.mean(mine)), "std": float(np.std(mine)), "seeds": mine,
                          "settings": one["settings"], "draw": one["draw"]})  # fmt: skip
            _common.say(f"{final[-1]['mean']:.2f} ({final[-1]['std']:.2f}) {one['settings']}")
    save(arguments, tried, final)


def save(arguments: argparse.Namespace, tried: list[dict[str, Any]], final: list[dict[str, Any]]) -> None:
    """Write down what was tried."""
    record = {"command": f"python benchmarks/map_search.py --env {arguments.env} --stream {arguments.stream}",
              "commit": _common.commit(), "episodes": arguments.first, "tried": tried, "final": final}  # fmt: skip
    arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

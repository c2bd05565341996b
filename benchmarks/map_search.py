"""A search for settings of `map_propagation` and its relations; settings and seeds are lanes of one compiled program.

Each call tries a list of settings, given as changes to the preset's own, on the same seeds, and adds what came out to
the JSON; the next list is chosen by looking at it. Rates and variances are given as factors, of all layers or of one
(`actor.2` is the second of the actor), everything else as values; what a program is built from goes after `--with`:

    python benchmarks/map_search.py --env gymnax:CartPole-v1 --episodes 250 "" "trace=0.99" "trace=0.99 critic.2=100"
    python benchmarks/map_search.py --with algorithm.normalise_observations=true network.hidden=[128,64] -- ""

Seeds are 1000 and up; those of the reported table (0 to 9) are never looked at. The score of a lane is the mean return
of all its training episodes; a setting that diverged scores what it got until then, or -inf.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("NPROC", "1")  # small products: one thread is faster

import _common
import jax
import jax.numpy as jnp
import numpy as np

from shoal import experiment
from shoal.core import registry, seeds
from shoal.experiment import presets
from shoal.runtimes import on_device

FIRST = 1000  # of the seeds
PRESETS = ("map_propagation", "map_async", "backprop_det", "reinforce_team")
FACTORS = {  # name -> the settings that it multiplies
    "actor": ("actor_rates", "actor_rates_end"),
    "critic": ("critic_rates", "critic_rates_end"),
    "end": ("actor_rates_end", "critic_rates_end"),
    "actor_noise": ("actor_variance",),
    "critic_noise": ("critic_variance",),
}
LIMIT = 500  # steps an episode can have at most


def changed(base: Any, words: str) -> Any:
    """The algorithm's settings with what a person typed: ``trace=0.99 critic=2``."""
    for word in words.split():
        name, _, value = word.partition("=")
        name, _, layer = name.partition(".")
        for factor in FACTORS.get(name, ()):
            times = [float(value) if layer in ("", str(at)) else 1.0 for at in (1, 2, 3)]
            scaled = (x * time for x, time in zip(getattr(base, factor), times, strict=False))
            base = dataclasses.replace(base, **{factor: tuple(float(f"{x:.4g}") for x in scaled)})
        if name not in FACTORS:
            base = dataclasses.replace(base, **{name: type(getattr(base, name))(float(value))})
    return base


def settings(words: Sequence[str]) -> presets.Settings:
    """What a person typed after `--with`: kind -> name -> value."""
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        name, _, value = word.partition("=")
        kind, _, name = name.partition(".")
        given = json.loads(value)
        found.setdefault(kind, {})[name] = tuple(given) if isinstance(given, list) else given
    return found


class Lanes:
    """One compiled program for any settings."""

    def __init__(self, preset: str, env: str, built: presets.Settings, per_chunk: int) -> None:
        made, opened = presets.resolve(presets.Request(preset, env, settings=built))
        experiment.cache()
        self.base = made.configs["algorithm"]
        parts = experiment.build(made, opened).parts
        self._module, self._per_chunk = registry.load("algorithm", made.algorithm), per_chunk
        start = on_device._start(parts, 1)

        def begin(key: Any, layers: Any, hyper: Any) -> Any:
            loop = start(key)
            return loop._replace(state=loop.state._replace(layers=layers, hyper=hyper))

        self._begin = jax.jit(jax.vmap(begin))
        self._chunk = jax.jit(jax.vmap(on_device._chunk(parts, on_device.Plan(1, per_chunk, 1))), donate_argnums=0)

    def run(self, given: Sequence[tuple[Any, int]], episodes: int) -> list[float]:
        """The average return of the first `episodes` episodes of each (settings, seed)."""
        configs = [config for config, _ in given]

        def joined(make: Any) -> Any:
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(make, configs))

        depth = len(self.base.actor_rates)
        layers = joined(lambda c: {w: self._module._layers(c, w, depth) for w in ("actor", "critic")})
        init, keys = (jnp.stack([seeds.key(seed, purpose) for _, seed in given]) for purpose in ("init", "run"))
        loop = self._begin(init, layers, joined(self._module._hyper))
        returns: list[list[float]] = [[] for _ in given]
        for _ in range(math.ceil(LIMIT * episodes / self._per_chunk)):
            loop, told = self._chunk(loop, keys)
            over, found = (np.asarray(x)[..., 0, 0] for x in (told.ended.over, told.ended.episode_return))
            for kept, one, ended in zip(returns, found, over, strict=True):
                kept.extend(one[ended].tolist())
            if min(map(len, returns)) >= episodes:
                break
        return [float(np.mean(kept[:episodes])) if kept else -math.inf for kept in returns]


def main() -> None:
    """Try the settings, tell and keep what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", help='such as "trace=0.99 critic=2"; "" for the preset as it is')
    parser.add_argument("--preset", choices=PRESETS, default="map_propagation")
    parser.add_argument("--env", default="gymnax:CartPole-v1")
    parser.add_argument("--episodes", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=FIRST, help="of the seeds; 1000 or more")
    parser.add_argument("--with", dest="built", nargs="+", default=[], metavar="KIND.NAME=JSON", help="of the program")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.first < FIRST:
        parser.error(f"--first {arguments.first} looks at the seeds of the reported table; give {FIRST} or more")
    which = range(arguments.first, arguments.first + arguments.seeds)
    lanes = Lanes(arguments.preset, arguments.env, settings(arguments.built), 5_000)
    scores = lanes.run([(changed(lanes.base, words), seed) for words in arguments.settings for seed in which],
                       arguments.episodes)  # fmt: skip
    found = []
    for words, mine in zip(arguments.settings, np.reshape(scores, (-1, arguments.seeds)).tolist(), strict=True):
        found.append({"settings": words, "mean": float(np.mean(mine)), "std": float(np.std(mine)), "returns": mine})
        _common.say(f"{found[-1]['mean']:8.2f} ({found[-1]['std']:.2f})  {words or 'as it is'}")
    if arguments.json:
        kept = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else []
        asked = {name: getattr(arguments, name) for name in ("preset", "env", "built", "episodes", "first", "seeds")}
        kept.append(asked | {"commit": _common.commit(), "tried": found})
        arguments.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

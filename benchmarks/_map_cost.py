"""What one update of MAP propagation costs beside back-propagation, in seconds and bytes, by width and by depth."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _common

METHODS = ("map_propagation", "backprop_det", "reinforce_team")
WIDTHS = (64, 128, 256, 512, 1024)  # of two hidden layers
DEPTHS = (2, 3, 4, 6, 8)  # hidden layers of 64 units
HUES = {"map_propagation": "#1f66b1", "backprop_det": "#b4500b", "reinforce_team": "#16744a"}
CALLS = 50  # updates of one measurement


def shapes(quick: bool) -> dict[str, tuple[int, ...]]:
    """Name -> hidden layers."""
    by_width = {f"width {width}": (width, width) for width in (WIDTHS[:1] if quick else WIDTHS)}
    by_depth = {f"depth {depth}": (64,) * depth for depth in (() if quick else DEPTHS)}
    return by_width | by_depth


def measure(quick: bool) -> dict[str, dict[str, Any]]:
    """Name of the shape -> method -> milliseconds and kilobytes of an update after one step of one environment."""
    results: dict[str, dict[str, Any]] = {}
    for name, hidden in shapes(quick).items():
        calls = {}
        results[name] = {}
        for method in METHODS:
            calls[method], memory = prepared(method, hidden)
            results[name][method] = memory
        rates = _common.alternate(calls, 1 if quick else 5)
        for method in METHODS:
            results[name][method] |= _common.spread("update_ms", rates[method])
        ratios = _common.ratios(rates["map_propagation"], rates["backprop_det"])
        results[name] |= _common.spread("time_ratio", ratios)
        temporary = [results[name][method]["temporary_kb"] for method in METHODS[:2]]
        results[name]["memory_ratio"] = temporary[0] / temporary[1] if all(temporary) else None
    return results


def prepared(method: str, hidden: tuple[int, ...]) -> tuple[Any, dict[str, Any]]:
    """A call that times updates (milliseconds each), and what the compiled update keeps in memory."""
    import jax
    import jax.numpy as jnp

    from shoal import experiment
    from shoal.core import tree, types
    from shoal.experiment import presets

    request = presets.Request(method, env="gymnax:CartPole-v1", settings={"network": {"hidden": hidden}})
    agent = experiment.build(*presets.resolve(request)).parts.agent
    keys = jax.random.split(jax.random.key(0), 3)
    state = agent.init(keys[0])
    obs = jnp.asarray([0.01, -0.02, 0.03, 0.04])
    action, extras, _ = agent.act(agent.snapshot(state), agent.about.carry, obs, keys[1])
    one = jnp.float32(1.0)
    step = types.Transition(obs, action, one, one, jnp.bool_(False), obs + 0.01, extras)
    lone = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None, None], step)  # [T = 1, B = 1]
    carry = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], agent.about.carry)
    rollout = types.Rollout(lone, carry)
    held = jax.jit(agent.update, donate_argnums=0).lower(state, rollout, keys[2]).compile().memory_analysis()
    memory = {"temporary_kb": held.temp_size_in_bytes / 1024 if held else None, "state_kb": tree.bytes(state) / 1024}

    @jax.jit
    def many(state: Any) -> Any:  # in a compiled loop, as on_device runs it: a call of its own costs 0.3 ms besides
        return jax.lax.fori_loop(
            0, CALLS, lambda i, at: agent.update(at, rollout, jax.random.fold_in(keys[2], i))[0], state
        )

    current = [jax.block_until_ready(many(state))]

    def call() -> float:
        began = time.perf_counter()
        current[0] = jax.block_until_ready(many(current[0]))
        return 1000 * (time.perf_counter() - began) / CALLS

    return call, memory


def blank() -> dict[str, Any]:
    """The keys of a part that was not measured."""
    empty = _common.spread("update_ms", []) | {"temporary_kb": None, "state_kb": None}
    rest = _common.spread("time_ratio", []) | {"memory_ratio": None}
    return {name: {method: dict(empty) for method in METHODS} | dict(rest) for name in shapes(quick=False)}


def draw(results: Mapping[str, Any], out: Path) -> None:
    """The figure of the documentation: milliseconds and kilobytes over width and over depth."""
    import matplotlib
    from matplotlib import figure

    drawn = figure.Figure(figsize=(8, 5.6), layout="constrained")
    grid = drawn.subplots(2, 2, sharey="row")
    axes = {("width", "update_ms"): grid[0][0], ("depth", "update_ms"): grid[0][1],
            ("width", "temporary_kb"): grid[1][0], ("depth", "temporary_kb"): grid[1][1]}  # fmt: skip
    labels = {"update_ms": "milliseconds an update", "temporary_kb": "kB beside the state"}
    under = {"width": "units in each of two layers", "depth": "hidden layers of 64 units"}
    for (what, key), one in axes.items():
        sizes = WIDTHS if what == "width" else DEPTHS
        for method in METHODS:
            values = [results[f"{what} {size}"][method][key] for size in sizes]
            one.plot(sizes, values, color=HUES[method], marker="o", label=method)
        one.set(xlabel=under[what], yscale="log", xscale="log" if what == "width" else "linear")
        one.set_xticks(sizes, [str(size) for size in sizes])
        one.minorticks_off()
        one.spines[["top", "right"]].set_visible(False)
        if what == "width":
            one.set_ylabel(labels[key])
    grid[0][0].legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "shoal"}):
        drawn.savefig(out, dpi=160, metadata={"Date": None} if out.suffix == ".svg" else None)

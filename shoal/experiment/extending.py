"""A run that goes on beyond the steps it was asked for.

What it was asked for before stays in its ``config.json``, as `Experiment.earlier`, so that the checkpoints of its
earlier lives are still known as its own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from etils import epy

from shoal import experiment
from shoal.core import errors, types
from shoal.formulas import optimise

with epy.lazy_imports():
    import jax


def longer(
    folder: Path, made: experiment.Experiment, steps: int, *, taken: int, reanneal: bool
) -> experiment.Experiment:
    """The experiment with more steps; its goal and number of episodes, which would end it at once, are dropped.

    Args:
        folder: Its run folder, for messages.
        made: As it was asked for last.
        steps: Environment steps in all.
        taken: Of them, those it has made; fewer than were asked for where its goal or its episodes ended it.
        reanneal: Lower the learning rate over all of them; else its schedule ends where it ended.

    Raises:
        Refused: No more steps than before, or a schedule that a record of updates was made with is to change.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps <= taken:
        raise errors.Refused(f"--steps {steps}: {folder} has {taken:,} steps already; give more than that, in all")
    if reanneal and experiment.ways(made.runtime, made.configs["runtime"]).records:
        raise errors.Refused(
            f"--reanneal: the updates of {folder} are recorded with the rates they had, and could not be replayed; "
            "leave it out"
        )
    before = {"steps": made.steps, "episodes": made.episodes, "anneal": made.anneal,
              "goal": made.goal._asdict() if made.goal else None}  # fmt: skip
    anneal = None if reanneal else made.anneal or made.steps
    return dataclasses.replace(
        made, steps=steps, goal=None, episodes=None, anneal=anneal, earlier=(*made.earlier, before)
    )


def told(made: experiment.Experiment) -> str:
    """What a person should know before it goes on."""
    said = f"going on to {made.steps:,} steps in all"
    if not made.configs["optimiser"].anneal or experiment.traits(made.algorithm).learns != "rollouts":
        return said
    if made.anneal is None:
        return f"{said}; the learning rate is lowered to 0 over all of them"
    stays = " and stays there" if made.anneal < made.steps else ", as before"
    return (
        f"{said}; the learning rate is lowered to 0 over the first {made.anneal:,}{stays}: --reanneal lowers it over "
        "all of them instead"
    )


def ancestors(made: experiment.Experiment) -> list[experiment.Experiment]:
    """What the run was asked for in its earlier lives."""
    found = []
    for at, before in enumerate(made.earlier):
        goal = types.Goal(**before["goal"]) if before["goal"] else None
        found.append(
            dataclasses.replace(
                made,
                steps=before["steps"],
                episodes=before["episodes"],
                anneal=before["anneal"],
                goal=goal,
                earlier=made.earlier[:at],
            )
        )
    return found


def annealed(tree: types.Tree, made: experiment.Experiment) -> types.Tree:
    """A checkpoint's tree with the schedule that is asked for now; what it is otherwise stays."""
    if not made.earlier or not made.configs["optimiser"].anneal:
        return tree

    def change(node: Any) -> Any:
        if not isinstance(node, optimise.Hyper):
            return node
        return node._replace(anneal_steps=np.full_like(node.anneal_steps, experiment.horizon(made)))

    return jax.tree.map(change, tree, is_leaf=lambda node: isinstance(node, optimise.Hyper))

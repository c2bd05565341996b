"""Whether PyTorch's learners in the bench `population` are Shoal's: a few updates of both from the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _members
import jax
import numpy as np

from shoal.core import seeds

WIDTH, BATCH, MEMBERS, UPDATES = 16, 32, 3, 6
LAYERS = ("trunk_dense_0", "trunk_dense_1")
Arrays = dict[str, np.ndarray]


def write(path: Path, rule: str) -> tuple[Arrays, Arrays]:
    """Parameters, batches and noise of a few members to a file.

    Args:
        path: The .npz that `peers/torch_population.py` reads.
        rule: td3, sac or dqn.

    Returns:
        (parameters before, after Shoal's updates), as they are named there, `[N, size]`.
    """
    learner = _members.agent(rule, WIDTH, BATCH)
    states, drawn = _members.states(learner, MEMBERS), _members.samples(rule, MEMBERS, UPDATES, BATCH)
    keys = jax.random.split(seeds.key(0, "learn"), MEMBERS)
    before = _parameters(rule, states.params)
    data = {name: getattr(drawn, name) for name in ("obs", "action", "reward", "discount", "next_obs")}
    held = {name: np.asarray(leaf) for name, leaf in data.items()}
    held["action"] = held["action"].astype(np.int64) if rule == "dqn" else held["action"]
    noise = jax.vmap(
        lambda key: jax.vmap(lambda at: _noise(rule, jax.random.fold_in(key, at)))(jax.numpy.arange(UPDATES))
    )(keys)
    np.savez(path, **before, **held, noise=np.asarray(noise))  # type: ignore[arg-type]
    learn = jax.vmap(_members.updating(learner), in_axes=(0, 0, 0, None))
    after, _ = jax.jit(learn)(states, drawn, keys, UPDATES)
    return _flat(before), _flat(_parameters(rule, after.params))


def difference(path: Path, before: Arrays, ours: Arrays) -> float:
    """The largest difference of a parameter, as a share of the largest change that the updates made to any.

    Args:
        path: The file, once the peer has written its parameters there.
        before: Parameters at the beginning.
        ours: Parameters at the end.
    """
    theirs = np.load(path)
    change = max(float(np.abs(ours[name] - before[name]).max()) for name in ours)
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours) / change


def _noise(rule: str, key: Any) -> Any:
    """What the rule draws in one update, `[draws, batch, actions]`."""
    draws = {"td3": [key], "sac": list(jax.random.split(key)), "dqn": []}[rule]
    shape = (BATCH, _members.ACTIONS)
    return jax.numpy.stack([jax.random.normal(one, shape) for one in draws] or [jax.numpy.zeros(shape)])


def _parameters(rule: str, params: Any) -> Arrays:
    nets = {"q": params} if rule == "dqn" else {"policy": params["policy"]}
    if rule != "dqn":
        nets |= {f"critic_{i}": critic for i, critic in enumerate(params["critics"])}
    made: Arrays = {}
    for name, net in nets.items():
        head = next(layer for layer in net if layer not in LAYERS)
        leaves = [net[layer][kind] for layer in (*LAYERS, head) for kind in ("kernel", "bias")]
        made |= {f"{name}.{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    return made


def _flat(arrays: Arrays) -> Arrays:
    return {name: array.reshape(len(array), -1) for name, array in arrays.items()}

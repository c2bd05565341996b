"""What the tests of learning rules have in common: float64 arithmetic written out, an optimiser, linear networks."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

RMSPROP = {"anneal": False, "learning_rate": 0.01, "decay": 0.9, "epsilon": 1e-3, "max_norm": 0.4}


class RMSProp:
    """Mnih et al. 2016, equation S2, after a clip by the global norm; on trees of float64 arrays."""

    def __init__(self, factor: float = 1.0) -> None:
        self.rate = factor * RMSPROP["learning_rate"]
        self.squares: list[Any] = []
        self.norms: list[float] = []

    def __call__(self, params: Any, gradient: Any) -> Any:
        """The parameters after one step."""
        leaves, shape = jax.tree.flatten(gradient)
        leaves = [np.asarray(leaf, np.float64) for leaf in leaves]
        norm = np.sqrt(sum((leaf**2).sum() for leaf in leaves))
        self.norms.append(norm)
        leaves = [leaf * min(1.0, RMSPROP["max_norm"] / norm) for leaf in leaves]
        squares, decay = self.squares or [0.0] * len(leaves), RMSPROP["decay"]
        self.squares = [decay * old + (1 - decay) * g * g for old, g in zip(squares, leaves, strict=True)]
        steps = [g / np.sqrt(square + RMSPROP["epsilon"]) for g, square in zip(leaves, self.squares, strict=True)]
        return jax.tree.map(lambda p, s: p - self.rate * s, params, jax.tree.unflatten(shape, steps))


def double(tree: Any) -> Any:
    """The tree in float64; integers and flags as they are."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) if _float(leaf) else np.asarray(leaf), tree)


def _float(leaf: Any) -> bool:
    return np.asarray(leaf).dtype.kind == "f"


def shaken(params: Any, seed: int = 7, size: float = 0.5) -> Any:
    """Parameters of which none is that of the start: biases are not 0, outputs not tiny."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (leaf + rng.normal(0, size, leaf.shape)).astype(np.float32), params)


def linear(layer: Any, x: Any) -> Any:
    """A dense layer."""
    return x @ layer["kernel"] + layer["bias"]


def linear_gradient(x: Any, d_out: Any) -> dict[str, Any]:
    """Of a dense layer's parameters, by those of its outputs ``[N, outputs]``."""
    return {"kernel": x.T @ d_out, "bias": d_out.sum(axis=0)}


def log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def sigmoid(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


def assert_close(found: Any, expected: Any, rtol: float = 2e-4, atol: float = 2e-6) -> None:
    """Leaf by leaf."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, ours), theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


# ------------------------------------------------------------------------------------------------ learning from memory


def draw(plan: Any, spec: Any, state: Any, rollout: Any, key: Any, priorities: Any = ()) -> tuple[Any, Any]:
    """What an update of one gradient step draws from its memory, and the key of what it makes up besides."""
    from shoal.algorithms import _memory

    memory = _memory.build(plan, spec)
    draw_key, learn_key = jax.random.split(key)
    filled = memory.add(state.memory, rollout.transitions)
    return double(memory.sample(filled, state.hyper.discount, priorities, draw_key)), learn_key


def critic(params: Any, obs: Any, action: Any) -> Any:
    """Q ``[N]`` of a linear critic."""
    return linear(params["q"], np.concatenate([obs, action], axis=1))[:, 0]


def critics_gradient(critics: Any, obs: Any, action: Any, target: Any, weight: Any) -> tuple[Any, float]:
    """Of the sum of mean weighted ½ (y - Q_i)², and that sum."""
    both, out, total = np.concatenate([obs, action], axis=1), [], 0.0
    for each in critics:
        error = critic(each, obs, action) - target
        out.append({"q": linear_gradient(both, (weight * error)[:, None] / len(obs))})
        total += (weight * 0.5 * error**2).mean()
    return tuple(out), total


def slopes(critics: Any, obs: Any, action: Any) -> tuple[Any, Any]:
    """The lowest Q ``[N]`` of several linear critics, and its gradient by the action ``[N, d]``."""
    all_q = np.stack([critic(each, obs, action) for each in critics])
    by_action = np.stack([each["q"]["kernel"][obs.shape[1] :, 0] for each in critics])
    return all_q.min(axis=0), by_action[all_q.argmin(axis=0)]

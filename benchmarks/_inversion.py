"""What `inversion` attacks, and how: updates of owners of HalfCheetah, and what can be read off a first global layer.

Closed form (specification, section 5): with z = W s + b, dL/dW = delta sᵀ and dL/db = delta, so that the observation is
s = (dL/dW)_j / (dL/db)_j for any unit j. Gradient matching (Zhu et al. 2019, arXiv:1906.08935): inputs and errors are
searched whose gradients of both global layers are those that were sent; the head is the owner's and need not be known.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shoal import algorithms, networks
from shoal.core import options, registry, types
from shoal.formulas import optimise
from shoal.networks import scopes

ENV, SIZE, BURN_IN = "HalfCheetah-v5", 17, 100
SPEC = types.EnvSpec(
    ENV, types.ObservationSpec((SIZE,), "float32", False), types.ActionSpec(False, 0, (6,), (-1.0,) * 6, (1.0,) * 6),
    None, None, False,
)  # fmt: skip
RATE = 1e-3


class First(NamedTuple):
    """The global layers of the policy, or what an update says of them; leaves [N, ...] of updates."""

    kernel: Any  # [in, 64]
    bias: Any
    kernel_2: Any  # [64, 64]
    bias_2: Any


# ------------------------------------------------------------------------------------------------ what is attacked


def agent_of(form: str, batch: int) -> types.Agent:
    """Actor-critic with plain steps; its critic is the owner's."""
    rule, corrector = registry.load("algorithm", "actor_critic"), registry.load("corrector", "none")
    network = {"hidden": (64, 64), "activation": "tanh", "form": form, "shared": False, "critic_form": "local"}
    steps = {"rule": "momentum", "decay": 0.0, "max_norm": 0.0, "anneal": False, "learning_rate": RATE}
    given = algorithms.Ingredients(
        SPEC,
        options.build(networks.Config, network, "network"),
        optimise.local(options.build(optimise.Config, steps, "optimiser"), 1),
        corrector.build(options.build(corrector.Config, {}, "correction")),
        1,
    )
    return rule.build(options.build(rule.Config, {"rollout_length": batch}, "algorithm"), given)


def learners(agent: types.Agent, owners: int, seed: int) -> Any:
    """One global part, and local parts that differ."""
    states = jax.vmap(agent.init)(jax.random.split(jax.random.key(seed), owners))
    theta = scopes.vector(jax.tree.map(lambda leaf: leaf[0], states.params))
    return states._replace(params=jax.vmap(lambda params: scopes.install(params, theta))(states.params))


def experience(owners: int, steps: int, seed: int) -> dict[str, np.ndarray]:
    """Random actions of each owner in its own simulator, leaves ``[N, T, ...]``; observations by public statistics."""
    import gymnasium

    rng, lives = np.random.default_rng(seed), []
    for owner in range(owners):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # where MuJoCo leaves its log
            simulator = gymnasium.make(ENV).unwrapped
        obs, _ = simulator.reset(seed=seed + owner)
        rows = []
        for _ in range(BURN_IN + int(rng.integers(BURN_IN)) + steps):
            action = np.clip(rng.normal(size=6), -1.0, 1.0)
            after, reward, _, _, _ = simulator.step(action)
            rows.append((obs, action, reward, after))
            obs = after
        simulator.close()
        lives.append([np.stack(column)[-steps:] for column in zip(*rows, strict=True)])
    obs, action, reward, after = (np.stack(column).astype(np.float32) for column in zip(*lives, strict=True))
    mean, deviation = obs.mean(axis=(0, 1)), obs.std(axis=(0, 1))
    return {"obs": (obs - mean) / deviation, "action": action, "reward": reward, "next_obs": (after - mean) / deviation}


def lived(agent: types.Agent, states: Any, found: dict[str, np.ndarray], seed: int) -> types.Transition:
    """As transitions of the rule, ``[N, T, ...]``."""
    owners, steps = found["reward"].shape
    policies = jax.vmap(agent.snapshot)(states)
    keys = jax.random.split(jax.random.key(seed), (owners, steps))
    act = jax.vmap(jax.vmap(agent.act, in_axes=(None, None, 0, 0)), in_axes=(0, None, 0, 0))
    _, extras, _ = act(policies, (), found["obs"], keys)
    return types.Transition(
        obs=found["obs"], action=found["action"], reward=found["reward"], discount=np.ones((owners, steps), np.float32),
        truncated=np.zeros((owners, steps), bool), next_obs=found["next_obs"], extras=extras,
    )  # fmt: skip


def sender(agent: types.Agent, updates: int, batch: int) -> Any:
    """A function: (states, lives) -> what each owner sends, the change of the global part over the rate, ``[N, d]``.

    Args:
        agent: The rule; a segment has `batch` steps.
        updates: Local updates (H), each of the next segment.
        batch: Steps of a segment.
    """

    def one(state: Any, life: types.Transition) -> Any:
        pieces = jax.tree.map(lambda leaf: leaf[: updates * batch].reshape(updates, batch, 1, *leaf.shape[1:]), life)

        def learn(state: Any, piece: types.Transition) -> Any:
            return agent.update(state, types.Rollout(piece, ()), jax.random.key(0))[0], None

        after, _ = jax.lax.scan(learn, state, pieces)
        return (scopes.vector(state.params) - scopes.vector(after.params)) / RATE

    return jax.jit(jax.vmap(one))


def layers(params: Any, vectors: Any) -> First:
    """The two global layers in vectors of the global part, leaves ``[N, ...]``."""
    arrays, at = [], 0
    for _, shape in scopes.layout(params):  # bias and kernel of the first, then of the second
        size = int(np.prod(shape))
        arrays.append(vectors[:, at : at + size].reshape(-1, *shape))
        at += size
    bias, kernel, bias_2, kernel_2 = arrays
    return First(kernel, bias, kernel_2, bias_2)


def encoder(states: Any) -> tuple[Any, Any] | None:
    """Kernel and bias of the local encoders of form C, ``[N, 17, 64]`` and ``[N, 64]``; None: there are none."""
    found = states.params.get("own_policy_trunk_adapter")
    return (found["kernel"], found["bias"]) if found else None


def features(states: Any, obs: Any) -> Any:
    """What the first global layer sees of observations ``[N, T, 17]``."""
    own = encoder(states)
    return obs if own is None else jnp.tanh(jnp.einsum("nti,nij->ntj", obs, own[0]) + own[1][:, None])


# ------------------------------------------------------------------------------------------------ attacks


def largest(seen: First, theta: First) -> Any:
    """The closed form by the unit whose bias moved most, ``[N, in]``."""
    del theta
    unit = jnp.argmax(jnp.abs(seen.bias), axis=1)
    kernel = jnp.take_along_axis(seen.kernel, unit[:, None, None], axis=2)[..., 0]
    return kernel / jnp.take_along_axis(seen.bias, unit[:, None], axis=1)


def least_squares(seen: First, theta: First) -> Any:
    """The closed form by all units together: exact of one step, and the best of it under noise."""
    del theta
    return jnp.einsum("nij,nj->ni", seen.kernel, seen.bias) / jnp.sum(seen.bias**2, axis=1, keepdims=True)


@functools.cache
def matching(rows: int, iterations: int) -> Any:
    """Gradient matching with so many unknown inputs: the one whose errors are largest is the answer."""

    def grads(inputs: Any, errors: Any, theta: First) -> First:
        hidden = jnp.tanh(inputs @ theta.kernel + theta.bias)
        first = errors @ theta.kernel_2.T * (1.0 - hidden**2)
        return First(inputs.T @ first, first.sum(axis=0), hidden.T @ errors, errors.sum(axis=0))

    def one(seen: First, theta: First, key: Any) -> Any:
        size = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in seen))
        target = First(*(leaf / size for leaf in seen))
        a, b = jax.random.split(key)
        start = (
            jax.random.normal(a, (rows, theta.kernel.shape[0])),
            0.1 * jax.random.normal(b, (rows, theta.kernel.shape[1])),
        )

        def loss(given: Any) -> Any:
            made = grads(*given, theta)
            return sum(jnp.sum((x - y) ** 2) for x, y in zip(made, target, strict=True))

        def step(at: Any, now: Any) -> Any:
            given, mean, square = now
            gradient = jax.grad(loss)(given)
            mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradient)
            square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, square, gradient)
            rate = 0.05 * 0.5 * (1.0 + jnp.cos(jnp.pi * at / iterations))
            fix = (1.0 - 0.9 ** (at + 1.0), 1.0 - 0.999 ** (at + 1.0))
            given = jax.tree.map(
                lambda x, m, v: x - rate * (m / fix[0]) / (jnp.sqrt(v / fix[1]) + 1e-8), given, mean, square
            )
            return given, mean, square

        nothing = jax.tree.map(jnp.zeros_like, start)
        inputs, errors = jax.lax.fori_loop(0, iterations, step, (start, nothing, nothing))[0]
        return inputs[jnp.argmax(jnp.sum(errors**2, axis=1))]

    return jax.jit(lambda seen, theta: jax.vmap(one)(seen, theta, jax.random.split(jax.random.key(0), len(seen.bias))))


def decoded(states: Any, found: Any) -> Any:
    """Observations behind what was found: of form C by the encoder of another owner, which is all an attacker has."""
    own = encoder(states)
    if own is None:
        return found
    kernel, bias = (jnp.roll(leaf, 1, axis=0)[: len(found)] for leaf in own)
    before = jnp.arctanh(jnp.clip(found, -0.999, 0.999)) - bias
    return jnp.einsum("nj,nji->ni", before, jnp.linalg.pinv(kernel))


# ------------------------------------------------------------------------------------------------ judged


def scores(found: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    """How near estimates are to the nearest observation behind their message, and to those behind other messages.

    Args:
        found: One estimate a message, ``[N, in]``.
        truths: What is behind each, ``[N, M, in]``.

    Returns:
        ``cosine``: of the nearest, the mean over messages; ``chance``: the same with the observations of another
        message, over all pairs; ``error``: the squared error of the nearest over the variance, the median over
        messages; ``guess``: that of guessing the mean.
    """
    found, truths = np.asarray(found, np.float64), np.asarray(truths, np.float64)
    unit = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    shaped = truths / np.maximum(np.linalg.norm(truths, axis=2, keepdims=True), 1e-12)
    every = np.einsum("ki,nmi->knm", unit, shaped)
    best, each = every.max(axis=2), np.arange(len(found))
    nearest = truths[each, every[each, each].argmax(axis=1)]
    variance = truths.reshape(-1, truths.shape[2]).var(axis=0)
    mean = truths.reshape(-1, truths.shape[2]).mean(axis=0)
    others = best[~np.eye(len(found), dtype=bool)]
    quantities = (found - nearest) ** 2 / variance
    return {
        "cosine": float(best[each, each].mean()),
        "chance": float(others.mean()),
        "error": float(np.median(quantities.mean(axis=1))),
        "guess": float(np.median(((nearest - mean) ** 2 / variance).mean(axis=1))),
        "quantities": [float(one) for one in np.median(quantities, axis=0)],
    }

"""Strict arithmetic for the tests of formulas, and small agents to test with."""

from __future__ import annotations

import contextlib
import importlib
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import algorithms, networks, optimise, options, registry, types
from shoal.algorithms import actor_critic

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")  # the same bits in this process and in those that tests start
os.environ["SHOAL_PROGRAMS"] = "0"  # tests replace functions in memory, which no digest of files sees

# Modules whose code under test is Shoal's own arithmetic. Simulators (gymnax) and oracles mix types on purpose.
STRICT = (
    "test_returns",
    "test_losses",
    "test_distributions",
    "test_networks",
    "test_normalise",
    "test_optimise",
    "test_small_policy",
    "test_actor_critic",
    "test_ppo",
    "test_export",
    "test_correctors",
    "test_compressors",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what ``slow.txt`` lists; a line that names no test any more is an error when all are collected."""
    lines = (pathlib.Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").splitlines()
    listed = {line for line in lines if not line.startswith("#")}
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)
    everything = config.args in ([], config.getini("testpaths"))
    if everything and (unknown := listed - {item.nodeid for item in items}):
        raise pytest.UsageError(f"tests/slow.txt lists what is no test: {sorted(unknown)}")


@pytest.fixture(autouse=True)
def strict_arithmetic(request: pytest.FixtureRequest) -> Iterator[None]:
    """No silent promotion of types (a float64 or an integer where float32 is meant) or of ranks (a wrong broadcast)."""
    if request.module.__name__.rpartition(".")[2] not in STRICT:
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def rlax() -> Any:
    """rlax, an oracle; what it imports warns of its own age."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("rlax")


@pytest.fixture
def lenient() -> Callable[[], Any]:
    """``with lenient():`` around code that is not ours (oracles)."""

    @contextlib.contextmanager
    def off() -> Iterator[None]:
        promotion = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
        with promotion[0], promotion[1], warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield

    return off


def env_spec(
    shape: tuple[int, ...] = (3,), *, choices: int = 0, low: tuple[float, ...] = (), high: tuple[float, ...] = ()
) -> types.EnvSpec:
    """An environment as data: `choices` actions, or a vector within the bounds; rank 3 stands for byte images."""
    image = len(shape) == 3
    observation = types.ObservationSpec(shape, "uint8" if image else "float32", image)
    action = types.ActionSpec(choices > 0, choices, (len(low),) if low else (), low, high)
    return types.EnvSpec("test:spec", observation, action, None, None, False)


def build_agent(
    spec: types.EnvSpec, *, rule: str = "actor_critic", corrector: str = "none", streams: int = 1, **settings: Any
) -> types.Agent:
    """An agent for `spec` that captures its raw gradient unless ``local=True``.

    Args:
        spec: The environment.
        rule: The name of its algorithm.
        corrector: Its name.
        streams: Environments it learns from.
        **settings: Fields of the configs of ``algorithm``, ``network``, ``optimiser``, ``correction``; ``local``.
    """
    module = registry.load("algorithm", rule)
    correct = registry.load("corrector", corrector)
    optimiser = options.build(optimise.Config, {"max_norm": 0.0} | settings.get("optimiser", {}), "optimiser")
    make = optimise.local if settings.get("local") else optimise.capture
    given = algorithms.Ingredients(
        spec,
        options.build(networks.Config, {"hidden": (5,)} | settings.get("network", {}), "network"),
        make(optimiser, 1000),
        correct.build(options.build(correct.Config, settings.get("correction", {}), "corrector")),
        streams,
    )
    return module.build(options.build(module.Config, settings.get("algorithm", {}), "algorithm"), given)


def observations(spec: types.ObservationSpec, *leading: int, seed: int = 0) -> jax.Array:
    """Random observations ``[*leading, *shape]``."""
    key, shape = jax.random.key(seed), (*leading, *spec.shape)
    if spec.dtype == "uint8":
        return jax.random.randint(key, shape, 0, 256, jnp.int32).astype(jnp.uint8)
    return jax.random.normal(key, shape)


@pytest.fixture(name="env_spec")
def env_spec_fixture() -> Callable[..., types.EnvSpec]:
    """`env_spec`."""
    return env_spec


@pytest.fixture(name="build_agent")
def build_agent_fixture() -> Callable[..., types.Agent]:
    """`build_agent`."""
    return build_agent


@pytest.fixture(name="observations")
def observations_fixture() -> Callable[..., jax.Array]:
    """`observations`."""
    return observations


class Ends(NamedTuple):
    """Where a segment ends: ``[T, B]`` flags."""

    terminal: Any = None
    limit: Any = None


@pytest.fixture(name="rollout")
def rollout_fixture() -> Callable[..., types.Rollout]:
    """`random_rollout`."""
    return random_rollout


def random_rollout(
    spec: types.EnvSpec, T: int, B: int, *, seed: int, ends: Ends | None = None, carry: Any = ()
) -> types.Rollout:
    """Experience ``[T, B]`` of nobody: random numbers whose successors fit together and whose ends are as asked."""
    rng = np.random.default_rng(seed)
    ends = ends or Ends()
    terminal = np.zeros((T, B), bool) if ends.terminal is None else np.asarray(ends.terminal, bool)
    limit = np.zeros((T, B), bool) if ends.limit is None else np.asarray(ends.limit, bool)
    obs, next_obs = (np.asarray(observations(spec.observation, T, B, seed=seed + i)) for i in range(2))
    over = (terminal | limit)[:-1].reshape(T - 1, B, *[1] * len(spec.observation.shape))
    next_obs = np.concatenate([np.where(over, next_obs[:-1], obs[1:]), next_obs[-1:]])
    discrete = spec.action.discrete
    action = rng.integers(0, spec.action.n, (T, B)) if discrete else rng.normal(size=(T, B, *spec.action.shape))
    log_prob = rng.normal(-1.0, 0.3, (T, B)).astype(np.float32)
    steps = types.Transition(
        obs=obs,
        action=action.astype(np.int32 if discrete else np.float32),
        reward=rng.normal(size=(T, B)).astype(np.float32),
        discount=(~terminal).astype(np.float32),
        truncated=limit,
        next_obs=next_obs,
        extras=actor_critic.Remembered(log_prob),
    )
    return jax.tree.map(jnp.asarray, types.Rollout(steps, carry))


@pytest.fixture(name="ends")
def ends_fixture() -> type[Ends]:
    """`Ends`."""
    return Ends

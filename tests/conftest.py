"""Where tests compute and what they keep, strict arithmetic for those of formulas, and small agents to test with."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import algorithms, networks
from shoal.algorithms import actor_critic
from shoal.core import options, registry, types
from shoal.formulas import optimise
from tests import runs, spread

ROOT = pathlib.Path(__file__).parents[1]
QUICK = (  # most of the time of tests is compiling: no optimisation, and the emitter of fusions that is done sooner
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"  # all cores are busy: nothing is done sooner by splitting
    " --xla_cpu_enable_concurrency_optimized_scheduler=false"  # as in workers: some tests compare bits with theirs
)
AS_USERS = {"xla_cpu_use_fusion_emitters": True}  # compiler options where what `QUICK` rounds apart matters
MUCH = 1000  # MB of this process that are nothing to mind
MORE = 400  # MB beyond that, or since memory was last given back, after which it is given back between two files

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")  # the same bits in this process and in those that tests start
os.environ.setdefault("XLA_FLAGS", QUICK)  # `XLA_FLAGS= pytest` compiles as a user does
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # of each operation traced, which nobody reads
os.environ.setdefault("SHOAL_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))  # compiled once, for all processes
os.environ["SHOAL_PROGRAMS"] = "0"  # tests replace functions in memory, which no digest of files sees
jax.config.update("jax_traceback_in_locations_limit", 0)
jax.config.update("jax_compilation_cache_dir", os.environ["SHOAL_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

gc.set_threshold(20_000, 20, 20)  # tracing makes objects by the million, and hardly any of them are cycles
gc.freeze()  # nor are the modules imported so far ever garbage

REPLACING = ("tests.test_map_runs", "tests.test_map_propagation")  # modules that replace functions for all their tests

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
    "test_correct",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The table of durations."""
    spread.pytest_addoption(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Children's seconds are told with every test; the process that sees all reports adds them up if asked to."""
    config.pluginmanager.register(spread.Children())
    if config.getoption(spread.OPTION) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(spread.Recorder())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Longest files first (``-n 2 --dist loadfile``)."""
    return spread.scheduler(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what ``slow.txt`` lists; a line that names no test any more is an error when all are collected."""
    lines = (pathlib.Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").splitlines()
    listed = {line for line in lines if not line.startswith("#")}
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.rest)
    everything = config.args in ([], config.getini("testpaths"))
    if everything and (unknown := listed - {item.nodeid for item in items}):
        said = f"tests/slow.txt lists what is no test: {sorted(unknown)}"
        print(said, file=sys.__stderr__)  # with several processes pytest itself does not say why they leave
        raise pytest.UsageError(said)


@pytest.fixture(scope="module", autouse=True)
def memory_kept_small() -> Iterator[None]:
    """What a file leaves behind is given back."""
    yield
    give_back_memory()


_held = MUCH  # MB that were left when memory was last given back


def give_back_memory() -> None:
    """Once it is much: what the compiler left free, then compiled programs; those wanted again come from the cache.

    Letting go of programs takes the better part of a second and all of them are traced anew, so not after every file.
    """
    global _held  # noqa: PLW0603  of this process, as its memory is
    if _resident_mb() > _held + MORE:
        _trim()
    if _resident_mb() > _held + MORE:
        jax.clear_caches()
        gc.collect()
        _trim()
        _held = max(MUCH, _resident_mb())


def _trim() -> None:
    """Free memory goes back to the system; by itself glibc keeps most of what compiling has used."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _resident_mb() -> int:
    try:
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except OSError:  # another system
        return 0


@pytest.fixture(scope="module", autouse=True)
def kept_programs_of_module(request: pytest.FixtureRequest) -> Iterator[None]:
    """Commands in this process keep their lowered programs, as a user's do; those in fixtures of a module too."""
    if request.module.__name__ in REPLACING:
        yield
        return
    del os.environ["SHOAL_PROGRAMS"]
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(pytest.MonkeyPatch, "setattr", _replacing(pytest.MonkeyPatch.setattr))
        yield
    os.environ["SHOAL_PROGRAMS"] = "0"


@pytest.fixture(autouse=True)
def kept_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """They do until a test replaces one of our functions, and again after it."""
    yield
    if request.module.__name__ not in REPLACING:
        os.environ.pop("SHOAL_PROGRAMS", None)


def _replacing(setattr: Callable[..., None]) -> Callable[..., None]:
    """`MonkeyPatch.setattr` that ends the keeping of programs where what it replaces may be traced."""

    def replace(patch: pytest.MonkeyPatch, target: Any, *rest: Any, **options: Any) -> None:
        named = (target, getattr(target, "__module__", None), getattr(target, "__name__", None))
        if {str(name).partition(".")[0] for name in named} & {"shoal", "tests", "jax"}:
            os.environ["SHOAL_PROGRAMS"] = "0"
        setattr(patch, target, *rest, **options)

    return replace


@pytest.fixture(autouse=True)
def environment_untouched() -> Iterator[None]:
    """Nothing called in this process leaves a variable of ours behind, which the next test would obey.

    Set up first of its scope, it is taken down after `monkeypatch`.
    """
    before = _ours()
    yield
    assert _ours() == before, "a variable of the environment was left behind"


def _ours() -> dict[str, str]:
    """Variables that shoal reads, but for the one that the fixtures here turn."""
    return {name: value for name, value in os.environ.items() if name.startswith("SHOAL_") and name != "SHOAL_PROGRAMS"}


@pytest.fixture(autouse=True)
def strict_arithmetic(request: pytest.FixtureRequest) -> Iterator[None]:
    """No silent promotion of types (a float64 or an integer where float32 is meant) or of ranks (a wrong broadcast)."""
    if request.module.__name__.rpartition(".")[2] not in STRICT:
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., runs.Finished]:
    """Finished runs, trained once for all processes (see `runs`)."""
    own = tmp_path_factory.getbasetemp()
    return runs.store((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "finished")


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

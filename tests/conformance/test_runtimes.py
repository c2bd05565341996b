"""The contract of every runtime: what `types.Runtime`, `types.Progress` and `types.Result` promise."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from shoal import experiment
from shoal.core import errors, registry, tree, types
from shoal.experiment import presets

STEPS = 600
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {  # how a runtime learns -> a preset it runs, and its settings
    # Annealing off: how long a run is meant to be must not change what an update does.
    "rollouts": ("a2c", {"optimiser": {"anneal": False}}),
    "exchange": ("parallel_sarsa", {"algorithm": {"low": (0.0,), "high": (2.0,)}}),
    "sums": ("batch_linear", {}),
}
SMALL = {
    "environments": 4, "workers": 2, "bundles": 2, "processes": 0, "spawn": False, "chunk_steps": 100, "report_s": 0.01,
    "members": 2, "dispatch": "vmap", "interval": 150, "episodes": 2,
}  # fmt: skip


COMPILED = ("on_device", "population", "federated")  # these look at the environment


class Observer:
    """Keeps what it is told; says stop once `stop_at` environment steps are reached."""

    def __init__(self, stop_at: float = float("inf")) -> None:
        self.told: list[types.Progress] = []
        self.faults: list[str] = []
        self.stop_at = stop_at

    def __call__(self, progress: types.Progress) -> bool:
        self.told.append(progress)
        return progress.env_steps < self.stop_at

    def fault(self, kind: str, message: str) -> None:
        self.faults.append(f"{kind}\n{message}")


class Done(NamedTuple):
    built: experiment.Built
    observer: Observer
    result: types.Result
    steps: int
    runtime: str


def made(runtime: str, env: str = "probe:constant", steps: int = STEPS) -> experiment.Experiment:
    cls = experiment.config_class("runtime", runtime)
    settings = {name: value for name, value in SMALL.items() if name in cls.__dataclass_fields__}
    preset, more = PRESETS[experiment.ways(runtime).learns]
    request = presets.Request(preset, env, steps, runtime=runtime, settings={"runtime": settings, **more})
    return presets.resolve(request)[0]


def run(runtime: str, *, saved: Any = None, steps: int = STEPS, **options: Any) -> Done:
    built, observer = experiment.build(made(runtime)), Observer(**options)
    return Done(built, observer, built.runtime.run(built.parts, 0, steps, None, observer, saved), steps, runtime)


@pytest.fixture(scope="module", params=registry.names("runtime"))
def runtime(request):
    experiment.cache()
    return request.param


@pytest.fixture(scope="module")
def done(runtime):
    return run(runtime)


def test_it_declares_what_the_wiring_reads(runtime):
    module = registry.load("runtime", runtime)
    declared = experiment.ways(runtime)
    assert isinstance(declared, types.Ways)
    assert isinstance(declared.captures, bool)
    assert isinstance(declared.exact_resume, bool)
    assert module.Config.__doc__
    module.check(module.Config(), made(runtime), _opened("probe:constant") if runtime in COMPILED else None)


def _opened(env):
    from shoal import environments

    return environments.open(env, environments.Config())


def test_it_does_the_steps_it_was_asked_for(done):
    final = done.result.final
    assert done.steps <= final.env_steps < done.steps + 500, "rounded up, by less than a report"
    assert final.updates > 0
    assert not done.observer.faults
    assert done.result.startup_s > 0


def test_asked_to_end_before_its_first_step_it_has_learned_nothing(runtime):
    observer = Observer(stop_at=0)
    built = experiment.build(made(runtime))
    try:
        result = built.runtime.run(built.parts, 0, STEPS, None, observer, None)
    except errors.NotBegun:
        assert all(told.stage is not None for told in observer.told), "what it was doing then"
        assert all(told.train_s == 0 for told in observer.told), "that is no training"
    else:
        assert result.final.updates == 0
    assert len(observer.told) <= 2, "one no is enough"


def test_progress_only_grows(done):
    told = [*done.observer.told, done.result.final]
    assert done.observer.told, "the observer was told"
    for before, after in itertools.pairwise(told):
        assert after.env_steps >= before.env_steps
        assert after.updates >= before.updates
        assert after.train_s >= before.train_s >= 0
        for name, count in before.faults.items():
            assert after.faults[name] >= count


def test_progress_is_plain_data(done):
    final = done.result.final
    assert type(final.env_steps) is type(final.updates) is int
    assert all(type(value) is float and np.isfinite(value) for value in final.metrics.values())
    learns = experiment.ways(done.runtime).learns
    wanted = {"loss", "entropy", "gradient_norm"}
    if learns != "rollouts":
        wanted = set(experiment.traits(presets.find(PRESETS[learns][0]).algorithm).metrics)
    assert wanted <= set(final.metrics)
    assert set(final.split) <= {"environment", "inference", "learning", "waiting", "on_device"}
    assert sum(final.split.values()) > 0
    assert all(type(count) is int for count in final.faults.values())
    assert "non_finite" in final.faults
    if final.workers:
        assert {"up", "of"} <= set(final.workers)
        assert final.workers["up"] <= final.workers["of"]


def test_every_episode_is_told_once_and_in_order(done):
    told = [episode for progress in [*done.observer.told, done.result.final] for episode in progress.episodes]
    # An episode of this probe is one step: as many episodes as steps, none lost, none twice.
    assert len(told) == done.result.final.env_steps
    assert {(episode.episode_return, episode.length) for episode in told} == {(1.0, 1)}
    assert all(0 < episode.env_steps <= done.result.final.env_steps for episode in told)
    for progress in done.observer.told:
        ends = [episode.env_steps for episode in progress.episodes]
        assert ends == sorted(ends)


def test_the_policy_is_the_agents_and_acts(done):
    agent, policy = done.built.parts.agent, done.result.policy
    like = jax.eval_shape(lambda key: agent.snapshot(agent.init(key)), jax.random.key(0))
    assert jax.tree.structure(policy) == jax.tree.structure(like)
    for leaf, wanted in zip(jax.tree.leaves(policy), jax.tree.leaves(like), strict=True):
        assert isinstance(leaf, np.ndarray | np.generic), "on the host"
        assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
        assert np.isfinite(leaf).all()
    first = jax.device_get(agent.init(jax.random.key(0)).params)
    assert tree.sha256(policy.params) != tree.sha256(first), "something was learned"
    action, _, _ = agent.act(policy, agent.about.carry, np.ones(1, np.float32), jax.random.key(1))
    assert int(action) in (0, 1)


def test_what_is_saved_is_like_what_was_announced_and_leads_back_to_the_policy(done):
    final, runtime = done.result.final, done.built.runtime
    saved, like = final.save(), runtime.like(done.built.parts, 0)
    assert jax.tree.structure(saved) == jax.tree.structure(like)
    for leaf, wanted in zip(jax.tree.leaves(saved), jax.tree.leaves(like), strict=True):
        assert isinstance(leaf, np.ndarray | np.generic)
        assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
    policy = jax.device_get(runtime.policy(done.built.parts, 0, saved))
    assert tree.sha256(policy.params) == tree.sha256(done.result.policy.params)


def test_it_stops_when_the_observer_says_so_and_continues_from_there(runtime):
    stopped = run(runtime, steps=10**7, stop_at=1)
    final = stopped.result.final
    assert 0 < final.env_steps < 10**6
    steps = final.env_steps + 400
    resumed = run(runtime, saved=final.save(), steps=steps)
    assert resumed.result.final.env_steps >= steps
    assert resumed.result.final.updates > final.updates
    assert min(progress.env_steps for progress in resumed.observer.told) >= final.env_steps
    told = [episode for progress in resumed.observer.told for episode in progress.episodes]
    assert min(episode.env_steps for episode in told) > final.env_steps - 500

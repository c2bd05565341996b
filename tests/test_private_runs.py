"""Privacy in whole runs of parties, and that of one trajectory within a party."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import experiment
from shoal.core import errors, types
from shoal.formulas import optimise, streams
from shoal.runtimes.federated import ledger, trajectories
from tests import conftest
from tests.test_federated import made, run

LOCAL = {"privacy": "local", "clip": 1.0, "noise": 5.0}


@pytest.fixture(scope="module", autouse=True)
def cache():
    experiment.cache()


def federation(result):
    return result.final.subsystems["federation"]


# ------------------------------------------------------------------------------------------------ one trajectory


def apart(gradients, noise, most):
    """What an optimiser is given for the gradients ``[B, d]`` of its streams."""
    inner = optimise.capture(optimise.Config(max_norm=0.0), 1)
    optimiser = streams.apart(inner, len(gradients), most)
    params = {"w": jnp.zeros(len(noise))}
    state = optimiser.init(params)._replace(noise=jnp.asarray(noise, jnp.float32))

    def one(gradient):
        return optimiser.update({"w": gradient}, state, params, 0)[1].gradient["w"]

    return np.asarray(jax.vmap(one, axis_name=streams.AXIS)(jnp.asarray(gradients, jnp.float32)))


def test_each_stream_is_clipped_by_itself_and_the_sum_is_noised():
    left = apart([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], [0.5, -0.5], 1.0)
    expected = np.sum([[0.6, 0.8], [0.3, 0.4], [0.5, -0.5]], axis=0) / 3
    np.testing.assert_allclose(left, [expected] * 3, rtol=1e-6)


def test_a_stream_that_is_not_finite_brings_nothing():
    left = apart([[np.nan, 1.0], [0.3, 0.4]], [0.0, 0.0], 1.0)
    np.testing.assert_allclose(left[0], [0.15, 0.2], rtol=1e-6)


def learner(most, *, private=True):
    """An actor-critic of 3 streams that captures its gradient."""
    spec = conftest.env_spec(choices=2)
    agent = conftest.build_agent(spec, streams=3, algorithm={"reduction": "mean", "rollout_length": 4})
    if not private:
        return spec, agent
    inner = optimise.capture(optimise.Config(max_norm=0.0), 1000)
    settings = {"algorithm": {"reduction": "mean", "rollout_length": 4}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimise, "capture", lambda *_: streams.apart(inner, 3, most))
        agent = conftest.build_agent(spec, streams=3, **settings)
    return spec, streams.mapped(agent, 3)


def gradient(agent, rollout):
    state = agent.init(jax.random.key(0))
    after, _ = agent.update(state, rollout, jax.random.key(1))
    vector, _ = jax.flatten_util.ravel_pytree(after.optimiser.gradient)
    return np.asarray(vector), after


def test_without_clip_and_noise_the_mean_over_streams_is_the_gradient_of_all():
    spec, private = learner(1e6)
    rollout = conftest.random_rollout(spec, 4, 3, seed=2)
    ours, after = gradient(private, rollout)
    theirs, plain = gradient(learner(0.0, private=False)[1], rollout)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert int(after.env_steps) == int(plain.env_steps) == 12


def test_one_stream_moves_the_sum_by_its_clip_at_most():
    spec, private = learner(0.01)
    rollout = conftest.random_rollout(spec, 4, 3, seed=2)
    other = conftest.random_rollout(spec, 4, 3, seed=3)
    mixed = jax.tree.map(lambda a, b: a.at[:, 1].set(b[:, 1]), rollout.transitions, other.transitions)
    mixed = mixed._replace(reward=mixed.reward.at[:, 1].multiply(1e6))
    moved = gradient(private, rollout)[0] - gradient(private, types.Rollout(mixed, ()))[0]
    assert 0.0 < 3 * np.linalg.norm(moved) <= 2 * 0.01 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("rule", "settings", "why"),
    [("dqn", {}, "replay memory"), ("a2c", {"algorithm": {"normalise_observations": True}}, "statistics")],
)
def test_rules_that_keep_more_of_a_trajectory_are_refused(rule, settings, why):
    built = made(rule) if rule == "dqn" else None
    agent = built.parts.agent if built else conftest.build_agent(conftest.env_spec(choices=2), **settings)
    with pytest.raises(errors.Refused, match=why):
        trajectories.fits(agent)


def test_noise_within_a_party_is_in_what_leaves_and_in_its_own_layers():
    quiet = made(form="A", **LOCAL | {"unit": "trajectory", "noise": 1e-6})
    loud = made(form="A", **LOCAL | {"unit": "trajectory", "noise": 50.0})
    (_, one), (_, other) = run(quiet, 24), run(loud, 24)
    told = federation(other)
    assert told["privacy_unit"] == "trajectory"
    assert told["privacy_warning"] is None
    assert "simulated DP, no protection" in told["simulated"]
    differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), one.policies[1].params, other.policies[1].params)
    assert all(jax.tree.leaves(differs))


# ------------------------------------------------------------------------------------------------ whole runs


@pytest.mark.parametrize("privacy", ["local", "central"])
def test_a_run_ends_before_its_budget_also_when_it_is_resumed(privacy, tmp_path):
    settings = LOCAL | {"privacy": privacy, "max_epsilon": 8.0, "noise": 10.0 if privacy == "local" else 5.0}
    rounds, releases = 61, 61 * (3 if privacy == "local" else 1)  # z = 5 at sensitivity C: the specification's figure

    class Keeps:
        """Shows artefacts the folder, as a session does; ends a first life early."""

        def __init__(self, meta, stops):
            self.meta, self.stops, self.known, self.lines, self.saved = meta, stops, set(), 0, None

        def __call__(self, progress):
            for name, artefact in progress.artefacts.items():
                if name not in self.known and name == ledger.FILE:
                    artefact.take_up(tmp_path, self.meta)
                self.known.add(name)
            if progress.stage is not None:
                return True
            self.lines = len(ledger.read(tmp_path))
            if self.stops:
                self.saved = progress.save()
                self.meta = progress.artefacts[ledger.FILE].write(tmp_path, {})
            return not self.stops

        def fault(self, kind, message):
            raise AssertionError(f"{kind}: {message}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shoal.runtimes.federated.running.REPORT", 300)
        built, first = made(form="A", steps=10_000, **settings), Keeps({}, True)
        built.runtime.run(built.parts, 0, 10_000, None, first, None)
        assert 0 < first.lines < releases
        assert first.saved is not None
        second = Keeps(first.meta, False)
        result = built.runtime.run(built.parts, 0, 10_000, None, second, first.saved)
    told = federation(result)
    assert told["rounds"] == rounds
    assert told["releases"] == len(ledger.read(tmp_path)) == releases
    assert told["epsilon"] < told["epsilon_rdp"] <= 8.0
    assert told["privacy_unit"] == {"local": "party", "central": "owner"}[privacy]
    assert "fewer than 20" in told["privacy_warning"]
    assert result.final.env_steps < 10_000


def test_a_secure_sum_changes_nothing_but_who_sees_what():
    (_, plain), (_, masked) = (run(made(form="A", clip=1.0, secure_sum=on), 120) for on in (False, True))
    for one, other in zip(jax.tree.leaves(plain.policies), jax.tree.leaves(masked.policies), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert federation(masked)["failed_rounds"] == 0
    assert federation(masked)["bytes_up"] == federation(plain)["bytes_up"]
    assert "simulated masks, no protection" in federation(masked)["simulated"]


def test_a_round_of_a_secure_sum_with_too_few_changes_nothing():
    _, result = run(made(form="A", clip=1.0, secure_sum=True, participation=0.3), 400)
    told = federation(result)
    assert told["failed_rounds"] > 0
    assert told["rounds"] - told["failed_rounds"] == told["version"]


def test_parties_in_turn_have_the_noise_of_an_axis():
    settings = LOCAL | {"noise": 0.5, "form": "A"}
    ends = [run(made(placement=where, **settings), 60)[1] for where in ("axis", "turns")]
    for one, other in zip(*(jax.tree.leaves(end.policies) for end in ends), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_what_only_an_axis_does_is_refused_elsewhere():
    with pytest.raises(errors.Refused, match="placement=turns"):
        run(made(placement="turns", clip=1.0, secure_sum=True))

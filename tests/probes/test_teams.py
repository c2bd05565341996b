"""Teams of units learn what is known about the probes, with noise in every unit and one signal for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shoal import experiment
from shoal.environments import probe
from shoal.experiment import presets
from shoal.runs import evaluation
from tests.probes.test_probes import GAMMA, SEEN, Watch

STEPS, STREAMS = 40_000, 16
TOLERANCE = 0.02  # once the rates have fallen: 0.011 off at most, over four seeds
TEAMS = ("map_propagation", "map_async", "reinforce_team", "reinforce_team_explore", "backprop_det", "backprop_sto")


def learn(preset: str, name: str, seed: int = 0, **algorithm: Any) -> tuple[experiment.Built, Any]:
    """The parts, and the result of the run."""
    experiment.cache()
    settings = {
        "algorithm": {"discount": GAMMA, "critic_rates_end": (2e-4, 2e-7, 2e-8), "end_t": 30_000, **algorithm},
        "runtime": {"environments": STREAMS},
        "network": {"hidden": (32,)},
    }
    request = presets.Request(preset, f"probe:{name}", STEPS, seed, runtime="on_device", settings=settings)
    made, opened = presets.resolve(request)
    built = experiment.build(made, opened)
    result = built.runtime.run(built.parts, made.seed, made.steps, None, Watch(), None)
    assert result.final.faults["non_finite"] == 0
    return built, result


def values(result: Any, name: str) -> np.ndarray:
    """The mean over the units' noise of the critic's output; it is linear in its one hidden layer."""
    critic = result.final.save().state.params["critic"]
    below, above = sorted(critic.values(), key=lambda layer: layer["kernel"].shape[0])
    pot = np.asarray(SEEN[name]) @ np.asarray(below["kernel"]) + np.asarray(below["bias"])
    return (np.logaddexp(pot, 0.0) @ np.asarray(above["kernel"]) + np.asarray(above["bias"]))[:, 0]


def slow_but(*fast: str) -> list[Any]:
    """All teams; those that are not named are left to `make test-slow`."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in TEAMS]


@pytest.mark.parametrize("preset", slow_but("map_propagation"))
def test_values_become_those_known(preset):
    for name in ("discount", "observation"):
        _, result = learn(preset, name)
        true = np.asarray(probe.TRUTHS[name].value(np.asarray(SEEN[name]), GAMMA))
        np.testing.assert_allclose(values(result, name), true, atol=TOLERANCE)


@pytest.mark.parametrize("preset", slow_but("map_propagation"))
def test_the_best_answer_to_every_cue_is_found(preset):
    built, result = learn(preset, "match")
    returns = evaluation.evaluate(built.parts, result.policy, 64, 0).returns
    assert np.mean(returns) == probe.TRUTHS["match"].optimal_return


@pytest.mark.parametrize("preset", slow_but("map_propagation"))
def test_a_truncated_episode_is_worth_what_would_have_followed(preset):
    _, result = learn(preset, "truncated")
    np.testing.assert_allclose(values(result, "truncated"), 1 / (1 - GAMMA), rtol=TOLERANCE)

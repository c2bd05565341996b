"""Distillation: losses by hand, a student that comes nearer and follows, what it tells; and chains of compressors."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from shoal.compress import _payload, chain, distil
from shoal.core import errors, options, registry
from shoal.formulas import distributions, normalise
from shoal.networks import compact
from tests import conftest
from tests.test_compress import agent_for, kinds, packed_by, packing, policy_for, run, seen

LOG_3 = math.log(3.0)
UNIT = math.log(math.expm1(1.0 - 1e-4))  # raw number of a Gaussian head of variance 1


KL = {
    "categorical": distributions.CATEGORICAL.kl,
    "gaussian": distributions.GAUSSIAN.kl,
    "stretched": distributions.GAUSSIAN.kl,
    "squashed": distributions.squashed_kl,
    "multi_categorical": distributions.multi_categorical((2, 2)).kl,
}


def of(head, teacher, student, **settings):
    config, kl = options.build(distil.Config, settings, "compressor"), KL.get(head)
    given = ({name: np.float32(rows) for name, rows in each.items()} for each in (teacher, student))
    return {name: float(term) for name, term in distil.losses(config, head, kl, *given).items()}


# ------------------------------------------------------------------------------------------------ losses


def test_of_choices_it_is_the_divergence_of_the_policies_and_the_squared_error_of_values():
    told = of("categorical", {"policy": [[0, LOG_3]], "value": [[2.0]]}, {"policy": [[5, 5]], "value": [[1.0]]})
    assert told == pytest.approx({"kl": 0.25 * math.log(0.5) + 0.75 * math.log(1.5), "value": 0.5})
    assert of("categorical", {"policy": [[0, LOG_3]]}, {"policy": [[7, 7 + LOG_3]]}) == pytest.approx(
        {"kl": 0.0}, abs=1e-6
    )
    told = of(
        "categorical",
        {"policy": [[0, 0]] * 2, "value": [[0.0], [2.0]]},
        {"policy": [[0, 0]] * 2, "value": [[0.0]] * 2},
        beta=3.0,
    )
    assert told["value"] == pytest.approx(3.0 * 4.0 / 2)


@pytest.mark.parametrize("head", ["gaussian", "stretched"])
def test_of_vectors_it_is_the_divergence_of_gaussians(head):
    assert of(head, {"policy": [[1.0, UNIT]]}, {"policy": [[-1.0, UNIT]]}) == pytest.approx({"kl": 2.0}, rel=1e-4)
    four = math.log(math.expm1(4.0 - 1e-4))
    told = of(head, {"policy": [[0.0, 0.0, UNIT, UNIT]]}, {"policy": [[0.0, 0.0, four, UNIT]]})
    assert told == pytest.approx({"kl": 0.5 * (0.25 - 1.0 + math.log(4.0))}, rel=1e-4)


def test_of_squashed_vectors_it_is_that_before_the_tanh():
    told = of("squashed", {"policy": [[1.0, 0.0]]}, {"policy": [[0.0, math.log(2.0)]]})
    assert told == pytest.approx({"kl": math.log(2.0) + (1.0 + 1.0) / 8.0 - 0.5})


def test_of_several_choices_it_is_the_sum_of_theirs():
    told = of("multi_categorical", {"policy": [[0, LOG_3, 0, LOG_3]]}, {"policy": [[0, 0, 0, LOG_3]]})
    assert told == pytest.approx({"kl": 0.25 * math.log(0.5) + 0.75 * math.log(1.5)})


@pytest.mark.parametrize(
    ("rule", "actions", "told"),
    [
        ("actor_critic", {"choices": 3}, {"kl"}),
        ("ppo", {"low": (-2.0,), "high": (2.0,)}, {"kl", "value"}),
        ("sac", {"low": (-1.0,), "high": (1.0,)}, {"kl"}),
        ("td3", {"low": (-1.0,), "high": (1.0,)}, {"action"}),
        ("dqn", {"choices": 3}, {"kl", "value"}),
    ],
)
def test_every_rule_has_the_loss_of_its_decision(rule, actions, told):
    agent = conftest.build_agent(
        conftest.env_spec((4,), **actions), rule=rule, network={"hidden": (16,)}, local=True,
        algorithm={"capacity": 64, "batch": 8} if rule in ("sac", "td3", "dqn") else {},
    )  # fmt: skip
    compressor, policy = packing("distil", agent), policy_for(agent)
    memory, found = learned(compressor, policy, seen(agent), compressor.init(policy, jax.random.key(0)), 1)
    assert {*found} == {f"distil_{name}" for name in ("loss", "steps", *told)}
    for _ in range(40):
        memory, after = learned(compressor, policy, seen(agent), memory, 1)
    assert after["distil_loss"] < 0.7 * found["distil_loss"]


def test_of_action_values_it_is_that_of_their_softmax_and_their_squared_error():
    told = of("greedy", {"q": [[0.0, 2 * LOG_3]]}, {"q": [[0.0, 0.0]]}, temperature=2.0, beta=0.1)
    expected = {"kl": 0.25 * math.log(0.5) + 0.75 * math.log(1.5), "value": 0.1 * (2 * LOG_3) ** 2 / 2}
    assert told == pytest.approx(expected)


def test_of_deterministic_actions_it_is_their_squared_distance():
    told = of("deterministic", {"policy": [[0.5, 1.0], [0.0, 0.0]]}, {"policy": [[0.0, 0.0]] * 2})
    assert told == pytest.approx({"action": (math.tanh(0.5) ** 2 + math.tanh(1.0) ** 2) / 2})


def test_a_head_that_is_not_known_is_refused():
    with pytest.raises(errors.Refused, match="telepathic"):
        of("telepathic", {"policy": [[0.0]]}, {"policy": [[0.0]]})


# ------------------------------------------------------------------------------------------------ the student


def learned(compressor, policy, obs, memory, steps, seed=0):
    told = {}
    for i in range(steps):
        memory, told = compressor.study(memory, policy, obs, jax.random.key(1000 * seed + i))
    return memory, told


def divergence(agent, policy, network, probe):
    full = compact.of(agent.about.networks["policy"].spec, policy, ("policy",))
    wanted, given = (np.float64(run(each, probe)) for each in (full, network))
    log_p, log_q = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in (wanted, given))
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean())


def test_it_comes_nearer_to_a_teacher_that_stands_still():
    """Specification 11.13: the divergence falls from look to look, in the median of 5 seeds."""
    agent = agent_for(hidden=(32, 32))
    compressor, probe = packing("distil", agent, updates=20, learning_rate=3e-3), seen(agent, 300, seed=9)
    curves = []
    for seed in range(5):
        policy, obs = policy_for(agent, seed), seen(agent, 500, seed=seed)
        memory, curve = compressor.init(policy, jax.random.key(seed)), []
        for look in range(6):
            network, _, memory = packed_by(compressor, policy, obs, memory)
            curve.append(divergence(agent, policy, network, probe))
            memory, told = learned(compressor, policy, obs, memory, 2, seed=10 * seed + look)
        assert told["distil_steps"] == 6 * 2 * 20
        assert told["distil_kl"] == pytest.approx(told["distil_loss"]), "there is no value to learn"
        curves.append(curve)
    medians = np.median(curves, axis=0)
    assert (np.diff(medians) < 0).all(), medians
    assert medians[-1] < medians[0] / 5, medians


def test_it_begins_as_what_pruning_leaves_and_goes_on_from_its_last_weights():
    agent = agent_for(hidden=(16, 16))
    compressor, policy, obs = packing("distil", agent), policy_for(agent), seen(agent)
    first, packed, memory = packed_by(compressor, policy, obs)
    pruned = packed_by(packing("prune", agent, share=0.75), policy, seen(agent, 0))[0]
    jax.tree.map(np.testing.assert_array_equal, dict(first.params), dict(pruned.params))
    assert [layer.size for layer in compact.layers(first) if layer.kind == "dense"] == [4, 4, 4]
    assert packed.compressed == pytest.approx(1 - (4 * 4 + 4 * 4 + 4 * 4) / (4 * 16 + 16 * 16 + 16 * 4))
    one, _ = learned(compressor, policy, obs, memory, 1)
    second = packed_by(compressor, policy_for(agent, 1), obs, one)[0]
    third = packed_by(compressor, policy_for(agent, 2), obs, one)[0]
    assert not np.array_equal(first.params["policy"]["kernel"], second.params["policy"]["kernel"])
    np.testing.assert_array_equal(second.params["policy"]["kernel"], third.params["policy"]["kernel"])
    two, told = learned(compressor, policy, obs, one, 1)
    assert (one[0].steps, two[0].steps, told["distil_steps"]) == (8, 16, 16)


def test_it_sees_observations_as_the_newest_teacher_does():
    agent = conftest.build_agent(
        conftest.env_spec((4,), choices=4), network={"hidden": (16,)}, algorithm={"normalise_observations": True}
    )
    compressor, policy, obs = packing("distil", agent), policy_for(agent), seen(agent)
    memory, _ = learned(compressor, policy, obs, compressor.init(policy, jax.random.key(0)), 1)
    newer = policy._replace(normaliser=jax.device_get(normalise.update(policy.normaliser, 5.0 + obs, (4,))))
    network = packed_by(compressor, newer, obs, memory)[0]
    np.testing.assert_allclose(network.params["normalise"]["mean"], newer.normaliser.mean)
    again, _ = learned(compressor, newer, obs, memory, 1)
    assert "normalise" not in again[0].optimiser[0].mu, "nothing to learn in it"


def test_values_are_learned_where_deciding_needs_them():
    agent = conftest.build_agent(conftest.env_spec((4,), choices=4), rule="ppo", network={"hidden": (32,)})
    policy, obs = policy_for(agent), seen(agent, 400)
    compressor = packing("distil", agent, updates=100, learning_rate=3e-3)
    memory = compressor.init(policy, jax.random.key(0))
    memory, before = learned(compressor, policy, obs, memory, 1)
    _, after = learned(compressor, policy, obs, memory, 5)
    assert after["distil_value"] < 0.5 * before["distil_value"]
    assert after["distil_loss"] == pytest.approx(after["distil_value"] + after["distil_kl"])


def test_without_observations_there_is_nothing_to_learn():
    agent = agent_for(hidden=(8,))
    compressor, policy = packing("distil", agent), policy_for(agent)
    memory = compressor.init(policy, jax.random.key(0))
    assert compressor.study(memory, policy, seen(agent, 0), jax.random.key(1)) == (memory, {})


def test_a_student_that_is_not_finite_is_told_and_the_one_before_is_good():
    agent = agent_for(hidden=(8,))
    compressor, policy, obs = packing("distil", agent, learning_rate=1e38), policy_for(agent), seen(agent)
    memory = compressor.init(policy, jax.random.key(0))
    with pytest.raises(errors.Unfit, match="student is not finite after 8 steps"):
        learned(compressor, policy, obs, memory, 1)
    assert packed_by(compressor, policy, obs, memory)[1].bytes


def test_who_remembers_is_refused_and_so_is_a_student_without_units():
    assert "LSTM" in packing("distil", agent_for(hidden=(8,), lstm=4)).refuses
    assert "shrink=16" in packing("distil", agent_for(hidden=(8,)), shrink=16.0).refuses
    compressor = packing("distil", agent_for(hidden=(8,)))
    assert (compressor.refuses, compressor.simulate, compressor.needs_obs) == ("", None, True)


# ------------------------------------------------------------------------------------------------ chains


def test_a_chain_prunes_distils_and_quantises():
    agent = agent_for(hidden=(32, 32))
    compressor, policy, obs = packing("chain", agent), policy_for(agent), seen(agent)
    memory = compressor.init(policy, jax.random.key(0))
    memory, told = learned(compressor, policy, obs, memory, 1)
    network, packed, memory = packed_by(compressor, policy, obs, memory)
    assert kinds(network) == {"trunk_dense_0": "dense", "trunk_dense_1": "dense8", "policy": "dense"}
    assert {name: arrays["kernel"].shape for name, arrays in network.params.items()} == {
        "trunk_dense_0": (4, 8), "trunk_dense_1": (8, 8), "policy": (8, 4),
    }, "the student has the shape that pruning left, and is not made smaller once more"  # fmt: skip
    assert packed.level == "75 % of the units pruned, student of 1/4 of the units, int8 dynamic"
    assert packed.compressed == pytest.approx(1 - 2 * 8 * 4 / (4 * 32 + 32 * 32 + 32 * 4))
    assert told["distil_steps"] == 8
    assert compressor.study is not None
    assert (compressor.simulate, compressor.needs_obs) == (None, True)
    student, eight = memory[1].network.params["trunk_dense_1"]["kernel"], network.params["trunk_dense_1"]
    np.testing.assert_allclose(eight["kernel"] * eight["step"], student, atol=0.02)


def test_members_take_their_settings_by_name_and_nothing_else_does():
    agent = agent_for(hidden=(32,))
    given = {"prune": {"share": 0.5}, "quantise": {"keep": "none", "mode": "static"}}
    compressor = packing("chain", agent, members=["prune", "quantise"], settings=given)
    network, packed, _ = packed_by(compressor, policy_for(agent), seen(agent))
    assert network.params["trunk_dense_0"]["kernel"].shape == (4, 16)
    assert packed.level == "50 % of the units pruned, int8 static"
    assert compressor.study is None
    thin = packing("chain", agent, members=["low_rank", "quantise"])
    assert set(kinds(packed_by(thin, policy_for(agent), seen(agent))[0])) == {"trunk_dense_0", "policy"}, (
        "too thin to pay"
    )


def test_without_a_step_before_it_the_student_of_a_chain_is_smaller():
    agent = agent_for(hidden=(32,))
    network = packed_by(packing("chain", agent, members=["distil", "quantise"]), policy_for(agent), seen(agent))[0]
    assert network.params["trunk_dense_0"]["kernel"].shape == (4, 8)


def test_a_chain_simulates_what_its_members_do_one_after_the_other():
    agent = agent_for(hidden=(16,))
    policy, members = policy_for(agent), ["prune", "quantise"]
    compressor = packing("chain", agent, members=members, settings={"quantise": {"bits": 4}})
    simulated = jax.device_get(compressor.simulate(policy, jax.random.key(0)))
    alone = packing("prune", agent).simulate(policy, jax.random.key(0))
    after = jax.device_get(packing("quantise", agent, bits=4).simulate(alone, jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, simulated, after)
    assert packing("chain", agent).simulate is None, "a student learns"


REFUSED = {
    "a chain in a chain": ({"members": ["prune", "chain"]}, "one chain"),
    "one that is not known": ({"members": ["prnue"]}, "did you mean 'prune'"),
    "none": ({"members": []}, "empty"),
    "one twice": ({"members": ["prune", "prune"]}, "twice"),
    "eight bits before others": ({"members": ["quantise", "prune"]}, "put quantise last"),
    "settings of no member": ({"settings": {"low_rank": {"share": 0.5}}}, "low_rank"),
    "settings that there are not": ({"settings": {"prune": {"shre": 0.5}}}, "did you mean"),
    "settings out of range": ({"settings": {"prune": {"share": 2.0}}}, "compressor.settings.prune.share=2.0"),
    "settings that are no object": ({"settings": {"prune": 3}}, "JSON object"),
    "an engine for one": ({"settings": {"prune": {"engine": "jax"}}}, "--compressor.engine"),
    "no object at all": ({"settings": "[1]"}, "JSON object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_chains_that_cannot_be_are_refused_in_one_line(case):
    settings, words = REFUSED[case]
    with pytest.raises(errors.Refused) as refused:
        packing("chain", agent_for(), **settings)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_chain_refuses_what_one_of_its_members_does():
    assert "LSTM" in packing("chain", agent_for(hidden=(8,), lstm=4)).refuses
    assert "prune" not in chain.__dict__, "members come by their names"
    assert registry.load("compressor", "chain") is chain


def test_what_crosses_to_another_process_is_arrays_and_numbers():
    agent = agent_for(hidden=(8,))
    compressor, policy, obs = packing("chain", agent), policy_for(agent), seen(agent)
    memory, _ = learned(compressor, policy, obs, compressor.init(policy, jax.random.key(0)), 1)
    for leaf in jax.tree.leaves(memory[1]._replace(network=memory[1].network.params)):
        assert isinstance(leaf, np.ndarray | np.generic | int)
    _, packed, _ = packed_by(compressor, policy, obs, memory)
    _payload.check(packed)

"""Correctors in use: which rule takes which, what is refused, and that they save a learner from stale experience."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shoal
from shoal import experiment
from shoal.algorithms import actor_critic
from shoal.core import errors, registry, types
from shoal.experiment import correcting, presets
from shoal.runs import run_folder
from tests import conftest, faults

OF_STATES = "none, dppo_tv, geo_rs, icepop, importance, m2po, seq_mis, tis, vtrace"
OF_ACTIONS = "none, q_lambda, retrace, tree_backup"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            "train ppo --corrector retrace",
            f"--corrector retrace corrects values of actions, but ppo learns values of states; correctors that fit: "
            f"{OF_STATES}",
        ),
        (
            "train async_nstep_q --corrector vtrace",
            f"corrects values of states, but q_learning learns values of actions; correctors that fit: {OF_ACTIONS}",
        ),
        (
            "train async_q --corrector retrace",
            "its one_step targets reach over one step; use --algorithm.target n_step",
        ),
        ("train async_sarsa --corrector tree_backup", "its sarsa targets reach over one step"),
        ("train dqn --corrector retrace", "dqn has no use for a corrector (it learns from a replay memory"),
        ("train map_propagation --corrector vtrace", "map_propagation has no use for a corrector, but"),
        (
            "train a2c --env probe:target --corrector dppo_tv",
            "the actions of probe:target are vectors, which have densities; correctors that fit: none, geo_rs, icepop",
        ),
        ("train a3c --env probe:target --corrector vtrace --corrector.reject dppo_tv", "which have densities"),
        ("train ppo --corrector icepop --corrector.low 9", "corrector.low=9 is above corrector.high=5"),
        ("train ppo --corrector tis --corrector.cap -1", "corrector.cap=-1.0 is out of range"),
        ("train ppo --corrector tis --corrector.cap 0", "corrector.cap=0 makes every weight 0"),
        ("train a2c --corrector vtrace --corrector.clip 0", "corrector.clip=0 makes every weight 0"),
        ("train async_nstep_q --algorithm.epsilon-learned 0.1", "changes nothing without a corrector"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_before_anything_is_created(typed, words, capsys, tmp_path):
    ended = faults.call(capsys, *typed.split(), "--out", str(tmp_path / "run"))
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert words in ended.err
    assert not (tmp_path / "run").exists()


def test_a_corrector_that_needs_mu_is_refused_to_a_rule_that_has_none():
    spec = conftest.env_spec((3,), choices=2)
    silent = experiment.traits("actor_critic")._replace(tells_mu=False)
    with pytest.raises(errors.Refused) as refused:
        correcting.check("tis", None, "silent", silent, spec)
    assert str(refused.value) == (
        "--corrector tis needs the probability of each action under the policy that acted, which silent does not tell; "
        "correctors that fit: none"
    )
    correcting.check("none", None, "silent", silent, spec)
    of_actions = silent._replace(corrects="q")
    assert correcting.suited("silent", of_actions, spec) == ["none", "q_lambda", "tree_backup"]


def test_every_corrector_fits_some_rule_and_every_rule_that_takes_one_some_corrector():
    spec = conftest.env_spec((3,), choices=2)
    takers = {"actor_critic": {}, "ppo": {}, "q_learning": {"target": "n_step"}}
    found = set()
    for name in registry.names("algorithm"):
        module = registry.load("algorithm", name)
        config = dataclasses.replace(module.Config(), **takers.get(name, {}))
        rule = experiment.traits(name, config)
        assert bool(rule.corrects) == (name in takers)
        if rule.corrects:
            found |= {*correcting.suited(name, rule, spec)}
    assert found == {*registry.names("corrector")}


def test_runs_of_before_open_as_they_were():
    """Settings that came later are not in their config.json, and its digest still holds."""
    made, _ = presets.resolve(presets.Request("a2c", corrector="vtrace"))
    data = made.to_json()
    assert data["parts"]["corrector"] == {"name": "vtrace", "lambda_": 1.0, "clip": 1.0}
    assert "epsilon_learned" not in presets.resolve(presets.Request("async_q"))[0].to_json()["parts"]["algorithm"]
    data["parts"]["corrector"] = {"name": "vtrace", "lambda_": 0.9, "clip": 2.0}
    older = experiment.from_json(json.loads(json.dumps(data)))
    assert older.configs["corrector"].c_bar == 1.0
    hyper = correcting.build("vtrace", older.configs["corrector"]).hyper
    assert (hyper.clip, hyper.c_bar, hyper.rho_pg) == (2.0, 1.0, 2.0), "clip was the bound of both"
    text = json.dumps(data, sort_keys=True).encode()
    assert run_folder.digest(older) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    ("preset", "corrector", "runtime", "env"),
    [
        ("async_nstep_q", "retrace", "hogwild", "CartPole-v1"),
        ("async_nstep_q", "tree_backup", "host", "CartPole-v1"),
        ("ppo", "tis", "on_device", "gymnax:CartPole-v1"),
    ],
)
def test_it_trains(preset, corrector, runtime, env, tmp_path):
    settings = {"workers": 1} if runtime == "hogwild" else {"environments": 4}
    run = shoal.train(
        preset, env=env, corrector=corrector, runtime={"name": runtime, **settings}, steps=600, out=tmp_path / "run",
        eval_episodes=0, quiet=True, network={"hidden": (8,)},
        algorithm={"rollout_length": 8} | ({"minibatches": 2} if preset == "ppo" else {}),
    )  # fmt: skip
    assert run.summary["status"] == "completed"
    assert not run.summary["faults"].get("skipped")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = {name for line in lines for name in line}
    assert ("ess" in told) == correcting.build(corrector).needs_mu
    ratios = [line["ess"] for line in lines if "ess" in line]
    if preset == "ppo":  # under this runtime who acted is who learns
        assert ratios
        np.testing.assert_allclose(ratios, 1.0, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ stale experience
# s0: L pays 0.5 and ends; R goes on to s1. s1: good pays 1, bad 0. The experience is of a policy that knows nothing of
# s1 yet: it goes wrong there nine times of ten, and so R is worth 0.1 to it, but 1 to a learner that has learned s1.

EXPERIENCE = [("L", "L")] * 10 + [("R", "good")] + [("R", "bad")] * 9  # its frequencies are exactly μ's
MU = {"L": 2 / 3, "R": 1 / 3, "good": 0.1, "bad": 0.9}
PAID = {"L": 0.5, "R": 0.0, "good": 1.0, "bad": 0.0}
FIRST = {"L": 0, "R": 1, "good": 0, "bad": 1}  # the number of an action in its state


def stale() -> types.Rollout:
    """Two steps of 20 streams, the probabilities of μ remembered with them."""
    states = np.eye(2, dtype=np.float32)
    place = {"L": 0, "R": 0, "good": 1, "bad": 1}
    rows = [[stream[t] for stream in EXPERIENCE] for t in range(2)]

    def each(function):
        return jnp.asarray([[function(name) for name in row] for row in rows])

    steps = types.Transition(
        obs=each(lambda name: states[place[name]]),
        action=each(FIRST.__getitem__).astype(jnp.int32),
        reward=each(PAID.__getitem__).astype(jnp.float32),
        discount=each(lambda name: float(name == "R")).astype(jnp.float32),
        truncated=jnp.zeros((2, len(EXPERIENCE)), bool),
        next_obs=jnp.broadcast_to(jnp.asarray(states[1]), (2, len(EXPERIENCE), 2)),
        extras=actor_critic.Remembered(each(lambda name: np.log(MU[name])).astype(jnp.float32)),
    )
    return types.Rollout(steps, ())


def learner(corrector, **correction):
    return conftest.build_agent(
        conftest.env_spec((2,), choices=2), corrector=corrector, streams=len(EXPERIENCE), correction=correction,
        network={"hidden": (), "shared": False},
        algorithm={"rollout_length": 2, "discount": 1.0, "entropy_cost": 0.0, "reduction": "mean", "value_cost": 1.0},
    )  # fmt: skip


def chances(agent, params):
    """π ``[state, action]`` of a linear policy of one-hot observations."""
    outputs = jax.vmap(lambda obs: agent.about.networks["policy"].apply(params, obs, ())[0]["policy"])(jnp.eye(2))
    return jax.nn.softmax(outputs)


def worth(pi):
    """Of the policy: exact."""
    return 0.5 * pi[0, 0] + pi[0, 1] * pi[1, 0]


def taught(agent, updates, rate=0.5):
    """What the policy becomes by plain gradient descent on the same experience again and again."""
    given = stale()

    def step(state, _):
        gradient = agent.update(state, given, jax.random.key(0))[0].optimiser.gradient
        params = jax.tree.map(lambda leaf, slope: leaf - rate * slope, state.params, gradient)
        return state._replace(params=params), worth(chances(agent, params))

    state = agent.init(jax.random.key(0))
    after, values = jax.jit(lambda state: jax.lax.scan(step, state, None, length=updates))(state)
    return chances(agent, after.params), values


def test_stale_experience_misleads_an_uncorrected_learner_and_not_a_corrected_one():
    """The bounds are above every ratio: what is learned is then the value of the learner's own policy."""
    pi, values = taught(learner("none"), 800)
    assert pi[1, 0] > 0.9, "of s1 alone it learns the right thing"
    assert pi[0, 0] > 0.95, "but it believes of R what it was worth to the one who acted"
    assert values[-1] < 0.55
    for corrector, correction in (("vtrace", {"clip": 20.0, "c_bar": 20.0}), ("importance", {}),
                                  ("importance", {"form": "plain"})):  # fmt: skip
        pi, values = taught(learner(corrector, **correction), 800)
        assert pi[0, 1] > 0.9, (corrector, correction)
        assert values[-1] > 0.85


def test_the_corrected_gradient_is_the_exact_one():
    """Σ_a π(a|s0) (Q^π(s0, a) - V(s0)) ∇ log π(a|s0), with Q^π by hand, from experience of another policy."""
    given, start = stale(), learner("none").init(jax.random.key(0))
    steps = given.transitions
    rng = np.random.default_rng(5)
    params = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.5, leaf.shape).astype(np.float32), start.params)
    found = {}
    for name, correction in (("none", {}), ("vtrace", {"clip": 20.0, "c_bar": 20.0})):
        agent = learner(name, **correction)
        state = start._replace(params=params)
        found[name] = jax.jit(agent.update)(state, given, jax.random.key(0))[0].optimiser.gradient
    apply = agent.about.networks["policy"].apply

    def exact(params):
        """Descends by the policy's terms alone; the states as often as in the experience."""
        pi = chances(agent, params)
        worths = jax.lax.stop_gradient(jnp.array([[0.5, pi[1, 0]], [1.0, 0.0]]))
        value = jax.vmap(lambda obs: apply(params, obs, ())[0]["value"][0])(jnp.eye(2))
        advantage = jax.lax.stop_gradient(worths - value[:, None])
        visits = jnp.array([30.0, 10.0]) / 40.0
        return -(visits[:, None] * jax.lax.stop_gradient(pi) * advantage * jnp.log(pi)).sum()

    wanted = jax.jit(jax.grad(exact))(params)["policy"]
    mine = {name: gradient["policy"] for name, gradient in found.items()}
    assert steps.reward.shape == (2, 20)
    for ours, theirs in zip(jax.tree.leaves(mine["vtrace"]), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert any(
        np.abs(ours - theirs).max() > 1e-2
        for ours, theirs in zip(jax.tree.leaves(mine["none"]), jax.tree.leaves(wanted), strict=True)
    )

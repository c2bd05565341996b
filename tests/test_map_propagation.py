"""Teams of units: formulas, the learner against loops in NumPy, the two variants, what a layer's update may read."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.algorithms import map_propagation
from shoal.algorithms._teams import acting, learning, records, units
from shoal.core import errors, registry, seeds, types
from shoal.experiment import presets
from shoal.experiment.tuned import teams
from shoal.networks import export
from tests import team_oracle
from tests.conftest import build_agent, env_spec

VARIANCES = [  # actor and critic of section 12's tasks, by name
    ("softmax", (0.03, 0.1, 0.1), 2.0),
    ("softmax", (0.03, 0.1, 0.1), 4.0),
    ("softmax", (0.06, 0.2, 0.2), 8.0),
    ("linear", (0.03, 0.1, 0.5), 1.0),
    ("linear", (0.03, 0.1, 0.1), 1.0),
    ("linear", (0.003, 0.01, 0.05), 1.0),
]
OPTIMISER = {"rule": "adam", "anneal": False, "learning_rate": 1.0, "decay": 0.999, "epsilon": 1e-9, "max_norm": 0.0}
NETWORK = {"hidden": (6, 5), "activation": "softplus", "initialiser": "glorot"}
RATES = {
    "actor_rates": (1e-2, 3e-3, 1e-3), "actor_rates_end": (1e-3, 1e-4, 1e-5),
    "critic_rates": (2e-2, 2e-3, 2e-3), "critic_rates_end": (2e-3, 2e-4, 2e-5),
}  # fmt: skip
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compiled fast, run slowly
DISCRETE = env_spec((4,), choices=3)
REACH = env_spec((4,), low=(-1.0, 0.0), high=(1.0, 3.0))


@pytest.fixture(scope="module", autouse=True)
def rolled_up():
    """The loop of the MAP phase compiles in half the time when nothing of it is written out."""
    before, learning.UNROLL = learning.UNROLL, 1
    yield
    learning.UNROLL = before


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def agent_of(spec=DISCRETE, streams=1, network=NETWORK, **algorithm):
    return build_agent(
        spec, rule="map_propagation", streams=streams, local=True, optimiser=OPTIMISER, network=network,
        algorithm=algorithm,
    )  # fmt: skip


def begun(agent, seed=0):
    return jax.jit(agent.init, compiler_options=QUICK)(seeds.key(seed))


def doubled(tree):
    """Every float as float64; settings get the digits they were written with."""

    def one(leaf):
        return np.array(np.float64(str(leaf)) if leaf.ndim == 0 else [float(str(x)) for x in leaf.ravel()]).reshape(
            leaf.shape
        )

    def plain(leaf):
        return np.asarray(leaf, np.float64) if np.asarray(leaf).dtype == np.float32 else leaf

    state = jax.tree.map(plain, jax.device_get(tree))
    exact = functools.partial(jax.tree.map, lambda leaf: one(np.asarray(leaf)))
    host = jax.device_get(tree)
    optimiser = state.optimiser._replace(hyper=exact(host.optimiser.hyper))
    return jax.tree.map(
        jnp.asarray, state._replace(hyper=exact(host.hyper), layers=exact(host.layers), optimiser=optimiser)
    )


def net_of(state, which, names, temperature=None):
    params, layers = state.params[which], state.layers[which]
    return team_oracle.Net(
        [params[name]["kernel"] for name in names], [params[name]["bias"] for name in names],
        np.asarray(layers.variance), np.asarray(layers.rate), np.asarray(layers.rate_end), temperature,
    )  # fmt: skip


def oracle(kind, state, agent, spec, config):
    temperature = float(state.hyper.temperature) if spec.action.discrete else None
    numbers = {
        "gamma": float(state.hyper.discount), "lam": float(state.hyper.trace), "N": config.steps,
        "end_t": float(state.hyper.end_t), "guard": float(state.hyper.guard), "clip": float(state.hyper.reward_clip),
    }  # fmt: skip
    names = units.layers(agent.about.networks["policy"].spec, "policy")
    critic = [name for name in state.params["critic"] if name != "value"] + ["value"]
    return kind(net_of(state, "actor", names, temperature), net_of(state, "critic", critic), numbers)


@functools.cache
def compiled(spec, variant):
    """The agent of a script and its update, compiled once; numbers that may change are not part of it."""
    agent = agent_of(spec, variant=variant, steps=7, end_t=10, **RATES)
    return agent, jax.jit(agent.update, compiler_options=QUICK)


ENDS = ["", "", "terminal", "", "limit", "", "", "terminal"]  # of the steps of the script, the last of an episode


class Script:
    """A learner in float64 and the loops beside it, on random observations with scripted ends; one stream."""

    def __init__(self, spec=DISCRETE, variant="clean", reward_clip=1.0):
        self.spec, (self.agent, self.update) = spec, compiled(spec, variant)
        self.config = map_propagation.Config(variant=variant, steps=7)
        self.state = doubled(begun(self.agent, 3))
        self.state = self.state._replace(hyper=self.state.hyper._replace(reward_clip=jnp.asarray(reward_clip)))
        kind = {"clean": team_oracle.Clean, "paper": team_oracle.Paper}[variant]
        self.team = oracle(kind, self.state, self.agent, spec, self.config)
        self.chance = np.random.default_rng(0)
        self.obs = self.chance.normal(size=4)

    def hidden(self, net, obs):
        return net.sample(obs, [self.chance.normal(size=w.shape[1]) for w in net.W[:-1]])

    def decide(self):
        hidden = self.hidden(self.team.actor, self.obs)
        if self.spec.action.discrete:
            action = self.chance.integers(self.spec.action.n)
            return hidden, np.int32(action), np.eye(self.spec.action.n)[action]
        raw = self.chance.normal(size=2)
        scale, offset = np.array([2.0, 3.0]), np.array([0.0, 1.5])
        if self.config.variant == "paper":
            offset = np.array([1.0, 0.0])
        return hidden, raw * scale + offset, raw

    def step(self, end=""):
        hidden, action, output = self.decide()
        discount, truncated = float(end != "terminal"), end == "limit"
        reward, after, key = (
            2.0 * self.chance.normal(),
            self.chance.normal(size=4),
            seeds.key(int(self.state.env_steps)),
        )
        extras = records.Remembered(np.concatenate(hidden)[None, None], np.ones((1, 1, 1)))
        number = functools.partial(np.full, (1, 1))
        step = types.Transition(
            self.obs[None, None], action[None, None], number(reward), number(discount), number(truncated),
            after[None, None], extras,
        )  # fmt: skip
        before = self.state
        self.state, self.metrics = self.update(before, types.Rollout(step, ()), key)
        outcome = (reward, discount, truncated, after)
        if self.config.variant == "clean":
            noise = np.asarray(jax.random.normal(key, (2, 1, 12)))[:, 0]
            self.team.step(self.obs, hidden, output, outcome, noise)
        else:
            self.paper_step(key, hidden, output, outcome)
        self.obs = self.chance.normal(size=4) if end else after

    def paper_step(self, key, hidden, output, outcome):
        keys = jax.random.split(key, 3)
        if not self.team.step(self.obs, hidden, output, outcome, np.asarray(jax.random.normal(keys[0], (12,)))):
            return
        of_units, of_output, _ = jax.random.split(keys[1], 3)
        after, actor = outcome[3], self.team.actor
        drawn = actor.sample(after, np.split(np.asarray(jax.random.normal(of_units, (11,))), [6]))
        pot = drawn[-1] @ actor.W[-1] + actor.b[-1]
        if self.spec.action.discrete:
            output = np.eye(3)[int(jax.random.categorical(of_output, pot / actor.temp))]
        else:
            output = pot + np.sqrt(actor.var[-1]) * np.asarray(jax.random.normal(of_output, (2,)))
        self.team.after_end(after, drawn, output, np.asarray(jax.random.normal(keys[2], (12,))))

    def assert_equal(self, rtol=1e-9):
        names = units.layers(self.agent.about.networks["policy"].spec, "policy")
        critic = [*names[:-1], "value"]
        for which, net, order in (("actor", self.team.actor, names), ("critic", self.team.critic, critic)):
            for at, name in enumerate(order):
                for each, place, trace in (("kernel", net.W, 0), ("bias", net.b, 1)):
                    found = self.state.params[which][name][each]
                    np.testing.assert_allclose(found, place[at], rtol=rtol, atol=1e-12, err_msg=f"{which} {name}")
                    z = self.state.traces[which][name][each][0]
                    np.testing.assert_allclose(z, net.z[at][trace], rtol=1e-8, atol=1e-9, err_msg=f"trace {name}")


# ------------------------------------------------------------------------------------------------ against loops


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("spec", [DISCRETE, REACH], ids=["softmax", "linear"])
@pytest.mark.parametrize("variant", ["clean", "paper"])
def test_every_step_equals_loops_in_numpy(variant, spec):
    script = Script(spec, variant)
    for end in ENDS:
        script.step(end)
        script.assert_equal()


@pytest.mark.usefixtures("x64")
def test_the_order_of_events_is_the_one_written_down():
    """(an end without a bootstrap, learned, traces cleared, iterations or steps before)."""
    ends = ["", "terminal", "", "limit", ""]
    clean, paper = Script(), Script(variant="paper")
    for end in ends:
        clean.step(end), paper.step(end)
    told = [(learned, cleared, round(10 * at)) for _, learned, cleared, at in clean.team.events]
    assert told == [(True, True, 0), (True, False, 1), (True, True, 2), (True, False, 3), (True, True, 4)]
    assert all(delta != 0 for delta, *_ in clean.team.events)
    told = [
        (None if delta is None else delta != 0, learned, cleared, round(10 * at))
        for delta, learned, cleared, at in paper.team.events
    ]
    assert told == [
        (None, False, False, 0),  # nothing is pending yet
        (True, True, False, 1),
        (True, True, False, 2),  # the extra iteration on the final observation learns r - Ā
        (False, True, True, 3),  # the next episode: a step of Adam with nothing to learn, then cleared traces
        (True, True, False, 4),
        (False, True, False, 5),  # the extra iteration after a time limit: δ = 0
        (False, True, True, 6),
    ]
    clean.assert_equal(), paper.assert_equal()
    assert int(paper.state.pending.iterations) == 7
    assert int(paper.state.env_steps) == int(clean.state.env_steps) == 5


# ------------------------------------------------------------------------------------------------ quirks, by row


@pytest.mark.usefixtures("x64")
def test_row_2_a_time_limit_bootstraps_in_the_clean_variant_only():
    deltas = {}
    for variant in ("clean", "paper"):
        script = Script(variant=variant)
        for end in ("", "limit"):
            script.step(end)
        script.assert_equal()
        deltas[variant] = script.team.events[-1][0]
    assert deltas["paper"] == 0.0
    assert deltas["clean"] != 0.0


@pytest.mark.usefixtures("x64")
def test_row_3_old_momentum_moves_the_weights_in_the_paper_variant():
    script = Script(variant="paper")
    for end in ("", "", "terminal"):
        script.step(end)
    before = script.state.params["actor"]["policy"]["kernel"]
    script.step()
    assert script.team.events[-1][0] == 0.0
    assert not np.array_equal(before, script.state.params["actor"]["policy"]["kernel"])


def test_row_5_actions_of_the_paper_variant_are_shifted():
    reach = env_spec((4,), low=(-1.0,), high=(1.0,))
    for variant, middle in (("clean", 0.0), ("paper", 1.0)):
        agent = agent_of(reach, variant=variant)
        state, act = begun(agent), jax.jit(agent.act)
        policy = agent.snapshot(state)
        zero = policy._replace(params=jax.tree.map(lambda leaf: 0.0 * leaf, policy.params), explore=jnp.float32(0.0))
        assert float(act(policy, (), jnp.zeros(4), seeds.key(0))[0][0]) != 0.0
        bias = policy.params["policy"]["bias"]
        np.testing.assert_allclose(bias, middle)
        assert float(act(zero, (), jnp.zeros(4), seeds.key(0))[0][0]) == 0.0
        raw = state.params["actor"]["policy"]["kernel"]
        np.testing.assert_allclose(policy.params["policy"]["kernel"], 2.0 * raw)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("variant", "jump"), [("clean", 1.0), ("paper", 1.26)])
def test_row_6_the_paper_variant_drops_adams_correction_at_step_1000(variant, jump):
    script = Script(variant=variant)
    for _ in range(3):
        script.step()
    moved = {}
    for count in (998, 999):  # steps of Adam done before
        state = script.state._replace(
            optimiser=script.state.optimiser._replace(
                rule=script.state.optimiser.rule._replace(count=jnp.asarray(count, jnp.int32))
            )
        )
        if variant == "paper":
            state = state._replace(pending=state.pending._replace(iterations=jnp.asarray(count + 1, jnp.int32)))
        else:
            state = state._replace(env_steps=jnp.asarray(count + 1, jnp.int32))
        rollout = _rollout(script, seeds.key(1))
        after = script.update(state, rollout, seeds.key(2))[0]
        moved[count] = np.linalg.norm(
            after.params["actor"]["policy"]["kernel"] - state.params["actor"]["policy"]["kernel"]
        )
    assert moved[999] / moved[998] == pytest.approx(jump, rel=0.01)


def _rollout(script, key):
    obs = np.asarray(jax.random.normal(key, (2, 1, 1, 4)))
    hidden = np.concatenate(script.team.actor.sample(obs[0, 0, 0], [np.zeros(6), np.zeros(5)]))
    number = functools.partial(np.full, (1, 1))
    extras = records.Remembered(hidden[None, None] + 0.1, np.ones((1, 1, 1)))
    step = types.Transition(obs[0], np.int32([[1]]), number(1.0), number(1.0), number(False), obs[1], extras)
    return types.Rollout(step, ())


def test_row_7_the_guard_holds_the_gate_and_keeps_its_sign():
    law = units.Law(jnp.array([0.1, 0.25]), jnp.ones(()))
    error = (jnp.ones(2), jnp.ones(1))
    for apart, expected, fires in [(0.0, 2e3, 1), (-1e-9, -2e3, 1), (-0.5, -2.0, 0), (4.0, 0.25, 0)]:
        gated, fired = units.gate(law, jnp.array([apart]), jnp.zeros(1), error, jnp.float32(1e-3))
        np.testing.assert_allclose(gated[0], expected, rtol=1e-6)
        np.testing.assert_allclose(gated[1], 4.0)
        assert fired == fires
    assert not np.isfinite(units.gate(law, jnp.zeros(1), jnp.zeros(1), error, jnp.float32(0.0))[0][0]).all()


def test_row_9_softmax_arguments_have_a_floor_in_the_paper_variant():
    pot = jnp.array([0.0, -100.0])
    exact, floored = (units.Kind(("a",), "softplus", True, floor) for floor in (None, 30.0))
    assert units.emit(exact, units.Law(None, 1.0), pot)[1] == 0.0
    np.testing.assert_allclose(units.emit(floored, units.Law(None, 1.0), pot)[1], np.exp(-30.0), rtol=1e-5)
    assert agent_kind("clean").floor is None
    assert agent_kind("paper").floor == 30.0


def agent_kind(variant):
    """The actor's kind as the rule of a variant has it."""
    found = []
    agent = agent_of(variant=variant)
    original = acting.units.logits
    try:
        acting.units.logits = lambda kind, *given: (found.append(kind), original(kind, *given))[1]
        policy = jax.eval_shape(lambda: agent.snapshot(agent.init(seeds.key(0))))
        jax.eval_shape(agent.act, policy, (), jax.ShapeDtypeStruct((4,), np.float32), seeds.key(1))
    finally:
        acting.units.logits = original
    return found[0]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("variant", ["clean", "paper"])
def test_row_10_rewards_are_held_within_the_limit(variant):
    deltas = []
    for clip in (1e-9, 1e9):
        script = Script(variant=variant, reward_clip=clip)
        for end in ENDS[:4]:
            script.step(end)
        script.assert_equal()
        deltas.append(script.team.events[1][0])
    assert deltas[0] != deltas[1]


# ------------------------------------------------------------------------------------------------ theorem


def problem_of(head, variance, temperature, seed, sizes=(64, 32), features=6):
    chance = np.random.default_rng(seed)
    outputs = 3 if head == "softmax" else 1
    shape = [features, *sizes, outputs]
    names = tuple(f"l{at}" for at in range(len(shape) - 1))
    params = {
        name: {
            "kernel": jnp.asarray(chance.uniform(-1, 1, (a, b)) * np.sqrt(6 / (a + b))),
            "bias": jnp.zeros(b),
        }
        for name, a, b in zip(names, shape[:-1], shape[1:], strict=True)
    }
    kind = units.Kind(names, "softplus", head == "softmax")
    law = units.Law(jnp.asarray(variance), jnp.asarray(temperature))
    obs = jnp.asarray(chance.normal(size=features))
    hidden = units.sample(kind, params, obs, jnp.sqrt(law.variance), [chance.normal(size=size) for size in sizes])
    mean = units.sweep(kind, law, params, obs, hidden).mean[-1]
    if head == "softmax":
        output = jnp.eye(3)[chance.choice(3, p=np.float64(mean) / np.float64(mean).sum())]
    else:
        output = mean + np.sqrt(variance[-1]) * chance.normal(size=1)
    return units.Problem(kind, law, params, obs, hidden, output)


def reparametrised(problem, hidden):
    """Gradients of log Pr(a | s, ξ), or of μ^L(s, ξ) / σ_L² where the output is a number, by autograd."""
    kind, law, obs = problem.kind, problem.law, problem.obs
    means = units.sweep(kind, law, problem.params, obs, hidden).mean
    noise = [h - mean for h, mean in zip(hidden, means[:-1], strict=True)]

    def objective(params):
        pot = obs
        for name, each in zip(kind.names[:-1], noise, strict=True):
            pot = jax.nn.softplus(pot @ params[name]["kernel"] + params[name]["bias"]) + each
        pot = pot @ params[kind.names[-1]]["kernel"] + params[kind.names[-1]]["bias"]
        if kind.softmax:
            return jnp.sum(problem.output * jax.nn.log_softmax(pot / law.temperature))
        return pot[0] / law.variance[-1]

    return jax.grad(objective)(problem.params)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("head", "variance", "temperature"), VARIANCES)
def test_theorem_at_the_minimum_the_update_is_back_propagation(head, variance, temperature):
    @functools.partial(jax.jit, static_argnums=1, compiler_options=QUICK)
    def compare(problem_arrays, steps):
        problem = units.Problem(kind, *problem_arrays)
        (end,) = units.settle([problem], steps)
        error = end.error
        if head == "linear":
            error, _ = units.gate(problem.law, problem.output, end.activity.mean[-1], error, 0.0)
        local = units.increments(kind, problem.obs, end.hidden, error)
        return local, reparametrised(problem, end.hidden), end.move

    cosines = []
    for seed in range(20):
        problem = problem_of(head, variance, temperature, seed)
        kind = problem.kind
        local, true, move = compare(tuple(problem[1:6]), 200)
        assert move < 1e-8
        for name in kind.names:
            apart = np.linalg.norm(local[name]["kernel"] - true[name]["kernel"])
            assert apart <= 1e-6 * np.linalg.norm(true[name]["kernel"]), (name, seed)
        local, true, _ = compare(tuple(problem[1:6]), 20)
        one, other = (np.ravel(each[kind.names[0]]["kernel"]) for each in (local, true))
        cosines.append(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    assert np.median(cosines) >= 0.99


@pytest.mark.usefixtures("x64")
def test_the_map_phase_descends_the_energy_along_its_gradient():
    problem = problem_of("softmax", (0.03, 0.1, 0.1), 2.0, 0)
    activity = units.sweep(problem.kind, problem.law, problem.params, problem.obs, problem.hidden)
    moved = units.ascend(problem, activity, problem.hidden)
    slope = jax.grad(lambda hidden: units.energy(problem, hidden))(problem.hidden)
    for h, new, g, variance in zip(problem.hidden, moved, slope, problem.law.variance, strict=False):
        np.testing.assert_allclose(new - h, -0.5 * variance * g, rtol=1e-9, atol=1e-12)
    (end,) = units.settle([problem], 20)
    assert units.energy(problem, end.hidden) < units.energy(problem, problem.hidden)


# ------------------------------------------------------------------------------------------------ locality


def test_a_layers_increment_reads_its_input_its_output_and_its_own_weights_only():
    """No output is differentiated with respect to a hidden weight: the increments of a layer, given the values of the
    units, do not change when any other layer's weights do."""
    problem = problem_of("softmax", (0.03, 0.1, 0.1), 2.0, 1, sizes=(5, 4, 3)[:2])
    kind, law, obs = problem.kind, problem.law, problem.obs

    def increments(params, hidden, output):
        activity = units.sweep(kind, law, params, obs, hidden)
        return units.increments(kind, obs, hidden, units.errors(kind, law, activity, hidden, output))

    both = jax.jit(jax.jacobian(increments, argnums=(0, 1)))(problem.params, problem.hidden, problem.output)
    for at, name in enumerate(kind.names):
        for other in kind.names:
            touched = any(np.any(leaf) for leaf in jax.tree.leaves(both[name]["kernel"][0][other]))
            assert touched == (name == other)
        for layer in range(2):
            touched = np.any(both[name]["kernel"][1][layer])
            assert touched == (layer in (at - 1, at)), "the values below and its own"


def test_a_unit_moves_by_the_layers_next_to_it_only():
    problem = problem_of("softmax", (0.03, 0.1, 0.1), 2.0, 1, sizes=(5, 4, 3)[:2])

    def move(params, hidden):
        one = problem._replace(params=params, hidden=hidden)
        return units.ascend(one, units.sweep(one.kind, one.law, params, one.obs, hidden), hidden)

    reads = jax.jit(jax.jacobian(move))(problem.params, problem.hidden)
    for at in range(2):
        for layer, name in enumerate(problem.kind.names):
            touched = any(np.any(leaf) for leaf in jax.tree.leaves(reads[at][name]))
            assert touched == (layer in (at, at + 1)), "the weights below and above"


@pytest.mark.parametrize("settings", [{}, {"asynchronous": True}, {"variant": "paper"}], ids=str)
def test_an_update_asks_autograd_for_nothing(settings, monkeypatch):
    agent = agent_of(**settings)
    state, policy = jax.eval_shape(lambda: (agent.init(seeds.key(0)), agent.snapshot(agent.init(seeds.key(0)))))
    obs = jax.ShapeDtypeStruct((4,), np.float32)
    extras, carry = jax.eval_shape(agent.act, policy, agent.about.carry, obs, seeds.key(0))[1:]
    wide = functools.partial(jax.tree.map, lambda leaf: jax.ShapeDtypeStruct((1, 1, *leaf.shape), leaf.dtype))
    steps = _plain_rollout().transitions._replace(extras=wide(extras))
    carry = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), carry)
    for name in ("grad", "value_and_grad", "vjp", "jvp", "linearize", "jacfwd", "jacrev"):
        monkeypatch.setattr(jax, name, None)
    jax.eval_shape(agent.update, state, types.Rollout(steps, carry), seeds.key(1))


def _plain_rollout(streams=1, features=4, units_=11):
    chance = np.random.default_rng(0)
    shape = (1, streams)
    f32 = functools.partial(np.asarray, dtype=np.float32)
    step = types.Transition(
        f32(chance.normal(size=(*shape, features))), chance.integers(0, 3, shape).astype(np.int32),
        f32(chance.normal(size=shape)), f32(np.ones(shape)), np.zeros(shape, bool),
        f32(chance.normal(size=(*shape, features))),
        records.Remembered(f32(chance.normal(size=(*shape, units_))), f32(np.ones((*shape, 1)))),
    )  # fmt: skip
    return types.Rollout(step, ())


# ------------------------------------------------------------------------------------------------ REINFORCE


@pytest.mark.usefixtures("x64")
def test_reinforce_is_unbiased_on_a_unit_whose_gradient_is_known():
    """One hidden unit, two choices, reward 1 for the second: the exact gradient by quadrature over the unit's noise."""
    problem = problem_of("softmax", (0.4, 1.0), 1.0, 5, sizes=(1,), features=2)
    kind, law, params, obs = problem.kind, problem.law, problem.params, problem.obs
    params["l1"]["kernel"] = params["l1"]["kernel"].at[0, 0].set(2.0)
    reward = jnp.array([0.0, 1.0, -0.5])
    points, weights = np.polynomial.hermite_e.hermegauss(60)

    def expected(params):
        def given(noise):
            hidden = units.sample(kind, params, obs, jnp.sqrt(law.variance), [jnp.reshape(noise, 1)])
            return units.sweep(kind, law, params, obs, hidden).mean[-1] @ reward

        return jax.vmap(given)(jnp.asarray(points)) @ jnp.asarray(weights / weights.sum())

    exact = jax.grad(expected)(params)

    def once(key):
        first, second = jax.random.split(key)
        hidden = units.sample(kind, params, obs, jnp.sqrt(law.variance), [jax.random.normal(first, (1,))])
        activity = units.sweep(kind, law, params, obs, hidden)
        choice = jax.random.categorical(second, jnp.log(activity.mean[-1]))
        error = units.errors(kind, law, activity, hidden, jnp.eye(3)[choice])
        return jax.tree.map(lambda leaf: reward[choice] * leaf, units.increments(kind, obs, hidden, error))

    samples = jax.jit(jax.vmap(once))(jax.random.split(seeds.key(0), 200_000))
    for found, true in zip(jax.tree.leaves(samples), jax.tree.leaves(exact), strict=True):
        error = np.std(found, axis=0) / np.sqrt(len(found))
        assert (np.abs(np.mean(found, axis=0) - true) <= 4 * error + 1e-12).all()


def test_map_has_a_tenth_of_the_variance_of_reinforce_on_the_multiplexer():
    from shoal.environments import task

    asked = task.multiplexer(5)
    problem = problem_of("softmax", (0.3, 1.0, 1.0), 1.0, 0, features=37)
    kind, law = problem.kind._replace(), problem.law
    params = {**problem.params, "l2": jax.tree.map(lambda leaf: leaf[..., :2], problem.params["l2"])}
    obs = asked.ask(seeds.key(1))  # one question: what varies is the team's own noise

    def once(key, steps):
        first, second, third = jax.random.split(key, 3)
        noise = [jax.random.normal(first, (64,)), jax.random.normal(second, (32,))]
        hidden = units.sample(kind, params, obs, jnp.sqrt(law.variance), noise)
        choice = jax.random.categorical(third, jnp.log(units.sweep(kind, law, params, obs, hidden).mean[-1]))
        (end,) = units.settle([units.Problem(kind, law, params, obs, hidden, jnp.eye(2)[choice])], steps)
        reward, _ = asked.judge(obs, choice)
        return reward * units.increments(kind, obs, end.hidden, end.error)["l0"]["kernel"]

    keys = jax.random.split(seeds.key(2), 400)
    by_map, by_reinforce = (jax.jit(jax.vmap(lambda key, n=n: once(key, n)))(keys) for n in (20, 0))
    assert np.var(by_reinforce, axis=0).sum() >= 10 * np.var(by_map, axis=0).sum()


# ------------------------------------------------------------------------------------------------ the family


def test_a_unit_that_does_not_explore_gives_its_mean_and_learns_nothing():
    agent = agent_of(steps=0, critic_rule="backprop", exploring=True, explore=0.0, network=NETWORK | {"hidden": (6, 5)})
    state, act = begun(agent), jax.jit(agent.act)
    policy, obs = agent.snapshot(state), jnp.ones(4)
    calm = policy._replace(explore=jnp.float32(0.0))
    action, extras, _ = act(policy, (), obs, seeds.key(1))
    greedy, _, _ = act(calm, (), obs, seeds.key(2))
    assert action == greedy
    assert not np.any(extras.exploring)
    step = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None, None], (obs, action, extras))
    rollout = _plain_rollout()
    rollout = rollout._replace(transitions=rollout.transitions._replace(obs=step[0], action=step[1], extras=step[2]))
    after, _ = jax.jit(agent.update)(state, rollout, seeds.key(3))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (after.params["actor"], state.params["actor"])), strict=True)
    )
    assert not np.array_equal(after.params["critic"]["value"]["kernel"], state.params["critic"]["value"]["kernel"])


@pytest.mark.usefixtures("x64")
def test_back_propagation_is_that_of_autograd():
    problem = problem_of("softmax", (0.03, 0.1, 0.1), 2.0, 3)
    kind, law = problem.kind, problem.law
    activity = units.sweep(kind, law, problem.params, problem.obs, problem.hidden)
    top = units.errors(kind, law, activity, problem.hidden, problem.output)[-1]
    found = units.increments(
        kind, problem.obs, problem.hidden, units.backpropagate(kind, problem.params, activity, top)
    )
    true = reparametrised(problem, problem.hidden)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(true), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


REFUSED = [
    ({"critic_rule": "map", "steps": 0}, {}, "critic_rule to backprop"),
    ({"exploring": True}, {}, "REINFORCE teams"),
    ({"actor_rates": (1.0, 2.0)}, {}, "3 \\(first, between, output\\)"),
    ({"targets": True}, {}, "task:Regression-8"),
    ({"variant": "paper", "asynchronous": True}, {}, "synchronous"),
    ({"variant": "paper", "rollout_length": 2}, {}, "rollout_length to 1"),
    ({"asynchronous": True, "learning": "backprop_det"}, {}, "learn locally"),
    ({}, {"lstm": 4}, "lstm"),
    ({}, {"hidden": ()}, "hidden"),
]


@pytest.mark.parametrize(("algorithm", "network", "why"), REFUSED)
def test_what_makes_no_sense_is_refused_with_the_reason(algorithm, network, why):
    request = presets.Request(
        "map_propagation", "gymnax:CartPole-v1", 100, settings={"algorithm": algorithm, "network": network}
    )
    with pytest.raises(errors.Refused, match=why) as caught:
        presets.resolve(request)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("runtime", "settings", "why"),
    [
        ("hogwild", {"optimiser": {"rule": "optax:adamw"}}, "rmsprop"),
        ("hogwild", {"algorithm": {"variant": "paper"}, "optimiser": {"rule": "rmsprop"}}, "variant to clean"),
        ("hogwild", {"algorithm": {"rollout_length": 4}, "optimiser": {"rule": "rmsprop"}}, "rollout_length to 1"),
    ],
)
def test_cells_without_sense_are_refused(runtime, settings, why):
    with pytest.raises(errors.Refused, match=why):
        presets.resolve(presets.Request("map_propagation", "CartPole-v1", 100, runtime=runtime, settings=settings))


def test_the_paper_variant_follows_one_environment():
    with pytest.raises(errors.Refused, match=r"runtime\.environments to 1"):
        agent_of(streams=2, variant="paper")


def test_three_numbers_serve_any_depth():
    agent = agent_of(network=NETWORK | {"hidden": (5, 4, 3, 2)})
    rate = begun(agent).layers["actor"].rate
    np.testing.assert_allclose(rate, [1e-2, 1e-5, 1e-5, 1e-5, 1e-6], rtol=1e-6)


def test_presets_hold_the_settings_of_the_paper():
    """Section 12 of the specification, the cells that differ from task to task; MAP's own were found by a search."""
    for env, actor, critic, temperature, trace in [
        ("gymnax:CartPole-v1", (0.03, 0.1, 0.1), (0.03, 0.1, 0.1), 2.0, 0.95),
        ("Acrobot-v1", (0.03, 0.1, 0.1), (0.06, 0.2, 0.2), 4.0, 0.97),
        ("LunarLander-v3", (0.06, 0.2, 0.2), (0.003, 0.01, 0.01), 8.0, 0.97),
        ("gymnax:MountainCarContinuous-v0", (0.03, 0.1, 0.5), (0.003, 0.01, 0.05), 2.0, 0.97),
    ]:
        config = presets.config(presets.Request("backprop_det", env), "algorithm")
        assert (config.actor_variance, config.critic_variance) == (actor, critic)
        assert (config.temperature, config.trace, config.steps, config.discount) == (temperature, trace, 20, 0.98)
        found = presets.config(presets.Request("map_propagation", env), "algorithm")
        differs = {f for f in vars(config) if getattr(found, f) != getattr(config, f)} - {"learning", "critic_rule"}
        assert differs == set(teams.MAP_FOUND.get(env.removeprefix("gymnax:"), {})), env
    assert presets.config(presets.Request("map_propagation", "LunarLander-v3"), "algorithm").actor_rates_end == ()
    task = presets.config(presets.Request("map_propagation", "task:Multiplexer-5"), "runtime")
    assert task.environments == 128


@pytest.mark.parametrize("spec", [DISCRETE, REACH], ids=["softmax", "linear"])
def test_the_exported_policy_acts_as_evaluation_does(spec):
    import onnxruntime

    agent = agent_of(spec)
    policy = jax.device_get(agent.snapshot(begun(agent)))._replace(explore=np.float32(0.0))
    model = export.onnx_model(agent.about.networks["policy"].spec, policy, agent.about.head, spec.action)
    run = onnxruntime.InferenceSession(model.SerializeToString())
    obs = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    given = run.run(["action"], {"obs": obs})[0]
    expected = jax.vmap(lambda seen: agent.act(policy, (), seen, seeds.key(0))[0])(obs)
    if not spec.action.discrete:
        expected = np.clip(expected, spec.action.low, spec.action.high)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)


def test_it_is_registered():
    assert "map_propagation" in registry.names("algorithm")

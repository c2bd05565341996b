"""Who takes over from whom, and what then becomes of the states: hand numbers, and what must hold of any fitness."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.core import errors, tree
from shoal.runtimes.population import applying, exchange, priors

NAN = float("nan")
PLANS = {name: jax.jit(plan, static_argnums=0) for name, plan in exchange.PLANS.items()}
TEXTS = (
    "algorithm.discount=uniform(0.9,1)", "optimiser.learning_rate=log_uniform(3e-5,3e-3)",
    "algorithm.policy_delay=integer(1,5)", "algorithm.noise=uniform(0,1)", "algorithm.tau=choice(0.001,0.005,0.02)",
)  # fmt: skip
PRIORS = dict(map(priors.parse, TEXTS))


def planned(name, fitness, round=0, key=0, settings=exchange.Settings()):  # noqa: B008
    plan, told = PLANS[name](settings, jnp.asarray(fitness, jnp.float32), jnp.int32(round), jax.random.key(key))
    return jax.device_get(plan), jax.device_get(told)


def random_fitness(seed, members, missing=0.2):
    """Many ties, some without."""
    generator = np.random.default_rng(seed)
    values = generator.integers(-3, 4, members).astype(np.float32)
    gone = generator.random(members) < missing
    values[gone] = generator.choice([np.nan, np.inf, -np.inf], gone.sum())
    return values


def in_order(fitness):
    """Members, best first, as an independent sort has them."""
    return sorted(range(len(fitness)), key=lambda i: (-fitness[i] if np.isfinite(fitness[i]) else np.inf, i))


# ------------------------------------------------------------------------------------------------ truncation


def test_truncation_by_hand():
    plan, told = planned("truncation", [3.0, 9.0, 1.0, 5.0, 5.0], settings=exchange.Settings(fraction=0.4))
    assert told.rank.tolist() == [3, 0, 4, 1, 2]
    assert told.threshold == 5.0
    assert plan.explore.tolist() == [True, False, True, False, False]
    assert plan.weights_from[[1, 3, 4]].tolist() == [1, 3, 4]
    assert {*plan.weights_from[[0, 2]].tolist()} <= {1, 3, 4}


@pytest.mark.parametrize("name", exchange.PLANS)
@pytest.mark.parametrize("round", range(5))
def test_nobody_takes_over_while_the_population_burns_in(name, round):
    fitness, settings = np.arange(8.0), exchange.Settings(intervals=(1, 2), burn_in=3)
    plan, told = exchange.planned(name, settings, jnp.asarray(fitness), jnp.int32(round), jax.random.key(0))
    usual, of_usual = planned(name, fitness, round, settings=settings)
    if round < 3:
        assert plan.weights_from.tolist() == plan.hyperparameters_from.tolist() == list(range(8))
        assert not plan.explore.any()
        assert np.isnan(told.threshold), "nothing was the limit of anything"
    else:
        jax.tree.map(np.testing.assert_array_equal, (plan, told), (usual, of_usual))
        assert plan.explore.any() == (name != "none")
    assert told.rank.tolist() == of_usual.rank.tolist(), "fitness is told all the same"


@pytest.mark.parametrize("members", [2, 3, 4, 8, 24, 80])
@pytest.mark.parametrize("seed", range(4))
def test_truncation_keeps_the_best_and_takes_from_nobody_else(members, seed):
    fitness = random_fitness(seed, members)
    plan, told = planned("truncation", fitness, key=seed)
    order, fit = in_order(fitness), np.isfinite(fitness)
    assert [*np.argsort(told.rank)] == order, "equals are ordered by their numbers, those without fitness come last"
    loses = plan.explore
    if not fit.any():
        assert not loses.any(), "where nobody has a fitness nobody is replaced"
        return
    wanted = max(1, int(0.4 * members + 1e-9))
    assert loses.sum() == max(wanted, (~fit).sum()), "as many as asked for; all without fitness among them"
    assert not (fit & loses)[order[: min(members - wanted, fit.sum())]].any()
    assert (plan.weights_from[~loses] == np.flatnonzero(~loses)).all()
    sources = plan.weights_from[loses]
    assert (fit & ~loses)[sources].all(), "a source is a winner, and has a fitness"
    assert (plan.hyperparameters_from == plan.weights_from).all()


def test_truncation_takes_from_every_winner_alike():
    drawn = np.concatenate([planned("truncation", np.arange(8), key=key)[0].weights_from[:3] for key in range(200)])
    counts = np.bincount(drawn, minlength=8)
    assert (counts[:3] == 0).all()
    assert (np.abs(counts[3:] - 120) < 45).all()


def test_one_member_without_fitness_blocks_nothing():
    plan, _ = planned("truncation", [1.0, NAN, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    assert plan.explore.tolist() == [True, True, True] + [False] * 5
    alone, _ = planned("truncation", [1.0, NAN])
    assert alone.weights_from.tolist() == [0, 0]


@pytest.mark.parametrize("name", exchange.PLANS)
def test_where_nobody_has_a_fitness_nothing_happens(name):
    plan, told = planned(name, [NAN] * 8, round=9)
    assert plan.weights_from.tolist() == plan.hyperparameters_from.tolist() == [*range(8)]
    assert not plan.explore.any()
    assert np.isnan(told.threshold)


def test_random_search_exchanges_nothing():
    plan, told = planned("none", np.arange(8))
    assert plan.weights_from.tolist() == plan.hyperparameters_from.tolist() == [*range(8)]
    assert not plan.explore.any()
    assert told.rank.tolist() == [*range(7, -1, -1)]


# ------------------------------------------------------------------------------------------------ MF-PBT


def test_mf_pbt_by_hand():
    """Eight members, sub-populations 0-3 (every round) and 4-7 (every tenth); the best at home are 1 and 4."""
    fitness = [2.0, 8.0, 1.0, 5.0, 7.0, 6.0, 3.0, 4.0]
    plan, _ = planned("mf_pbt", fitness, round=0)
    # 2, the last at home, takes over from 1 and explores; 0, above it, takes the weights of the outsider 4, which is
    # better, and its hyperparameters too, for its sub-population is slower.
    assert plan.weights_from.tolist() == [4, 1, 1, 3, 4, 5, 6, 7]
    assert plan.hyperparameters_from.tolist() == [4, 1, 1, 3, 4, 5, 6, 7]
    assert plan.explore.tolist() == [False, False, True] + [False] * 5
    plan, _ = planned("mf_pbt", fitness, round=9)
    # Now the slow ones evolve as well: 6 takes over from 4; 7 takes the weights of 1, but the hyperparameters of 4.
    assert plan.weights_from.tolist() == [4, 1, 1, 3, 4, 5, 4, 1]
    assert plan.hyperparameters_from.tolist() == [4, 1, 1, 3, 4, 5, 4, 4]
    assert plan.explore.tolist() == [False, False, True, False, False, False, True, False]


def test_mf_pbt_leaves_a_member_that_is_better_than_the_outsiders():
    plan, _ = planned("mf_pbt", [9.0, 8.0, 7.0, 6.0, 4.0, 3.0, 2.0, 7.0])
    assert plan.weights_from.tolist() == [0, 1, 2, 0, 4, 5, 6, 7], "an equal does not migrate either"


def by_hand(fitness, round, intervals):
    """MF-PBT once more, member by member."""
    members, count = len(fitness), len(intervals)
    size, value = members // count, np.where(np.isfinite(fitness), fitness, -np.inf)
    weights, theirs, explore = [*range(members)], [*range(members)], [False] * members
    for group, interval in enumerate(intervals):
        if (round + 1) % interval:
            continue
        home = [i for i in in_order(fitness) if i // size == group]
        outside = [i for i in in_order(fitness) if i // size != group]
        quarter = size // 4
        for member, best in zip(home[-quarter:], home[:quarter], strict=True):
            source = best if np.isfinite(fitness[best]) else home[0]
            if np.isfinite(fitness[source]):
                weights[member] = theirs[member] = source
                explore[member] = True
        for member in home[size - 2 * quarter : size - quarter]:
            if value[outside[0]] > value[member]:
                migrant = outside.pop(0)
                weights[member] = migrant
                slower = intervals[migrant // size] > interval
                theirs[member] = migrant if slower or not np.isfinite(fitness[home[0]]) else home[0]
    return weights, theirs, explore


@pytest.mark.parametrize(("members", "intervals"), [(8, (1, 10)), (24, (1, 10, 25, 50)), (32, (1, 10, 25, 50))])
@pytest.mark.parametrize("round", [0, 9, 24, 49])
def test_mf_pbt_of_any_fitness(members, intervals, round):
    assert exchange.groups(exchange.Settings(), members) == len(intervals)
    for seed in range(6):
        fitness = random_fitness(seed, members, missing=0.3 if seed % 2 else 0.0)
        plan, _ = planned("mf_pbt", fitness, round)
        weights, theirs, explore = by_hand(fitness, round, intervals)
        assert plan.weights_from.tolist() == weights
        assert plan.hyperparameters_from.tolist() == theirs
        assert plan.explore.tolist() == explore
        moved = plan.weights_from != np.arange(members)
        assert np.isfinite(fitness[plan.weights_from[moved]]).all(), "nobody takes over from one without fitness"


def test_sub_populations_have_four_members_at_least():
    counts = {
        members: exchange.groups(exchange.Settings(), members) for members in (2, 4, 7, 8, 12, 16, 20, 24, 32, 80)
    }
    assert counts == {2: 1, 4: 1, 7: 1, 8: 2, 12: 3, 16: 4, 20: 4, 24: 4, 32: 4, 80: 4}
    for members in counts:
        planned("mf_pbt", np.arange(members))


@pytest.mark.parametrize(
    ("name", "settings", "members", "says"),
    [
        ("truncate", {}, 8, "did you mean 'truncation'"),
        ("truncation", {}, 1, "needs two members"),
        ("truncation", {"fraction": 1.0}, 8, "below 1"),
        ("mf_pbt", {"intervals": (10, 1)}, 8, "rise"),
        ("mf_pbt", {"intervals": ()}, 8, "rise"),
    ],
)
def test_refused(name, settings, members, says):
    with pytest.raises(errors.Refused, match=says):
        exchange.check(name, exchange.Settings(**settings), members)


# ------------------------------------------------------------------------------------------------ priors


def test_a_prior_as_it_is_typed():
    assert priors.parse("algorithm.entropy_cost=log_uniform(1e-4, 1e-1)") == (
        "algorithm.entropy_cost",
        priors.Prior("log_uniform", 1e-4, 1e-1),
    )
    assert priors.parse("algorithm.tau=choice(0.1,0.01)")[1] == priors.Prior("choice", 0.01, 0.1, (0.1, 0.01))
    assert PRIORS["algorithm.discount"].high == 0.9999
    assert priors.parse("algorithm.entropy-cost=uniform(0,1)")[0] == "algorithm.entropy_cost"  # as an option is typed


def test_a_hyperparameter_has_one_prior():
    assert list(priors.read(["algorithm.tau=uniform(0,1)", "algorithm.clip=uniform(0,1)"])) == [
        "algorithm.tau",
        "algorithm.clip",
    ]
    with pytest.raises(errors.Refused, match="reward_scale has one already"):
        priors.read(["algorithm.reward_scale=uniform(0,1)", "algorithm.reward-scale=uniform(0,2)"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("algorithm.tau", "cannot be read"),
        ("algorithm.tau=loguniform(1,2)", "did you mean 'log_uniform'"),
        ("algorithm.tau=uniform(2,1)", "in this order"),
        ("algorithm.tau=uniform(1)", "lowest and the highest"),
        ("algorithm.tau=uniform(a,1)", "no numbers"),
        ("algorithm.tau=uniform(1,inf)", "finite"),
        ("algorithm.tau=log_uniform(0,1)", "above 0"),
        ("algorithm.tau=integer(1,2.5)", "whole"),
        ("algorithm.tau=choice(1,1)", "twice"),
    ],
)
def test_a_prior_that_is_none(text, says):
    with pytest.raises(errors.Refused, match=says):
        priors.parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("algorithm.polcy_delay=integer(1,5)", "did you mean 'algorithm.policy_delay'"),
        ("algorithm.tau=uniform(0,2)", "between 0 and 1"),
        ("algorithm.discount=uniform(0.9,1.5)", "between 0 and 1"),
        ("algorithm.policy_delay=uniform(1,5)", r"integer\(1,5\)"),
    ],
)
def test_a_prior_of_what_the_rule_does_not_have(text, says, build_agent, env_spec):
    hyper = build_agent(env_spec((3,), low=(-1.0,), high=(1.0,)), rule="td3", local=True).about.hyper
    priors.check(PRIORS, hyper)
    with pytest.raises(errors.Refused, match=says):
        priors.check(dict([priors.parse(text)]), hyper)


def test_what_is_drawn_is_within_and_spread_over_the_range():
    drawn = jax.vmap(lambda key: priors.draw(PRIORS, key))(jax.random.split(jax.random.key(0), 2000))
    for name, prior in PRIORS.items():
        values = np.asarray(drawn[name])
        assert values.min() >= np.float32(prior.low)
        assert values.max() <= np.float32(prior.high)
    halves = {name: np.median(drawn[name]) for name in PRIORS}
    assert halves["algorithm.discount"] == pytest.approx(0.95, abs=0.005)
    assert halves["optimiser.learning_rate"] == pytest.approx(3e-4, rel=0.2)
    for name, values in (("algorithm.policy_delay", {1, 2, 3, 4, 5}), ("algorithm.tau", {0.001, 0.005, 0.02})):
        assert {round(float(value), 6) for value in drawn[name]} == values


def test_one_prior_more_changes_no_other_draw():
    some = priors.draw({name: PRIORS[name] for name in reversed([*PRIORS][1:])}, jax.random.key(1))
    every = priors.draw(PRIORS, jax.random.key(1))
    assert all(some[name] == every[name] for name in some)


def test_hyperparameters_are_drawn_apart():
    alike = dict.fromkeys(("a", "b"), priors.Prior("uniform", 0.0, 1.0))
    drawn = jax.vmap(lambda key: priors.draw(alike, key))(jax.random.split(jax.random.key(0), 500))
    assert abs(np.corrcoef(drawn["a"], drawn["b"])[0, 1]) < 0.15


@pytest.mark.parametrize("name", PRIORS)
def test_a_perturbed_value_moves_and_never_leaves_its_range(name):
    prior = PRIORS[name]
    drawn = jax.vmap(lambda key: priors.draw({name: prior}, key)[name])(jax.random.split(jax.random.key(2), 64))
    value = jnp.concatenate([drawn, jnp.asarray([prior.low, prior.high], jnp.float32)])
    move = jax.jit(jax.vmap(functools.partial(priors.perturbed, prior)))
    for step in range(30):
        after = move(value, jax.random.bernoulli(jax.random.key(step), shape=value.shape))
        assert (after >= np.float32(prior.low)).all()
        assert (after <= np.float32(prior.high)).all()
        assert (after != value).all(), "each moves, at the ends the other way"
        if prior.kind == "integer":
            assert (after == jnp.round(after)).all()
        if prior.kind == "choice":
            assert {*np.asarray(after).tolist()} <= {*np.float32(prior.values).tolist()}
        value = after


def test_perturbed_by_hand():
    moved = functools.partial(priors.perturbed, priors.Prior("log_uniform", 1e-5, 1e-2))
    assert moved(1e-3, True) == pytest.approx(1.25e-3)
    assert moved(1e-3, False) == pytest.approx(0.8e-3)
    assert moved(9e-3, True) == pytest.approx(1e-2)
    assert moved(1e-2, True) == pytest.approx(8e-3)
    discount = functools.partial(priors.perturbed, PRIORS["algorithm.discount"])
    assert discount(0.95, False) == pytest.approx(0.95 - 0.25 * 0.0999), "not to the other end of the range"
    delay = functools.partial(priors.perturbed, PRIORS["algorithm.policy_delay"])
    assert [float(delay(value, True)) for value in (1, 4, 5)] == [2.0, 5.0, 4.0]
    negative = functools.partial(priors.perturbed, priors.Prior("uniform", -4.0, 0.0))
    assert negative(-1.0, True) == pytest.approx(-0.75)


# ------------------------------------------------------------------------------------------------ applied to states

N = 8
WAYS = [
    applying.How(copy, explore, (0.8, 1.25)) for copy in ("policy", "all") for explore in ("resample", "perturb")
]  # fmt: skip


@pytest.fixture(scope="module")
def population(build_agent_once):
    """rule -> (agent, states of eight members that differ in every number)."""

    @functools.cache
    def made(rule):
        agent = build_agent_once(rule)
        states = jax.vmap(agent.init)(jax.random.split(jax.random.key(3), N))
        memory = agent.about.fields.memory
        states = tree.replaced(states, memory, ()) if memory else states
        marks = np.arange(1, N + 1)

        def marked(leaf):
            shape = (N, *[1] * (leaf.ndim - 1))
            return leaf + jnp.asarray(marks.reshape(shape) * (0.01 if leaf.dtype == jnp.float32 else 1), leaf.dtype)

        states = jax.tree.map(marked, states)
        own = {name: prior for name, prior in PRIORS.items() if name in agent.about.hyper}
        values = jax.vmap(lambda key: priors.draw(own, key))(jax.random.split(jax.random.key(4), N))
        return agent, own, applying.set_hyperparameters(agent, states, values)

    return made


@pytest.fixture(scope="module")
def build_agent_once():
    from tests.conftest import build_agent, env_spec

    def made(rule):
        box = {"low": (-1.0,), "high": (1.0,)} if rule in ("td3", "sac") else {"choices": 2}
        memory = {"capacity": 32, "batch": 4} if rule in ("td3", "sac", "dqn") else {}
        return build_agent(
            env_spec((3,), **box), rule=rule, local=True, streams=2, algorithm=memory, optimiser={"rule": "adam"}
        )

    return made


PLAN = exchange.Plan(
    jnp.asarray([0, 1, 6, 3, 7, 5, 6, 7], jnp.int32),
    jnp.asarray([0, 1, 6, 3, 5, 5, 6, 7], jnp.int32),
    jnp.asarray([False, False, True, False, False, False, False, False]),
)
MOVED = {2: 6, 4: 7}


COMPILED = {}  # a test of its own would compile it once more


def applied(agent, own, how, states, plan=PLAN):
    key = id(agent), how
    if key not in COMPILED:
        COMPILED[key] = jax.jit(functools.partial(applying.apply, agent, own, how))
    return jax.device_get(COMPILED[key](plan, states, jax.random.key(5)))


def rows(states, at):
    return jax.tree.map(lambda leaf: np.asarray(leaf[at]), states)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize(
    ("rule", "how"),
    [
        *(("td3", how) for how in WAYS),
        ("sac", WAYS[1]),
        ("dqn", WAYS[1]),
        ("ppo", WAYS[0]),
        ("map_propagation", WAYS[3]),
    ],
    ids=lambda given: given if isinstance(given, str) else f"{given.copy}-{given.explore}",
)
def test_only_the_members_of_the_plan_change(rule, how, population):
    agent, own, states = population(rule)
    after = applied(agent, own, how, states)
    for member in set(range(N)) - set(MOVED):
        assert same(rows(after, member), rows(states, member)), "bit for bit"
    nothing = exchange.Plan(jnp.arange(N), jnp.arange(N), jnp.zeros(N, bool))
    assert same(applied(agent, own, how, states, nothing), jax.device_get(states))


@pytest.mark.parametrize("rule", ["td3", "sac"])
def test_a_copied_policy_leaves_critics_and_counters(rule, population):
    agent, own, states = population(rule)
    after = applied(agent, own, applying.How("policy", "perturb", (0.8, 1.25)), states)
    for member, source in MOVED.items():
        new, old, given = rows(after, member), rows(states, member), rows(states, source)
        assert same(new.params["policy"], given.params["policy"])
        assert same(new.params["critics"], old.params["critics"])
        assert same(new.critic_optimiser.rule, old.critic_optimiser.rule)
        assert new.optimiser.rule.count == 0, "the policy's optimiser is fresh"
        assert not np.any(new.optimiser.rule.mu)
        assert (new.updates, new.env_steps) == (old.updates, old.env_steps), "no counter is reset"
        assert new.optimiser.skipped == old.optimiser.skipped
        if rule == "td3":
            assert same(new.target["policy"], given.params["policy"])
            assert same(new.target["critics"], old.target["critics"])
        else:
            assert same(new.target, old.target)
            assert new.params["log_alpha"] == 0.0
            assert new.alpha_optimiser.rule.count == 0


@pytest.mark.parametrize(("rule", "copy"), [("td3", "all"), ("dqn", "policy"), ("ppo", "policy")])
def test_a_copied_learner_keeps_its_own_clock(rule, copy, population):
    agent, own, states = population(rule)
    after = applied(agent, own, applying.How(copy, "perturb", (0.8, 1.25)), states)
    for member, source in MOVED.items():
        new, old, given = rows(after, member), rows(states, member), rows(states, source)
        assert same(new.params, given.params)
        assert same(new.optimiser.rule, given.optimiser.rule)
        assert new.env_steps == old.env_steps
        assert new.optimiser.skipped == old.optimiser.skipped
        if own_target := agent.about.fields.own_target:
            assert same(tree.field(new, own_target), tree.field(given, own_target))


@pytest.mark.parametrize("how", WAYS, ids=lambda how: f"{how.copy}-{how.explore}")
@pytest.mark.parametrize("rule", ["td3", "ppo"])
def test_hyperparameters_come_from_whom_the_plan_says(rule, how, population):
    agent, own, states = population(rule)
    before = jax.device_get(applying.hyperparameters(agent, agent.about.hyper, states))
    after = applying.hyperparameters(agent, agent.about.hyper, applied(agent, own, how, states))
    for name, values in after.items():
        assert values[4] == before[name][5], "weights of 7, hyperparameters of 5"
        if name not in own:
            assert values[2] == before[name][6]
            continue
        prior = own[name]
        assert np.float32(prior.low) <= values[2] <= np.float32(prior.high)
        assert values[2] != before[name][6] or prior.kind in ("integer", "choice")
        if how.explore == "perturb":
            ups = [priors.perturbed(prior, before[name][6], up) for up in (True, False)]
            assert any(values[2] == pytest.approx(float(up)) for up in ups)


def test_what_is_remembered_of_streams_is_not_taken_over(population):
    agent, own, states = population("map_propagation")
    after = applied(agent, own, applying.How("all", "perturb", (0.8, 1.25)), states)
    restarted = jax.device_get(jax.vmap(agent.about.restart)(states))
    changed = [
        name
        for name in states._fields
        if not same(tree.field(restarted, name), jax.device_get(tree.field(states, name)))
    ]
    assert changed, "a restart changes something"
    for name in changed:
        new = tree.field(after, name)
        assert same(rows(new, 2), rows(tree.field(restarted, name), 6)), name
        assert same(rows(new, 3), rows(tree.field(states, name), 3)), name


def test_what_the_lineage_says_was_copied(population):
    how = applying.How("policy", "resample", (0.8, 1.25))
    assert applying.copied(population("td3")[0], how) == (["policy", "normaliser"], ["optimiser"])
    assert applying.copied(population("sac")[0], how)[1] == ["optimiser", "alpha_optimiser"]
    assert applying.copied(population("ppo")[0], how) == (["all"], [])

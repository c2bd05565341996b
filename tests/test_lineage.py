"""The lineage of a population: what it tells, the file that holds it, and that it is enough to know every member."""

from __future__ import annotations

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.core import errors
from shoal.runtimes.population import applying, chronicle, exchange, lineage, priors
from tests.conftest import build_agent, env_spec

RATE, DISCOUNT = "optimiser.learning_rate", "algorithm.discount"
PRIORS = dict(map(priors.parse, (f"{RATE}=log_uniform(3e-5,3e-3)", f"{DISCOUNT}=uniform(0.9,1)")))


def event(kind, update, member, source=None, **more):
    return chronicle.Event(kind, update, 10 * update, member, source, **more)


# Three members. Round 0 at update 100: 2 takes over from 0. Round 1 at 200: 0 takes over from 2, and 1 from what 0 was.
# At 250 member 2 fails and goes on from 1.
BY_HAND = [
    event("init", 0, 0, hyperparameters={RATE: 0.1, DISCOUNT: 0.9}),
    event("init", 0, 1, hyperparameters={RATE: 0.2, DISCOUNT: 0.9}),
    event("init", 0, 2, hyperparameters={RATE: 0.3, DISCOUNT: 0.9}),
    event("exchange", 100, 0, rank=0, fitness=5.0, round=0),
    event("exchange", 100, 1, rank=1, fitness=4.0, round=0, hyperparameters={RATE: 0.25}),
    event("exchange", 100, 2, 0, rank=2, fitness=3.0, round=0, hyperparameters={RATE: 0.15}, explore=True),
    event("exchange", 200, 0, 2, rank=1, fitness=6.0, round=1, hyperparameters={RATE: 0.12}),
    event("exchange", 200, 1, 0, rank=2, fitness=None, round=1, hyperparameters={RATE: 0.11, DISCOUNT: 0.95}),
    event("exchange", 200, 2, rank=0, fitness=7.0, round=1),
    event("failure", 250, 2, 1, hyperparameters={RATE: 0.5}, reason="non_finite"),
]  # fmt: skip


def test_ancestry_by_hand():
    assert lineage.ancestry(BY_HAND, 0) == [(0, 0, None), (100, 2, 0), (200, 0, 2)]
    assert lineage.ancestry(BY_HAND, 1) == [(0, 0, None), (200, 1, 0)], "from 0 as it was before it took over itself"
    assert lineage.ancestry(BY_HAND, 2) == [(0, 0, None), (200, 1, 0), (250, 2, 1)]
    assert lineage.winner(BY_HAND) == 2
    assert lineage.members(BY_HAND) == 3


def test_hyperparameters_by_hand():
    assert lineage.hyperparameters_at(BY_HAND, 99)[2] == {RATE: 0.3, DISCOUNT: 0.9}
    assert lineage.hyperparameters_at(BY_HAND, 100)[2] == {RATE: 0.15, DISCOUNT: 0.9}
    assert [values[RATE] for values in lineage.hyperparameters_at(BY_HAND, 1000)] == [0.12, 0.11, 0.5]


def test_schedules_by_hand():
    both = {RATE: 0.1, DISCOUNT: 0.9}
    assert lineage.schedule(BY_HAND, 0) == [(0, both), (1000, {RATE: 0.15}), (2000, {RATE: 0.12})]
    assert lineage.schedule(BY_HAND, 1) == [(0, both), (2000, {RATE: 0.11, DISCOUNT: 0.95})]
    own_discount = {RATE: 0.5, DISCOUNT: 0.9}
    assert lineage.schedule(BY_HAND, 2) == [*lineage.schedule(BY_HAND, 1), (2500, own_discount)]
    own = [*BY_HAND[:3], event("exchange", 100, 1, rank=0, fitness=1.0, round=0, hyperparameters={RATE: 0.25})]
    assert lineage.schedule(own, 1) == [(0, {RATE: 0.2, DISCOUNT: 0.9}), (1000, {RATE: 0.25})], "without a new source"


def test_fresh_weights_begin_an_ancestry():
    events = [*BY_HAND, event("failure", 300, 0, None, hyperparameters={RATE: 0.7})]
    assert lineage.ancestry(events, 0) == [(300, 0, None)]
    assert lineage.schedule(events, 0) == [(3000, {RATE: 0.7, DISCOUNT: 0.9})]


def test_rounds_are_plans_again():
    first, second = lineage.rounds(BY_HAND)
    assert (first.round, first.update, first.env_steps) == (0, 100, 1000)
    assert first.plan.weights_from.tolist() == [0, 1, 0]
    assert first.plan.explore.tolist() == [False, False, True]
    assert second.plan.weights_from.tolist() == [2, 0, 2]
    assert np.isnan(second.fitness[1])


# ------------------------------------------------------------------------------------------------ a population


@functools.cache
def population(exchange_name):
    """Twelve rounds of eight members whose fitness is made up: (agent, states after each update, events)."""
    agent = build_agent(
        env_spec((3,), low=(-1.0,), high=(1.0,)), rule="td3", local=True, algorithm={"capacity": 8, "batch": 4}
    )  # fmt: skip
    states = jax.vmap(agent.init)(jax.random.split(jax.random.key(0), 8))._replace(memory=())
    values = jax.vmap(lambda key: priors.draw(PRIORS, key))(jax.random.split(jax.random.key(1), 8))
    states = applying.set_hyperparameters(agent, states, values)
    how = applying.How("policy", "perturb" if exchange_name == "mf_pbt" else "resample")
    events, after = chronicle.initial(jax.device_get(values), 8), {0: values}
    settings = exchange.Settings(intervals=(1, 4))
    plan_of = jax.jit(exchange.PLANS[exchange_name], static_argnums=0)
    apply = jax.jit(functools.partial(applying.apply, agent, PRIORS, how))
    for round in range(12):
        fitness = np.random.default_rng(round).normal(size=8).astype(np.float32)
        fitness[round % 8] = np.nan
        before = applying.hyperparameters(agent, PRIORS, states)
        plan, told = plan_of(settings, jnp.asarray(fitness), jnp.int32(round), jax.random.key(round))
        states = apply(plan, states, jax.random.key(100 + round))
        update = 50 * (round + 1)
        after[update] = jax.device_get(applying.hyperparameters(agent, PRIORS, states))
        done = chronicle.Round(round, update, 4 * update, fitness, jax.device_get(plan))
        events += chronicle.exchanged(done, told, before, after[update], exchange_name, applying.copied(agent, how))
    return after, events


@pytest.mark.parametrize("name", ["truncation", "mf_pbt", "none"])
def test_hyperparameters_rebuilt_are_those_of_the_states(name, tmp_path):
    after, events = population(name)
    journal = lineage.Lineage()
    journal.add(events)
    journal.write(tmp_path, {})
    read = lineage.read(tmp_path)
    for update, values in after.items():
        for later in (update, update + 49):
            rebuilt = lineage.hyperparameters_at(read, later)
            for leaf in PRIORS:
                assert np.array_equal(np.float32([one[leaf] for one in rebuilt]), values[leaf]), "the same float32"


@pytest.mark.parametrize("name", ["truncation", "mf_pbt"])
def test_a_schedule_is_what_each_ancestor_had_in_its_time(name):
    after, events = population(name)
    for member in range(8):
        line = lineage.ancestry(events, member)
        assert line[0].source is None
        assert all(since.source == before.member for before, since in itertools.pairwise(line))
        known, points = {}, dict(lineage.schedule(events, member))
        for update, values in after.items():
            known |= points.get(4 * update, {})
            held = [since for since in line if since.update <= update][-1].member
            assert known == {leaf: pytest.approx(float(values[leaf][held]), rel=1e-6) for leaf in PRIORS}


def test_plans_read_back_are_those_that_were_made(tmp_path):
    _, events = population("mf_pbt")
    journal = lineage.Lineage()
    journal.add(events)
    journal.write(tmp_path, {})
    for round, done in enumerate(lineage.rounds(lineage.read(tmp_path))):
        fitness = np.random.default_rng(round).normal(size=8).astype(np.float32)
        fitness[round % 8] = np.nan
        plan, _ = exchange.mf_pbt(exchange.Settings(intervals=(1, 4)), jnp.asarray(fitness), round, jax.random.key(0))
        assert np.array_equal(done.fitness, fitness, equal_nan=True)
        assert all(np.array_equal(a, b) for a, b in zip(done.plan, plan, strict=True))


def test_an_exchange_tells_of_every_member():
    _, events = population("truncation")
    first = [event for event in events if event.round == 0]
    assert [event.member for event in first] == [*range(8)]
    moved = [event for event in first if event.source is not None]
    assert len(moved) == 3
    assert all(event.explore and event.copied == ("policy", "normaliser") for event in moved)
    assert all(event.reset == ("optimiser",) and {*event.hyperparameters} == {*PRIORS} for event in moved)
    stayed = [event for event in first if event.source is None]
    assert all(not event.hyperparameters and not event.copied for event in stayed)
    assert all(event.fitness >= event.threshold for event in stayed)
    assert first[0].fitness is None, "NaN is no fitness"


# ------------------------------------------------------------------------------------------------ the file


def written(folder, events):
    journal = lineage.Lineage()
    journal.add(events)
    return journal.write(folder, {})


def test_a_resumed_run_goes_on_from_where_its_checkpoint_was(tmp_path):
    meta = written(tmp_path, BY_HAND[:6])
    written(tmp_path, BY_HAND)  # a later checkpoint, which was lost
    journal = lineage.Lineage()
    journal.take_up(tmp_path, meta)
    assert journal.events() == BY_HAND[:6]
    journal.add(BY_HAND[6:9])
    assert journal.write(tmp_path, {}) == {"lineage_events": 9}
    assert lineage.read(tmp_path) == BY_HAND[:9]
    assert [*tmp_path.iterdir()] == [tmp_path / "lineage.jsonl"]


def test_what_an_event_looks_like(tmp_path):
    written(tmp_path, BY_HAND)
    lines = [json.loads(line) for line in (tmp_path / "lineage.jsonl").read_text().splitlines()]
    assert lines[5] == {
        "event": "exchange", "update": 100, "env_steps": 1000, "member": 2, "source": 0, "fitness": 3.0, "rank": 2,
        "hyperparameters": {RATE: 0.15}, "round": 0, "explore": True,
    }  # fmt: skip
    assert lines[3]["rank"] == 0, "0 is told"
    assert lines[3]["round"] == 0
    assert lines[7]["fitness"] is None


def test_a_file_that_lacks_events_is_refused(tmp_path):
    written(tmp_path, BY_HAND[:6])
    with pytest.raises(errors.Refused, match="holds 6 of 9 events"):
        lineage.Lineage().take_up(tmp_path, {"lineage_events": 9})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda lines: [*lines[:4], lines[4][:20]], "line 5 is no event"),
        (lambda lines: lines[1:], "does not begin with every member"),
        (lambda lines: lines[:5], "exchange 0 tells of 2 of 3 members"),
        (lambda lines: [*lines, lines[0]], "every member"),
        (lambda lines: [*lines, lines[3].replace('"round": 0', '"round": 7')], "update 100 after update 250"),
        (lambda lines: [*lines, lines[9].replace('"source": 1', '"source": 9')], "among 3 members"),
        (lambda lines: [line.replace('"update": 0', '"update": "a"') for line in lines], "not whole"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(damage, says, tmp_path):
    written(tmp_path, BY_HAND)
    path = tmp_path / "lineage.jsonl"
    path.write_text("".join(f"{line}\n" for line in damage(path.read_text().splitlines())))
    with pytest.raises(errors.Refused, match=says) as refused:
        lineage.read(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_run_without_lineage_is_refused(tmp_path):
    with pytest.raises(errors.Refused, match="only a run of a population"):
        lineage.read(tmp_path)

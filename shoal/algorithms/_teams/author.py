"""The control flow of the author's code, to the letter: `variant = paper`.

Source: stephen-chung-mh/map_prop. What differs from the clean variant is listed in docs/presets/map_propagation.md.
"""

from __future__ import annotations

from typing import Any

from etils import epy

from shoal.algorithms._teams import acting, learning, records, units
from shoal.core import types
from shoal.formulas import optimise

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

CORRECTED = 1000  # the author's Adam drops its correction from this step on


def learn(
    rule: records.Rule, state: records.State, step: types.Transition, key: types.Key
) -> tuple[records.State, types.Metrics]:
    """The author's loop: learn from the transition before, then the traces of this decision; one stream ``[1]``.

    After an end the loop runs once more on the final observation; the action of that iteration only resets.
    """
    keys = jax.random.split(key, 3)
    over = (step.discount == 0) | step.truncated
    moment = learning.moments(rule, step, records.seen(rule, state.normaliser, step.obs), ())
    one = jax.tree.map(lambda leaf: leaf[0], moment)
    state, told = iterate(rule, state, one, keys[0])
    last = records.Behind(step.reward[0], over[0], step.truncated[0], *state.pending[3:])
    state = state._replace(pending=last, env_steps=state.env_steps + 1)

    def dummy(state: records.State) -> records.State:
        obs = records.seen(rule, state.normaliser, step.next_obs[0])
        more = acting.exploration(rule, state)
        policy = types.Policy(acting.folded(rule, state), state.normaliser, jnp.float32(1.0), more)
        action, extras, _ = acting.act(rule, policy, (), step.next_obs[0], keys[1])
        drawn = step._replace(action=action[None], extras=jax.tree.map(lambda leaf: leaf[None], extras))
        again = jax.tree.map(lambda leaf: leaf[0], learning.moments(rule, drawn, obs[None], ()))
        after, _ = iterate(rule, state, again, keys[2])
        quiet = records.Behind(jnp.zeros_like(step.reward[0]), jnp.bool_(False), jnp.bool_(False), *after.pending[3:])
        return after._replace(pending=quiet)

    state = jax.lax.cond(over[0], dummy, lambda state: state, state)
    return state, learning.told(rule, told["lesson"], step, told["delta"], told["value"], told["norm"])


def iterate(
    rule: records.Rule, state: records.State, moment: records.Moment, key: types.Key
) -> tuple[records.State, Any]:
    """Steps 2 to 6 of the author's loop, and what step 7 keeps."""
    hyper, last = state.hyper, state.pending
    drawn = learning.guess(rule, state, moment.obs, jax.random.normal(key, (sum(rule.sizes["critic"]) + 1,)))
    moment = moment._replace(guess=drawn)
    reward = jnp.clip(last.reward, -hyper.reward_clip, hyper.reward_clip)
    delta = reward + hyper.discount * drawn.value * (~last.ended) - last.value
    delta = jnp.where(last.ended_before | last.truncated, jnp.zeros_like(delta), delta)
    gradient = jax.tree.map(lambda trace: -delta * trace[0], state.traces)
    asked = optimise.Step(
        learning.rates(rule, state.layers, last.iterations / hyper.end_t), last.iterations < CORRECTED
    )  # the first learning is at iteration 1, so that iterations counts the steps of Adam
    first = last.iterations == 0
    learned, norm = learning.apply(rule, state, gradient, asked)
    stale = {
        which: units.sweep(rule.kinds[which], records.law(state, which), state.params[which], moment.obs, hidden)
        for which, hidden in (("actor", moment.hidden), ("critic", drawn.hidden))
    }
    state = jax.tree.map(lambda old, new: jnp.where(first, old, new), state, learned)
    found = learning.lesson(rule, state, moment, stale)
    added = jax.tree.map(lambda leaf: leaf[None], found.increments)
    state, _ = learning.eligible(state, added, last.ended_before[None], jnp.zeros((1,)))
    kept = last._replace(ended_before=last.ended, value=drawn.value, iterations=last.iterations + 1)
    told = {name: value[None] for name, value in found.told.items()}
    return state._replace(pending=kept), {
        "lesson": told,
        "delta": delta[None],
        "value": drawn.value[None],
        "norm": norm,
    }

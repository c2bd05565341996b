"""The learner's forward with the packed weights too: both sides compute with the same numbers.

With Q what the compressor computes (`types.Compressor.simulate`), θ the policy's parameters in full precision and U the
update of a rule, which sees parameters and gives new ones:

    θ ← θ + U(Q(θ)) - Q(θ)

that is, every forward of the update (of its old policy too) is of Q(θ), the gradient there is taken for that at θ (the
straight-through estimator), and the change is made in full precision, where it is not rounded away. Where an update
makes several gradient steps, the policy is packed once, before the first. What is not the policy's (critics) learns as
it is.

Source: Bengio, Léonard and Courville 2013, arXiv:1308.3432 (the estimator); Jet-RL, arXiv:2601.14243 (one precision for
acting and learning).
"""

from __future__ import annotations

from typing import Any

from etils import epy

from shoal.core import errors, types

with epy.lazy_imports():
    import jax


def packed(agent: types.Agent, compressor: types.Compressor) -> types.Agent:
    """A rule whose updates are made at what a compressor would compute.

    Args:
        agent: The rule.
        compressor: It.

    Raises:
        Refused: There is no such form of the compressor, or of the rule.
    """
    if why := refuses(agent, compressor):
        raise errors.Refused(why)
    simulate, part = compressor.simulate, agent.about.fields.policy
    assert simulate is not None
    assert part is not None

    def update(state: Any, rollout: types.Rollout, key: types.Key) -> tuple[types.State, types.Metrics]:
        learning, packing = jax.random.split(key)
        policy = agent.snapshot(state)
        full = _policy(part, state.params)
        coarse = simulate(policy._replace(params=full), packing).params
        after, metrics = agent.update(state._replace(params=_with(part, state.params, coarse)), rollout, learning)
        learned = _policy(part, after.params)
        changed = jax.tree.map(lambda at, new, old: at + (new - old), full, learned, coarse)
        return after._replace(params=_with(part, after.params, changed)), metrics

    return agent._replace(update=update)


def refuses(agent: types.Agent, compressor: types.Compressor) -> str:
    """Why a rule cannot learn with what a compressor computes; "" if it can.

    Args:
        agent: The rule.
        compressor: It.
    """
    asked = f"--runtime.precision packed --compressor {compressor.name}"
    if compressor.here:
        return f"{asked}: nothing is packed, so both are one; leave it at full, or choose what packs, e.g. quantise"
    if compressor.simulate is None:
        return (
            f"{asked}: an update computes with what a compressor would make of the policy, and this one, as it is set, "
            "learns from observations, which happens outside of the compiled program; use quantise, prune or low_rank"
        )
    if agent.about.fields.policy is None:
        return f"{asked}: the parameters of this rule's policy are made of its own in another way; leave it at full"
    return ""


def _policy(part: str, params: types.Params) -> types.Params:
    return params[part] if part else params


def _with(part: str, params: types.Params, policy: types.Params) -> types.Params:
    return {**params, part: policy} if part else policy

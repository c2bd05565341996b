"""The boundary, form by form: what is an owner's own is in no message of a whole run, and moves no bit of one.

Every form, gradients and changes, in rounds and as they come, 50 rounds each (specification, section 12, point 1).
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import experiment
from shoal.experiment import presets
from shoal.networks import scopes
from shoal.runtimes.federated import beginning, channels, message
from tests.test_federated_party import canaries, planted, seen

PARTIES, ROUNDS, STREAMS, LENGTH = 2, 50, 2, 2
WAYS = list(itertools.product("ABCDEF", ("gradient", "delta"), (False, True)))
CANARIES, PATTERNS = canaries(count=24, seed=5)


@pytest.fixture(scope="module", autouse=True)
def cache():
    experiment.cache()


class Heard(NamedTuple):
    """What crossed: direction, party, body."""

    messages: list[tuple[str, int, bytes]]
    told: dict[str, Any]  # of the summary
    spec: message.Spec


def built(form: str, exchange: str, asynchronous: bool) -> Any:
    """Two owners of poles whose own layers are never stepped, so that they stay canaries to the end."""
    updates = 2 if exchange == "delta" else 1
    settings = {
        "network": {"hidden": (8,), "adapter": 8, "form": form},
        "algorithm": {"rollout_length": LENGTH, "normalise_observations": True},
        "optimiser": {"rule": "adam", "anneal": False, "local_rate": 0.0},
        "runtime": {
            "parties": PARTIES, "environments": STREAMS, "exchange": exchange, "asynchronous": asynchronous,
            "local_updates": updates, "placement": "axis", "dispatch": "vmap",
        },
    }  # fmt: skip
    steps = PARTIES * ROUNDS * updates * STREAMS * LENGTH
    asked = presets.Request("a2c", "owners:CartPole-lengths", steps, runtime="federated", settings=settings)
    return experiment.build(presets.resolve(asked)[0]), steps


def sown(tree: Any) -> Any:
    """The same with canaries for every number that is not whole."""
    floats = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)  # noqa: E731
    return jax.tree.map(lambda leaf: jnp.resize(jnp.asarray(CANARIES), leaf.shape) if floats(leaf) else leaf, tree)


def loud(parts: Any) -> Any:
    """Observations, rewards, returns, the simulator's state with its parameters, own layers, normaliser: canaries.

    Episodes are of one step, so a return is a reward.
    """
    env, agent = parts.device_env, parts.agent

    def step(state: Any, action: Any, key: Any) -> Any:
        state, obs, outcome = env.step(state, action, key)
        ends = jnp.zeros_like(outcome.discount), jnp.zeros_like(outcome.truncated)
        outcome = outcome._replace(reward=sown(outcome.reward), next_obs=sown(obs), discount=ends[0], truncated=ends[1])
        return sown(state), sown(obs), outcome

    def init_as(key: Any, owner: Any) -> Any:
        return sown(env.init_as(key, owner))

    def begin(key: Any) -> Any:
        return planted(agent.init(jax.random.fold_in(key, 1)), CANARIES)

    shown = env._replace(step=step, init=lambda key: sown(env.init(key)), init_as=init_as)
    return parts._replace(device_env=shown, agent=agent._replace(init=begin))


class Observer:
    """Looks on to the end."""

    def __call__(self, progress: Any) -> bool:
        self.last = progress
        return True

    def fault(self, kind: str, story: str) -> None:
        raise AssertionError(f"{kind}: {story}")


def heard(made: Any, parts: Any, steps: int) -> Heard:
    messages: list[tuple[str, int, bytes]] = []

    def wire(direction: str, party: int, body: bytes) -> bytes:
        messages.append((direction, party, body))
        return body

    config = made.runtime._config
    result = beginning.trained(config, parts, 0, steps, Observer(), None, wire=wire)
    assert any("own_" in name for name in result.policies[0].params)
    local = scopes.split(result.policies[0].params)[1]
    if parts is not made.parts:
        assert np.isin(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(local)]), CANARIES).all()
    spec = beginning.channel_of(config, parts, 0).spec
    return Heard(messages, result.final.subsystems["federation"], spec)


def exact(found: Heard) -> None:
    """Every message is header, tensors and counts, and the summary counts those bytes and no others."""
    size = 76 + 4 * sum(int(np.prod(shape)) for _, shape in found.spec.tensors)
    assert {(direction, len(body)) for direction, _, body in found.messages} == {("down", size + 40), ("up", size + 17)}
    ups = [body for direction, _, body in found.messages if direction == "up"]
    assert len(ups) >= PARTIES * ROUNDS
    assert found.told["bytes_up"] == len(ups) * (size + 17)
    assert found.told["rejected"] == {}
    outcomes = {message.decode_up(found.spec, body).outcome for body in ups}
    assert outcomes == {message.OK}


@pytest.mark.slow
@pytest.mark.parametrize(("form", "exchange", "asynchronous"), WAYS)
def test_no_canary_of_an_owner_is_in_any_message_of_fifty_rounds(form, exchange, asynchronous):
    made, steps = built(form, exchange, asynchronous)
    found = heard(made, loud(made.parts), steps)
    exact(found)
    assert not seen([body for _, _, body in found.messages], PATTERNS)
    theta = np.resize(CANARIES, found.spec.size).astype(np.float32)  # they would be found
    header = message.Header(bytes(16), 0, 1, 0, message.DELTA)
    assert seen([message.encode_down(found.spec, message.Down(header, theta, message.Settings()))], PATTERNS)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "exchange", "asynchronous"), WAYS)
def test_nothing_of_an_owner_moves_a_bit_of_fifty_rounds(form, exchange, asynchronous, monkeypatch):
    """With a constant for the update of the global part, all that is local changes and no message does."""
    plain = getattr(channels, exchange)

    def constant(*given: Any, **more: Any) -> channels.Channel:
        channel = plain(*given, **more)
        first = jnp.zeros(channel.spec.size)
        return channel._replace(
            beginning=lambda _: first,
            end=lambda state, theta, total, updates: theta + 1.0,  # noqa: ARG005
        )

    monkeypatch.setattr(channels, exchange, constant)
    made, steps = built(form, exchange, asynchronous)
    quiet, other = heard(made, made.parts, steps), heard(made, loud(made.parts), steps)
    exact(quiet)
    assert quiet.messages == other.messages

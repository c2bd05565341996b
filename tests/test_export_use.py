"""The action of an exported policy is the environment's own, and what the graph leaves to its caller is told."""

from __future__ import annotations

import gymnasium
import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from gymnasium import spaces

from shoal import environments
from shoal.command.verbs import export as verb
from shoal.environments import _gymnasium_spaces
from shoal.networks import export
from tests.conftest import build_agent, env_spec
from tests.test_export import random_policy

SHOWN = environments.Config()


class Takes(gymnasium.Env):
    """Refuses what is not an action of its own."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)

    def __init__(self, action_space, observation_space=None):
        self.action_space = action_space
        self.observation_space = observation_space or Takes.observation_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), (action, self.action_space)
        return self.observation_space.sample(), 0.0, False, False, {}


INTS = spaces.Box(np.array([0, -5]), np.array([10, 5]), dtype=np.int64)
SPACES = {
    "start": spaces.Discrete(3, start=-1),
    "choices": spaces.Discrete(4),
    "ints": INTS,
    "bytes": spaces.Box(0, 3, (2, 2), np.uint8),
    "far": spaces.Box(100, 200, (1,), np.float32),
    "shaped": spaces.Box(-3, 3, (2, 3), np.float32),
    "single": spaces.Box(0, 9, (), np.float32),
    "double": spaces.Box(-3, 3, (2,), np.float64),
    "several": spaces.MultiDiscrete([3, 4]),
    "several-from": spaces.MultiDiscrete([[3, 2], [5, 4]], dtype=np.int32, start=[[-1, 7], [0, 100]]),
    "switches": spaces.MultiBinary(3),
    "switchboard": spaces.MultiBinary((2, 2)),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
}
for name, space in SPACES.items():
    gymnasium.register(f"Takes-{name}-v0", entry_point=Takes, kwargs={"action_space": space})
gymnasium.register(
    "Takes-odd-v0", entry_point=Takes, kwargs={"action_space": INTS, "observation_space": spaces.Discrete(5, start=2)}
)

RULES = [("ppo", name) for name in SPACES]
RULES += [(rule, name) for rule in ("sac", "td3") for name in ("ints", "far", "shaped")]
RULES += [("map_propagation", name) for name in ("ints", "shaped")]  # its offset is in weights that are random here
RULES += [("dqn", "start"), ("map_propagation", "start"), ("actor_critic", "ints"), ("actor_critic", "several-from")]
SIZES = {"ppo": {"minibatches": 1}, "sac": {"capacity": 64}, "td3": {"capacity": 64}, "dqn": {"capacity": 64}}


def made(rule, env_id):
    """(opened environment, agent, greedy policy, model)"""
    opened = environments.open(env_id, SHOWN)
    agent = build_agent(opened.spec, rule=rule, algorithm=SIZES.get(rule, {}), local=rule == "map_propagation")
    given = jax.device_get(jax.jit(lambda key: agent.snapshot(agent.init(key)))(jax.random.key(0)))
    policy = random_policy(agent)._replace(exploration=given.exploration, stream=given.stream)
    facts = export.facts(opened.spec, recurrent=False)
    network = agent.about.networks["policy"].spec
    return opened, agent, policy, export.onnx_model(network, policy, agent.about.head, opened.spec.action, facts)


def session(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("rule", "name"), RULES)
def test_the_files_action_is_the_environments(rule, name):
    opened, agent, policy, model = made(rule, f"Takes-{name}-v0")
    space, env = SPACES[name], gymnasium.make(f"Takes-{name}-v0").unwrapped
    obs = np.stack([env.reset(seed=seed)[0] for seed in range(20)])
    (found,) = session(model).run(["action"], {"obs": obs})
    assert (found.dtype, found.shape) == (space.dtype, (20, *space.shape))
    chosen = jax.jit(jax.vmap(agent.act, in_axes=(None, None, 0, None)))(policy, (), obs, jax.random.key(0))[0]
    act = _gymnasium_spaces.actor(space)
    np.testing.assert_allclose(found, [act(np.asarray(action)) for action in chosen], rtol=1e-4, atol=1e-4)
    for action in found:
        env.step(action if space.shape or isinstance(space, spaces.Discrete) else np.asarray(action))
    if name != "single":
        assert len({str(action) for action in found}) > 1, "a constant would agree with anything"
    assert opened.spec.action.own_dtype == space.dtype.name


@pytest.mark.parametrize(
    "env_id", ["Takes-start-v0", "Takes-ints-v0", "Takes-far-v0", "Takes-several-from-v0", "Takes-switches-v0"]
)
def test_the_five_lines_act(env_id, tmp_path):
    opened, _, _, model = made("ppo", env_id)
    path = tmp_path / "it's a policy.onnx"
    export.write(path, model)
    env = gymnasium.make(env_id).unwrapped
    names = {"obs": env.reset(seed=0)[0]}
    lines = export.lines(model, path)
    assert len(lines) == 5
    exec("\n".join(lines), names)
    env.step(names["action"])
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert facts["observation"] == "as the environment gives it"
    assert facts["action"].startswith("as the environment takes it")
    assert opened.spec.shown == ()


def test_the_five_lines_of_a_recurrent_policy_carry_its_memory(tmp_path):
    spec = env_spec((3,), choices=4)
    agent = build_agent(spec, network={"hidden": (8,), "lstm": 4})
    policy = random_policy(agent)
    facts = export.facts(spec, recurrent=True)
    model = export.onnx_model(agent.about.networks["policy"].spec, policy, agent.about.head, spec.action, facts)
    export.write(tmp_path / "policy.onnx", model)
    lines, names = export.lines(model, tmp_path / "policy.onnx"), {"obs": np.float32([0.1, -0.5, 1.0])}
    assert len(lines) == 5
    exec("\n".join(lines), names)
    carry, act = agent.about.carry, jax.jit(agent.act)
    for step in range(3):
        action, _, carry = act(policy, carry, names["obs"], jax.random.key(0))
        assert names["action"] == action, step
        for layer, pair in carry.items():
            for part, leaf in zip("ch", pair, strict=True):
                np.testing.assert_allclose(names["carry"][f"carry_{layer}_{part}"][0], leaf, atol=1e-5)
        exec("\n".join(lines[3:]), names)
    assert "next_carry" in facts["carry"]


def test_what_the_graph_leaves_to_its_caller_is_told(tmp_path):
    opened, _, _, model = made("ppo", "Takes-odd-v0")
    facts = export.facts(opened.spec, recurrent=False)
    assert "Discrete(5) observation shown as a one-hot vector" in facts["observation"]
    told = "\n".join(verb._told(tmp_path / "policy.onnx", 2048, facts, model))
    assert "input   obs                      float32 [batch, 5]" in told
    assert "output  action                   int64 [batch, 2]" in told
    assert "one-hot" in told
    assert "onnxruntime.InferenceSession" in told
    channels = environments.open("tests.scripted:ChannelFirst-v0", SHOWN).spec
    assert "channels in front" in export.facts(channels, recurrent=False)["observation"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("several", "2 whole numbers, from 0 to 2, 0 to 3"),
        ("several-from", "4 whole numbers, from -1 to 1, 7 to 8, 0 to 4, 100 to 103"),
        ("switches", "3 whole numbers, each from 0 to 1"),
    ],
)
def test_several_choices_are_told_with_their_numbers(name, told):
    spec = environments.open(f"Takes-{name}-v0", SHOWN).spec
    assert export.facts(spec, recurrent=False)["action"] == f"as the environment takes it: {told}"


def test_whole_numbers_are_rounded_in_batches_too():
    act = _gymnasium_spaces.batch_actor(INTS)
    found = act(np.float32([[6.6, -9.0], [0.4, 1.5]]))
    np.testing.assert_array_equal(found, [[7, -5], [0, 2]])
    assert found.dtype == np.int64

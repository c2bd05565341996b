"""A party by itself: what it takes, what crosses, what it remembers; and parties in turn and in processes."""

from __future__ import annotations

import functools
import os
import signal
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import experiment
from shoal.core import errors, tree
from shoal.experiment import presets
from shoal.networks import scopes
from shoal.runtimes.crew import closing
from shoal.runtimes.experience import vectors
from shoal.runtimes.federated import beginning, keeping, message, party, processes, running, simulated

RUN = b"a run of sixteen"
SETTINGS = {"network": {"hidden": (8,), "form": "A"}, "optimiser": {"anneal": False}}


@pytest.fixture(scope="module", autouse=True)
def cache():
    experiment.cache()


class Observer:
    """Keeps what it is told, and the checkpoint after so many reports, which then end the run."""

    def __init__(self, stop_after=None):
        self.episodes, self.faults, self.saved = [], [], None
        self._left = stop_after

    def __call__(self, progress):
        self.episodes += progress.episodes
        if progress.stage is None and self._left is not None:
            self._left -= 1
            self.saved = progress.save() if self._left == 0 else self.saved
        return self._left != 0

    def fault(self, kind, story):
        self.faults.append((kind, story))


def built(env="probe:match", steps=240, **runtime):
    given = {"parties": 2, "exchange": "delta", "environments": 2, **runtime}
    given = {"local_updates": 2, **given} if given["exchange"] != "none" else given
    settings = {**SETTINGS, "runtime": given, "algorithm": {"normalise_observations": True}}
    if env == "owners:Spaces":
        settings["network"] = {"hidden": (8,), "form": "C", "adapter": 4}
    return experiment.build(
        presets.resolve(presets.Request("a2c", env, steps, runtime="federated", settings=settings))[0]
    )


def trained(made, saved=None, wire=None, **options):
    observer = Observer(**options)
    given = made.runtime._config, made.parts, 0, 240, observer, saved
    return observer, beginning.trained(*given, **({"wire": wire} if wire else {}))


def parameters(result):
    return [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(policy.params)]) for policy in result.policies]


class Heard:
    """What crosses, as it does."""

    def __init__(self):
        self.bodies = []

    def __call__(self, direction, number, body):
        self.bodies.append((direction, number, body))
        return body


# ------------------------------------------------------------------------------------------------ where they are


HEARD = Heard()


@functools.cache
def in_turns():
    return trained(built(placement="turns"), wire=HEARD)


def test_every_message_of_a_run_has_its_exact_length():
    in_turns()
    spec = message.Spec((("trunk_dense_0/bias", (8,)), ("trunk_dense_0/kernel", (1, 8))))
    lengths = {(direction, len(body)) for direction, _, body in HEARD.bodies}
    assert lengths == {("down", 76 + 4 * 16 + 40), ("up", 76 + 4 * 16 + 17)}
    assert spec.bytes_up == 76 + 4 * 16 + 17


def test_an_axis_and_turns_are_the_same_parties():
    turns, axis = in_turns(), trained(built(placement="axis"))
    for one, other in zip(parameters(turns[1]), parameters(axis[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    assert turns[0].episodes == axis[0].episodes


def in_python(**runtime):
    return trained(built("CartPole-v1", placement="turns", **runtime))


def compiled(monkeypatch):
    """How often each program of a round was compiled, before and after every round of a party in Python."""
    round_, found = simulated.Simulated.__call__, []

    def sizes(one):
        return [getattr(one, name)._cache_size() for name in ("_words", "_act", "_update", "_begin", "_end")]

    def called(self, *given):
        before = sizes(self)
        made = round_(self, *given)
        found.append((before, sizes(self)))
        return made

    monkeypatch.setattr(simulated.Simulated, "__call__", called)
    return found


def test_parties_whose_simulators_are_in_python_learn_and_send_what_they_learned(monkeypatch):
    programs = compiled(monkeypatch)
    observer, result = in_python(evaluate_every=60)
    assert programs == [([1] * 5, [1] * 5)] * 2, "before the first round, for that is start-up"
    told = result.final.subsystems["federation"]
    assert told["failed_jobs"] == [0, 0]
    assert told["failed_rounds"] == 0
    assert told["update_norm_max"] > 0
    assert [one["env_steps"] for one in told["parties"]] == [128, 128]
    assert {episode.worker for episode in observer.episodes} == {0, 1}
    assert all(one["on_the_way"] > 0 for one in told["parties"])
    one, other = (scopes.vector(policy.params) for policy in result.policies)
    np.testing.assert_array_equal(one, other)  # everybody's part
    own = [tree.sha256(scopes.split(policy.params)[1]) for policy in result.policies]
    assert own[0] != own[1]


def test_a_simulator_that_raises_when_it_is_closed_is_told_of_and_undoes_nothing(monkeypatch):
    def gone(_):
        raise RuntimeError("viewer already gone")

    monkeypatch.setattr(vectors.Serial, "close", gone)
    observer, result = in_python()
    assert result.final.env_steps == 256
    assert [kind for kind, _ in observer.faults] == [closing.KIND] * 2
    assert "viewer already gone" in observer.faults[0][1]


@pytest.mark.parametrize("exchange", ["delta", "none"])
def test_a_run_in_which_nobody_gets_on_is_given_up(exchange, monkeypatch):
    asked = []

    def broken(self, *_):
        asked.append(self)
        raise RuntimeError("the simulator broke")

    monkeypatch.setattr(simulated.Simulated, "__call__", broken)
    with pytest.raises(errors.GaveUp, match="no party got on in 20 rounds"):
        in_python(exchange=exchange)
    assert len(asked) == 2 * running.FRUITLESS


def test_a_party_that_is_killed_comes_back_as_of_its_last_round(monkeypatch):
    polled, killed = processes.Processes.poll, []

    def poll(self, seconds):
        replies = polled(self, seconds)
        if not killed and self._jobs > 6:
            killed.append(self._crew.about("party")["pids"][1])
            os.kill(killed[0], signal.SIGKILL)
        return replies

    monkeypatch.setattr(processes.Processes, "poll", poll)
    observer, result = trained(built(placement="processes"))
    assert killed
    assert result.final.faults["restarts"] == 1
    assert any("SIGKILL" in kind for kind, _ in observer.faults)
    for one, other in zip(parameters(result), parameters(in_turns()[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    assert result.final.env_steps == in_turns()[1].final.env_steps


def test_parties_that_still_start_are_not_waited_for(monkeypatch):
    """What they import and compile keeps them from hearing words, and they have nothing to lose."""
    ended = []

    class Crew:
        def __init__(self, *_):
            self.told = []

        def said(self, _):
            told, self.told = self.told, []
            return told

        def answered(self, *_, **__):
            pass

        def __exit__(self, kind, *_):
            ended.append(kind)

    monkeypatch.setattr(processes.housed, "block", lambda _: None)
    plan = types.SimpleNamespace(terms=None, leaving=None)
    pair = [types.SimpleNamespace(name=name) for name in "ab"]
    network = processes.Processes(pair, plan, [None, None], print, Crew)
    for number in range(2):
        network.close()
        network._crew.told.append((processes.ROLE, number, 0, processes.housed.Opened(np.zeros(1), 0)))
        network.begin(lambda: False)
    network.close()
    assert ended == [errors.NotBegun, errors.NotBegun, None]


def test_turns_go_on_with_the_same_bits(monkeypatch):
    monkeypatch.setattr(running, "REPORT", 1)
    made = built(placement="turns", asynchronous=True, paces=(1.0, 3.0))
    _, whole = trained(made)
    saved = trained(made, stop_after=3)[0].saved
    like = made.runtime.like(made.parts, 0)
    assert 0 < saved.parties.desk.env_steps.sum() < whole.final.env_steps
    assert {k: tree.describe(v) for k, v in tree.paths(saved).items()} == {
        k: tree.describe(v) for k, v in tree.paths(like).items()
    }
    assert saved.parties.desk.status.any(), "a reply is on its way"
    rest = trained(made, saved=saved)[1]
    assert [tree.sha256(p) for p in rest.policies] == [tree.sha256(p) for p in whole.policies]


def test_owners_of_different_spaces_share_what_is_between_them():
    made = built("owners:Spaces", parties=3, local_updates=1)
    _, result = trained(made)
    shapes = [{name: leaf.shape for name, leaf in tree.paths(policy.params).items()} for policy in result.policies]
    assert shapes[0] != shapes[1]
    assert len({np.asarray(scopes.vector(policy.params)).tobytes() for policy in result.policies}) == 1


# ------------------------------------------------------------------------------------------------ one by itself


def parts(**more):
    return built(**more).parts


TERMS = party.Terms(RUN, 1, 0, environments=2, exchange="delta", most=3)


@functools.cache
def whole():
    return parts()


def one(terms=TERMS, **options):
    return party.Party(whole(), terms, **options)


def down(spec, number=0, base=None, *, theta=None, who=1, run=RUN, kind=message.DELTA, updates=2):
    vector = np.zeros(spec.size, np.float32) if theta is None else theta
    header = message.Header(run, who, number, number if base is None else base, kind)
    return message.encode_down(spec, message.Down(header, vector, message.Settings(local_updates=updates)))


def answer(party, body):
    return message.decode_up(party.spec, party.handle(body))


def test_what_is_no_job_of_its_is_refused_and_changes_nothing():
    told = []
    mine = one(log=lambda *said: told.append(said[0]))
    good = down(mine.spec, 5)
    assert answer(mine, good).outcome == message.OK
    before = tree.sha256(mine.kept()._replace(counts=np.zeros(1)))
    nan = np.frombuffer(down(mine.spec, 6), np.uint8).copy()
    nan[80:84] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    wrong = {
        "truncated": down(mine.spec, 6)[:-1], "nothing": b"", "pickle": b"cos\nsystem\n(S'true'\ntR.",
        "not finite": nan.tobytes(), "older round": down(mine.spec, 4), "older version": down(mine.spec, 6, base=4),
        "another's": down(mine.spec, 6, who=0), "another run": down(mine.spec, 6, run=b"another run here"),
        "kind": down(mine.spec, 6, kind=message.GRADIENT), "too many updates": down(mine.spec, 6, updates=4),
        "other tensors": down(message.Spec((("other/kernel", (mine.spec.size,)),)), 6),
    }  # fmt: skip
    replies = {name: mine.handle(body) for name, body in wrong.items()}
    assert len({*replies.values()}) == 1, "a refusal tells nothing of its reason"
    assert answer(mine, b"").outcome == message.FAILED
    assert not answer(mine, b"").vector.any()
    assert tree.sha256(mine.kept()._replace(counts=np.zeros(1))) == before
    assert len(told) == mine.counts["refused"] == len(wrong) + 2
    assert mine.handle(good) == mine.handle(good)  # the stored reply
    assert answer(mine, down(mine.spec, 6)).outcome == message.OK


def test_what_goes_wrong_at_home_stays_there():
    told = []

    def breaks(vector, *, party, turn):
        raise RuntimeError(f"secret {vector[0]} of {party}, {turn}")

    mine = one(log=lambda *said: told.append(said[1]), leaving=breaks)
    before = tree.sha256(mine.kept().home)
    reply = mine.handle(down(mine.spec))
    assert message.decode_up(mine.spec, reply).outcome == message.FAILED
    assert b"secret" not in reply
    assert "secret" in told[0]
    assert tree.sha256(mine.kept().home) == before


def test_it_goes_on_from_its_folder_and_sends_its_stored_reply(tmp_path):
    mine, body = one(), down(one().spec, 3)
    assert not mine.load(tmp_path)
    reply = mine.handle(body)
    mine.save(tmp_path)
    mine.save(tmp_path)
    other = one()
    assert other.load(tmp_path)
    assert other.handle(body) == reply
    following = down(mine.spec, 4, theta=np.ones(mine.spec.size, np.float32))
    assert other.handle(following) == mine.handle(following)
    assert (tmp_path / keeping.STATE).stat().st_mode & 0o077 == 0
    damaged = bytearray((tmp_path / keeping.STATE).read_bytes())
    damaged[-1] ^= 1
    (tmp_path / keeping.STATE).write_bytes(bytes(damaged))
    assert one().load(tmp_path), "the one before is whole"
    (tmp_path / keeping.BEFORE).write_bytes(b"")
    with pytest.raises(keeping.Damaged):
        one().load(tmp_path)


# ------------------------------------------------------------------------------------------------ what crosses


@pytest.mark.parametrize("length", [2, 5])
@pytest.mark.parametrize("exchange", ["delta", "gradient"])
def test_a_message_is_as_long_as_its_tensors_and_counts(exchange, length):
    settings = {**SETTINGS, "runtime": {"parties": 2, "exchange": exchange}, "algorithm": {"rollout_length": length}}
    asked = presets.Request("a2c", "probe:match", 240, runtime="federated", settings=settings)
    mine = party.Party(experiment.build(presets.resolve(asked)[0]).parts, TERMS._replace(exchange=exchange))
    reply = mine.handle(down(mine.spec, kind=mine.channel.kind))
    assert len(reply) == 76 + 4 * (8 * 1 + 8) + 17  # the trunk alone is global: 1 observation, 8 units and their biases
    assert answer(mine, down(mine.spec, 1, kind=mine.channel.kind)).updates == 2


class Canaries(NamedTuple):
    """Random patterns of 64 bits as numbers, and as bytes in both orders."""

    numbers: np.ndarray  # f32 in [1, 2)
    found: tuple[bytes, ...]


def canaries(count=64, seed=0):
    bits = np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)
    double = ((bits >> np.uint64(12)) | np.uint64(1023 << 52)).view(np.float64)
    single = ((bits >> np.uint64(41)).astype(np.uint32) | np.uint32(127 << 23)).view(np.float32)
    patterns = [one.astype(order + kind).tobytes() for one, kind in ((double, "f8"), (single, "f4")) for order in "<>"]
    sizes = (8, 8, 4, 4)
    return Canaries(single, tuple(
        every[at : at + size] for every, size in zip(patterns, sizes, strict=True) for at in range(0, len(every), size)
    ))  # fmt: skip


def seen(bodies, patterns):
    return [pattern for pattern in patterns if any(pattern in body for body in bodies)]


def planted(state, numbers):
    """A learner whose local parameters and normaliser are canaries."""

    def put(path, leaf):
        private = not scopes.is_global(path) and leaf.dtype == np.float32
        return np.resize(numbers, leaf.shape).astype(leaf.dtype) if private else leaf

    local = jax.tree_util.tree_map_with_path(put, state.params)
    normaliser = jax.tree_util.tree_map_with_path(put, state.normaliser)
    return state._replace(params=local, normaliser=normaliser)


def telling(env, numbers):
    """An environment whose observations and rewards are canaries, and whose episodes never end."""
    private = jnp.asarray(numbers)

    def step(state, action, key):
        state, obs, outcome = env.step(state, action, key)
        shown = jnp.resize(private, obs.shape)
        outcome = outcome._replace(reward=private[0], next_obs=shown, discount=jnp.ones_like(outcome.discount))
        return state, shown, outcome._replace(truncated=jnp.zeros_like(outcome.truncated))

    def init(key):
        state, obs = env.init(key)
        return state, jnp.resize(private, obs.shape)

    return env._replace(step=step, init=init)


@pytest.mark.parametrize("exchange", ["delta", "gradient"])
def test_canaries_stay_at_home(exchange):
    numbers, patterns = canaries()
    made = parts(exchange=exchange)
    made = made._replace(device_env=telling(made.device_env, numbers))
    mine = party.Party(made, TERMS._replace(exchange=exchange, most=2))
    kept = mine.kept()
    home = kept.home._replace(members=kept.home.members._replace(state=planted(kept.home.members.state, numbers)))
    mine.resume(kept._replace(home=home))
    bodies = [mine.handle(down(mine.spec, number, kind=mine.channel.kind)) for number in range(5)]
    assert all(message.decode_up(mine.spec, body).outcome == message.OK for body in bodies)
    assert not seen(bodies, patterns)
    theta = np.resize(numbers, mine.spec.size).astype(np.float32)  # and they are found where they may be
    assert seen([down(mine.spec, 5, theta=theta)], patterns)
    constant = party.Party(made, TERMS, channel=mine.channel._replace(end=lambda *_: jnp.asarray(theta)))
    assert seen([constant.handle(down(mine.spec, kind=mine.channel.kind))], patterns)


def test_nothing_local_interferes_with_what_crosses():
    mine, numbers = one(), canaries()[0]
    channel = mine.channel._replace(end=lambda *given: given[1] + 1.0)  # the update of the global part: a constant
    quiet, loud = one(channel=channel), one(channel=channel)
    kept = loud.kept()
    state = planted(kept.home.members.state, numbers)
    loud.resume(kept._replace(home=kept.home._replace(members=kept.home.members._replace(state=state))))
    other = party.Party(
        whole()._replace(device_env=telling(whole().device_env, numbers)), TERMS._replace(seed=99), channel=channel
    )
    for number in range(4):
        body = down(mine.spec, number)
        assert quiet.handle(body) == loud.handle(body) == other.handle(body)
    assert tree.sha256(quiet.kept().home) != tree.sha256(loud.kept().home)
    assert len(quiet.told.episodes) > len(other.told.episodes)

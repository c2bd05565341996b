"""Actors and a learner: queues, the board, versions and log μ of what really acted, faults, and the bits of `host`."""

from __future__ import annotations

import hashlib
import os
import signal
import time

import jax
import numpy as np
import pytest

from shoal import experiment
from shoal.core import errors, tree, types
from shoal.experiment import presets
from shoal.formulas import normalise
from shoal.runtimes.actor_learner import actor, board, learner, publisher, queue
from shoal.runtimes.crew import sharing, turns
from tests import faults
from tests.conformance.test_runtimes import Observer

STEPS = 512
SETTINGS = {  # presets whose rules part network and decision, small
    "ppo": {"algorithm": {"rollout_length": 16}, "network": {"hidden": (8,)}},
    "a2c": {"algorithm": {"rollout_length": 8, "normalise_observations": True}, "network": {"hidden": (8,)}},
    "dqn": {"algorithm": {"learning_starts": 64, "batch": 8, "capacity": 400}, "network": {"hidden": (8,)}},
    "async_nstep_q": {"network": {"hidden": (8,)}},
    "sac": {"algorithm": {"learning_starts": 64, "batch": 8, "capacity": 400}, "network": {"hidden": (8,)}},
    "td3": {"algorithm": {"learning_starts": 64, "batch": 8, "capacity": 400}, "network": {"hidden": (8,)}},
}
ENVS = {"sac": "Pendulum-v1", "td3": "Pendulum-v1"}


@pytest.fixture(scope="module", autouse=True)
def cached():
    experiment.cache()


def built(preset, runtime="actor_learner", engine="jax", more=None, compressor=None, **runs):
    """The parts of a small experiment, and its config."""
    settings = {**SETTINGS[preset], "runtime": runs, **(more or {})}
    if runtime == "actor_learner":
        settings["compressor"] = {"engine": engine} | settings.get("compressor", {})
    request = presets.Request(
        preset, ENVS.get(preset, "CartPole-v1"), STEPS, runtime=runtime, settings=settings, compressor=compressor
    )
    made = presets.resolve(request)[0]
    return made, experiment.build(made)


def lock_step(preset, engine="jax", form=turns.Turns, **more):
    made, parts = built(preset, engine=engine, lockstep=True, environments=4, **more)
    run = learner.Run(made.configs["runtime"], parts.parts, 0, STEPS, Observer(), None)
    return run.train(time.monotonic(), form)


@pytest.mark.parametrize("preset", SETTINGS)
def test_one_actor_in_lock_step_computes_what_host_does(preset):
    _, there = built(preset, runtime="host", environments=4, processes=0)
    host = there.runtime.run(there.parts, 0, STEPS, None, Observer(), None)
    ours = lock_step(preset)
    assert tree.sha256(ours.policy.params) == tree.sha256(host.policy.params)
    assert (ours.final.updates, ours.final.env_steps) == (host.final.updates, host.final.env_steps)
    told = ours.final.subsystems
    assert told["actor"]["staleness"] == {"median": 0, "p95": 0, "max": 0}
    assert abs(told["correction"]["kl_total"]) < 1e-6, "what acted is what learns"
    assert told["actor"]["engine"] == "jax"


@pytest.mark.parametrize("preset", ["a2c", "ppo", "dqn", "sac", "td3", "async_nstep_q"])
def test_the_version_and_log_mu_of_a_rollout_are_those_of_the_policy_that_acted(preset):
    """Recomputed from the policies that were posted, by another way than the actor's: full precision, under XLA."""
    made, there = built(preset, engine="numpy", workers=2, environments=2, publish_every=3)
    run = learner.Run(made.configs["runtime"], there.parts, 0, STEPS, Observer(), None)
    agent, seen, kept = there.parts.agent, [], {0: run.policy()}
    acting, network = agent.about.acting, agent.about.networks[agent.about.acting.network]
    learn, settle = run._learn, run._settle

    def settled():
        settle()
        kept[run._updates] = run.policy()

    run._learn = lambda taken: (seen.append(taken), learn(taken))[1]
    run._settle = settled
    run.train(time.monotonic(), turns.Turns)
    assert len(seen) > 5
    versions = {int(v) for taken in seen for v in taken.rollout.version}
    assert len(versions) > 2
    assert all(v % 3 == 0 for v in versions), "policies are published at every third update"

    def likely(policy, stream, obs, action):
        obs = there_normalised(policy, obs)
        outputs, _ = network.apply(policy.params, obs, ())
        return acting.log_prob(policy._replace(stream=stream), outputs, action)

    likely = jax.jit(jax.vmap(likely, in_axes=(None, 0, 0, 0)))
    for taken in seen:
        steps, rollout = taken.rollout.transitions, taken.rollout
        for stream in range(4):
            policy = kept[int(rollout.version[stream])]
            which = () if isinstance(policy.stream, tuple) else np.full(len(steps.obs), stream, np.int32)
            again = likely(policy, which, steps.obs[:, stream], steps.action[:, stream])
            np.testing.assert_allclose(taken.log_mu[:, stream], again, atol=2e-4, rtol=1e-4)


def there_normalised(policy, obs):
    return normalise.apply(policy.normaliser, obs) if policy.normaliser else obs


def test_staleness_is_counted_in_updates():
    """Published at every fifth update and taken up at once: rollouts are 0 to 4 updates old, as many of each."""
    made, there = built("a2c", environments=4, publish_every=5, queue=1)
    run = learner.Run(made.configs["runtime"], there.parts, 0, 8 * 4 * 50, Observer(), None)
    told = run.train(time.monotonic(), turns.Turns).final.subsystems
    histogram = {int(lag): count for lag, count in told["actor"]["staleness_histogram"].items()}
    assert max(histogram) <= 5
    assert told["actor"]["rollouts"] == 50 == sum(histogram.values())
    assert told["actor"]["staleness"]["median"] in (2, 3)
    assert abs(told["correction"]["kl_compression"]) < 1e-6
    assert told["correction"]["kl_k3"] < 1e-9


# ------------------------------------------------------------------------------------------------ queues and board


def queues(workers=2, depth=2):
    _, there = built("a2c", environments=3)
    shapes = queue.like(there.parts, 3)
    block = sharing.Block(queue.layout(shapes, workers, depth))
    return queue.Queues(block.arrays, shapes)


def put(to, worker, value, incarnation=0):
    slot = to.slot(worker)
    for leaf in jax.tree.leaves(slot.rollout):
        leaf[...] = value
    slot.log_mu[:] = -value
    to.put(worker, incarnation)


def test_a_queue_is_bounded_keeps_its_order_and_goes_round():
    both = queues()
    for turn in range(5):
        assert not both.full(0)
        put(both, 0, 2 * turn)
        put(both, 0, 2 * turn + 1)
        assert both.full(0)
        assert both.waiting().tolist() == [2, 0]
        taken = both.take([0, 0])
        assert taken.rollout.transitions.obs.shape == (8, 6, 4)
        assert taken.rollout.transitions.reward[0].tolist() == [2 * turn] * 3 + [2 * turn + 1] * 3
        assert taken.log_mu[0].tolist() == [-2 * turn] * 3 + [-2 * turn - 1] * 3
        assert taken.rollout.version.tolist() == [2 * turn] * 3 + [2 * turn + 1] * 3
        assert both.waiting().tolist() == [0, 0]


def test_the_first_rollout_in_the_place_of_an_actor_that_died_is_known():
    both = queues()
    for incarnation, begun in ((0, False), (0, False), (1, True), (1, False)):
        put(both, 1, 1.0, incarnation)
        assert both.take([1]).begun is begun


def packed(payload=b"weights", version=1):
    digest = hashlib.sha256(payload).hexdigest()
    return types.Packed(payload, version, len(payload), 0.5, "eight bits", digest, 0.25)


def test_a_board_gives_back_what_was_posted_last():
    one = board.Board(sharing.Block(board.layout(100)))
    assert (one.version, one.posted) == (-1, 0)
    for version in (3, 7, 8):
        given = packed(bytes([version]) * version, version)
        one.post(given)
        assert (one.version, one.read().packed) == (version, given)
    assert one.posted == 3
    with pytest.raises(ValueError, match="does not fit"):
        one.post(packed(b"x" * 101))
    assert one.version == 8, "the one before stays"


# ------------------------------------------------------------------------------------------------ faults


def stepped(run):
    """Actors of a run in this process, by hand."""
    team = turns.Turns(run.jobs.roles(), lambda *_: None)
    assert team.begin(lambda: True)
    return team, [place.worker for place in team._places]


def versions(run):
    """Of the rollouts that wait, oldest first."""
    both, (count,) = run.shared.queues, run.shared.queues.waiting().tolist()
    return [int(both._slot(0, (int(both.taken[0]) + i) % both._depth).rollout.version[0]) for i in range(count)]


def test_a_damaged_snapshot_is_refused_and_the_last_good_one_stays():
    made, there = built("a2c", engine="numpy", environments=2)
    run = learner.Run(made.configs["runtime"], there.parts, 0, STEPS, Observer(), None)
    team, (acts, *_) = stepped(run)
    with team:
        assert acts.turn()
        good = there.parts.compressor.plain(run.policy())._replace(version=5)
        run.shared.board.post(good._replace(payload=bytes(reversed(good.payload))))
        assert acts.turn()
        assert versions(run) == [0, 0]
        assert run._notes["refused"].tolist() == [1]
        run.shared.queues.drop(0)
        run.shared.board.post(good._replace(version=6))
        assert acts.turn()
        assert versions(run) == [0, 6]
        assert run._notes["refused"].tolist() == [1]


def test_rollouts_that_are_not_finite_or_of_no_version_are_dropped_and_counted():
    made, there = built("a2c", environments=2, queue=4)
    observer = Observer()
    run = learner.Run(made.configs["runtime"], there.parts, 0, 8 * 2 * 20, observer, None)
    put_, spoilt = run.shared.queues.put, {3: "log_mu", 6: "version", 9: "action"}

    def spoil(worker, incarnation):
        slot, name = run.shared.queues.slot(worker), spoilt.get(int(run.shared.queues.written[worker]))
        if name == "log_mu":
            slot.log_mu[2, 1] = np.nan
        elif name == "version":
            slot.rollout.version[:] = 10_000
        elif name == "action":
            slot.rollout.transitions.extras.log_prob[0, 0] = np.inf
        put_(worker, incarnation)

    team, (acts, *_) = stepped(run)
    acts._queues = run.shared.queues
    acts._queues.put = spoil
    run._crew, run._here, run._began = team, True, time.monotonic()
    run._compile()
    while run._env_steps < run._steps:
        taken = run._next()
        assert np.isfinite(taken.log_mu).all()
        run._learn(taken)
        run._settle()
    final = run._progress()
    assert final.faults["rollouts_dropped"] == 3
    assert np.isfinite(tree.flattener(run.policy().params).flatten(run.policy().params)).all()


class Brittle:
    """A compressor that fails when told to; else full precision."""

    def __init__(self, inner):
        self.inner, self.fails = inner, False

    def compress(self, memory, policy, obs, key):  # noqa: ARG002  as a compressor is called
        if self.fails:
            raise ValueError("no good")
        return (), self.inner.plain(policy)._replace(level="compressed")


def test_after_three_failures_in_a_row_the_policy_is_sent_in_full_precision():
    made, there = built("a2c", engine="numpy", environments=2)
    brittle = Brittle(there.parts.compressor)
    compressor = there.parts.compressor._replace(here=False, compress=brittle.compress, init=lambda *_: ())
    parts = there.parts._replace(compressor=compressor)
    run = learner.Run(made.configs["runtime"], parts, 0, STEPS, Observer(), None)
    team, (_, presses) = stepped(run)
    with team:
        levels = []
        for version, fails in enumerate([False, True, True, True, True, False], 1):
            brittle.fails = fails
            run.shared.teacher.give(run.policy(), version)
            assert presses.turn()
            found = run.shared.board.read().packed
            levels.append((found.version, found.level))
        assert not presses.turn(), "nothing is newer, and nothing learns"
        assert levels == [
            (1, "compressed"), (1, "compressed"), (1, "compressed"),
            (4, "full precision"), (5, "full precision"), (6, "compressed"),
        ]  # fmt: skip
        said = [message for *_, message in team.gather(0.0).said if isinstance(message, publisher.Published)]
        assert [bool(message.failed) for message in said] == [False, True, True, True, True, False]
        assert [message.plain for message in said] == [False, False, False, True, True, False]
        spoilt = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), run.policy())
        brittle.fails = True
        for version in (7, 8, 9, 10):
            run.shared.teacher.give(spoilt, version)
            assert presses.turn()
        assert run.shared.board.version == 6, "a policy that is not finite is never sent"


def test_a_student_that_cannot_learn_is_counted_once_for_each_policy_and_what_it_was_is_sent():
    made, there = built("a2c", engine="numpy", environments=2, compressor="distil")
    study, fails = there.parts.compressor.study, [False]

    def brittle(memory, policy, obs, key):
        if fails[0]:
            raise errors.Unfit("the student is not finite")
        return study(memory, policy, obs, key)

    parts = there.parts._replace(compressor=there.parts.compressor._replace(study=brittle))
    run = learner.Run(made.configs["runtime"], parts, 0, STEPS, Observer(), None)
    team, (_, presses) = stepped(run)
    with team:
        teacher = run.shared.teacher
        teacher.show(np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32))
        teacher.give(run.policy(), 1)
        assert presses.turn()
        assert presses.turn(), "between two policies it learns"
        steps = presses._memory[0].steps
        fails[0] = True
        for version in (2, 3):
            teacher.give(run.policy(), version)
            assert presses.turn()
            assert run.shared.board.version == version
            assert presses.turn()
            assert not presses.turn(), "it is not tried again and again"
        fails[0] = False
        teacher.give(run.policy(), 4)
        assert presses.turn()
        assert presses.turn()
        assert presses._memory[0].steps == steps + 8 == 16
        said = [message for *_, message in team.gather(0.0).said if isinstance(message, publisher.Published)]
        assert [bool(message.failed) for message in said] == [False, False, True, False, True, False]
        assert said[-1].metrics["distil_steps"] == 8
        for message in said:
            run.accounts.heard(message)
        assert run.accounts.faults()["not_compressed"] == 2


def test_an_actor_that_is_killed_is_started_anew_and_the_run_completes(tmp_path):
    typed = (
        "train", "dqn", "--env", "CartPole-v1", "--runtime", "actor_learner", "--runtime.environments", 2, "--steps",
        12000, "--network.hidden", 8, "--compressor.engine", "jax", "--algorithm.learning-starts", 100,
        "--algorithm.batch", 8, "--eval-episodes", 0, "--json", "--out", tmp_path / "run",
    )  # fmt: skip
    with faults.Process(*typed) as process:
        faults.wait(lambda: (tmp_path / "run" / "checkpoints").exists() and process.workers(), "its training")
        os.kill(process.workers()[0], signal.SIGKILL)
        ended = process.ended()
        assert ended.code == 0, ended.err
        assert not process.left(), "nothing is left behind"
    summary = ended.json
    assert (summary["status"], summary["faults"]["restarts"]) == ("completed", 1)
    assert summary["env_steps"] >= 12000
    assert sum(summary["learner"]["split"].values()) == pytest.approx(summary["train_s"], rel=0.02, abs=0.05)


class Interferes(Observer):
    """Kills the compressor's process once some steps are learned from."""

    def __init__(self):
        super().__init__()
        self.killed = None

    def __call__(self, progress):
        if progress.env_steps >= 400 and self.killed is None:
            (self.killed,) = self.run._crew._pools["compressor"].pids
            os.kill(self.killed, signal.SIGKILL)
            self.at = self.run.shared.board.version
        return super().__call__(progress)


def test_a_compressor_that_is_killed_is_started_anew_and_actors_get_newer_policies_again():
    """Specification 11.15, with processes; meanwhile training goes on with the last policy there was."""
    more = {"compressor": {"engine": "numpy"}}
    made, there = built("a2c", environments=2, compressor="quantise", more=more)
    observer = Interferes()
    run = observer.run = learner.Run(made.configs["runtime"], there.parts, 0, 10**9, observer, None)
    observer.stop_at = float("inf")
    going = run._report

    def until_there_is_a_newer_one():
        new = observer.killed and run._crew._pools["compressor"].pids not in ([], [observer.killed])
        return going() and not (new and run.shared.board.version > observer.at + 20)

    run._report = until_there_is_a_newer_one
    final = run.train(time.monotonic()).final
    assert final.faults["restarts"] == 1
    assert final.env_steps > 400
    assert [fault for fault in observer.faults if fault.startswith("compressor 0")], observer.faults
    assert final.subsystems["compression"]["level"].startswith("int8")
    assert not any(name in final.faults for name in ("snapshots_refused", "rollouts_dropped"))


def test_in_lock_step_what_a_compressor_died_over_is_compressed_by_the_next():
    """The actor waits for every policy; one that never came would be waited for without end."""
    made, there = built("a2c", environments=4, lockstep=True, compressor="quantise")
    compress, calls = there.parts.compressor.compress, []

    def dies(*given):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return compress(*given)

    parts = there.parts._replace(compressor=there.parts.compressor._replace(compress=dies))
    observer = Observer()
    run = learner.Run(made.configs["runtime"], parts, 0, STEPS, observer, None)
    final = run.train(time.monotonic(), turns.Turns).final
    assert (final.env_steps, final.faults["restarts"]) == (STEPS, 1)
    assert final.subsystems["actor"]["staleness"] == {"median": 0, "p95": 0, "max": 0}
    assert "out of memory" in observer.faults[0]


def test_an_actor_a_hundred_versions_behind_is_told_and_its_rollouts_have_their_version():
    made, there = built("a2c", engine="numpy", environments=1, more={"algorithm": {"rollout_length": 2}})
    observer = Observer()
    run = learner.Run(made.configs["runtime"], there.parts, 0, 2 * 112, observer, None)
    open_, roles = actor.Actor, run.jobs.roles

    class Deaf(open_):
        def _load(self):
            """Nothing reaches it."""

    run.jobs.roles = lambda: [role._replace(open=Deaf) for role in roles()]
    final = run.train(time.monotonic(), turns.Turns).final
    assert final.updates == 112
    assert final.faults["rollouts_late"] == 12, "of updates 100 to 111 old"
    assert final.subsystems["actor"]["staleness"]["max"] == 111
    (told,) = observer.faults
    assert "actor 0 acts with an old policy" in told
    assert "of a policy 100 updates old" in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--runtime.lockstep", "--runtime.workers", 2), "runtime.lockstep with 2 actors"),
        (("--runtime.rollouts", 9), "never have more than 2"),
        (("--runtime.lockstep",), "name one, e.g. --compressor.engine jax"),
    ],
)
def test_what_cannot_work_is_refused(words, says, tmp_path, capsys):
    ended = faults.call(
        capsys, "train", "a2c", "--env", "CartPole-v1", "--runtime", "actor_learner", *words, "--out", tmp_path / "run"
    )
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err
    assert ended.err.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()


def test_a_rule_whose_network_and_decision_are_one_is_refused(tmp_path, capsys):
    ended = faults.call(
        capsys, "train", "map_propagation", "--env", "CartPole-v1", "--runtime", "actor_learner", "--out",
        tmp_path / "run",
    )  # fmt: skip
    assert ended.code == 2, ended.err
    assert "network and decision" in ended.err
    assert ended.err.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()


def test_names_and_engines_survive_the_checkpoint():
    made, there = built("a2c", engine="numpy", environments=2)
    runtime = there.runtime
    run = learner.Run(made.configs["runtime"], there.parts, 0, STEPS, Observer(), None)
    result = run.train(time.monotonic(), turns.Turns)
    saved = result.final.save()
    assert actor.read(saved[1]["engine"]) == "numpy"
    assert saved[1]["control"].tolist() == [0, 0, 0, 0]
    like = runtime.like(there.parts, 0)
    assert jax.tree.structure(like) == jax.tree.structure(saved)
    went_on = learner.Run(made.configs["runtime"], there.parts, 0, 2 * STEPS, Observer(), saved)
    final = went_on.train(time.monotonic(), turns.Turns).final
    assert final.env_steps >= 2 * STEPS
    assert final.updates > result.final.updates


@pytest.mark.parametrize(("bits", "ends"), [(2, "identity"), (8, "quantise")])
def test_the_controller_leaves_compression_that_does_damage_and_stays_with_one_that_does_none(bits, ends):
    """Specification 11.14, in a run: every update is looked at, and three bad looks in a row are enough."""
    made, there = built(
        "a2c", engine="jax", environments=32, controller=True, bad_checks=3, good_checks=4, cooldown=4,
        kl_high=1e-3, kl_low=1e-4, compressor="quantise",
        more={"compressor": {"bits": bits}, "network": {"hidden": (32, 32)}, "optimiser": {"learning_rate": 0.03}},
    )  # fmt: skip
    run = learner.Run(made.configs["runtime"], there.parts, 0, 8 * 32 * 12, Observer(), None)
    run._sampler.due = lambda: True
    plain, bad = [], []
    look = run._look_at

    def looked(taken):
        look(taken)
        plain.append(run.shared.teacher.plain)
        bad.append(run._sampler.kl[-1] > 1e-3)

    run._look_at = looked
    run._here = True
    told = run.train(time.monotonic(), turns.Turns).final.subsystems["compression"]
    decisions = told["decisions"]
    if ends == "identity":
        third = next(i for i in range(2, len(bad)) if all(bad[i - 2 : i + 1]))
        assert plain.index(True) == third, "at the third bad check in a row, and not before"
        assert decisions[0]["from"] == "quantise"
        assert decisions[0]["to"] == "identity"
        assert "KL of compression" in decisions[0]["cause"] or "agreement" in decisions[0]["cause"]
    else:
        assert decisions == []
        assert not any(plain)
        assert told["level"].startswith("int8")


def test_the_controller_changes_once_a_cooldown_and_a_run_that_recovers_ends_compressed():
    """Specification 11.14: two bits, again and again tried and left; then what does no harm is kept."""
    made, there = built(
        "a2c", engine="jax", environments=32, controller=True, bad_checks=2, good_checks=3, cooldown=5,
        kl_high=1e-3, kl_low=1e-4, ess_low=0.0, ess_high=0.01, agreement_low=0.0, compressor="quantise",
        more={"compressor": {"bits": 2}, "network": {"hidden": (32, 32)}, "optimiser": {"learning_rate": 0.03}},
    )  # fmt: skip
    coarse = there.parts.compressor
    _, fine = built("a2c", engine="jax", environments=32, compressor="quantise", more={"network": {"hidden": (32, 32)}})
    checks, levels = [], []

    def compress(*given):
        return (coarse if len(checks) < 60 else fine.parts.compressor).compress(*given)

    parts = there.parts._replace(compressor=coarse._replace(compress=compress))
    run = learner.Run(made.configs["runtime"], parts, 0, 8 * 32 * 100, Observer(), None)
    run._sampler.due = lambda: True
    look = run._look_at

    def looked(taken):
        look(taken)
        checks.append(len(run._watch.decisions))
        levels.append(run.shared.teacher.plain)

    run._look_at = looked
    told = run.train(time.monotonic(), turns.Turns).final.subsystems["compression"]
    changed = np.flatnonzero(np.diff([0, *checks]))
    assert len(changed) >= 4, "it is tried again after every recovery"
    assert np.diff(changed).min() > 5, "no more than one change in a cooldown"
    assert [one["to"] for one in told["decisions"]] == (["identity", "quantise"] * len(changed))[: len(changed)]
    assert not any(levels[-20:]), "once it is healthy it ends at the most compressed level, and stays"
    assert told["level"].startswith("int8")


def test_the_controller_needs_something_to_control(tmp_path, capsys):
    ended = faults.call(
        capsys, "train", "impala", "--runtime.controller", "--out", tmp_path / "run",
    )  # fmt: skip
    assert (ended.code, ended.out) == (2, "")
    assert "it needs a compressor whose damage is measured" in ended.err

"""Several seeds under the host runtime: in lock-step, each with its own simulators, each the run it would be alone."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

import shoal
from shoal import experiment
from shoal.core import tree
from shoal.experiment import presets
from tests import faults
from tests.test_seeds_together import close, digests, episodes, newest

HOST = ("a2c", "--env", "CartPole-v1", "--runtime", "host", "--runtime.environments", 8, "--runtime.processes", 0)
GIVEN = {"runtime": {"name": "host", "environments": 4, "processes": 0}, "eval_episodes": 0, "quiet": True}


@pytest.mark.parametrize(
    ("preset", "env", "seeds"),
    [
        ("a2c", "CartPole-v1", 3),  # two in one call, one in another
        ("map_propagation", "CartPole-v1", 2),
        pytest.param("a3c_lstm", "CartPole-v1", 4, marks=pytest.mark.slow),
    ],
)
def test_a_seed_learns_what_it_would_alone(preset, env, seeds, tmp_path):
    given = {"env": env, "steps": 600, **GIVEN}
    group = shoal.train(preset, **given, seed=2, seeds=seeds, out=tmp_path / "group")
    for run in group.runs:
        alone = shoal.train(preset, **given, seed=run.experiment.seed, out=tmp_path / f"{run.experiment.seed}")
        assert run.summary["runtime"] == alone.summary["runtime"] == "host"
        for key in ("env_steps", "updates", "episodes"):
            assert run.summary[key] == alone.summary[key], key
        close(run.policy.params, alone.policy.params)
        assert episodes(run.folder)[:5] == episodes(alone.folder)[:5]
    assert len({tree.sha256(run.policy.params) for run in group.runs}) == seeds


def test_learners_with_a_memory_take_turns(tmp_path):
    """One program, one after the other: so every bit is what it is alone."""
    typed = {"env": "probe:match", "steps": 400, **GIVEN}
    group = shoal.train("dqn", **typed, seeds=2, out=tmp_path / "group")
    for run in group.runs:
        alone = shoal.train("dqn", **typed, seed=run.experiment.seed, out=tmp_path / f"{run.experiment.seed}")
        assert run.summary["params_sha256"] == alone.summary["params_sha256"]
        assert episodes(run.folder) == episodes(alone.folder)


def test_an_agent_without_metrics_reports_its_updates():
    settings = {"runtime": {"environments": 4, "processes": 0}}
    made, opened = presets.resolve(presets.Request("a2c", "CartPole-v1", runtime="host", settings=settings))
    built = experiment.build(made, opened)
    agent = built.parts.agent
    silent = agent._replace(update=lambda state, rollout, key: (agent.update(state, rollout, key)[0], {}))
    seen = []

    class Observer:
        def __call__(self, progress):
            seen.append(progress.updates)
            return progress.updates < 3

        def fault(self, kind, message):
            raise AssertionError(f"{kind}: {message}")

    built.runtime.run(built.parts._replace(agent=silent), 0, 10_000, None, Observer(), None)
    assert seen[-1] == 3


def test_a_seed_that_is_done_keeps_what_it_had_then(capsys, tmp_path):
    goal = (*HOST, "--steps", 60_000, "--until", 40)
    whole = faults.train(capsys, tmp_path / "group", *goal, "--seeds", 4, "--eval-episodes", 0)
    assert whole["solved"] == 4
    assert len({run["env_steps"] for run in whole["runs"]}) > 1, "they end at different steps, or nothing is tested"
    for run in whole["runs"]:
        alone = faults.train(capsys, tmp_path / str(run["seed"]), *goal, "--seed", run["seed"], "--eval-episodes", 0)
        assert run["solved_at_step"] == pytest.approx(alone["solved_at_step"], rel=0.2)  # rounding moves an episode
        assert run["params_sha256"] == tree.sha256(shoal.load(run["run"]).policy.params), "what it came to is saved"
        assert newest(tmp_path / "group" / f"seed-{run['seed']}").name == f"step-{run['env_steps']:012d}"


def test_the_same_command_gives_the_same_bits(capsys, tmp_path):
    ended = [
        faults.train(capsys, tmp_path / name, *HOST, "--steps", 2000, "--seeds", 3, "--eval-episodes", 0)
        for name in ("one", "two")
    ]
    assert digests(ended[0]) == digests(ended[1])


def test_asked_to_stop_all_are_saved_and_go_on(tmp_path, capsys):
    out = tmp_path / "runs"
    typed = ("train", *HOST, "--steps", 6000, "--seeds", 3, "--out", out, "--json", "--eval-episodes", 0)
    with faults.Process(*typed, SHOAL_SAVE_EVERY=0) as process:
        faults.wait((out / "seed-2" / "checkpoints").is_dir, "a checkpoint")
        process.signal(signal.SIGTERM)
        ended = process.ended()
    assert ended.code == 75, ended.err
    before = [run["env_steps"] for run in ended.json["runs"]]
    assert all(0 < steps < 6000 for steps in before)
    shutil.rmtree(newest(out / "seed-1"))  # killed between two saves: it is behind the others
    resumed = faults.call(capsys, "resume", out, "--json", "--eval-episodes", 0)
    assert resumed.code == 0, resumed.err
    assert (resumed.json["status"], resumed.json["exact"]) == ("completed", False), "simulators begin anew"
    for run in resumed.json["runs"]:
        assert run["env_steps"] >= 6000
        steps = [int(row["env_steps"]) for row in episodes(out / f"seed-{run['seed']}")]
        assert steps == sorted(steps)


@pytest.mark.parametrize(("hidden", "threads"), [((64, 64), "1"), ((2048, 2048), None)])
def test_small_learners_are_computed_by_one_thread(hidden, threads, monkeypatch):
    monkeypatch.setenv("NPROC", "9")  # and as it was afterwards
    monkeypatch.delenv("NPROC")
    asked = presets.Request("ppo", "CartPole-v1", settings={"network": {"hidden": hidden}})
    made = presets.resolve(asked)[0]
    experiment.prepare("host", made.algorithm, made.configs)
    assert os.environ.get("NPROC") == threads

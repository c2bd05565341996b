"""A population done again from its seed and its lineage; and what follows from a real run's lineage."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

from shoal.runs import training
from shoal.runtimes.population import applying, lineage, running
from tests import faults

RUN = (
    "pbt_ppo", "--env", "probe:match", "--members", 4, "--network.hidden", 8, "--runtime.environments", 2,
    "--runtime.interval", 64, "--runtime.episodes", 2, "--runtime.dispatch", "vmap", "--runtime.chunk-steps", 128,
    "--algorithm.rollout-length", 16, "--algorithm.epochs", 1, "--steps", 1000,
)  # fmt: skip


@pytest.fixture
def population(finished, tmp_path):
    """A finished run of four members that exchanged three times, in a folder of one's own."""
    shutil.copytree(finished(*RUN).folder, tmp_path / "run")
    return tmp_path / "run"


def test_a_population_is_done_again_to_the_same_hash(population, capsys):
    told = json.loads((population / "summary.json").read_text())
    before = (population / "lineage.jsonl").read_text()
    ended = faults.call(capsys, "replay", population, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["equal"]
    assert ended.json["params_sha256"] == ended.json["expected_sha256"] == told["params_sha256"]
    assert (ended.json["tickets"], ended.json["what"]) == (told["population"]["exchanges"], "exchange")
    assert (population / "lineage.jsonl").read_text() == before


def test_the_record_stands_in_for_measurements(population, capsys, monkeypatch):
    calls, measure = [], running.Running._measured
    monkeypatch.setattr(running.Running, "_measured", lambda life: (calls.append(life), measure(life)))
    assert faults.call(capsys, "replay", population).code == 0
    assert len(calls) == 1, "at the end, where nothing was exchanged"


def test_another_history_is_told_apart(population, capsys):
    """The recorded fitness decides, so a lineage that was tampered with leads elsewhere."""
    path = population / "lineage.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    first = [event for event in events if event.get("round") == 0]
    for event in first:  # the order is turned round
        event["fitness"] = -event["fitness"] - event["member"]
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    ended = faults.call(capsys, "replay", population, "--json")
    assert ended.code == 1
    assert ended.json["first_difference"] == first[0]["update"]


@pytest.mark.slow
def test_a_population_that_went_on_is_done_again(population, capsys):
    assert faults.call(capsys, "resume", population, "--steps", 1500, "--eval-episodes", 0).code == 0
    ended = faults.call(capsys, "replay", population, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["tickets"] > 3
    assert faults.call(capsys, "resume", population, "--steps", 2000, "--reanneal", "--eval-episodes", 0).code == 0
    ended = faults.call(capsys, "replay", population)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "--reanneal" in ended.err


def test_without_lineage_or_checkpoint_it_is_refused(population, capsys):
    shutil.move(population / "lineage.jsonl", population / "elsewhere")
    ended = faults.call(capsys, "replay", population)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "has no lineage" in ended.err
    shutil.move(population / "elsewhere", population / "lineage.jsonl")
    shutil.rmtree(population / "checkpoints")
    ended = faults.call(capsys, "replay", population)
    assert ended.code == 2
    assert "no checkpoint" in ended.err


def test_the_lineage_tells_what_the_checkpoint_holds(population):
    built, made, _ = training.load(population, print)
    from shoal.runs import checkpoint

    kept = checkpoint.newest(population / "checkpoints", built.runtime.like(built.parts, made.seed), print)
    events = lineage.read(population)
    rebuilt = lineage.hyperparameters_at(events, int(kept.meta["updates"]))
    held = jax.device_get(applying.hyperparameters(built.parts.agent, rebuilt[0], kept.tree.loop.members.state))
    assert len(held) == 4
    for name, values in held.items():
        assert np.array_equal(np.float32([one[name] for one in rebuilt]), values)
    last = [event for event in events if event.event == "fitness"]
    assert [event.fitness for event in last] == kept.tree.standing.fitness.tolist()
    assert lineage.winner(events) == int(np.argmax(kept.tree.standing.fitness))


def test_one_agent_is_trained_on_the_schedule_that_won(population, capsys, tmp_path):
    typed = ("ppo", "--env", "probe:match", "--network.hidden", 8, "--from-schedule", population)
    found = faults.train(capsys, tmp_path / "alone", *typed)
    config = json.loads((tmp_path / "alone" / "config.json").read_text())
    events = lineage.read(population)
    wanted = lineage.schedule(events, lineage.winner(events))
    assert config["schedule"] == [[steps, values] for steps, values in wanted]
    assert config["steps"] == 250
    assert found["status"] == "completed"
    refused = faults.call(capsys, "train", *RUN, "--from-schedule", population, "--out", tmp_path / "no")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "population has 4 members" in refused.err

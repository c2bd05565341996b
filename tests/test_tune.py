"""Settings are searched, kept in a file that `train` takes, confirmed and drawn; a search that was stopped goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from shoal import experiment
from shoal.command import cli
from shoal.core import errors
from shoal.experiment import filed, presets
from shoal.report import statistics, tuning
from shoal.report.tuning import axes, importance
from shoal.runs.tuning import plan as plans
from shoal.runs.tuning import screen, searching, space
from tests import faults

TINY = ("--env", "probe:match", "--runtime.environments", 8, "--algorithm.rollout-length", 16, "--eval-episodes", 4)
STEPS = 128  # one update
PRIORS = (
    "--prior",
    "optimiser.learning_rate=log_uniform(1e-3,1e-1)",
    "--prior",
    "algorithm.discount=uniform(0.9,0.99)",
)


def tune(capsys, out, *words):
    """One search inside this process; its summary."""
    ended = faults.call(capsys, "tune", "ppo", *TINY, *words, "--out", out, "--json")
    assert ended.code == 0, ended.err
    return ended.json


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A finished search by TPE with a confirmation on two seeds."""
    folder = tmp_path_factory.mktemp("tuned") / "tpe"
    words = (
        "tune",
        "ppo",
        *TINY,
        *PRIORS,
        "--method",
        "tpe",
        "--budget",
        9 * STEPS,
        "--trials",
        9,
        "--finalists",
        0,
        "--confirm",
        2,
    )
    assert cli.main([*map(str, words), "--out", str(folder), "--quiet"]) == 0
    return folder


def trials(folder):
    return json.loads((folder / "trials.json").read_text())["trials"]


def refused(capsys, *words):
    ended = faults.call(capsys, *words)
    assert ended.code == 2
    assert ended.err.count("\n") == 1, "one line"
    return ended.err


# ------------------------------------------------------------------------------------------------ plan and space


def test_a_budget_is_cut_into_trials():
    def cut(usual=500_000, **given):
        wanted = plans.Wanted(method=given.pop("method", "tpe"), budget=given.pop("budget", 1_000_000), **given)
        plans.check(wanted)
        made = plans.make(wanted, usual, {})
        return made.trials, made.rungs, made.finalists

    assert cut() == (12, (50_000,), 2), "the finals take eight of twenty"
    assert cut(usual=10_000) == (84, (10_000,), 4)
    assert cut(trial_steps=100_000) == (10, (100_000,), 0), "too few for finals"
    assert cut(trials=4) == (4, (250_000,), 0)
    assert cut(trials=12) == (12, (50_000,), 2)
    assert cut(finalists=0) == (20, (50_000,), 0)
    assert cut(method="pbt", members=5) == (5, (200_000,), 0)
    assert cut(method="pbt") == (8, (62_500,), 2)
    count, rungs, finalists = cut(method="halving")
    assert (rungs, finalists) == ((5_556, 16_667, 50_000), 2)
    assert plans.cost(count, rungs) <= 600_000 < plans.cost(count + 1, rungs)
    assert [plans.survivors(count, rung) for rung in range(3)] == [count, count // 3, count // 9]
    for words in ({"budget": 1}, {"trials": 30, "trial_steps": 50_000}, {"method": "pbt", "trials": 4}, {"members": 4}):
        with pytest.raises(errors.Refused, match=r"--(budget|trials|members)"):
            cut(**words)


def test_the_usual_priors_are_around_the_presets_values():
    made, _ = presets.resolve(presets.Request("ppo", "probe:match"))
    hyper = experiment.build(made).parts.agent.about.hyper
    usual = space.usual(made, hyper)
    assert usual["optimiser.learning_rate"] == space.Prior("log_uniform", 3e-5, 3e-3)
    assert set(usual) > {"algorithm.discount", "algorithm.entropy_cost", "algorithm.clip"}
    assert "algorithm.noise" not in usual, "PPO has none"
    space.check_options(usual, made)
    for name, prior in usual.items():
        low, high = (space.setting(made, name, end) for end in (prior.low, prior.high))
        assert hyper[name].low <= low < high <= hyper[name].high
        assert space.read([space.text(name, prior)]) == {name: prior}


@pytest.mark.parametrize("algorithm", ["a2c", "dqn", "sac", "td3", "async_q", "map_propagation"])
def test_every_rule_has_usual_priors_that_its_options_take(algorithm):
    made, _ = presets.resolve(presets.Request(algorithm))
    space.check_options(space.usual(made, experiment.build(made).parts.agent.about.hyper), made)


def test_a_number_becomes_what_the_option_takes():
    made, _ = presets.resolve(presets.Request("ppo", "probe:match"))
    assert space.setting(made, "network.hidden", 32.0) == [32, 32]
    assert space.setting(made, "algorithm.minibatches", 2.0) == 2
    assert space.setting(made, "algorithm.normalise_observations", 1.0) is True
    assert space.before(made, "network.hidden") == 64
    for name, value, said in (
        ("algorithm.minibatches", 2.5, "whole"), ("network.activation", 1.0, "no number"),
        ("algorithm.normalise_observations", 2.0, "0 or 1"),
    ):  # fmt: skip
        with pytest.raises(errors.Refused, match=said):
            space.setting(made, name, value)


@pytest.mark.parametrize(
    ("prior", "said"),
    [
        ("algorithm.entropy_cst=uniform(0,1)", "did you mean 'algorithm.entropy_cost'"),
        ("algorithm.entropy_cost=uniform(-1,0)", "out of range"),
        ("algorithm.rollout_length=uniform(8,16)", "takes whole numbers"),
        ("optimiser.rule=choice(1,2)", "takes no number"),
        ("algorithm.clip=normal(0,1)", "unknown distribution"),
        ("algorithm.clip 0.1", "cannot be read"),
    ],
)
def test_a_wrong_prior_is_refused_in_one_line(prior, said, capsys, tmp_path):
    words = ("tune", "ppo", *TINY, "--method", "random", "--budget", 1000, "--prior", prior, "--out", tmp_path / "no")
    assert __import__("re").search(said, refused(capsys, *words))
    assert not (tmp_path / "no").exists()


def test_a_setting_with_two_priors_and_no_budget_are_refused(capsys):
    twice = [*PRIORS[:2], *PRIORS[:2]]
    assert "one for each" in refused(capsys, "tune", "ppo", *TINY, "--method", "tpe", "--budget", 1000, *twice)
    assert "--budget" in refused(capsys, "tune", "ppo", *TINY)


def test_a_population_says_why_it_does_not_fit_and_names_the_others(capsys):
    words = ("--env", "gymnax:CartPole-v1", "--budget", 10_000, "--runtime.processes", 2)
    said = refused(capsys, "tune", "ppo", *words)
    assert "compiled with the members" in said
    assert "random, tpe or halving" in said


# ------------------------------------------------------------------------------------------------ a search


def test_every_trial_is_a_run_and_is_scored_by_its_evaluation(found):
    rows = trials(found)
    assert [row["trial"] for row in rows] == list(range(9))
    assert [row["seed"] for row in rows] == list(range(1000, 1009))
    for row in rows:
        config, summary = (
            json.loads((found / row["run"] / name).read_text()) for name in ("config.json", "summary.json")
        )
        assert row["score"] == summary["eval_return_mean"]
        assert config["seed"] == row["seed"]
        assert config["parts"]["optimiser"]["learning_rate"] == row["settings"]["optimiser.learning_rate"]
    assert len({row["settings"]["optimiser.learning_rate"] for row in rows}) == 9
    assert not rows[0]["default"], "the preset's rate is outside of its prior"


def test_the_summary_and_the_settings_file_hold_the_best(found):
    whole, best = faults.summary(found), json.loads((found / "best.json").read_text())
    top = max(trials(found), key=lambda row: (row["score"], -row["trial"]))
    assert whole["best"] == {key: top[key] for key in ("score", "settings", "trial")}
    assert best["settings"] == {"algorithm.rollout_length": 16, **top["settings"]}, "8 environments are the preset's"
    assert (best["preset"], best["env"], best["steps"]) == ("ppo", "probe:match", STEPS)
    assert best["source"]["trial"] == top["trial"]
    assert whole["env_steps"] == sum(row["steps"] for row in trials(found)) == 9 * STEPS
    confirm = whole["confirm"]
    runs = [faults.summary(found / "confirm" / "best" / f"seed-{seed}") for seed in (0, 1)]
    assert confirm["best"]["scores"] == [run["eval_return_mean"] for run in runs]
    assert {run["env_steps"] for run in runs} == {STEPS}
    assert confirm["best"]["iqm"] - confirm["default"]["iqm"] == confirm["difference"]["iqm"]


def test_a_trial_has_the_bits_of_the_same_run_alone(found, capsys, tmp_path):
    best = json.loads((found / "best.json").read_text())["source"]
    words = ("train", "ppo", "--settings", found / "best.json", "--seed", best["seed"], "--eval-episodes", 4)
    ended = faults.call(capsys, *words, "--out", tmp_path / "run", "--json")
    alone, trial = ended.json, faults.summary(found / "trials" / f"{best['trial']:04d}")
    assert alone["params_sha256"] == trial["params_sha256"]
    assert alone["eval_return_mean"] == best["score"]


def test_the_page_shows_every_trial_and_loads_nothing(found):
    page = (found / "report.html").read_text()
    assert all(f"trial {row['trial']}: " in page for row in trials(found))
    assert "optimiser.learning_rate" in page
    assert "PED-ANOVA" in page
    assert "<script src" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    whole = faults.summary(found)
    assert tuning.verdict(whole).startswith("The settings found by TPE are")
    assert tuning.verdict(whole | {"confirm": None}).endswith("not confirmed.")


def test_a_search_goes_on_after_a_kill_and_asks_the_same(found, capsys, tmp_path):
    out = tmp_path / "killed"
    words = (
        *TINY,
        *PRIORS,
        "--method",
        "tpe",
        "--budget",
        9 * STEPS,
        "--trials",
        9,
        "--finalists",
        0,
        "--confirm",
        0,
        "--out",
        out,
    )
    with faults.Process("tune", "ppo", *words) as process:
        process.says("trial 2: ")
        process.signal(signal.SIGKILL)
        process.ended()
    done = trials(out)
    assert 3 <= len(done) < 9
    journal, lock = out / "optuna.journal", out / "optuna.journal.lock"
    journal.write_bytes(journal.read_bytes() + b'{"op_code":')  # cut off in the middle
    lock.unlink(missing_ok=True)  # the kill itself may have left it
    lock.symlink_to("nowhere")
    assert "trials=9, not 8" in refused(capsys, "tune", "ppo", *words, "--trials", 8)
    ended = faults.call(capsys, "resume", out, "--json")
    assert ended.code == 0, ended.err
    again, whole = trials(out), trials(found)
    assert [(row["settings"], row["score"]) for row in again] == [(row["settings"], row["score"]) for row in whole]
    assert "complete" in refused(capsys, "tune", "ppo", *words)
    assert "holds a search" in refused(capsys, "resume", out, "--steps", 1000)


def test_a_trial_that_fails_is_told_and_the_search_goes_on(capsys, tmp_path):
    words = ("--method", "random", "--budget", 6 * STEPS, "--trials", 6, "--confirm", 0)
    prior = ("--prior", "algorithm.minibatches=choice(1,3)", "--seed", 1)
    made = tune(capsys, tmp_path / "fails", *words, *prior)
    rows = trials(tmp_path / "fails")
    failed = [row for row in rows if row["settings"]["algorithm.minibatches"] == 3]
    assert failed
    assert {row["status"] for row in failed} == {"failed"}
    assert made["failed"] == len(failed) < made["trials"] == 6
    assert made["best"]["settings"] == {"algorithm.minibatches": 1}
    assert f"Trial {failed[0]['trial']} failed: " in (tmp_path / "fails" / "report.html").read_text()


def test_a_score_that_is_not_finite_is_a_failure(capsys, tmp_path, monkeypatch):
    from shoal.runs import training

    whole = training.train

    def train(request, out, **given):
        run = whole(request, out, **given)
        return run if request.seed != 1001 else type(run)(run.folder, run.experiment, None, run.summary | {
            "eval_return_mean": float("nan")})  # fmt: skip

    monkeypatch.setattr(training, "train", train)
    words = ("--method", "random", "--budget", 3 * STEPS, "--trials", 3, "--confirm", 0)
    assert tune(capsys, tmp_path / "nan", *words)["failed"] == 1
    assert "not finite" in trials(tmp_path / "nan")[1]["why"]


def test_a_search_ends_where_every_trial_fails(capsys, tmp_path):
    words = ("--method", "random", "--budget", 9 * STEPS, "--prior", "algorithm.minibatches=choice(3,5)")
    ended = faults.call(capsys, "tune", "ppo", *TINY, *words, "--out", tmp_path / "all")
    assert ended.code == 3
    assert "the first 3 trials failed" in ended.err


def test_the_best_are_trained_again_and_their_mean_decides(capsys, tmp_path):
    words = ("--method", "random", "--budget", 4 * STEPS + 8 * STEPS, "--trials", 4, "--trial-steps", STEPS)
    made = tune(capsys, tmp_path / "finals", *words, "--finalists", 2, "--confirm", 0)
    rows = trials(tmp_path / "finals")
    order = sorted(rows, key=lambda row: (-row["score"], row["trial"]))
    assert ["finals" in row for row in order] == [True, True, False, False]
    for row in order[:2]:
        runs = [tmp_path / "finals" / "finals" / f"{row['trial']:04d}" / f"seed-{seed}" for seed in range(2000, 2004)]
        assert row["finals"]["scores"] == [faults.summary(run)["eval_return_mean"] for run in runs]
    winner = max(order[:2], key=lambda row: (row["finals"]["mean"], -row["trial"]))
    assert made["best"]["trial"] == winner["trial"]
    assert made["best"]["score"] == pytest.approx(winner["finals"]["mean"])
    assert made["env_steps"] == 12 * STEPS


def test_halving_goes_on_with_the_best_third(capsys, tmp_path):
    words = (
        "--method",
        "halving",
        "--budget",
        100 * STEPS,
        "--trial-steps",
        9 * STEPS,
        "--trials",
        9,
        "--finalists",
        0,
        "--confirm",
        0,
    )
    made = tune(capsys, tmp_path / "halving", *words)
    rows = trials(tmp_path / "halving")
    assert [len([row for row in rows if len(row["rungs"]) > rung]) for rung in range(3)] == [9, 3, 1]
    for rung in (0, 1):
        there = [row for row in rows if len(row["rungs"]) > rung]
        left = [row["rungs"][rung]["score"] for row in there if len(row["rungs"]) == rung + 1]
        assert max(left) <= min(row["rungs"][rung]["score"] for row in there if len(row["rungs"]) > rung + 1)
    winner = next(row for row in rows if row["status"] == "completed")
    assert made["best"]["trial"] == winner["trial"]
    assert [one["steps"] for one in winner["rungs"]] == [STEPS, 3 * STEPS, 9 * STEPS]
    assert rows[0]["default"], "the preset's own settings are the first trial"
    assert made["default_score"] == rows[0]["rungs"][-1]["score"]
    run = json.loads((tmp_path / "halving" / winner["run"] / "config.json").read_text())
    assert (run["steps"], run["anneal"]) == (9 * STEPS, 9 * STEPS), "the learning rate falls over the whole trial"


def test_a_population_finds_settings_and_a_schedule(capsys, tmp_path):
    words = ("--members", 3, "--budget", 3 * 4 * STEPS, "--confirm", 1, "--runtime.dispatch", "vmap", *PRIORS)
    made = tune(capsys, tmp_path / "pbt", *words, "--runtime.interval", STEPS)
    rows = trials(tmp_path / "pbt")
    assert (made["method"], made["trials"], len(rows)) == ("pbt", 3, 3)
    assert made["best"]["score"] == max(row["score"] for row in rows)
    assert [len(row["rungs"]) for row in rows] == [4, 4, 4], "fitness before each exchange, and at the end"
    best = json.loads((tmp_path / "pbt" / "best.json").read_text())
    assert set(best["settings"]) == {"optimiser.learning_rate", "algorithm.discount", "algorithm.rollout_length"}
    assert set(made["confirm"]) >= {"best", "default", "schedule"}
    assert all(made["confirm"][side]["iqm"] is not None for side in ("best", "default", "schedule"))
    run = json.loads((tmp_path / "pbt" / "confirm" / "schedule" / "seed-0" / "config.json").read_text())
    assert len(run["schedule"]) >= 1


# ------------------------------------------------------------------------------------------------ the settings file


def write(folder, **content):
    path = folder / "some.json"
    path.write_text(json.dumps(content))
    return path


def test_what_is_typed_wins_over_the_file_and_the_file_over_the_preset(tmp_path):
    given = {"algorithm.entropy-cost": 0.5, "algorithm.discount": 0.5, "corrector": "vtrace"}
    path = write(tmp_path, env="probe:match", steps=777, settings=given)
    request = filed.over(presets.Request("ppo"), filed.read(path, "ppo"))
    made, _ = presets.resolve(request._replace(settings={"algorithm": {"discount": 0.75}}))
    assert (made.env, made.steps, made.corrector) == ("probe:match", 777, "vtrace")
    assert (made.configs["algorithm"].entropy_cost, made.configs["algorithm"].discount) == (0.5, 0.75)
    assert made.configs["algorithm"].clip == 0.2, "the preset's"
    typed = filed.over(presets.Request("ppo", "probe:action", steps=5, corrector="none"), filed.read(path, "ppo"))
    made, _ = presets.resolve(typed)
    assert (made.env, made.steps, made.corrector) == ("probe:action", 5, "none")
    usual = {kind: presets.config(presets.Request("ppo", "probe:match"), kind) for kind in experiment.kinds()}
    assert filed.named(made.configs | {"corrector": usual["corrector"]}, usual) == {
        "algorithm.entropy_cost": 0.5, "algorithm.discount": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"settings": {"algorithm.entropy_cst": 1.0}}, "did you mean 'algorithm.entropy_cost'"),
        ({"settings": {"algorithm.discount": 2.0}}, "algorithm.discount=2.0 is out of range"),
        ({"settings": {"algorithm.discount": "big"}}, "algorithm.discount='big' has the wrong type"),
        ({"settings": {"rule.discount": 1.0}}, "unknown setting 'rule.discount'"),
        ({"settings": {"runtime": 3}}, "runtime=3 is no name"),
        ({"settings": {"runtime": "on_devise"}}, "on_device"),
        ({"setings": {}}, "did you mean 'settings'"),
        ({"preset": "a2c", "settings": {}}, "preset='a2c', but ppo is to be trained"),
        ({"steps": "many", "settings": {}}, "steps='many' has the wrong type"),
        ({"schema": 9, "settings": {}}, "install a newer one"),
        ({}, 'has no "settings"'),
    ],
)
def test_a_wrong_settings_file_is_refused_by_its_name_and_the_key(content, said, capsys, tmp_path):
    path = write(tmp_path, **content)
    line = refused(capsys, "train", "ppo", "--settings", path, "--out", tmp_path / "run")
    assert said in line
    assert not (tmp_path / "run").exists()


def test_what_is_no_settings_file_is_refused(capsys, tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    for name, said in (("list.json", "no JSON object"), ("broken.json", "no JSON"), ("none.json", "cannot be read")):
        assert said in refused(capsys, "train", "ppo", "--settings", tmp_path / name)


# ------------------------------------------------------------------------------------------------ small parts


def test_importance_by_rank_sees_what_rises_and_falls():
    random = np.random.default_rng(0)
    rows = [
        {"settings": {"up": a, "down": [b, b], "none": c}, "rungs": [{"score": a**3 - 0.1 * b}]}
        for a, b, c in random.uniform(size=(40, 3)).tolist()
    ]
    told = importance.by_rank(rows, ["up", "down", "none"])
    assert told["signed"]["up"] > 0.95
    assert -0.5 < told["signed"]["down"] < 0.1
    assert told["shares"]["none"] < 0.4
    assert importance.by_rank(rows[:3], ["up"]) is None
    same = [row | {"rungs": [{"score": 1.0}]} for row in rows]
    assert importance.by_rank(same, ["up"])["shares"]["up"] == 0.0


def test_axes_lie_between_the_ends_of_their_priors():
    rows = [{"settings": {"a": 1e-3, "b": 4, "c": [64, 64]}}, {"settings": {"a": 0.1, "b": 1, "c": [32, 32]}}]
    a, b, c = axes.settings(rows, {"a": "log_uniform(0.0001,0.1)", "b": "integer(1,5)", "c": "choice(32,64)"})
    assert a.places == pytest.approx([1 / 3, 1.0])
    assert b.places == pytest.approx([0.75, 0.0])
    assert c.places == pytest.approx([0.75, 0.25])
    assert [text for _, text in a.marks] == ["0.0001", "0.001", "0.01", "0.1"]


def test_the_difference_of_two_sides_has_the_interval_of_both():
    low, high = statistics.difference([10.0, 11.0, 12.0, 13.0], [0.0, 1.0, 2.0, 3.0])
    assert 7.0 < low < 10.0 < high < 13.0
    assert statistics.difference([1.0, 1.0], [1.0, 1.0]) == (0.0, 0.0)


def test_time_left_counts_what_this_life_has_done():
    now = [0.0]
    shown = screen.Screen("x", quiet=True, clock=lambda: now[0])
    shown.begin(screen.Far(2, 10, 0, 1.0, 0, 200, 1000))
    assert shown.left(200) is None
    now[0] = 10.0
    assert shown.left(300) == pytest.approx(70.0)
    assert "2 of 10 trials, best 1 (trial 0), 1m10s left" in shown.words(300)


def test_the_best_is_among_those_that_came_furthest():
    def row(trial, *scores, status="left"):
        return {"trial": trial, "score": scores[-1], "status": status, "rungs": [{"score": one} for one in scores]}

    rows = [row(0, 9.0), row(1, 1.0, 2.0, status="completed"), row(2, 1.0, 2.0, status="completed"), row(3, 5.0, 9.0)]
    assert searching.best([*rows[:3], rows[3] | {"status": "failed"}])["trial"] == 1
    assert searching.best([]) is None


@pytest.mark.parametrize("typed", [("tune", "--help"), ("tune", "ppo", "--help"), ("tune", "pp")])
def test_help_and_refusals_import_neither_jax_nor_optuna(typed):
    code = f"import sys\nfrom shoal.command import cli\ntry: cli.main({list(typed)!r})\nexcept SystemExit: pass\n"
    code += "print(sorted({'jax', 'optuna', 'flax', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    loaded = done.stderr.strip().splitlines()[-1]
    assert loaded in ("[]", "['numpy']") if typed[-1] == "pp" else loaded == "[]", done.stderr

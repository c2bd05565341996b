"""Several presets in one command: equal steps, one figure, one table; stopped and killed it goes on where it was."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from shoal import environments, log
from shoal.algorithms import actor_critic, dqn
from shoal.command import arguments, cli
from shoal.report import comparison, statistics, svg
from tests import faults

SHORT = ("--env", "probe:match", "--steps", 960, "--eval-episodes", 0, "--runtime.environments", 8)
SEEDS = 3
SET = ("--algorithm.discount", 0.9, "--corrector", "vtrace", "--compressor", "identity")
TWO = ("compare", "a2c", "ppo", *SHORT, "--seeds", SEEDS, *SET)  # the same programs in all tests
LONG = (
    "compare", "a2c", "ppo", "--env", "gymnax:CartPole-v1", "--steps", 24_000, "--seeds", 2,
    "--eval-episodes", 0, "--runtime.chunk-steps", 512,
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished comparison of seeds 4, 5 and 6."""
    folder = tmp_path_factory.mktemp("compared") / "both"
    typed = [*TWO, "--seed", 4, "--out", folder, "--quiet"]
    assert cli.main([str(word) for word in typed]) == 0
    return folder


def digests(folder):
    return {
        str(path.parent.relative_to(folder)): json.loads(path.read_text())["params_sha256"]
        for path in folder.rglob("seed-*/summary.json")
    }


# ------------------------------------------------------------------------------------------------ what it leaves


def test_every_preset_is_a_group_trained_for_equal_steps(made):
    for preset in ("a2c", "ppo"):
        config = json.loads((made / preset / "config.json").read_text())
        assert (config["seeds"], config["steps"]) == ([4, 5, 6], 960)
        assert config["parts"]["algorithm"]["discount"] == 0.9, "a setting is set for all"
        assert [config["parts"][kind]["name"] for kind in ("corrector", "compressor")] == ["vtrace", "identity"]
        assert {faults.summary(made / preset / f"seed-{seed}")["status"] for seed in (4, 5, 6)} == {"completed"}
    rows = faults.summary(made)["presets"]
    assert list(rows) == ["a2c", "ppo"]
    for row in rows.values():
        assert 960 <= row["env_steps_per_seed"] < 960 * 2, "a rollout may pass the number asked for"


def test_the_summary_holds_what_the_run_folders_say(made):
    whole = faults.summary(made)
    assert (whole["status"], whole["seeds"], whole["steps"], whole["env"]) == (
        "completed",
        [4, 5, 6],
        960,
        "probe:match",
    )
    for preset, row in whole["presets"].items():
        runs = [faults.summary(made / preset / f"seed-{seed}") for seed in (4, 5, 6)]
        means = [run["return_mean"] for run in runs]
        assert row["return_iqm"] == pytest.approx(statistics.iqm(means))
        assert row["return_interval"] == pytest.approx(statistics.interval(means))
        assert row["env_steps"] == sum(run["env_steps"] for run in runs)
        every = [np.loadtxt(f"{one}/episodes.csv", delimiter=",", skiprows=1)[:, 1].mean() for one in row["runs"]]
        assert row["train_return_mean"] == pytest.approx(np.mean(every))
        assert row["train_return_std"] == pytest.approx(np.std(every))
        assert row["train_s"] == max(run["train_s"] for run in runs), "the seconds of one program, not of three"
        assert row["eval_return_iqm"] is None, "not measured is not 0"


def test_one_figure_and_a_page_name_every_preset(made):
    assert (made / "comparison.png").read_bytes().startswith(b"\x89PNG")
    for name in ("comparison.svg", "report.html"):
        text = (made / name).read_text()
        for preset in ("a2c", "ppo"):
            assert f">{preset}</text>" in text, f"{name} does not name the curve of {preset}"
    page = (made / "report.html").read_text()
    assert "ended highest" in page
    assert "Settings that differ" in page
    assert "shoal compare a2c ppo" in page
    assert 'src="http' not in page


def test_the_table_is_told_and_json_is_one_object(capsys, tmp_path):
    ended = faults.call(capsys, *TWO, "--out", tmp_path / "both", "--json")
    assert ended.code == 0
    assert ended.json == faults.summary(tmp_path / "both")
    assert set(ended.json) >= {"comparison", "env", "seeds", "steps", "status", "presets", "figure", "report", "wall_s"}
    for words in (
        "[1 of 2] a2c, seeds 0 to 2",
        "[2 of 2] ppo",
        "95 % interval",
        "all episodes",
        "comparison.png",
        "left=",
    ):
        assert words in ended.err
    alone = faults.call(capsys, "report", tmp_path / "both", "--out", tmp_path / "page.html")
    assert alone.code == 0, "the folder of a comparison stands for its runs"


def test_a_runtime_without_seeds_trains_them_one_by_one(capsys, tmp_path):
    typed = ("compare", "a2c", "a3c", "--env", "CartPole-v1", "--steps", 512, "--seeds", 2, "--eval-episodes", 0)
    ended = faults.call(capsys, *typed, "--out", tmp_path / "both", "--json")
    assert ended.code == 0, ended.err
    for preset, runtime, together in (("a2c", "host", max), ("a3c", "hogwild", sum)):
        runs = [faults.summary(tmp_path / "both" / preset / f"seed-{seed}") for seed in (0, 1)]
        assert [run["runtime"] for run in runs] == [runtime] * 2
        assert ended.json["presets"][preset]["train_s"] == pytest.approx(together(run["train_s"] for run in runs))
    assert ended.json["solved_at"] == 475


def test_without_steps_all_get_the_most_that_one_is_tuned_for(capsys, tmp_path, monkeypatch):
    from shoal.runs import comparison as comparing

    seen = {}
    monkeypatch.setattr(comparing, "_run", lambda _, config, __: seen.update(config) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        faults.call(capsys, "compare", "a2c", "ppo", "--seeds", 2, "--out", tmp_path / "both")
    assert {name: one["steps"] for name, one in seen["members"].items()} == {"a2c": 400_000, "ppo": 400_000}
    assert seen["solved_at"] == 475


# ------------------------------------------------------------------------------------------------ stopped, killed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The comparison that the stopped ones must come to."""
    folder = tmp_path_factory.mktemp("whole") / "both"
    assert cli.main([str(word) for word in (*LONG, "--out", folder, "--quiet")]) == 0
    return folder


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM, signal.SIGKILL]
)
def test_a_stopped_comparison_goes_on_to_the_same_bits(number, whole, tmp_path, capsys):
    out = tmp_path / "stopped"
    with faults.Process(*LONG, "--out", out, "--json", SHOAL_SAVE_EVERY=0) as process:
        faults.wait((out / "ppo" / "seed-1" / "checkpoints").is_dir, "a checkpoint of the second preset")
        process.signal(number)
        ended = process.ended()
    done = (out / "a2c" / "summary.json").stat().st_mtime_ns
    if number == signal.SIGKILL:
        assert not (out / "summary.json").exists()
    else:
        assert ended.code == 75, ended.err
        assert (ended.json["status"], ended.json["stopped_by"]) == ("interrupted", number.name)
        assert f"shoal resume {out}" in ended.err
        assert [row["status"] for row in ended.json["presets"].values()] == ["completed", "interrupted"]
    resumed = faults.call(capsys, "resume", out, "--json", "--eval-episodes", 0)
    assert resumed.code == 0, resumed.err
    assert resumed.json["status"] == "completed"
    assert "a2c, seeds" not in resumed.err, "what is finished is not trained again"
    assert "[2 of 2] ppo, seeds 0 to 1: goes on" in resumed.err, "from where it was, not from the start"
    assert (out / "a2c" / "summary.json").stat().st_mtime_ns == done
    assert digests(out) == digests(whole)
    again = faults.call(capsys, "resume", out)
    assert (again.code, again.err.count("\n"), "is complete" in again.err) == (2, 1, True)


def test_a_preset_that_never_saved_begins_anew(made, tmp_path, capsys):
    copy = shutil.copytree(made, tmp_path / "both")
    (copy / "summary.json").unlink()
    (copy / "ppo" / "summary.json").unlink()
    for seed in (4, 5, 6):
        shutil.rmtree(copy / "ppo" / f"seed-{seed}" / "checkpoints")
        (copy / "ppo" / f"seed-{seed}" / "summary.json").unlink()
    ended = faults.call(capsys, "resume", copy, "--json", "--eval-episodes", 0)
    assert ended.code == 0, ended.err
    assert digests(copy) == digests(made)


def test_a_signal_between_two_trainings_ends_it_in_order(tmp_path, capsys, monkeypatch):
    from shoal.runs import training

    real = training.train_seeds

    def then_a_signal(request, *rest, **given):
        if request.preset == "ppo":
            signal.raise_signal(signal.SIGTERM)
        return real(request, *rest, **given)

    monkeypatch.setattr(training, "train_seeds", then_a_signal)
    ended = faults.call(capsys, *TWO, "--out", tmp_path / "both", "--json")
    assert (ended.code, ended.json["stopped_by"]) == (75, "SIGTERM")
    assert [row["status"] for row in ended.json["presets"].values()] == ["completed", "not begun"]
    assert ended.json["presets"]["ppo"]["return_iqm"] is None
    monkeypatch.undo()
    assert faults.call(capsys, "resume", tmp_path / "both", "--eval-episodes", 0).code == 0


@pytest.mark.parametrize("verb", ["eval", "export"])
def test_what_is_asked_of_one_policy_is_refused_with_the_way_to_it(verb, made, capsys):
    ended = faults.call(capsys, verb, made)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"{made}/PRESET/seed-S" in ended.err
    assert faults.call(capsys, verb, made / "ppo" / "seed-5").code == 0


def test_an_edited_comparison_is_refused(made, tmp_path, capsys):
    copy = shutil.copytree(made, tmp_path / "both")
    (copy / "summary.json").unlink()
    config = json.loads((copy / "config.json").read_text())
    config["members"]["ppo"]["steps"] = 12
    (copy / "config.json").write_text(json.dumps(config))
    ended = faults.call(capsys, "resume", copy)
    assert (ended.code, ended.err.count("\n"), "was edited" in ended.err) == (2, 1, True)


# ------------------------------------------------------------------------------------------------ refused

BAD = {  # arguments -> what the one line must say
    "compare": ["two presets", "shoal list presets"],
    "compare --seeds 3": ["two presets", "before the options"],
    "compare a2c": ["two presets or more", "only a2c", "shoal train"],
    "compare a2c ppo a2c": ["a2c is named twice"],
    "compare a2c pppo": ["unknown preset 'pppo'", "did you mean 'ppo'?"],
    "compare a2c sac": ["different environments", "--env", "gymnax:Pendulum-v1"],
    "compare a2c sac --env gymnax:CartPole-v1": ["sac does not fit gymnax:CartPole-v1", "presets that do: a2c", "ppo"],
    "compare a2c ppo --env gymnax:CartPol-v1": ["did you mean 'gymnax:CartPole-v1'?"],
    "compare a2c ppo --seeds 0": ["--seeds 0", "at least 1"],
    "compare a2c ppo --seeds many": ["--seeds", "'many'"],
    "compare a2c ppo --seed -1": ["seed=-1"],
    "compare a2c ppo --steps 0": ["steps=0", "at least 1"],
    "compare a2c ppo --eval-episodes -1": ["--eval-episodes -1", "0 turns"],
    "compare a2c ppo --algorithm.clip 0.1": ["--algorithm.clip", "ppo has such a setting", "a2c has not"],
    "compare a2c dqn --algorithm.discuont 0.1": ["did you mean --algorithm.discount?"],
    "compare a2c ppo --algorithm.discount 2": ["algorithm.discount=2", "between 0 and 1"],
    "compare a2c ppo --runtime cluster": ["unknown runtime 'cluster'"],
    "compare a2c ppo --corrector vtrac": ["did you mean 'vtrace'?"],
    "compare a2c dqn --corrector vtrace": [
        "dqn has no use for a corrector",
        "--corrector vtrace",
        "presets that do: a2c, a3c",
    ],
    "compare a2c ppo --compressor identty": ["unknown compressor 'identty'", "did you mean 'identity'?"],
    "compare a2c ppo --out .": ["exists", "--out", "shoal resume"],
}


@pytest.mark.parametrize("typed", BAD)
def test_a_mistake_is_one_line_and_nothing_is_made(typed, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = faults.call(capsys, *typed.split())
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), ended.err
    for words in BAD[typed]:
        assert words in ended.err
    assert not list(tmp_path.iterdir())


def test_a_preset_that_needs_too_much_memory_is_refused_before_the_first_is_trained(capsys, tmp_path, monkeypatch):
    from shoal.experiment import budget

    monkeypatch.setattr(budget, "available", lambda: 10**6, raising=True)
    typed = ("compare", "a2c", "dqn", "--env", "gymnax:CartPole-v1", "--seeds", 2, "--out", tmp_path / "both")
    ended = faults.call(capsys, *typed)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    monkeypatch.setattr(budget, "available", lambda: 10**12)
    monkeypatch.setattr(budget, "on_host", lambda: 10**6)
    monkeypatch.setattr(budget, "check_processes", lambda *_: None)  # which alone take more than that
    ended = faults.call(capsys, *typed[:1], "gorila", *typed[2:])
    assert ended.code == 2, ended.err
    assert "fewer bundles" in ended.err, "each of them has a memory"
    assert not list(tmp_path.iterdir())


def test_help_and_mistakes_come_without_jax(tmp_path):
    quick = ["compare --help", "compare a2c ppo --help", "compare a2c pppo", "compare a2c ppo --stpes 3", "compare"]
    script = f"""
import contextlib, io, sys
from shoal.command import cli
for typed in {quick!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            cli.main(typed.split())
        except SystemExit as leaving:
            assert leaving.code in (0, None), typed
    assert "jax" not in sys.modules, typed
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------ its pieces


def test_names_at_the_ends_of_curves_keep_their_distance():
    assert svg.spread([50.0, 20.0], 10, 0, 100) == [50.0, 20.0], "nothing moves that need not"
    assert svg.spread([99.0, 98.0, 97.0], 10, 0, 100) == [99.0, 89.0, 79.0]
    placed = svg.spread([1.0, 2.0, 3.0], 10, 0, 100)
    assert placed == [0.0, 10.0, 20.0]


def test_the_time_left_is_that_of_the_whole_comparison(tmp_path, monkeypatch):
    from shoal.runs import comparison as comparing

    clock, shown = [100.0], []

    class Console(log.Quiet):
        def show(self, status):
            shown.append(status.eta_s)

    made = [SimpleNamespace(preset=name, seed=0) for name in ("a2c", "ppo")]
    units = [comparing._Unit(path=tmp_path / one.preset, made=one, seeds=2) for one in made]
    monkeypatch.setattr(comparing.time, "monotonic", lambda: clock[0])
    watch = comparing._Watch(units, 1000, comparing.Asked(console=Console, say=print, eval_episodes=0, since=0.0))
    status = log.Status("a2c", "e", "on_device", 0, 0, 2000, None, None, None, 0, {}, {}, 0, None, None, None, None)
    console = watch.console(0)
    console.show(status)
    clock[0] = 110.0
    console.show(status._replace(step=500, eta_s=30.0))
    watch.done(0)
    clock[0] = 140.0
    console = watch.console(1)
    console.show(status._replace(step=200, eta_s=None))
    console.show(status._replace(step=400, eta_s=7.0))
    # 500 of 4000 steps took 10 s, so the other preset's 2000 will take 40; at the end only its own time is left.
    assert shown == [None, 30.0 + 2000 * 10 / 500, None, 7.0]
    assert (watch.title(1), watch.first(0), watch.first(1)) == ("[2 of 2] ppo, seeds 0 to 1", True, False)


def test_the_verdict_says_when_the_intervals_overlap():
    def row(iqm, *interval):
        return {"return_iqm": iqm, "return_interval": list(interval)}

    apart = {"presets": {"a": row(9.0, 8, 10), "b": row(3.0, 2, 4)}}
    assert comparison.verdict(apart).endswith("its interval lies above all others")
    close = {"presets": {"a": row(9.0, 8, 10), "b": row(3.0, 2, 4), "c": row(7.0, 6, 8.5)}}
    assert comparison.verdict(close).endswith("its interval overlaps that of c")


def test_shared_settings_are_those_of_one_name_and_type():
    both = arguments.shared([actor_critic.Config, dqn.Config], actor_critic.Config())
    names = {flag.lstrip("-") for flag in arguments.flags(both)}
    assert {"rollout-length", "discount"} <= names
    assert not {"capacity", "entropy-cost"} & names
    told = arguments.docstrings(environments.config_class("gymnax:CartPole-v1"))
    assert all(told.values())

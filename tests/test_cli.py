from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import types

import jax
import pytest

import shoal
from shoal.command import cli
from shoal.command.verbs import bench
from shoal.command.verbs import list as listing
from shoal.core import compilation, options, registry
from shoal.experiment import presets
from shoal.runs import comparison, training
from tests import faults

SUMMARY = {
    "run", "preset", "env", "seed", "status", "steps", "env_steps", "updates", "wall_s", "train_s", "startup_s",
    "env_steps_per_s", "return_mean", "return_std", "eval_return_mean", "eval_return_std", "eval_episodes", "episodes",
    "params_sha256", "peak_rss_mb", "faults",
}  # fmt: skip
A2C = ("a2c", "--env", "probe:constant", "--steps", 320)


@pytest.fixture
def run(finished, tmp_path):
    """A run folder."""
    return shutil.copytree(finished(*A2C).folder, tmp_path / "made")


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# ------------------------------------------------------------------------------------------------ bad input

BAD = {  # arguments -> what the one line must say
    "teach": ["unknown command 'teach'", "train"],
    "trian": ["'trian'", "did you mean 'train'?", "shoal --help"],
    "train": ["give a preset", "shoal list presets"],
    "train a4c": ["unknown preset 'a4c'", "did you mean 'a3c'?", "a2c", "shoal list presets"],
    "train nothing_like_it": ["unknown preset 'nothing_like_it'", "a3c_lstm"],
    "train a3c --stpes 10": ["'--stpes'", "did you mean --steps?", "--help"],
    "train a3c --entropy-cost 1": ["'--entropy-cost'", "did you mean --algorithm.entropy-cost?"],
    "train a3c --algorithm.entropy-csot 1": ["--algorithm.entropy-csot", "did you mean --algorithm.entropy-cost?"],
    "train a3c stray": ["'stray'", "--help"],
    "train collab_a2c --federation.partis 3": [
        "unknown option '--federation.partis'",
        "did you mean --runtime.parties?",
    ],
    "train collab_a2c --runtime.membrs 3": ["'--runtime.membrs'", "nothing like it"],
    "train collab_a2c --runtime.server adam": [
        "runtime.server=adam changes nothing with runtime.exchange=gradient; use --runtime.exchange delta, or leave it"
    ],
    "train collab_a2c --runtime.max-lag 3": ["max_lag=3 changes nothing with runtime.asynchronous=false"],
    "train collab_td3 --runtime.server-rate 0.1": ["server_rate=0.1", "runtime.server=sgd; use --runtime.server adam"],
    "train independent --runtime.quorum 2": ["quorum=2", "runtime.exchange=none; use --runtime.exchange gradient or"],
    "train collab_a2c --runtime.attack 1:nan --runtime.exchange none": ["attack=1:nan", "runtime.exchange=none"],
    "train collab_a2c --runtime.no-spread": ["spread=False", "--runtime.exchange outputs"],
    "train a3c --workers 2 --runtime.workers 3": ["--workers=2 and --runtime.workers=3", "leave one"],
    "train pbt_ppo --members 3 --population.members=8": ["--members=3 and --runtime.members=8", "leave one"],
    "train collab_a2c --parties 3 --federation.parties 5": ["--parties=3 and --runtime.parties=5", "leave one"],
    "train a3c --replayable --runtime.no-replayable": ["--replayable=True and --runtime.replayable=False"],
    "train gorila --workers 2 --runtime.bundles 3": ["--workers=2 and --runtime.bundles=3", "leave one"],
    "tune ppo --budget 1e4 --members 3 --runtime.members 8": ["--members=3 and --runtime.members=8", "leave one"],
    "tune ppo --budget 1e4 --runtime.prior algorithm.clip=uniform(0.1,0.2)": ["--runtime.prior", "--prior"],
    "train a3c --steps many": ["--steps", "'many'", "INT"],
    "train a3c --steps": ["--steps", "--help"],
    "train a3c --steps 0": ["steps=0", "at least 1"],
    "train a3c --steps -5": ["-5", "at least 1"],
    "train a3c --seed -1": ["seed=-1", "between 0 and"],
    "train a3c --seeds 2": ["--seeds", "(federated, host, on_device, population)", "hogwild", "one by one"],
    "train a2c --seeds 0": ["--seeds 0", "at least 1"],
    "train a2c --seeds many": ["--seeds", "'many'", "INT"],
    "train a2c --seed -1 --seeds 2": ["seed=-1", "between 0 and"],
    "train a3c --workers 0": ["workers=0", "between 1 and 1024"],
    "train a3c --workers two": ["--workers", "'two'", "INT"],
    "train a3c --optimiser.learning-rate -1": ["optimiser.learning_rate=-1", "at least 0"],
    "train a3c --optimiser.learning-rate nan": ["optimiser.learning_rate=nan", "not a number"],
    "train a3c --algorithm.discount 1.5": ["algorithm.discount=1.5", "between 0 and 1"],
    "train a3c --network.activation swish": ["swish", "tanh", "relu"],
    "train a3c --network.hidden 0": ["network.hidden", "at least 1"],
    "train a3c --optimiser.rule optax:adamw": ["optimiser.rule=optax:adamw", "hogwild", "rmsprop", "adam"],
    "train a3c --runtime cluster": ["unknown runtime 'cluster'", "hogwild", "on_device"],
    "train a3c --corrector vtrac": ["unknown corrector 'vtrac'", "did you mean 'vtrace'?"],
    "train a3c --compressor identty": ["unknown compressor 'identty'", "did you mean 'identity'?"],
    "train a3c --compressor.bits 4": ["'--compressor.bits'", "--help"],
    "train a3c --runtime on_device": ["on_device", "CartPole-v1", "gymnax:"],
    "train a2c --workers 2": ["--workers 2", "on_device", "hogwild"],
    "train a3c --until never": ["'never'", "solved", "475"],
    "train a3c --steps 100 --until nan": ["nan", "475"],
    "train a3c --env probe:constant --until solved": ["probe:constant", "give a number"],
    "train a3c --eval-episodes -1": ["--eval-episodes -1", "0 turns"],
    "train a3c --env CartPole-v7": ["CartPole-v7", "CartPole-v1"],
    "train a3c --env CartPol-v1": ["CartPol-v1", "did you mean 'CartPole-v1'?"],
    "train a3c --env gymnax:CartPol-v1": ["gymnax:CartPol-v1", "did you mean 'gymnax:CartPole-v1'?"],
    "train a3c --env probe:constnat": ["probe:constnat", "did you mean 'probe:constant'?"],
    "train a3c --env no.such.module:Env-v0": ["no.such.module"],
    "train a3c --env tests.scripted:NeedsPackage-v0": ["tests.scripted:NeedsPackage-v0", "no_such_module"],
    "train a3c --env LunarLander-v3": ["LunarLander-v3", "Box2D", "shoal-rl[box2d]"],
    "train a3c --env tests.scripted:Text-v0": ["tests.scripted:Text-v0", "Text"],
    "train a3c --env tests.scripted:TupleAction-v0": ["tests.scripted:TupleAction-v0", "Tuple", "MultiDiscrete"],
    "train dqn --env probe:pair": ["dqn learns discrete actions", "multi_discrete", "presets that fit: a2c, a3c,"],
    "train a3c --environment.observe 0 9": ["observe", "9", "0 to 3"],
    "train a3c --network.torso nature": ["network.torso=nature", "36x36", "network.torso=mlp"],
    "list everything": ["unknown kind 'everything'", "presets", "runtimes"],
    "check-env CartPol-v1": ["CartPol-v1", "did you mean 'CartPole-v1'?"],
    "check-env CartPole-v1 --steps 0": ["--steps 0", "at least 1"],
    "check-env": ["--help"],
    "bench speed": ["unknown benchmark 'speed'", "hogwild"],
    "report": ["shoal report runs/*"],
    "replay": ["--help"],
    "replay nowhere": ["nowhere is not a run folder"],
    "train a2c --replayable": ["--replayable", "on_device", "hogwild"],
    "train dqn --env CartPole-v1 --workers 2": [
        "--workers 2: the host runtime has no workers; leave it out, or use --runtime actor_learner"
    ],
    "train gorila --replayable": ["--replayable: the parameter_server runtime does not record updates; leave it out\n"],
    "train parallel_sarsa --replayable": ["--replayable: the peers runtime does not record updates; leave it out\n"],
    "train a3c --runtime parameter_server --replayable": ["--replayable: the parameter_server", "--runtime hogwild\n"],
    "train a3c --workers 4 --runtime.max-lag 2 --runtime.on-stale block": ["max_lag=2", "at least 3"],
    "resume": ["--help"],
}


@pytest.mark.parametrize("typed", BAD)
def test_bad_input_is_refused_in_one_line_and_nothing_is_made(typed, capsys, tmp_path, monkeypatch):
    if "box2d" in "".join(BAD[typed]) and _installed("Box2D"):
        pytest.skip("its package is there")
    monkeypatch.chdir(tmp_path)
    place = faults.ROOT / "shoal" / "command" / "verbs" / "bench.py"
    monkeypatch.setattr(bench, "__file__", str(place))  # `bench` looks beside it
    ended = faults.call(capsys, *typed.split())
    assert ended.code == 2, ended.err
    assert ended.out == ""
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith("shoal: ")
    assert "---" not in ended.err, "a box was drawn"
    for words in BAD[typed]:
        assert words in ended.err
    assert not list(tmp_path.iterdir())


def _installed(package):
    import importlib.util

    return importlib.util.find_spec(package) is not None


def test_an_output_folder_that_cannot_be_made_is_refused(capsys, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("kept")
    (tmp_path / "file").write_text("kept")
    before = files(tmp_path)
    for out, words in (
        ("there", ["exists", "--out", "shoal resume"]),
        ("file", ["exists"]),
        ("file/below", ["cannot make", "is a file", "--out"]),
        ("file/below/further", ["cannot make", "is a file"]),
        ("one/two/" + "x" * 300, ["cannot make", "too long"]),
    ):
        ended = faults.call(capsys, "train", *A2C, "--out", tmp_path / out)
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), ended.err
        assert str(tmp_path / out) in ended.err
        for word in words:
            assert word in ended.err
    if os.geteuid():  # root may write anywhere
        tmp_path.chmod(0o500)
        ended = faults.call(capsys, "train", *A2C, "--out", tmp_path / "new")
        tmp_path.chmod(0o700)
        assert ended.code == 2
        assert "cannot be written" in ended.err
    assert files(tmp_path) == before


@pytest.mark.parametrize("verb", ["resume", "eval", "report", "export"])
def test_a_folder_that_is_no_run_is_refused(verb, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, text in (("list", "[]"), ("broken", '{"schema": 1,'), ("other", '{"name": "left-pad"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    before = files(tmp_path)
    for name in ("missing", "empty", "file", "list", "broken", "other"):
        ended = faults.call(capsys, verb, name)
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), (name, ended.err)
        assert name in ended.err or "config.json" in ended.err
    assert files(tmp_path) == before


def test_settings_of_a_run_folder_are_checked_like_options(capsys, run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    for change, words in (
        ({"algorithm": {"entropy_csot": 1.0}}, ["algorithm.entropy_csot", "did you mean 'algorithm.entropy_cost'?"]),
        ({"algorithm": {"discount": "high"}}, ["algorithm.discount", "'high'", "float"]),
        ({"algorithm": {"name": "ppoo"}}, ["unknown algorithm 'ppoo'", "actor_critic"]),
        ({"network": {"hidden": 64}}, ["network.hidden=64", "not a list"]),
    ):
        folder = tmp_path / "edited"
        folder.mkdir(exist_ok=True)
        parts = {kind: {**part, **change.get(kind, {})} for kind, part in config["parts"].items()}
        (folder / "config.json").write_text(json.dumps({**config, "parts": parts}))
        ended = faults.call(capsys, "eval", folder)
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
        for word in words:
            assert word in ended.err
    (folder / "config.json").write_text(json.dumps({**config, "schema": 99}))
    ended = faults.call(capsys, "eval", folder)
    assert ended.code == 2
    assert "schema 99" in ended.err


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("eval RUN --episodes 0", ["--episodes 0", "at least 1"]),
        ("eval RUN --episodes -3", ["--episodes -3", "at least 1"]),
        ("eval RUN --seed -1", ["seed", "-1"]),
        ("export RUN --format torch", ["unknown format 'torch'", "onnx"]),
        ("export RUN --out RUN/config.json/policy.onnx", ["policy.onnx"]),
        ("report RUN --out RUN/config.json/page.html", ["page.html"]),
        ("resume RUN --eval-episodes -1", ["-1 is negative", "0 turns"]),
        ("resume RUN", ["is complete", "shoal train"]),
    ],
)
def test_wrong_values_of_other_verbs_are_refused(typed, words, capsys, run):
    before = files(run)
    ended = faults.call(capsys, *typed.replace("RUN", str(run)).split())
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), ended.err
    for word in words:
        assert word in ended.err
    assert files(run) == before


# ------------------------------------------------------------------------------------------------ quick answers

QUICK = [
    "--help",
    "--version",
    "train --help",
    "list presets",
    "list algorithms",
    "list runtimes --json",
    "bench --help",
    "train a3c --help",
    "train gorila --help",
    "train parallel_sarsa --help",
    "train batch_linear --help",
    "train a4c",
    "train a3c --stpes 10",
    "train a3c --steps many",
    "train a3c --algorithm.discount 1.5",
    "train a3c --workers 0",
    "train a3c --runtime cluster",
    "train a3c --compressor identty",
    "train a3c --env CartPol-v1",
    "train a3c --out .",
    "resume no-such-folder",
    "eval --episodes x",
]


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_is_named_and_has_its_help(verb, capsys):
    assert f"\n  {verb} " in cli.USAGE
    try:
        code = cli.main([verb, "--help"])
    except SystemExit as leaving:
        code = leaving.code
    assert code in (0, None)
    assert f"usage: shoal {verb}" in capsys.readouterr().out


def test_help_and_errors_in_the_arguments_come_without_jax(tmp_path):
    script = f"""
import contextlib, io, sys
from shoal.command import cli
for typed in {QUICK!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            cli.main(typed.split())
        except SystemExit as leaving:
            assert leaving.code in (0, None), typed
    assert "jax" not in sys.modules, typed
    assert "flax" not in sys.modules, typed
    assert "--help" not in typed or "numpy" not in sys.modules, typed
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def _processor_seconds(*typed):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *typed], cwd=faults.ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime  # the machine may be busy with other tests


@pytest.mark.parametrize("typed", ["list presets", "list nothing", "check-env probe:discount --steps 5"])
def test_garbage_is_collected_again_once_a_command_is_understood(typed):
    script = (
        f"import gc, sys; sys.argv = ['shoal', *{typed.split()!r}]; from shoal import __main__\n"
        "__main__.main(); assert gc.isenabled()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=faults.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("typed", ["--help", "train --help", "train a3c --help"])
def test_help_comes_at_once(typed):
    """About 0.3 s; held to what the parser of options costs alone, because machines differ."""
    parser = ("-c", "import tyro._cli, typeguard")
    ratios = [_processor_seconds("-m", "shoal", *typed.split()) / _processor_seconds(*parser) for _ in range(3)]
    assert min(ratios) < 2.5


# ------------------------------------------------------------------------------------------------ the compressor


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a compressor that is known to these tests alone."""

    bits: int = options.number(8, low=1, high=32)
    """Of a weight."""


@pytest.fixture
def asked(monkeypatch):
    """What is trained; nothing is. A second compressor can be chosen."""
    seen, names, load = [], registry.names, registry.load
    ours = types.SimpleNamespace(Config=Config)
    monkeypatch.setattr(registry, "names", lambda kind: [*names(kind), *(["scripted"] if kind == "compressor" else [])])
    monkeypatch.setattr(registry, "load", lambda kind, name: ours if name == "scripted" else load(kind, name))
    for verb in ("train", "train_seeds"):
        monkeypatch.setattr(training, verb, lambda request, *_, **__: seen.append(request) or 1 / 0)
    monkeypatch.setattr(comparison, "begin", lambda requests, *_: seen.extend(requests) or 1 / 0)
    return seen


def chosen(request):
    """The compressor a request comes to, and its settings."""
    given = request.configs.get("compressor", presets.config(request, "compressor"))
    settings = options.build(Config, request.settings.get("compressor", {}), "compressor", given)
    return presets.parts(request)["compressor"], settings


@pytest.mark.parametrize("verb", ["train a3c", "train a2c --seeds 2", "compare a2c ppo"])
def test_a_compressor_is_chosen_and_set_like_every_other_part(verb, asked, capsys):
    with pytest.raises(ZeroDivisionError):
        cli.main([*verb.split(), "--compressor", "scripted", "--compressor.bits", "4"])
    assert [chosen(request) for request in asked] == [("scripted", Config(bits=4))] * len(asked)
    assert len(asked) == (2 if verb.startswith("compare") else 1)
    with pytest.raises(ZeroDivisionError):
        cli.main([*verb.split(), "--compressor=scripted"])
    assert chosen(asked[-1]) == ("scripted", Config())
    with pytest.raises(ZeroDivisionError):
        cli.main(verb.split())
    assert presets.parts(asked[-1])["compressor"] == "identity"
    ended = faults.call(capsys, *verb.split(), "--compressor", "scripted", "--compressor.bit", 4)
    assert "did you mean --compressor.bits?" in ended.err


def test_a_compressor_is_chosen_and_set_from_python(asked, tmp_path):
    for given, settings in (
        ("scripted", Config()),
        ({"name": "scripted"}, Config()),
        ({"name": "scripted", "bits": 2}, Config(bits=2)),
    ):
        with pytest.raises(ZeroDivisionError):
            shoal.train("a3c", compressor=given, out=tmp_path / "run", quiet=True)
        assert chosen(asked[-1]) == ("scripted", settings)
    with pytest.raises(ZeroDivisionError):
        shoal.train("a3c", compressor={}, out=tmp_path / "run", quiet=True)
    assert presets.parts(asked[-1])["compressor"] == "identity"


# ------------------------------------------------------------------------------------------------ what is printed


def test_json_is_one_object_and_all_else_goes_to_stderr(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = faults.call(capsys, "train", *A2C, "--out", "run", "--json", "--eval-episodes", 3)
    assert trained.code == 0
    assert trained.json == faults.summary(tmp_path / "run")
    assert trained.err
    for arguments, key in (
        (["eval", "run", "--episodes", 4], "eval_return_mean"),
        (["list", "presets"], "presets"),
        (["list", "envs"], "envs"),
        (["report", "run"], "report"),
        (["export", "run"], "policy"),
        (["check-env", "probe:constant", "--steps", 50], "env"),
    ):
        ended = faults.call(capsys, *arguments, "--json")
        assert ended.code == 0, ended.err
        assert key in ended.json
    assert (tmp_path / "run" / "policy.onnx").stat().st_size
    assert "<html" in (tmp_path / "run" / "report.html").read_text()


def test_without_json_stdout_stays_empty(capsys, tmp_path):
    ended = faults.call(capsys, "train", *A2C, "--out", tmp_path / "run")
    assert ended.code == 0
    assert ended.out == ""
    for words in ("a2c on probe:constant (seed 0): completed", "320 in 320 episodes", str(tmp_path / "run")):
        assert words in ended.err
    assert faults.call(capsys, "eval", tmp_path / "run", "--episodes", 2).out == ""
    quiet = faults.call(capsys, "train", *A2C, "--out", tmp_path / "quiet", "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_summary_tells_all_and_null_is_what_was_not_measured(finished, capsys, tmp_path):
    without = finished(*A2C).told
    assert set(without) >= SUMMARY
    for key in ("eval_return_mean", "eval_return_std", "eval_episodes", "goal", "solved_at_step"):
        assert without[key] is None
    assert (without["return_mean"], without["return_std"], without["episodes"]) == (1.0, 0.0, 320)
    assert without["faults"]["non_finite"] == 0
    assert "workers" not in without
    assert 0 < without["train_s"] < without["wall_s"]
    assert without["env_steps_per_s"] == pytest.approx(without["env_steps"] / without["train_s"])
    assert without["startup_s"] > 0
    assert without["peak_rss_mb"] > 50
    with_evaluation = faults.train(capsys, tmp_path / "with", *A2C, evaluate=3)
    assert (with_evaluation["eval_return_mean"], with_evaluation["eval_episodes"]) == (1.0, 3)
    # Too short for an episode to end: a return is not known, and not 0.
    endless = faults.train(
        capsys, tmp_path / "endless", "a2c", "--env", "tests.scripted:Endless-v0", "--steps", 80,
        "--runtime.processes", 0,
    )  # fmt: skip
    assert endless["episodes"] == 0
    assert endless["return_mean"] is None
    assert endless["return_std"] is None
    assert endless["best_return_mean"] is None


def test_lists_name_what_can_be_typed(capsys):
    for kind in listing.KINDS:
        found = faults.call(capsys, "list", kind, "--json").json[kind]
        text = faults.call(capsys, "list", kind).out
        assert found
        for name in found:
            assert name in text
        if kind == "presets":
            assert set(found) == set(presets.PRESETS)
        elif kind == "envs":
            assert {"CartPole-v1", "gymnax:CartPole-v1", "probe:memory"} <= set(found)
        else:
            assert set(found) == set(registry.names(kind[:-1]))
            assert all(found.values()), "every part says in one line what it is"


def test_check_env_ends_with_2_for_an_environment_that_breaks_its_promises(capsys):
    good = faults.call(capsys, "check-env", "tests.scripted:Terminates-v0", "--steps", 100)
    assert good.code == 0
    assert "tests.scripted:Terminates-v0" in good.out
    assert faults.call(capsys, "check-env", "tests.scripted:NotFinite-v0", "--steps", 20).code == 2


# ------------------------------------------------------------------------------------------- unusual places


def test_a_terminal_that_cannot_show_a_letter_gets_no_traceback(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    assert cli.main(["list", "presets"]) == 0
    sys.stdout.flush()
    assert b"Sarsa(?)" in written.getvalue()


def test_sixty_four_bits_are_refused_in_one_line(capsys, tmp_path):
    with jax.enable_x64(True):
        ended = faults.call(capsys, "train", *A2C, "--out", tmp_path / "run")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "JAX_ENABLE_X64" in ended.err
    assert not (tmp_path / "run").exists()


def test_the_cache_needs_no_home(monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("SHOAL_CACHE_DIR", str(tmp_path))
    assert compilation.folder() == tmp_path
    monkeypatch.delenv("SHOAL_CACHE_DIR")
    assert compilation.folder().is_relative_to(tempfile.gettempdir())

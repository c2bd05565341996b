"""Optimisers of optax by name: the same steps where the formulas agree, and everything that holds for our own rules."""

from __future__ import annotations

import json
import pathlib
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import shoal
from shoal import experiment
from shoal.core import errors, options, programs, tree
from shoal.environments import probe
from shoal.experiment import presets
from shoal.formulas import from_optax, optimise
from tests import faults
from tests.probes import test_probes as probes

STEPS = 1000
REFUSED = {"optax:lbfgs", "optax:noisy_sgd"}  # they ask for the loss; keep a key


def config(**values):
    return optimise.Config(**({"anneal": False, "max_norm": 0.0, "learning_rate": 1e-2} | values))


def start():
    return {"w": jnp.array([[0.5, -1.0, 0.3], [2.0, 0.1, -0.2]]), "b": jnp.array([1.5, -0.3, 0.7])}


def gradients(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.1, 3.0, leaf.shape), jnp.float32), start())
        for _ in range(count)
    ]


def walk(given, count=50, ask=optimise.PLAIN):
    """Parameters and state after some gradients."""
    optimiser = optimise.local(given, STEPS)
    update = jax.jit(optimiser.update)
    params, state = start(), optimiser.init(start())
    for at, gradient in enumerate(gradients(count)):
        params, state, _ = update(gradient, state, params, jnp.int32(10 * at), ask)
    return params, state


def close(ours, theirs, rtol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), ours, theirs)


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# ------------------------------------------------------------------------------------------------ the steps


@pytest.mark.parametrize("rule", ["adam", "rmsprop"])
@pytest.mark.parametrize("settings", [{"max_norm": 2.0}, {"anneal": True, "decay": 0.9, "epsilon": 0.1}])
def test_it_is_our_rule_where_the_formulas_agree(rule, settings):
    ours = walk(config(rule=rule, **settings))[0]
    close(walk(config(rule=f"optax:{rule}", **settings))[0], ours)
    other = walk(config(rule=f"optax:{rule}", **settings | {"decay": 0.95}))[0]
    assert np.abs(other["w"] - ours["w"]).max() > 1e-4, "the decay is the rule's"


def test_momentum_is_sgd_with_the_rate_of_the_mean():
    """Ours is a mean, optax's a sum: 1 - α times smaller at the same rate."""
    ours = walk(config(rule="momentum", decay=0.9))[0]
    close(walk(config(rule="optax:sgd", learning_rate=1e-3, arguments=("momentum=0.9",)))[0], ours)


def test_arguments_reach_the_rule():
    made = optax.adamw(1e-2, b1=0.8, b2=0.99, eps=1e-5, weight_decay=0.3, nesterov=True)
    params, state = start(), made.init(start())
    for gradient in gradients(50):
        change, state = made.update(gradient, state, params)
        params = optax.apply_updates(params, change)
    arguments = ("b1=0.8", "weight_decay=.3", "nesterov=True")
    close(walk(config(rule="optax:adamw", arguments=arguments))[0], params)


@pytest.mark.parametrize("name", sorted({f"optax:{name}" for name in from_optax.names()} - REFUSED))
def test_every_optimiser_keeps_its_state_in_shape_skips_and_goes_on(name):
    """Also where arithmetic is strict: optax's own is not."""
    given = config(rule=name)
    from_optax.check(name, ())
    optimiser = optimise.local(given, STEPS)
    traces = []

    def counted(*arguments):
        traces.append(None)
        return optimiser.update(*arguments)

    update, good = jax.jit(counted), gradients(1)[0]
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        params, state, _ = update(good, optimiser.init(start()), start(), jnp.int32(0))
        params, state, _ = update(gradients(2)[1], state, params, jnp.int32(0))  # rprop moves once it saw two
        assert not np.array_equal(params["w"], start()["w"])
        bad = good | {"b": jnp.array([1.0, jnp.nan, 0.0])}
        after, kept, norm = update(bad, state, params, jnp.int32(0))
        assert not np.isfinite(norm)
        same((after, kept.rule), (params, state.rule))
        assert (int(state.skipped), int(kept.skipped)) == (0, 1)
        moved, _, _ = update(good, kept, after, jnp.int32(0))
    assert not np.array_equal(moved["w"], after["w"])
    assert (len(traces), update._cache_size()) == (1, 1)
    assert all(leaf.shape == () for leaf in state.hyper)
    tree.sha256(state)  # it can be kept in a checkpoint
    programs._describe(state)  # and beside a program


def test_numbers_change_without_recompilation():
    optimiser = optimise.local(config(rule="optax:adamw", anneal=True, max_norm=1.0), STEPS)
    traces, seen = [], set()

    @jax.jit
    def update(gradient, state, params):
        traces.append(None)
        return optimiser.update(gradient, state, params, jnp.int32(10))

    state, gradient = optimiser.init(start()), gradients(1)[0]
    _, state, _ = update(gradient, state, start())
    for name in state.hyper._fields:
        hyper = state.hyper._replace(**{name: getattr(state.hyper, name) * 0.5})
        params = update(gradients(2)[1], state._replace(hyper=hyper), start())[0]
        seen.add(np.asarray(params["w"]).tobytes())
    assert len(traces) == 1
    assert len(seen) == len(state.hyper)


def test_rates_of_leaves_and_faster_multiply_the_step():
    given = config(rule="optax:lion")
    plain = walk(given, 1)[0]
    rates = {"w": jnp.float32(0.0), "b": jnp.float32(3.0)}
    rated = walk(given, 1, optimise.Step(rates))[0]
    same(rated["w"], start()["w"])
    np.testing.assert_allclose(rated["b"] - start()["b"], 3.0 * (plain["b"] - start()["b"]), rtol=1e-5)
    optimiser = optimise.local(given, STEPS)
    fast = optimise.faster(optimiser.init(start()), 3.0)
    moved = optimiser.update(gradients(1)[0], fast, start(), jnp.int32(0))[0]
    np.testing.assert_allclose(moved["w"] - start()["w"], 3.0 * (plain["w"] - start()["w"]), rtol=1e-5)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("rule", "arguments", "words"),
    [
        ("adma", (), ["optimiser.rule 'adma'", "did you mean 'adam'?", "optax:NAME"]),
        ("optax:adamq", (), ["optimiser.rule 'optax:adamq'", "did you mean 'optax:adam'?", "optax:lion"]),
        ("optax:scale_by_adam", (), ["unknown value of optimiser.rule"]),
        (
            "optax:adamw",
            ("weigt_decay=1",),
            ["'weigt_decay'", "did you mean 'weight_decay'?", "b1, eps_root", "nesterov"],
        ),
        ("optax:adamw", ("weight_decay",), ["as name=value"]),
        ("optax:adamw", ("b1=0.9", "b1=0.8"), ["b1=0.8", "once"]),
        ("optax:adamw", ("b2=0.9",), ["--optimiser.decay"]),
        ("optax:adamw", ("eps=0.9",), ["--optimiser.epsilon"]),
        ("optax:adamw", ("learning_rate=0.9",), ["--optimiser.learning-rate"]),
        ("optax:adamw", ("weight_decay=nan",), ["not a finite number"]),
        ("optax:adamw", ("b1=much",), ["optax:adamw does not work", "TypeError", "--optimiser.arguments"]),
        ("optax:lbfgs", (), ["optax:lbfgs does not work", "value_fn"]),
        ("optax:noisy_sgd", (), ["random key"]),
        ("adam", ("b1=0.9",), ["adam takes none", "optax:NAME"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(rule, arguments, words):
    with pytest.raises(errors.Refused) as caught:
        optimise.check(config(rule=rule, arguments=arguments))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (("a3c", "--env", "CartPole-v1"), ["optax:adamw cannot be shared without locks", "hogwild"]),
        (("gorila", "--env", "CartPole-v1"), ["optax:adamw cannot be applied by a parameter server"]),
        (("batch_linear", "--env", "probe:match"), ["no gradient", "--optimiser"]),
    ],
)
def test_where_no_gradient_is_applied_locally_it_is_refused(typed, words, capsys, tmp_path):
    ended = faults.call(capsys, "train", *typed, "--optimiser.rule", "optax:adamw", "--out", tmp_path / "run")
    assert ended.code == 2
    assert all(word in ended.err for word in words), ended.err
    assert not (tmp_path / "run").exists()


def test_a_rule_that_fails_on_the_parameters_says_so(capsys, tmp_path):
    """sm3 knows no single numbers, and sac's temperature is one."""
    typed = ("sac", "--env", "Pendulum-v1", "--steps", 10, "--optimiser.rule", "optax:sm3", "--out", tmp_path / "run")
    ended = faults.call(capsys, "train", *typed)
    assert ended.code == 2
    assert "optax:sm3 does not work here" in ended.err


# ------------------------------------------------------------------------------------------------ runs


SHORT = (
    "a2c", "--env", "gymnax:CartPole-v1", "--runtime.environments", 4, "--runtime.chunk-steps", 64,
    "--network.hidden", 16, "--optimiser.rule", "optax:adamw", "--optimiser.arguments", "weight_decay=1e-3", "b1=0.8",
    "--eval-episodes", 0,
)  # fmt: skip


def test_stopped_and_resumed_it_reaches_the_same_bits(tmp_path, capsys):
    whole, halved, steps = tmp_path / "whole", tmp_path / "halved", 20_000
    faults.train(capsys, whole, *SHORT, "--steps", steps)
    command = ("train", *SHORT, "--steps", steps, "--out", halved, "--json")
    with faults.Process(*command, SHOAL_SAVE_EVERY=0) as process:
        faults.wait_for_training(process, halved, steps // 4)
        process.signal(signal.SIGTERM)
        stopped = process.ended()
    assert stopped.code == 75, stopped.err
    assert 0 < stopped.json["env_steps"] < steps
    ended = faults.call(capsys, "resume", halved, "--json", "--eval-episodes", 0)
    assert ended.code == 0, ended.err
    assert ended.json["params_sha256"] == faults.summary(whole)["params_sha256"]
    last = [max((folder / "checkpoints").glob("step-*")) / "arrays.bin" for folder in (whole, halved)]
    assert last[0].read_bytes() == last[1].read_bytes()


@pytest.mark.parametrize(("env", "runtime"), [("gymnax:CartPole-v1", "on_device"), ("CartPole-v1", "host")])
def test_seeds_together_are_the_seeds_alone(env, runtime, tmp_path):
    settings = {
        "runtime": runtime, "steps": 2000, "network": {"hidden": (16,)}, "out": tmp_path / "group",
        "optimiser": {"rule": "optax:lion", "learning_rate": 1e-3, "arguments": {"weight_decay": 0.01}},
    }  # fmt: skip
    together = shoal.train("a2c", env=env, seeds=2, **settings)
    alone = shoal.train("a2c", env=env, seed=1, **settings | {"out": tmp_path / "alone"})
    policies = together.runs[1].policy, alone.policy
    close(*(policy.params for policy in policies), rtol=1e-3)


def test_config_json_holds_it_and_older_digests_hold(tmp_path, capsys):
    faults.train(capsys, tmp_path / "run", *SHORT, "--steps", 512)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    optimiser = experiment.from_json(kept).configs["optimiser"]
    assert (optimiser.rule, optimiser.arguments) == ("optax:adamw", ("weight_decay=1e-3", "b1=0.8"))
    plain = presets.resolve(presets.Request("a2c", "probe:match", 100))[0].to_json()
    assert "arguments" not in plain["parts"]["optimiser"], "as before there were any"


def test_a_mapping_becomes_arguments():
    given = {"rule": "optax:adamw", "arguments": {"weight_decay": 1e-4, "nesterov": True, "mu_dtype": "bfloat16"}}
    made = options.build(optimise.Config, given, "optimiser")
    assert made.arguments == ("weight_decay=0.0001", "nesterov=True", "mu_dtype=bfloat16")
    optimise.check(made)
    assert options.build(optimise.Config, options.plain(made), "optimiser") == made


def test_a_program_with_it_is_kept_and_used_again(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SHOAL_PROGRAMS", raising=False)
    monkeypatch.setenv("SHOAL_CACHE_DIR", str(tmp_path / "cache"))
    digests = {}
    for name in ("first", "second"):
        typed = ("train", *SHORT, "--steps", 512, "--out", tmp_path / name, "--quiet")
        assert faults.call(capsys, *typed).code == 0
        digests[name] = faults.summary(tmp_path / name)["params_sha256"]
        times = {path.name: path.stat().st_ino for path in (tmp_path / "cache" / "programs").glob("*.program")}
        assert times
        digests[name] = digests[name], times
    assert digests["first"] == digests["second"]


@pytest.mark.parametrize("rule", ["optax:lion", "optax:adamw"])
def test_a_probe_is_solved(rule):
    learned = probes.learn("a2c", "match", optimiser={"rule": rule, "anneal": True})
    found, true = probes.values(learned, "match")
    np.testing.assert_allclose(found, true, atol=probes.TOLERANCE)
    assert probes.greedy_return(learned) == probe.TRUTHS["match"].optimal_return


def test_optax_is_imported_in_one_file_and_when_it_is_used():
    package = pathlib.Path(shoal.__file__).parent
    found = [
        str(path.relative_to(package)) for path in package.rglob("*.py") if re.search(r"import optax", path.read_text())
    ]
    assert sorted(found) == ["compress/distil.py", "formulas/from_optax.py"]  # a student, and the bridge
    code = (
        "import sys; from shoal.command import cli; from shoal.experiment import wiring\n"
        "from shoal.formulas import optimise; optimise.local(optimise.Config(rule='adam'), 10)\n"
        "assert 'optax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

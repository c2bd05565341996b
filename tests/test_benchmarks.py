from __future__ import annotations

import argparse
import importlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import experiment
from shoal.algorithms import map_propagation
from shoal.core import options, processor, seeds
from shoal.experiment import presets
from shoal.experiment.tuned import teams
from shoal.runs import checkpoint

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
BENCHES = (
    "hogwild", "on_device", "cartpole", "startup", "presets", "map_propagation", "linear", "asynchrony",
    "async_scaling", "robustness", "pong", "gorila", "engines_actor", "accerl", "several", "tune", "population", "pbt",
    "collaborative", "federation_threats", "consensus", "inversion", "membership", "dp_utility", "flower",
)  # fmt: skip


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def _load(name):
    return importlib.import_module(name)


def _record(bench, results, **changes):
    made = _load("_common").record(bench, argparse.Namespace(json=None, quick=False), results)
    return made | {"commit": "0123456789ab", "date": "2025-01-31T12:00:00+00:00"} | changes


def test_a_spread_has_the_median_and_its_extremes_and_null_where_nothing_was_measured():
    common = _load("_common")
    assert common.spread("rate", [3.0, 1.0, 2.0]) == {
        "rate": 2.0,
        "rate_min": 1.0,
        "rate_max": 3.0,
        "rate_repeats": [3.0, 1.0, 2.0],
    }
    assert common.spread("rate", [])["rate"] is None


def test_sides_take_turns():
    order = []
    sides = {name: (lambda name=name: order.append(name) or 1.0) for name in ("ours", "theirs")}
    assert _load("_common").alternate(sides, 2) == {"ours": [1.0, 1.0], "theirs": [1.0, 1.0]}
    assert order == ["ours", "theirs", "ours", "theirs"]


def test_a_side_that_fails_is_given_up_whole():
    answers = iter([1.0, None, 3.0])
    assert _load("_common").alternate({"ours": lambda: 1.0, "theirs": lambda: next(answers)}, 3) == {
        "ours": [1.0, 1.0, 1.0],
        "theirs": [],
    }


def test_ratios_are_taken_round_by_round():
    assert _load("_common").ratios([10.0, 30.0], [5.0, 10.0]) == [2.0, 3.0]
    assert _load("_common").ratios([10.0], []) == []


def test_a_record_says_how_where_and_with_what_it_was_measured():
    arguments = argparse.Namespace(json=Path("x.json"), quick=True, only="a3c", purejaxrl=Path("/somewhere"))
    several = argparse.Namespace(seeds=[0, 1], from_runs=[Path("/somewhere"), Path("/else")])
    assert _load("_common")._command("pong", several) == "shoal bench pong --seeds 0 1 --from-runs DIR DIR"
    made = _load("_common").record("hogwild", arguments, {}, {"sb3": {"error": "does not install"}})
    assert made["command"] == "shoal bench hogwild --quick --only a3c --purejaxrl DIR"  # no path of this machine
    assert made["peers"]["sb3"]["error"] == "does not install"
    assert made["machine"]["cores"] >= 1
    assert set(made["machine"]) == {"cpu", "cores", "memory_gb", "instruction_sets", "accelerator"}
    assert made["versions"]["jax"]


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ("flags : fpu avx avx2 bmi2\n", ["avx2"]),
        ("flags\t\t: amx_tile amx_int8 avx_vnni avx512_vnni avx512f avx2 fma\n",
         ["avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx"]),
        ("flags : avx2 avx512f\nvmx flags : avx_vnni\nflags : avx2\n", ["avx2"]),  # of every processor
        ("Features : fp asimd\n", []),
        ("", []),
    ],
)  # fmt: skip
def test_instruction_sets_are_those_every_processor_has(told, known):
    assert processor.instruction_sets(told) == known


@pytest.mark.parametrize(
    ("more", "shown"),
    [({}, "One, 2 cores"), ({"instruction_sets": []}, "One, 2 cores"),
     ({"instruction_sets": ["avx2", "amx"]}, "One (avx2 amx), 2 cores")],
)  # fmt: skip
def test_a_table_tells_the_instruction_sets_of_records_that_hold_them(more, shown):
    host = {"cpu": "One", "cores": 2, "memory_gb": 8.0, "accelerator": "none"} | more
    startup = _load("_common").RESULTS / "startup.json"
    record = json.loads(startup.read_text()) | {"machine": host}
    assert f" · {shown}, 8 GB, accelerator: none" in _load("table").render(record, "startup")


def test_saving_replaces_the_file_in_one_step(tmp_path):
    path = tmp_path / "results" / "x.json"
    _load("_common").save(path, {"a": 1})
    _load("_common").save(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert list(path.parent.iterdir()) == [path]


def test_the_better_of_a_peers_settings_counts():
    rates = {
        "shoal_1": [50.0, 60.0],
        "shoal_2": [100.0, 90.0],
        "sb3, its own settings, 1 threads": [8.0, 9.0],
        "sb3, our settings, 1 threads": [10.0, 15.0],
        "sb3, our settings, all threads": [1.0, 20.0],
        "threads_2": [55.0, 72.0],
        "impala": [40.0, 49.0],
    }
    results = _load("hogwild").compare(rates)
    assert results["ratio_impala_sb3_repeats"] == [5.0, 49.0 / 9.0]
    assert "impala" not in results["sides"], "which are the peers'"
    assert results["sb3_a2c_steps_per_s"] == 8.5
    assert results["ratio_sb3_repeats"] == [12.5, 10.0]
    assert results["sb3_a2c_ours_steps_per_s"] == 12.5  # the better of the two thread counts
    assert results["ratio_sb3_ours_repeats"] == [10.0, 6.0]
    assert results["scaling_2_repeats"] == [2.0, 1.5]
    assert results["scaling_threads_2_repeats"] == [1.1, 1.2]
    assert results["ratio_pfrl"] is None  # not measured: null, never 0
    assert set(_load("hogwild").MEASURED) <= set(results)


def _run(seed, solved):
    times = {"train_s": 5.0 + seed, "startup_s": 2.0, "wall_s": 9.0}
    scores = {"return_mean": 480.0, "eval_return_mean": 500.0}
    return {"status": "completed", "solved_at_step": solved, "env_steps": 300_000, "commit": "a"} | times | scores


def test_a_run_that_did_not_reach_the_score_counts_with_all_its_steps():
    cartpole = _load("cartpole")
    runs = {"0": _run(0, 100_000), "1": _run(1, None), "10": _run(10, 120_000)}
    results = cartpole.conclude(cartpole.PARTS["a3c"], runs, seeds=10)
    assert (results["solved"], results["of"], results["complete"]) == (2, 3, False)
    assert results["solved_at_step"] == 120_000
    assert results["solved_at_step_iqm"] == pytest.approx((100_000 + 300_000 + 120_000) / 3)


def test_a_stopped_measurement_goes_on_but_never_mixes_code(tmp_path, monkeypatch):
    cartpole, common = _load("cartpole"), _load("_common")
    path = tmp_path / "cartpole.json"
    runs = {"0": _run(0, 1), "1": _run(1, 1) | {"commit": "b"}}
    arguments = argparse.Namespace(json=path, quick=False, seeds=10, fresh=False, any_commit=False)
    common.save(path, cartpole.made(arguments, dict.fromkeys(cartpole.PARTS, runs)))
    monkeypatch.setattr(common, "commit", lambda: "b")
    kept = cartpole.earlier(arguments, wanted=["a3c"])
    assert list(kept["a3c"]) == ["1"]
    assert list(kept["a3c_lstm"]) == ["0", "1"]  # not measured now: left as it is
    arguments.any_commit = True
    assert list(cartpole.earlier(arguments, wanted=["a3c"])["a3c"]) == ["0", "1"]
    arguments.fresh = True
    assert cartpole.earlier(arguments, wanted=["a3c"])["a3c"] == {}


def test_hogwild_measures_every_side_of_its_own(monkeypatch):
    bench = _load("hogwild")
    config = {
        "parts": {"algorithm": {"rollout_length": 32}, "network": {"torso": "mlp", "hidden": [64], "shared": True}}
    }
    monkeypatch.setattr(bench, "shoal", lambda _, workers, __: {"config": config, "env_steps_per_s": 10.0 * workers})
    monkeypatch.setattr(bench, "threads", lambda count, _: 4.0 * count)
    monkeypatch.setattr(bench, "impala", lambda *words: 5.0 + len(words[2:]))
    monkeypatch.setattr(bench._peers.Stand, "start", lambda *_, **__: False)
    results, _ = bench.measure("cartpole", True)
    assert (results["steps_per_s_1"], results["steps_per_s_2"], results["threads_steps_per_s_2"]) == (10.0, 20.0, 8.0)
    assert (results["scaling_2"], results["scaling_threads_2"]) == (2.0, 0.8)
    assert results["impala_steps_per_s"] == 5.0
    monkeypatch.setattr(bench, "WATCHED", 4)
    assert bench.monitoring(False)["cost_repeats"] == pytest.approx([1 / 6] * 4)


def test_pong_and_cartpole_share_a_record_and_one_is_measured_at_a_time(tmp_path, monkeypatch, capsys):
    hogwild, table = _load("hogwild"), _load("table")
    rates = {"shoal_1": [500.0], "shoal_2": [900.0], "sb3, its own settings, 1 threads": [300.0]}
    field = hogwild.compare(rates | {"shoal_2": [1500.0]}) | {"lstm_steps_per_s_2": 1400.0}
    found = {"cartpole": hogwild.compare({}) | {"steps_per_s_2": 7.0}, "atari": hogwild.compare(rates), "field": field}
    monkeypatch.setattr(hogwild, "measure", lambda name, _: (found[name], {name: {"versions": {}}}))
    monkeypatch.setattr(hogwild, "impala", lambda *words: 5.0 + len(words[2:]))
    found["cartpole"] |= {"impala_steps_per_s": 5.0}
    for words in ([], ["--atari"], ["--field"], ["--monitoring"]):
        monkeypatch.setattr(sys, "argv", ["hogwild.py", "--json", str(tmp_path / "x.json"), *words])
        hogwild.main()
    record = json.loads((tmp_path / "x.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == record
    assert record["results"]["steps_per_s_2"] == 7.0
    assert (record["results"]["atari"]["ratio_sb3"], record["results"]["field"]["ratio_sb3"]) == (3.0, 5.0)
    assert (record["command"], record["results"]["atari"]["command"]) == (
        "shoal bench hogwild",
        "shoal bench hogwild --atari",
    )
    assert set(record["peers"]) == {"cartpole", "atari", "field"}
    assert table.problems(record) == []
    assert "Pong, one picture of 42 by 42" in table.render(record, "hogwild")
    assert record["results"]["monitoring"]["command"] == "shoal bench hogwild --monitoring"
    assert "its monitor costs 16.7 % of them (median of 9 rounds" in table.render(record, "hogwild")
    monkeypatch.setattr(sys, "argv", ["hogwild.py", "--field", "--monitoring"])
    with pytest.raises(SystemExit):
        hogwild.main()


def test_on_pong_the_peers_are_also_given_our_network():
    settings = {"rollout_length": 20}, {"torso": "dqn_2013", "hidden": [64, 64], "shared": True}
    sides = _load("hogwild").contenders({"parts": dict(zip(("algorithm", "network"), settings, strict=True))}, (1,))
    assert sides["sb3, our settings, 1 threads"] == {"atari": [84, 4], "threads": 1, "rollout": 20, "small": True}
    assert sides["sb3, its own settings, 1 threads"] == {"atari": [84, 4], "threads": 1}
    assert sides["pfrl, rollout 20"] == {"atari": [84, 4], "workers": 2, "rollout": 20}
    settings[1]["torso"] = "universe"
    sides = _load("hogwild").contenders({"parts": dict(zip(("algorithm", "network"), settings, strict=True))}, (1,))
    own = {"atari": [42, 1], "threads": 1}
    assert sides == {
        "sb3, its own settings, 1 threads": own,
        "sb3, our settings, 1 threads": own | {"rollout": 20, "small": True},
    }


def test_a_peer_that_asks_for_more_keeps_what_it_has(tmp_path, monkeypatch):
    peers, ran = _load("_peers"), []
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    monkeypatch.setattr(peers, "_held", lambda _: False)
    monkeypatch.setattr(peers.venv, "create", lambda folder, **_: (folder / "bin").mkdir(parents=True))
    monkeypatch.setattr(peers.subprocess, "run", lambda command, **_: ran.append(command[-1]))
    for stages in ((("a==1",),), (("a==1",), ("b==2",)), (("a==1",), ("b==2",)), (("c==3",), ("b==2",))):
        monkeypatch.setitem(peers.PEERS, "x", peers.Peer("x.py", stages))
        if stages[0] == ("c==3",):  # something else: from nothing
            monkeypatch.setattr(peers.venv, "create", lambda _, **__: ran.append("new"))
        peers.install("x")
    assert ran == ["a==1", "b==2", "new", "c==3", "b==2"]


# ---------------------------------------------------------------------------------------------- on_device


@pytest.mark.parametrize(
    ("contest", "count", "rollout", "epochs", "minibatches"),
    [
        ("purejaxrl_64", "envs", "NUM_STEPS", "UPDATE_EPOCHS", "NUM_MINIBATCHES"),
        ("rejax_1024", "num_envs", "num_steps", "num_epochs", "num_minibatches"),
    ],
)
def test_both_sides_of_a_speed_do_the_same_work(monkeypatch, contest, count, rollout, epochs, minibatches):
    on_device, common = _load("on_device"), _load("_common")
    given = []
    monkeypatch.setattr(common, "train", lambda *words, **_: given.extend(words) or {"env_steps_per_s": 1.0})
    race = on_device.CONTESTS[contest]
    on_device.ours(race.work, 1000)
    asked = on_device.request(race, 1000)
    asked |= asked.get("settings", {})
    pairs = {
        "--runtime.environments": count,
        "--algorithm.rollout-length": rollout,
        "--algorithm.epochs": epochs,
        "--algorithm.minibatches": minibatches,
    }
    assert {option: given[given.index(option) + 1] for option in pairs} == {
        option: asked[name] for option, name in pairs.items()
    }


def test_the_claim_is_the_smallest_ratio_and_the_better_setting_of_a_peer():
    on_device, off_policy = _load("on_device"), _load("_off_policy")
    results, peers = on_device.earlier(argparse.Namespace(json=None, only=None))
    for name, theirs in {"purejaxrl": 10.0, "purejaxrl_64": 50.0, "purejaxrl_1024": 20.0}.items():
        results["ppo"][name] = on_device.one_contest(on_device.CONTESTS[name], [100.0, 100.0], [theirs, theirs], 1.0)
    results["off_policy"]["sac_shoal"] = {"steps_per_s_repeats": [300.0, 330.0]}
    results["off_policy"]["sac_sb3"] = {"steps_per_s_repeats": [10.0, 11.0]}
    results["off_policy"]["sac_sb3_1"] = {"steps_per_s_repeats": [100.0, 110.0]}
    made = on_device.conclude(results)
    assert (made["ratio_purejaxrl"], made["ratio_rejax"]) == (2.0, None)
    assert made["ratio_sb3_sac_repeats"] == [3.0, 3.0]
    assert made["ratio_sbx_sac"] is None
    assert peers == {}
    assert set(off_policy.blank()) == {f"{a}_{side}" for a in ("sac", "td3") for side in off_policy.NAMES}


def _round(total, cold, start=None, cold_start=None):
    series = {"steps": 1000 if total else None, "train_s": 1.0, "command_s": None, "best_return": 480.0}
    return {"total_s": total, "cold_total_s": cold, "start_s": start, "cold_start_s": cold_start} | series


def test_a_run_that_does_not_reach_the_score_is_longer_than_any_other():
    score = _load("_time_to_score")
    sides = score.blank()
    side = score.SIDES["sbx_ppo"]
    assert sides["sbx_ppo"]["total_s"] is None
    sides["shoal"] = score.one_side(score.SIDES["shoal"], [_round(2.0, 8.0, 1.5, 7.0), _round(4.0, 9.0, 1.5, 7.5)])
    sides["sbx_ppo"] = score.one_side(side, [_round(5.0, 20.0), _round(10.0, 30.0)])
    sides["rejax"] = score.one_side(score.SIDES["rejax"], [_round(1.0, 9.0), _round(None, None), _round(None, None)])
    assert (sides["rejax"]["total_s"], sides["rejax"]["reached"], sides["rejax"]["of"]) == (None, 1, 3)
    assert sides["rejax"]["total_s_repeats"] == [1.0, None, None]
    results = score.conclude(sides)
    assert (results["time_to_475_total_s"], results["best_peer_time_to_475_total_s"]) == (3.0, 7.5)
    assert results["best_peer_to_475"] == "sbx PPO"
    assert results["ratio_time_to_475_repeats"] == [2.5, 2.5]
    assert results["ratio_time_to_475_cold_repeats"] == [2.5, 30 / 9]
    assert (results["warm_start_s"], results["cold_start_s"], results["compile_s"]) == (1.5, 7.25, 5.75)
    json.dumps(results | sides, allow_nan=False)


def test_the_step_of_a_score_counts_whole_steps_of_all_environments(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    reached = _load("_score").reached
    ended = np.array([[True, False], [True, True], [False, True]])
    returns = np.array([[1.0, 9.0], [2.0, 4.0], [9.0, 6.0]])
    assert reached(returns, ended, until=3.0, window=2) == (4, 5.0)  # 1, 2, 4, 6: means 1.5, 3, 5
    assert reached(returns, ended, until=5.5, window=2) == (None, 5.0)
    assert reached(returns, ended, until=1.0) == (None, None)  # fewer than 100 episodes


def test_one_part_is_measured_again_and_the_others_stay(tmp_path):
    on_device, common = _load("on_device"), _load("_common")
    path = tmp_path / "on_device.json"
    arguments = argparse.Namespace(json=path, only="off_policy", quick=False)
    results, _ = on_device.earlier(arguments)
    results |= {"time_to_475": {"shoal": "kept"}, "parts": {"time_to_475": {"commit": "a", "date": "b"}}}
    common.save(path, common.record("on_device", arguments, results, {"rejax": {"error": "does not install"}}))
    kept, peers = on_device.earlier(arguments)
    assert kept["time_to_475"] == {"shoal": "kept"}
    assert kept["parts"] == {"time_to_475": {"commit": "a", "date": "b"}}
    assert peers == {"rejax": {"error": "does not install"}}
    common.save(path, common.record("on_device", arguments, results) | {"quick": True})
    assert on_device.earlier(arguments)[0]["parts"] == {}  # a quick look is never kept


def test_results_of_nothing_have_every_key_and_a_table():
    on_device, table = _load("on_device"), _load("table")
    results, _ = on_device.earlier(argparse.Namespace(json=None, only=None))
    results["parts"]["ppo"] = {"commit": "a", "date": "b"}
    record = _record("on_device", results | on_device.conclude(results))
    assert table.problems(record) == []
    assert "| purejaxrl, its own settings | 4 x 128, 4 x 4 | – | – | – | – |" in table.render(record, "on_device")


# ---------------------------------------------------------------------------------------------- presets


def _scored(seed, score):
    times = {"train_s": 5.0 + seed, "wall_s": 9.0, "command_s": 10.0}
    scores = {"eval_return_mean": score, "return_mean": 480.0, "eval_episodes": 20}
    return {"status": "completed", "env_steps": 500_000, "commit": "a"} | times | scores


def test_a_presets_part_has_its_interval_and_what_was_published():
    presets, table = _load("presets"), _load("table")
    name = "ppo/gymnax:CartPole-v1"
    kept = {part: {} for part in presets.PARTS} | {name: {str(s): _scored(s, 490.0 + s) for s in range(9, -1, -1)}}
    results = presets.conclude(presets.PARTS[name], kept[name])
    assert results["complete"]
    assert results["eval_return_mean_iqm"] == pytest.approx(494.5)
    assert results["eval_return_mean_interval"][0] < 494.5 < results["eval_return_mean_interval"][1]
    assert results["command"] == "shoal train ppo --env gymnax:CartPole-v1 --steps 200000"
    assert list(results["runs"]) == [str(seed) for seed in range(10)]
    record = presets.made(argparse.Namespace(json=None, quick=False), kept)
    assert table.problems(record) == []
    text = table.render(record, "presets")
    assert "| 494 [492, 497] | 480 [480, 480] |" in text
    assert "490 ± 6.12 at 500,000 ([CleanRL, 3 seeds](https://" in text
    assert "Not measured yet: `ppo/gymnax:Acrobot-v1`" in text


def test_the_parts_name_presets_that_exist_and_sources_that_can_be_opened():
    from shoal.experiment import presets as known

    parts = _load("_preset_parts").PARTS
    assert {part.preset for part in parts.values()} <= set(known.PRESETS)
    references = [reference for part in parts.values() for reference in part.references]
    assert all(reference.url.startswith("https://") and reference.steps > 0 for reference in references)


# ---------------------------------------------------------------------------------------------- map_propagation


def _learned(mean, solved=200):
    return {"status": "completed", "mean": mean, "solved_at_episode": solved, "first_hit": 60, "commit": "a"}


def _map_record(kept=None, rest=None):
    bench, parts = _load("map_propagation"), _load("_map_parts")
    units = parts.units()
    runs = {name: {} for name in units} | (kept or {})
    arguments = argparse.Namespace(json=None, quick=False, only=None, fresh=False)
    return bench.made(arguments, units, runs, bench.earlier(arguments) | (rest or {}))


def test_map_propagation_of_nothing_has_every_key_and_a_table():
    table, record = _load("table"), _map_record()
    assert table.problems(record) == []
    text = table.render(record, "map_propagation")
    assert "| `map_propagation` | – *-100 (5.4)* | – *460 (13.9)* | – *128 (24.6)* | – *39.5 (30.5)* |" in text
    json.dumps(record, allow_nan=False)


def test_map_propagation_stands_beside_the_published_numbers():
    bench, table = _load("map_propagation"), _load("table")
    runs = {str(seed): _learned(450.0 + 2 * seed, None if seed else 200) for seed in range(10)}
    one_step = {"0": {"status": "completed", "mean": -1.0, "at": {"5000": -0.5, "7812": -0.125}, "commit": "a"}}
    rates = {"numpy_steps_per_s": [100.0, 200.0], "steps_per_s_1": [1500.0, 2000.0], "steps_per_s_10": [8e3, 1e4]}
    kept = {"table/CartPole/map_propagation": runs, "regression/map_propagation": one_step}
    results = _map_record(kept, {"speed": bench.speeds(rates)})["results"]
    cartpole = results["table"]["CartPole"]
    assert (cartpole["mean"], cartpole["std"]) == (pytest.approx(459.0), pytest.approx(np.std(np.arange(10) * 2.0)))
    assert (cartpole["published_mean"], cartpole["published_std"]) == (459.70, 13.89)
    assert (cartpole["solved"], cartpole["solved_at_episode"]) == (1, 200.0)
    assert cartpole["methods"]["reinforce_team"]["mean"] is None
    assert results["regression"]["map_propagation"]["last_error"] == 0.125, "a reward of -error"
    assert results["ratio_numpy_1_repeats"] == [15.0, 10.0], "round by round"
    assert results["ratio_numpy_10"] == 65.0
    assert "459 (5.74) *460 (13.9)*" in table.render(_record("map_propagation", results), "map_propagation")


def test_the_published_rows_have_the_settings_of_the_authors_code():
    """Whatever the preset has instead."""
    parts = _load("_map_parts")
    for name, settings in parts.PUBLISHED.items():
        env = parts.TASKS[name].env
        asked = presets.Request("map_propagation", env, settings={"algorithm": settings})
        theirs = teams.MAP_TASKS[env.removeprefix("gymnax:")][1]
        assert presets.resolve(asked)[0].configs["algorithm"] == map_propagation.Config(**theirs), name
        assert presets.resolve(asked._replace(settings={}))[0].configs["algorithm"] != map_propagation.Config(**theirs)
        words = parts.units()[f"table/{name}/map_propagation_published"].words
        assert "--algorithm.trace" in words
        assert settings["trace"] in words


def test_map_propagation_counts_episodes_from_one():
    bench = _load("map_propagation")
    returns = np.concatenate([np.zeros(50), np.full(150, 500.0)])
    assert bench.solved(returns, 500.0) == {"solved_at_episode": 150, "first_hit": 51}
    assert bench.solved(returns, 501.0) == {"solved_at_episode": None, "first_hit": None}
    batches = np.repeat(np.arange(1200.0), 128)
    assert bench.window(batches, 1100) == pytest.approx(np.mean(np.arange(100, 1100)))


def test_map_propagation_draws_its_cost(tmp_path):
    cost = _load("_map_cost")
    results = cost.blank()
    for one in results.values():
        for method in cost.METHODS:
            one[method] |= {"update_ms": 0.5, "temporary_kb": 100.0}
    cost.draw(results, tmp_path / "images" / "cost.svg")
    text = (tmp_path / "images" / "cost.svg").read_text()
    for words in (*cost.METHODS, "milliseconds an update", "hidden layers of 64 units", ">1024<"):
        assert words in text
    assert set(cost.shapes(quick=True)) < set(results)


def test_map_propagation_goes_on_where_it_was(tmp_path, monkeypatch):
    bench, common, parts = _load("map_propagation"), _load("_common"), _load("_map_parts")
    units, asked = parts.units(), []
    begun, new = "table/LunarLander/map_async", "table/Acrobot/map_async"
    kept = {name: {} for name in units} | {begun: {str(seed): _learned(1.0) for seed in range(10)}}
    arguments = argparse.Namespace(json=tmp_path / "made.json", quick=False, only=None, fresh=False)
    rest = bench.earlier(arguments)

    def train(unit):
        asked.append((unit.env, unit.method))
        return {str(seed): _learned(float(seed)) for seed in range(unit.seeds)}

    monkeypatch.setattr(bench, "train", train)
    bench.gather(arguments, units, kept, rest, [begun, new])
    assert asked == [("Acrobot", "map_async")]
    record = json.loads(arguments.json.read_text())
    assert record["results"]["parts"][begun]["complete"]
    assert record["results"]["parts"][new]["of"] == 10
    bench.gather(arguments, units, kept, rest, [begun, new])
    assert len(asked) == 1, "nothing is measured twice"
    common.save(arguments.json, record | {"quick": True})
    assert bench.earlier(arguments) == rest, "a quick look is never kept"


# ---------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (0.0412, "0.0412"), (7.128, "7.13"), (475.4, "475"), (113_456.0, "113,000")]
)
def test_numbers_are_shown_with_three_digits_that_matter(value, shown):
    assert _load("_tables.show").number(value) == shown


def test_a_table_shows_the_spread_the_command_and_why_a_peer_is_missing():
    hogwild, table = _load("hogwild"), _load("table")
    results = hogwild.compare({"shoal_1": [50e3, 52e3], "shoal_2": [100e3, 101e3], "sb3, its": [10e3, 10e3]})
    peers = {"sb3": {"versions": {}}, "pfrl": {"error": "does not install: no wheel"}}
    text = table.render(_record("hogwild", hogwild.blank() | results, peers=peers), "hogwild")
    assert "Pong" not in text  # of what was not measured there is no table
    assert "| Shoal `a3c`, 2 workers | 100,000 (100,000 to 101,000) |" in text
    assert "10.1x (10 to 10.1)" in text
    assert "`shoal bench hogwild` · 2025-01-31 · commit 0123456789ab" in text
    assert "pfrl was not measured: does not install: no wheel" in text
    assert "Not a claim" not in text


def test_a_page_is_filled_between_its_marks_and_filling_again_changes_nothing():
    table, common = _load("table"), _load("_common")
    results = {"presets": {"a3c": common.spread("cold_s", [5.0]) | common.spread("warm_s", [3.0])}, "help_s": 0.2}
    page = "before\n<!-- bench:startup -->\nold\n<!-- /bench:startup -->\nafter\n"
    filled = table.fill(page, {"startup": _record("startup", results, quick=True)})
    assert filled.startswith("before\n<!-- bench:startup -->\n| seconds")
    assert filled.endswith("<!-- /bench:startup -->\nafter\n")
    assert "A quick look, not a claim" in filled
    assert table.fill(filled, {"startup": _record("startup", results, quick=True)}) == filled
    assert "Not measured yet" in table.fill(page, {})


def test_a_record_that_lacks_a_key_or_was_quick_is_told():
    table = _load("table")
    record = _record("on_device", {"ratio_purejaxrl": 2.0, "ppo": {"rejax": {}}}, quick=True)
    found = table.problems(record)
    assert "on_device: no 'ratio_rejax' in the results" in found
    assert "on_device: no 'ppo.rejax.peer_compile_s' in the results" in found
    assert "on_device: measured with --quick" in found
    assert "hogwild: no 'machine'" in table.problems({"bench": "hogwild"})


@pytest.mark.parametrize("by_the_verb", [False, True])
def test_what_a_benchmark_runs_ends_with_it(by_the_verb, tmp_path):
    script = tmp_path / "benchmarks" / "long.py"
    script.parent.mkdir()
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(BENCHMARKS)!r})\nimport _common\n"
        "_common.train('a2c', '--env', 'CartPole-v1', '--runtime', 'host', '--steps', 10**9)\n"
    )
    words = ["-m", "shoal", "bench", "long"] if by_the_verb else [str(script)]
    with subprocess.Popen([sys.executable, *words], cwd=tmp_path, stderr=subprocess.DEVNULL) as bench:
        family = [bench.pid]
        while len(family) < (3 if by_the_verb else 2):
            family += _children(family[-1])
            time.sleep(0.02)
        time.sleep(0.2)
        bench.terminate()
        assert bench.wait(30) in (128 + signal.SIGTERM, -signal.SIGTERM)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in family):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()][:1]


def test_linear_sets_several_beside_one_round_by_round():
    bench, table = _load("linear"), _load("table")
    common = _load("_common")
    learned = {
        **common.spread("steps_per_episode", [200.0, 300.0]),
        **common.spread("last_steps_per_episode", [100.0, 120.0]),
        **common.spread("bytes_per_episode", [1000.0, 1000.0]),
    }
    sarsa = {scheme: {str(workers): dict(learned) for workers in bench.WORKERS} for scheme in bench.SCHEMES}
    sarsa["filtered"]["2"]["bytes_per_episode"] = 150.0
    speeds = {(s, w): [100.0 * w, 50.0 * w] for s in bench.SCHEMES for w in bench.WORKERS}
    seconds = {(m, w): [4.0 / w, 8.0 / w] for m in bench.METHODS for w in bench.WORKERS}
    results = bench.conclude(sarsa, speeds, dict.fromkeys(speeds, 0.25), seconds, dict.fromkeys(seconds, 10))
    assert results["filtered_bytes_fraction"] == 0.15
    assert results["sarsa_speed"]["average"]["4"]["ratio_1_repeats"] == [4.0, 4.0]
    assert results["batch"]["lspi"]["2"]["ratio_1"] == 2.0
    record = _record("linear", results)
    assert table.problems(record) == []
    assert "| `filtered`, 2 | 250 (200 to 300) | 110 (100 to 120) | 150 |" in table.render(record, "linear")


def test_racing_is_compared_with_turns(monkeypatch):
    bench, table, common = _load("asynchrony"), _load("table"), _load("_common")
    assert bench.difference([1, 2, 3, 4, 5, 6], [11, 12, 13, 14, 15, 16]) < 0.01
    assert bench.difference([1, 3], [2, 2]) > 0.5

    def train(_, *words):
        solved = None if "--replayable" in words and 1 in words else 60_000
        return {"solved_at_step": solved, "env_steps": 300_000}

    monkeypatch.setattr(common, "train", train)
    scores = bench.scores(2)
    assert (scores["racing"], scores["replayable"]) == ([60_000, 60_000], [60_000, 300_000])
    assert scores["reached"] == {"racing": 2, "replayable": 1}
    measured = ("racing_updates_per_s", "replayable_updates_per_s", "cost")
    rates = dict.fromkeys((key for name in measured for key in common.spread(name, [1.0])), 1.0)
    results = dict.fromkeys(bench.LENGTHS, rates) | {"scores": scores}
    results |= {"bytes_per_update": 19.0, "replay_updates_per_s": 5.0, "replay_equal": True}
    results |= {"replays": [{"tickets": 20_000, "restarts": 1}]}
    results |= common.spread("gradient_us", [60.0]) | common.spread("call_us", [7.0])
    results |= common.spread("context_switches", [3.0])
    record = _record("asynchrony", results)
    assert table.problems(record) == []
    assert "60,000 racing (2 of 2 runs), 180,000 in turns (1 of 2 runs)" in table.render(record, "asynchrony")


def test_a_speed_up_is_what_the_data_allow_times_the_workers():
    scaling = _load("async_scaling")
    runs = {
        "a3c/1": [80_000, 90_000, 100_000],
        "a3c/8": [60_000, 60_000, None],
    }
    kept = {part: {} for part in scaling.PARTS}
    for part, steps in runs.items():
        kept[part] = {str(i): {"solved_at_step": at, "time_s": 1.0, "lag_mean": 7.0} for i, at in enumerate(steps)}
    results = scaling.conclude(kept, seeds=3, most=500_000)
    eight = results["methods"]["a3c"]["workers"]["8"]
    assert (eight["steps"], eight["reached"], eight["of"], eight["published"]) == (60_000, 2, 3, 6.9)
    assert eight["speedup_n"] == 12.0
    assert results["methods"]["a3c"]["data_ratio_8"] == 1.5
    assert results["methods"]["async_q"]["data_ratio_8"] is None
    assert not results["methods"]["a3c"]["complete"]
    assert "`a3c`, 8 | 2 of 3" in _load("_tables.asynchrony").async_scaling(results)


def test_a_band_is_the_longest_range_of_rates_without_a_failure():
    band = _load("robustness").band
    assert band([1.0, 2.0, 4.0, 8.0], [True, True, False, True]) == 1.0
    assert band([1.0, 2.0, 4.0, 8.0], [False, True, True, True]) == 2.0
    assert band([1.0, 2.0], [False, True]) == band([], []) == 0.0


def test_pairs_are_the_same_for_every_method_and_lie_in_the_papers_range():
    bench = _load("robustness")
    assert len(bench.rates()) == 50
    assert bench.rates() == bench.rates()
    assert all(1e-4 <= rate <= 1e-2 for rate in bench.rates())


def test_robustness_counts_passes_falls_and_failures_and_compares_pair_by_pair(tmp_path):
    bench, table = _load("robustness"), _load("table")
    kept = {part: {} for part in bench.PARTS}

    def run(rate, score, best=None):
        return {"rate": rate, "score": score, "best": best, "status": "completed", "train_s": 1.0, "commit": "a"}

    kept["a3c/shared"] = {"0": run(4e-4, 500.0), "1": run(1e-4, 480.0), "2": run(2e-4, 490.0)}
    kept["a3c/rmsprop"] = {"0": run(4e-4, 100.0, 476.0), "1": run(1e-4, None), "2": run(2e-4, 490.0, 480.0)}
    results = bench.conclude(kept, 3, 100_000)
    shared, own = results["methods"]["a3c"]["shared"], results["methods"]["a3c"]["rmsprop"]
    assert shared["rates"] == [1e-4, 2e-4, 4e-4]
    assert (shared["solved_fraction"], shared["band_octaves"], shared["collapsed"]) == (1.0, 2.0, 0)
    assert own["scores"] == [0.0, 490.0, 100.0]
    assert (own["collapsed"], own["band_octaves"]) == (1, 0.0)
    never, lost, learned = run(1e-3, 9.0, 30.0), run(2e-3, 25.0, 60.0), run(3e-3, 200.0, 60.0)
    assert bench.one({"0": never, "1": lost, "2": learned}, 195.0)["collapsed"] == 1
    assert own["less_than_shared"] == (400.0 + 480.0 + 0.0) / 3
    assert results["parts"]["a3c/rmsprop"]["complete"]
    made = _record("robustness", results)
    assert table.problems(made) == []
    assert "`a3c`, rmsprop | 1 of 3" in table.render(made, "robustness")
    bench.draw(results["methods"], tmp_path / "robustness.svg")
    assert "a3c" in (tmp_path / "robustness.svg").read_text()


PONG_HEAD = "env_steps,episode_return,length,worker,wall_s"
PONG_END = {"status": "interrupted", "env_steps": 300, "wall_s": 600.0, "env_steps_per_s": 50.0}


def _pong_run(folder, *changes, preset="ppo", seed=0, summary=PONG_END, **more):
    """A run folder of Pong: -1 for 100 episodes, 1 for 100, then 20; two seconds each."""
    request = presets.Request(preset, "ALE/Pong-v5", seed=seed)
    names = presets.parts(request)
    parts = {
        kind: {"name": names.get(kind)} | options.plain(presets.config(request, kind)) for kind in experiment.kinds()
    }
    for kind, field, value in changes:
        parts[kind][field] = value
    config = {"schema": 2, "preset": preset, "env": "ALE/Pong-v5", "seed": seed, "parts": parts}
    config["steps"] = presets.tuned_for(presets.find(preset), "ALE/Pong-v5").steps
    config["command"] = f"shoal train {preset} --env ALE/Pong-v5 --out {folder}"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | more))
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "status.json").write_text(json.dumps({"heartbeat": 1.8e9}))
    lines = [f"{n},{-1 if n <= 100 else 1 if n <= 200 else 20},1,0,{2.0 * n}" for n in range(1, 301)]
    (folder / "episodes.csv").write_text("\n".join([PONG_HEAD, *lines]) + "\n")
    return folder


def _pong(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["pong.py", *map(str, words)])
    return _load("pong").main()


def test_pongs_runs_are_merged_into_one_record_each_under_what_it_was_given(tmp_path, monkeypatch, capsys):
    table, path = _load("table"), tmp_path / "pong.json"
    plain = [_pong_run(tmp_path / f"s{seed}", seed=seed) for seed in (0, 1)]
    other = _pong_run(tmp_path / "lstm", ("network", "lstm", 256), preset="a3c_paper", steps=1_000)
    assert _pong(monkeypatch, "--from-runs", *plain, "--shared", "--hours", 2.5, "--json", path) == 0
    assert _pong(monkeypatch, "--from-runs", other, "--json", path) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(path.read_text())
    record = json.loads(path.read_text())
    found = record["results"]["presets"]
    assert list(found) == ["ppo", "a3c_paper --network.lstm 256 --steps 1000"]
    part, run = found["ppo"], found["ppo"]["runs"]["1"]
    assert (part["seeds"], part["reached_0"], part["reached_18"]) == (2, 2, 2)
    assert (part["steps_to_0"], part["minutes_to_0"]) == (150, 5.0)
    assert (part["steps_to_18"], part["minutes_to_18"]) == (290, 9.67)
    assert part["curve"]["1"][0] == [100, 200.0, -1.0]
    assert part["curve"]["1"][-1] == [300, 600.0, 20.0]
    assert (run["hours"], run["shared"], run["frames_per_s"], run["date"]) == (2.5, True, 200.0, "2027-01-15")
    assert str(tmp_path) not in path.read_text(), "no path of this machine"
    assert table.problems(record) == []
    shown = table.render(record, "pong")
    assert "| `ppo` | 2 of 2 | 150 | 5 | 2 of 2 | 290 | 9.67 |" in shown
    assert "shared, 2.5 h |" in shown
    assert "its own |" in shown
    line = _load("_tables.lines").pong(record["results"])
    assert "`ppo` 2 of 2 after 290 steps and 9.67 minutes" in line
    drawn = path.with_suffix(".svg").read_text()
    assert "ppo (2 seeds, cores shared)" in drawn
    assert "a random player" in drawn


def test_seeds_that_never_came_there_count_as_never():
    pong = _load("pong")
    run = {"curve": [], "shared": False, "status": "completed", "env_steps": 9, "wall_s": 60.0, "frames_per_s": None,
           "best_mean": None, "last_mean": None, "hours": None}  # fmt: skip
    reached, not_reached = run | dict.fromkeys(pong.REACHED, 5), run | dict.fromkeys(pong.REACHED)
    found = pong.conclude({"a3c": {"10": reached, "9": not_reached, "2": reached}})
    part = found["presets"]["a3c"]
    assert (part["seeds"], part["reached_18"], part["steps_to_18"]) == (3, 2, 5)
    assert list(part["runs"]) == ["2", "9", "10"]
    part = pong.conclude({"a3c": {"0": reached, "1": not_reached}})["presets"]["a3c"]
    assert (part["reached_18"], part["steps_to_18"]) == (1, None)
    assert "`a3c` 2 of 3 after 5 steps" in _load("_tables.lines").pong(found)
    assert "| `a3c`, seed 9 | completed | 9 | 1 | – | – |" in _load("table").TABLES["pong"](found)


def test_a_run_that_was_killed_is_to_be_continued_and_recorded_as_unfinished(tmp_path):
    pong = _load("pong")
    folder = _pong_run(tmp_path / "run", summary=None)
    (folder / "metrics.jsonl").write_text('{"step": 10, "wall_s": 10.0}\n{"step": 400, "wall_s": 620.5}\n')
    assert pong.before(folder) == (False, 620.5)
    assert pong.taken(pong.run_folders.read(folder)) == ("unfinished", 400, 620.5)
    (folder / "summary.json").write_text(json.dumps(PONG_END))  # of an earlier life
    assert pong.taken(pong.run_folders.read(folder)) == ("unfinished", 400, 620.5)
    (folder / "metrics.jsonl").write_text('{"step": 290, "wall_s": 599.0}\n')
    assert pong.taken(pong.run_folders.read(folder)) == ("interrupted", 300, 600.0)
    few = (folder / "episodes.csv").read_text().splitlines()[:50]
    (folder / "episodes.csv").write_text("\n".join(few) + "\n")
    run = pong.run_of(pong.run_folders.read(folder), pong.Limits(None, None))
    assert (run["curve"], run["best_mean"], run["steps_to_0"]) == ([], None, None)
    pong.draw(pong.conclude({"ppo": {"0": run}})["presets"], tmp_path / "few.svg")


def test_a_second_call_trains_what_is_missing_alone(tmp_path, monkeypatch, capsys):
    pong, path, trained = _load("pong"), tmp_path / "pong.json", []

    def train(folder, preset, seed, seconds):
        trained.append((folder.name, seconds))
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            _pong_run(folder, preset=preset, seed=seed)

    monkeypatch.setattr(pong, "train", train)
    monkeypatch.setattr(pong, "draw", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    asked = ("--preset", "ppo", "--hours", 600 / 3600, "--json", path)
    assert _pong(monkeypatch, *asked) == 0
    assert _pong(monkeypatch, *asked, "--seeds", 0, 1, "--folder", "fresh") == 0  # elsewhere: 0 is in the record
    assert trained == [("ppo-0", 600.0), ("ppo-1", 600.0)]
    assert _pong(monkeypatch, *asked) == 0  # its folder is there: the run says itself whether it has time left
    assert trained[2:] == [("ppo-0", 600.0)]
    found = json.loads(path.read_text())["results"]["presets"]["ppo"]
    assert list(found["runs"]) == ["0", "1"]
    assert found["runs"]["0"]["commit"] == _load("_common").commit()
    capsys.readouterr()
    assert pong.settled(found["runs"]["0"], 0.168)
    assert not pong.settled(found["runs"]["0"], 0.2)
    assert _pong(monkeypatch, *asked, "--fresh") == 2
    assert "runs/pong/ppo-0 holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--hours", 0), "--hours 0 is no time"),
        (("--seeds", 0, -1), "--seeds -1 is below 0"),
        (("--from-runs", "nowhere"), "'nowhere' does not exist"),
        (("--from-runs", "run", "--preset", "ppo"), "--preset is for training"),
        (("--from-runs", "run", "again"), "run and again are both ppo, seed 0"),
        (("--from-runs", "cart"), "cart is a run of CartPole-v1"),
        (("--from-runs", "heir"), "heir began from another run"),
        (("--from-runs", "held"), "held is in use by another process"),
        (("--from-runs", "run", "--json", "odd.json"), "odd.json is there and no record of this benchmark"),
    ],
)
def test_mistakes_about_pong_cost_one_line_and_leave_the_record_alone(tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    for name, more in (("run", {}), ("again", {}), ("cart", {"env": "CartPole-v1"}), ("heir", {"start": "ab"})):
        _pong_run(tmp_path / name, **more)
    Path("odd.json").write_text('{"results": {}}')
    with checkpoint.lock(_pong_run(tmp_path / "held")):
        assert _pong(monkeypatch, "--json", "kept.json", *words) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert (said.err.count("\n"), said.out) == (1, "")
    assert not Path("kept.json").exists()
    assert Path("odd.json").read_text() == '{"results": {}}'


def test_the_score_of_a_policy_is_that_of_whole_greedy_episodes(monkeypatch):
    greedy = _load("_greedy")
    monkeypatch.setattr(greedy, "EPISODES", 3)
    monkeypatch.setattr(greedy, "LONGEST", 200)
    made, _ = presets.resolve(presets.Request("a3c", "gymnax:CartPole-v1"))
    parts = experiment.build(made).parts
    state = parts.agent.init(jax.random.key(5))
    policy = parts.agent.snapshot(state)._replace(explore=jnp.float32(0.0))
    act, step = jax.jit(parts.agent.act), jax.jit(parts.device_env.step)
    totals = []
    for key in jax.random.split(seeds.key(0, "evaluation"), 3):
        at, obs = parts.device_env.init(key)
        total, going = 0.0, True
        while going and total < 200:
            at, obs, outcome = step(at, act(policy, (), obs, key)[0], key)
            total, going = total + float(outcome.reward), bool(outcome.discount)
        totals.append(total)
    assert greedy.judge.__wrapped__("a3c")(state.params) == pytest.approx(np.mean(totals))
    assert min(totals) < 200, "an episode ended, or nothing is tested"


def test_gorila_of_nothing_has_every_key_and_a_table():
    gorila, table = _load("gorila"), _load("table")
    made = gorila.made(argparse.Namespace(json=None, quick=False, seeds=10), {name: {} for name in gorila.PARTS})
    assert [problem for problem in table.problems(made) if "gorila" in problem] == []
    assert _load("_tables.asynchrony").gorila(made["results"]).count("\n") > len(gorila.PARTS)


def test_gorila_counts_what_was_not_reached_with_all_its_steps_and_adds_up_lags():
    gorila = _load("gorila")

    def run(solved, lags):
        summary = {
            "env_steps": 90_000, "solved_at_step": solved, "train_s": 10.0, "updates": 1000,
            "server": {"update_us": [10.0, 20.0], "utilisation": [0.1, 0.3], "offered_by_lag": lags},
            "workers": {"lag_mean": 0.5, "lag_max": 3},
            "faults": {"stale": 4, "outlier": 2, "non_finite": 0},
        }  # fmt: skip
        return gorila.told(summary)

    runs = {"0": run(30_000, {"0": 5, "1": 1}), "1": run(None, {"0": 3, "1": 2})}
    found = gorila.conclude(gorila.PARTS["score_2"], runs, 2)
    assert (found["solved"], found["of"], found["complete"]) == (1, 2, True)
    assert found["solved_at_step"] == 60_000
    assert (found["updates_per_s"], found["update_us"], found["utilisation"]) == (100.0, 15.0, 0.2)
    assert found["offered_by_lag"] == {"0": 8, "1": 3}
    assert "1 of 2" in _load("_tables.asynchrony").gorila({"parts": {"score_2": found}})


def test_a_cell_takes_each_sides_better_variant_and_says_how_far_the_choice_is_from_the_best():
    population = _load("population")
    measured = {
        "vmap": 2.0, "sequential": 1.0, "jax_sequential, default": 9.0, "jax_sequential, here": 8.0,
        "torch_batched, 1 thread": 5.0, "torch_batched, all threads": 4.0,
    }  # fmt: skip
    values = {name: [{"ms": scale * ms, "cpu_ms": ms} for scale in (1, 2, 3)] for name, ms in measured.items()}
    found = population.told(values, {"chosen": "vmap", "compile_s": {"vmap": 1.0, "sequential": 1.0}})
    assert (found["auto_ms"], found["within"]) == (4.0, 2.0)
    assert (found["jax_sequential_ms"], found["jax_sequential_as"]) == (16.0, "here")
    assert (found["torch_batched_ms"], found["torch_batched_as"]) == (8.0, "all threads")
    assert found["torch_batched_ms_quartiles"] == [6.0, 10.0]
    assert found["torch_sequential_ms"] is None
    part = population.concluded({"n80": found, "n1": found})
    assert (part["ratio_sequential"], part["ratio_torch_batched"], part["ratio_torch"]) == (4.0, 2.0, None)
    assert (part["within"], part["t80_over_t1"]) == (2.0, 1.0)


def test_sides_of_a_population_are_timed_once_a_round_and_slow_ones_twice():
    population = _load("population")
    calls = {"quick": 0, "slow": 0}

    def ask(name, ms):
        calls[name] += 1
        return {"ms": ms, "cpu_ms": ms}

    population.rounds({"quick": lambda: ask("quick", 1.0), "slow": lambda: ask("slow", 2 * population.SLOW)}, 5)
    assert calls == {"quick": 5, "slow": 2}


def test_tables_of_populations_show_the_choice_and_what_is_missing():
    population, table = _load("population"), _load("_tables.population")
    values = {name: [{"ms": 1.0, "cpu_ms": 1.0}] * 2 for name in ("vmap", "sequential", "torch_sequential")}
    cell = population.told(values, {"chosen": "vmap", "compile_s": {"vmap": 1.0, "sequential": 1.0}})
    cell |= {"chosen": "vmap"}
    results = population.blank()
    results["td3"]["w64"] = population.concluded({"n80": cell, "n1": cell})
    shown = table.population(results)
    assert "| Shoal, vmap | **1** | **1** |" in shown
    assert "TD3, 64 wide" in shown
    assert "SAC" not in shown
    assert "–" in _load("_tables.lines").population(population.blank())


def test_pbt_takes_fresh_evaluations_and_tells_by_how_much_the_fitness_that_selected_is_too_good():
    pbt = _load("pbt")
    runs = {str(seed): {"score": float(seed), "fitness": seed + 2.0} for seed in range(5)}
    found = pbt.aggregate(runs, 5)
    assert (found["iqm"], found["bias"], found["complete"]) == (2.0, 2.0, True)
    task = {name: {} for name in (*pbt.METHODS, pbt.ALONE)}
    assert pbt.conclude("gymnax:Acrobot-v1", task | {"pbt": runs}, 5)["pbt_beats_random"] is None
    worse = {seed: one | {"score": one["score"] - 100.0} for seed, one in runs.items()}
    assert pbt.conclude("gymnax:Acrobot-v1", task | {"pbt": runs, "random": worse}, 5)["pbt_beats_random"]
    assert next(pbt.due(task | {"pbt": runs, "random": runs}, 5)) == ("pbt", 0)  # its schedule is missing
    assert {method for method, _ in pbt.due(task, 5, ["mf_pbt"])} == {"mf_pbt"}
    found = pbt.conclude("gymnax:Acrobot-v1", task | {"pbt": runs, "random": worse}, 5)["pbt_over_random"]
    assert found["iqm"] == 100.0
    assert 95.0 < found["low"] <= 100.0 <= found["high"] < 105.0
    assert pbt.over(runs, {}) == {"iqm": None, "low": None, "high": None}


def test_pbt_tells_how_long_what_is_left_will_take():
    pbt = _load("pbt")
    kept = {env: {name: {} for name in (*pbt.METHODS, pbt.ALONE)} for env in ("a", "b")}
    work = [("a", "pbt", 1), ("a", "mf_pbt", 1), ("a", "random", 1)]
    assert pbt.remaining(kept, work) is None
    kept["a"] |= {
        "pbt": {"0": {"command_s": 10.0}},
        "alone": {"0": {"command_s": 3.0}},
        "random": {"0": {"command_s": 20.0}},
    }
    assert pbt.remaining(kept, work) == 13.0 + 15.0 + 20.0
    assert pbt.remaining(kept, [*work, ("b", "pbt", 0)]) is None


def test_pbt_goes_on_with_what_another_part_has_measured(monkeypatch, tmp_path, capsys):
    """One environment and one method at a time, into one record."""
    pbt, env = _load("pbt"), "gymnax:Acrobot-v1"
    one = {"score": 1.0, "fitness": 2.0, "command_s": 1.0}
    asked = []

    def run(env, method, seed, quick):
        assert not quick
        asked.append((env, method, seed))
        yield method, one
        if method == "pbt":
            yield pbt.ALONE, one

    monkeypatch.setattr(pbt, "run", run)
    for words in (("--only", env, "--arms", "random", "pbt"), ("--only", env), ("--only", "gymnax:Pendulum-v1")):
        monkeypatch.setattr("sys.argv", ["pbt", *words, "--seeds", "2", "--json", str(tmp_path / "pbt.json")])
        pbt.main()
    told = capsys.readouterr()
    found = json.loads((tmp_path / "pbt.json").read_text())["results"]
    assert len(asked) == len(set(asked)) == 12
    assert {name: found["envs"][name]["complete"] for name in found["envs"]} == {env: True, "gymnax:Pendulum-v1": True}
    assert "run 1 of 4, - left" in told.err
    assert "--arms random pbt" in json.loads(told.out.splitlines()[0])["command"]


def test_methods_of_pbt_have_the_same_steps_and_at_least_200_rounds():
    pbt = _load("pbt")
    for env, task in pbt.TASKS.items():
        words = {method: pbt.words(env, method) for method in pbt.METHODS}
        assert len({one[-1] for one in words.values()}) == 1
        assert words["pbt"][-1] // task.members // task.interval > 200
        assert pbt.words(env, pbt.ALONE)[-1] * task.members == words["pbt"][-1]


def test_consensus_tells_the_papers_numbers_and_those_at_equal_steps():
    bench = _load("consensus")
    quick, slow = np.array([100.0, 300.0]), np.array([10.0, 30.0])
    found = bench.numbers([quick, slow])
    assert (found["area"], found["worst"], found["steps_each"], found["episodes"]) == (110.0, 20.0, 40.0, 2)
    run = found | {"owners": [bench._decimated(one) for one in (quick, slow)], "bytes_up": 8}
    # within 40 steps the quick owner has what it had until its first episode, the slow one both of its own
    assert bench.area_at([run], 40.0) == [pytest.approx((100.0 + 20.0) / 2)]
    kept = {name: {} for name in bench.ARMS} | {"alone": {"0": run}, "d5": {"0": run | {"area": 165.0}}}
    told = bench.conclude(kept, 1)
    assert told["auc_ratio_d5"] == 1.5
    assert told["auc_ratio_d2"] is None
    assert told["monotone"] is None
    assert "1.5 (1.33)" in _load("_tables.agreeing").consensus(told)


def test_arms_of_consensus_differ_in_what_is_agreed_on_alone():
    bench = _load("consensus")
    alone = set(map(str, bench.words("alone")))
    for arm in ("d2", "d5", "d20", "d80"):
        more = set(map(str, bench.words(arm))) - alone
        assert more >= {"outputs", "--runtime.distil-every"}
        assert all(word.startswith("--runtime") or not word.startswith("--") for word in more)


@pytest.mark.parametrize("bench", BENCHES)
def test_every_benchmark_has_keys_a_table_and_a_place_on_the_page(bench):
    assert _load(bench).KEYS
    assert bench in _load("table").TABLES
    assert f"<!-- bench:{bench} -->" in (BENCHMARKS / "README.md").read_text()


def test_the_first_page_has_one_line_a_family_and_leaves_tables_to_this_page():
    lines, table = _load("_tables.lines"), _load("table")
    readme = (BENCHMARKS.parent / "README.md").read_text()
    assert "<!-- bench:" not in readme
    shown = re.search(table.LINES, readme)[0].splitlines()[1:-1]
    assert len(shown) == len(lines.LINES)
    assert all(f"(benchmarks/README.md#{line.heading})" in text for line, text in zip(lines.LINES, shown, strict=True))
    assert {line.bench for line in lines.LINES} == set(BENCHES)


def test_a_line_says_what_was_not_measured_and_what_was_only_looked_at():
    lines, table = _load("_tables.lines"), _load("table")
    records = table.committed()
    quick = records | {"gorila": records["gorila"] | {"quick": True}}
    told = dict(zip([line.family for line in lines.LINES], lines.lines(quick), strict=True))
    assert "a quick look, not a claim" in told["Gorila"]
    assert "a quick look" not in told["A3C"]
    assert all("not measured yet (" in line for line in lines.lines({}))
    page = "# A\n<!-- lines -->\n* old\n<!-- /lines -->\nrest\n"
    assert "* old" not in table.fill(page, records)
    assert table.fill(page, records).endswith("<!-- /lines -->\nrest\n")


def test_lines_of_results_of_nothing_have_dashes():
    for line in _load("_tables.lines").LINES:
        if line.bench in ("hogwild", "map_propagation"):
            blank = _load("hogwild").blank() if line.bench == "hogwild" else _map_record()["results"]
            assert "–" in line.say(blank)


def test_the_committed_tables_are_those_of_the_committed_results():
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "table.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_peer_that_fails_is_reported_with_its_own_words(tmp_path, monkeypatch):
    peers = _load("_peers")
    script = tmp_path / "broken.py"
    script.write_text("import sys; sys.exit('no such simulator')")
    monkeypatch.setitem(peers.PEERS, "broken", peers.Peer(str(script), ()))
    with peers.Stand() as stand:
        assert not stand.start("broken")
    assert stand.report["broken"]["error"] == "failed: no such simulator"


def test_a_peer_answers_each_request_with_one_line(tmp_path, monkeypatch):
    peers = _load("_peers")
    script = tmp_path / "echo.py"
    script.write_text(
        "import json, sys\n"
        "print(json.dumps({'versions': {'echo': '1'}}), flush=True)\n"
        "for line in sys.stdin: print(json.dumps({'steps_per_s': json.loads(line)['threads']}), flush=True)\n"
    )
    monkeypatch.setitem(peers.PEERS, "echo", peers.Peer(str(script), ()))
    with peers.Stand() as stand:
        assert stand.start("echo")
        assert stand.rate("echo", threads=2) == 2.0
        assert stand.start("again", peer="echo", script=str(script))  # a second session of the same peer
        assert stand.answer("again", threads=3) == {"steps_per_s": 3}
        stand.note("echo", commit="a")
    assert stand.report == {"echo": {"versions": {"echo": "1"}, "commit": "a"}}


def acted(inference_s, train_s, us, returned=100.0, update_s=1.0):
    """A run of `bench accerl`."""
    actor = {"inference_s": inference_s, "env_s": 1.0, "wait_s": 0.0, "load_s": 0.0, "other_s": 0.0}
    learner = {"wait_s": 0.0, "update_s": update_s, "publish_s": 0.0, "other_s": 0.0}
    return {
        "train_s": train_s, "env_steps": 1000, "inference_us": us, "actor": actor, "learner": learner,
        "publish_share": 0.01, "return_full": returned, "return_compressed": returned, "return_train": returned,
        "kl": 0.0, "area": returned,
    }  # fmt: skip


def test_compressed_actors_are_held_against_the_same_seed_in_full_precision():
    accerl = _load("accerl")
    base = [acted(9.0, 10.0, 900.0), acted(9.0, 12.0, 900.0)]
    ours = [acted(1.0, 2.0, 100.0), acted(1.0, 2.4, 100.0)]
    found = accerl.beside("cartpole_3x2048", ours, base)
    assert found["inference_ratio"] == pytest.approx(9.0)
    assert found["actor_time_ratio"] == pytest.approx(10.0 / 2.0)
    assert found["train_time_reduction"] == pytest.approx(0.8)
    assert found["amdahl_share"] == pytest.approx(0.9)
    assert found["predicted_reduction"] == pytest.approx(1.0 - 2.0 / 10.0), "9 s of 10 become 1 s"
    slow = accerl.beside(
        "cartpole_3x2048", ours, [one | {"learner": one["learner"] | {"update_s": 5.0}} for one in base]
    )
    assert slow["predicted_reduction"] == pytest.approx(0.5), "the learner needs 5 s in any case"


def test_a_return_is_inferior_if_the_interval_reaches_below_five_per_cent():
    accerl = _load("accerl")
    base = [acted(1.0, 1.0, 1.0, returned=122.0)] * 3  # a hundred above chance
    for returns, verdict in (([121.0, 122.0, 123.0], True), ([118.0] * 3, True), ([116.0] * 3, False)):
        ours = [acted(1.0, 1.0, 1.0, returned=each) for each in returns]
        assert accerl.not_inferior("cartpole_3x2048", ours, base)["not_inferior"] is verdict
    assert accerl.not_inferior("pong_nature", base, base)["not_inferior"] is None, "too short to be judged"
    slower = [one | {"area": 116.0} for one in base]
    found = accerl.beside("cartpole_3x2048", slower, base)
    assert (found["not_inferior"], found["area_not_inferior"]) == (True, False), "as good at its end, but later"
    hovering = [one | {"return_full": -2000.0} for one in base]
    assert accerl.not_inferior("lunarlander_2x1024", hovering, base)["not_inferior"] is True, "judged by its training"


def test_compressed_actors_have_a_table_a_task():
    accerl, acting = _load("accerl"), importlib.import_module("_tables.acting")
    runs = {str(seed): acted(1.0, 2.0, 100.0) for seed in range(3)}
    full = {str(seed): acted(9.0, 10.0, 900.0) for seed in range(3)}
    kept = {
        "cartpole_3x2048": {"identity, vtrace": full, "chain, vtrace": runs},
        accerl.COARSE: {"three_bits, none": runs},
    }
    made = accerl.record(argparse.Namespace(quick=True, seeds=2, only=None, json=None), kept)["results"]
    assert made["best_train_time_reduction"] == pytest.approx(0.8)
    told = acting.accerl(made)
    assert "| chain, vtrace | 3 | 9 (9 to 9) | 5 (5 to 5) | 80.0 % (80.0 % to 80.0 %) | 80.0 % |" in told
    assert "| 0 [0, 0] | 0 [0, 0] | yes, yes |" in told
    assert "| three_bits, none | 3 | 100 [100, 100] |" in told
    kept["cartpole_3x2048"]["chain, vtrace"] = {seed: run | {"return_full": 50.0} for seed, run in runs.items()}
    made = accerl.record(argparse.Namespace(quick=True, seeds=2, only=None, json=None), kept)["results"]
    assert made["best_actor_time_ratio"] == 1.0, "to learn worse faster is no gain"
    line = importlib.import_module("_tables.lines").accerl(made)
    assert "take 1x less time (3 seeds, returns not inferior)" in line
    kept["cartpole_3x2048"] |= {
        "identity, tis": {seed: full[seed] for seed in ("0", "1")},
        "chain, tis": {seed: runs[seed] for seed in ("0", "1")},
    }
    made = accerl.record(argparse.Namespace(quick=True, seeds=2, only=None, json=None), kept)["results"]
    assert made["best_actor_time_ratio"] == 1.0, "nor are two runs"


def played(returned, distance):
    """A run of `bench several` whose distances are half that in the first half of the steps."""
    points = [[100.0 * i, distance * (0.5 if i <= 5 else 1.0)] for i in range(1, 11)]
    return {"eval_return_mean": returned, "curves": {"min_distance": points}}


def test_several_policies_are_held_against_their_start_and_against_no_diversity():
    several, table = _load("several"), importlib.import_module("_tables.several")
    kept = {
        "cem_rl": {"0": played(-150.0, 0.2), "1": played(-1100.0, 0.2), "2": played(-160.0, 0.2)},
        "cem_rl_start": {"0": played(-1300.0, 0.0), "1": played(-1200.0, 0.0)},
        "dvd": {"0": played(-150.0, 0.4), "1": played(-170.0, 0.1)},
        "dvd_without": {"0": played(-150.0, 0.1), "1": played(-160.0, 0.2)},
    }
    made = several.conclude(kept)
    evolved, diverse = made["cem_rl"], made["dvd"]
    assert (evolved["better"], evolved["of"]) == (1, 2), "by more than the margin, of the seeds that both have"
    assert evolved["gain_repeats"] == [1150.0, 100.0]
    assert (diverse["further"], diverse["of"]) == (1, 2)
    assert diverse["ratio_repeats"] == pytest.approx([4.0, 0.5])
    assert diverse["distance_max"] == pytest.approx(0.4), "of the second half"
    told = table.several(made)
    assert "| mean policy | 2 |" in told
    assert "| five policies | 2 | 0.25 (0.1 to 0.4) | 0.15 (0.1 to 0.2) | 2.25 (0.5 to 4) | 1 of 2 |" in told
    assert "| after steps | 100 |" in told


def test_a_curve_is_read_at_equal_distances():
    lines = [{"step": 10, "a": 0.0}, {"step": 20}, {"step": 110, "a": 100.0}]
    found = _load("several").curve(lines, "a", 100)
    assert found[0] == [10.0, 0.0]
    assert found[4] == [50.0, pytest.approx(40.0)]
    assert len(found) == 10


def test_a_search_is_recorded_with_what_fresh_seeds_say():
    bench, tables = _load("tune"), importlib.import_module("_tables.tuning")
    side = {"scores": [1.0, 2.0], "iqm": 1.5, "interval": [1.0, 2.0]}
    summary = {
        "trials": 3, "failed": 1, "best": {"score": 9.0, "settings": {"algorithm.discount": 0.9}, "trial": 2},
        "default_score": None, "env_steps": 300, "search_s": 4.0,
        "confirm": {
            "best": side, "default": side, "difference": {"iqm": 0.0, "interval": [-1.0, 1.0]},
            "verdict": "not told apart",
        },
    }  # fmt: skip
    part = bench.told(summary) | {"load": 1.0, "command": "shoal tune", "command_s": 5.0}
    arguments = argparse.Namespace(quick=False, only=None, json=None)
    made = bench.record(arguments, dict.fromkeys(bench.METHODS, part))
    assert _load("table").problems(made) == []
    told = tables.tune(made["results"])
    assert "| `tpe` | 3 | 300 | 4 | 1 | 9 | 1.5 [1, 2] | 1.5 [1, 2] | 0 [-1, 1] | – |" in told
    assert "by `tpe` 0 (-1 to 1)" in _load("_tables.lines").tune(made["results"])


def _course(numbers, level, seeds=3):
    """Three owners who rise to a level, the last one half as far."""
    steps = np.array([0, 100, 200, 300])
    curve = 22.0 + np.array([0.0, 0.5, 1.0, 1.0]) * (level - 22.0)
    returns = np.stack([np.stack([curve, curve, 22.0 + (curve - 22.0) / 2])] * seeds)
    returns += 3.0 * (np.arange(seeds) - (seeds - 1) / 2)[:, None, None]
    study = _load("_owners_study")
    course = study.Course(
        steps=steps, returns=returns, bytes=np.full((seeds, 2), 600), rounds=np.full(seeds, 4),
        lags=np.array([[8, 1]] * seeds), params=(10, 2), simulated_s=steps / 10.0, seconds=1.0, compile_s=1.0,
        kept=None,
    )  # fmt: skip
    return numbers.told(course, "owners:CartPole-same") | {"command": "", "seeds": seeds, "commit": "c"}


def test_areas_go_from_random_to_solved_and_steps_to_the_score_lie_between_evaluations():
    numbers = _load("_owners_numbers")
    assert numbers.area([0, 1, 2], np.array([22.0, 475.0, 475.0]), "owners:CartPole-lengths") == pytest.approx(0.75)
    assert numbers.area([0, 2], np.array([-500.0, -100.0]), "owners:Acrobot-links") == pytest.approx(0.5)
    found = numbers.reached([0, 100, 200], np.array([[0.0, 400.0, 500.0], [0.0, 1.0, 2.0]]), 475.0)
    assert found.tolist() == [175.0, np.inf]
    steps, means = numbers.smoothed([0, 1, 2, 3], np.array([[9.0, 0.0, 0.0, 3.0]]))
    assert (steps.tolist(), means.tolist()) == ([2, 3], [[3.0, 1.0]])
    assert numbers.median([100.0, np.inf, 300.0]) == 300.0
    assert numbers.median([np.inf, np.inf, 1.0]) is None


def test_seeds_are_resampled_in_pairs():
    numbers = _load("_owners_numbers")
    theirs = np.array([10.0, 20.0, 40.0, 80.0])
    found = numbers.ratio(theirs + 1.0, theirs)
    assert found["difference_low"] == found["difference_high"] == pytest.approx(1.0), "what pairs share is no spread"
    assert found["low"] < found["ratio"] < found["high"]
    assert numbers.ratio([1.0], [2.0])["low"] is None
    assert numbers.ratio([], [])["ratio"] is None
    none = numbers.ratio([0.0, 0.1], [0.0, 0.0])
    assert (none["ratio"], none["difference"]) == (None, pytest.approx(0.05)), "nobody left the bottom"


def test_form_a_is_held_against_independent_shared_and_pooled():
    bench, numbers = _load("collaborative"), _load("_owners_numbers")
    arms = {name: _course(numbers, level) for name, level in
            (("A", 480.0), ("independent", 251.0), ("shared", 475.0), ("pooled", 709.0))}  # fmt: skip
    results = bench.conclude({"same": arms, "conflict": {"shared": arms["A"]}}, 3)
    same = results["same"]
    assert same["auc_ratio_independent"] == pytest.approx(2.0, abs=0.01)
    assert same["gap_closed"] == pytest.approx(0.5, abs=0.01)
    assert same["final_vs_shared"] == pytest.approx(3.47, abs=0.1), "means of the last three evaluations"
    assert same["final_not_below_shared"] is True
    assert same["worst_party_ratio"] == pytest.approx(2.0, abs=0.02), "on the scale from random actions to solved"
    assert results["conflict"]["shared"]["solved_parties"] == [0, 0, 0]
    assert results["parts"]["same"]["complete"] is False, "eight parties are missing"
    shown = _load("table").TABLES["collaborative"](results)
    assert "pooled (breaks the boundary)" in shown
    assert "Not measured yet, or not all of it: same," in shown


def test_seconds_to_the_score_are_of_the_simulated_clock():
    bench, numbers, arms = _load("collaborative"), _load("_owners_numbers"), _load("_owners_arms")
    told = bench.conclude({"pace": {"async": _course(numbers, 700.0)}}, 3)
    one = told["pace"]["async"]
    assert one["seconds_to_solved"] == pytest.approx(one["steps_to_solved"] / 10.0, abs=0.1)
    assert (one["staleness"], one["staleness_max"]) == ([24, 3], 1)
    shown = _load("table").TABLES["collaborative"](told)
    assert "ten times slower, as they come" in shown
    assert "--runtime.paces 1 1 1 1 10" in bench.command(arms.PARTS["pace"]["async"])


def test_the_bench_of_owners_of_nothing_has_every_key_and_goes_on_where_it_was(tmp_path):
    bench, table, arms = _load("collaborative"), _load("table"), _load("_owners_arms")
    record = _record("collaborative", bench.conclude({}, 10))
    assert table.problems(record) == []
    assert "–" in _load("_tables.owners").line(record["results"])
    numbers = _load("_owners_numbers")
    done = _course(numbers, 400.0) | {"command": bench.command(arms.PARTS["same"]["A"])}
    other = _course(numbers, 400.0) | {"command": "shoal train something else"}
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"results": bench.conclude({"same": {"A": done, "shared": other}}, 10)}))
    given = argparse.Namespace(quick=False, json=path, fresh=False, arms=None)
    assert list(bench.earlier(given)["same"]) == ["A"], "what was asked for otherwise is measured again"


def test_arms_of_owners_differ_in_what_is_exchanged_and_nothing_else():
    arms, study = _load("_owners_arms"), _load("_owners_study")
    for part in ("same", "similar", "conflict", "forms"):
        for name, arm in arms.PARTS[part].items():
            assert set(arm.settings) <= {"network", "runtime"}, name
            assert set(arm.settings.get("network", {})) <= {"form"}, name
            known = {"exchange", "local_updates", "asynchronous", study.POOLED, "environments"}
            assert set(arm.settings.get("runtime", {})) <= known, name
            assert arm.steps == (100_000 if "Acrobot" in arm.env else 50_000), name
            assert arm.draw == 0
    assert {arm.env for arm in arms.NEWCOMER.values()} == {"owners:CartPole-lengths"}
    assert arms.NEWCOMER["scratch"].draw >= 1000, "an owner whom the teachers never met"


def test_seeds_of_owners_share_a_program_and_nothing_else():
    study, arms = _load("_owners_study"), _load("_owners_arms")
    arm = arms.arm("owners:CartPole-lengths", 2, steps=128)
    both = study.Study(arm, 2).run(1, 1)
    assert both.returns.shape == (2, 2, 2)
    assert both.steps.tolist() == [0, 128]
    assert both.bytes[0].tolist() == both.bytes[1].tolist()
    assert both.rounds.tolist() == [4, 4], "32 steps of a party each"
    assert not np.array_equal(both.kept[1][0], both.kept[1][1]), "a global part of their own"


def _threats(**runs):
    wire = {"of": 10, "faults": {"NaN": "rejected:not_finite"}, "turned_away": 11, "accepted": 0, "crashes": 0}
    kept = {"wire": wire | {"reasons": {"not_finite": 11}, "unchanged": True}, "cost": None, "runs": runs}
    return _load("federation_threats").conclude(kept)


def _returned(*scores):
    return {str(seed): {"score": float(score)} for seed, score in enumerate(scores)}


def test_what_attackers_leave_is_a_share_of_the_same_seeds_without_them():
    threats = _load("federation_threats")
    runs = {threats.CLEAN: _returned(100, 200), "nearest_mixing, zero": _returned(90), "mean, zero": _returned(50, 100)}
    runs |= {"nearest_mixing, scaling": _returned(100, 150), "median": _returned(80, 190)}
    found = _threats(**runs)
    zero = found["attacks"]["zero"]
    assert (zero["robust_fraction"], zero["robust_fractions"]) == (0.9, [0.9])
    assert (zero["mean_fraction"], zero["mean_fractions"]) == (0.5, [0.5, 0.5])
    assert found["attacks"]["scaling"]["robust_fraction"] == pytest.approx(250 / 300)
    assert found["attacks"]["nan"]["mean_fraction"] is None
    assert found["rules"]["median"]["fraction"] == 0.9
    assert (found["robust_fraction"], found["mean_fraction"]) == (pytest.approx(250 / 300), 0.5)
    assert not found["complete"]
    table = _load("_tables.threats").federation_threats(found)
    assert "| zero | 90% | 50% (50% to 50%) |" in table
    assert "Times: not measured yet." in table
    assert "83%" in _load("_tables.lines").federation_threats(found)


def test_threats_are_measured_seed_by_seed_and_nothing_twice():
    threats = _load("federation_threats")
    first = list(threats.due({threats.CLEAN: {"0": {}}}, 2, quick=False))
    assert [seed for _, seed in first] == sorted(seed for _, seed in first)
    assert (threats.CLEAN, 0) not in first
    assert (threats.CLEAN, 1) in first
    assert len(first) == 2 * len(threats.names()) - 1
    told = threats.settings("nearest_mixing, nan")
    assert (told["aggregator"], told["hostile"], told["attack"]) == ("nearest_mixing", 3, ("7:nan", "8:nan", "9:nan"))
    assert "attack" not in threats.settings("median")
    assert "hostile" not in threats.settings("mean, nan")


def test_times_of_a_busy_machine_are_not_taken(monkeypatch):
    threats = _load("federation_threats")
    monkeypatch.setattr(threats.os, "getloadavg", lambda: (50.0, 0.0, 0.0))
    found = threats.cost(1)
    assert found["default_ms"] is None
    assert "busy" in _load("_tables.threats")._cost(found)


def test_nothing_gets_through_the_wire_of_the_bench():
    found = _load("federation_threats").wire(50)
    assert (found["accepted"], found["crashes"], found["unchanged"]) == (0, 0, True)
    assert found["turned_away"] == 50 + len(found["faults"])


# ------------------------------------------------------------------------------------------------ membership


def test_members_are_told_by_how_often_they_score_above_others_of_their_message():
    judged = _load("membership").judged
    others = np.linspace(0.0, 1.0, 101)[None] + np.array([[0.0], [10.0]])  # a message whose scores are all higher
    assert judged(np.array([[2.0], [12.0]]), others) == {"auc": 1.0, "spread": 0.0, "found": 0.5}
    assert judged(np.array([[-1.0], [9.0]]), others)["auc"] == 0.0
    assert judged(np.array([[0.5], [10.5]]), others)["auc"] == pytest.approx(0.5)  # a tie counts half
    rng = np.random.default_rng(0)
    guessed = judged(rng.normal(size=(4000, 2)), rng.normal(size=(4000, 5)))
    assert guessed["auc"] == pytest.approx(0.5, abs=guessed["spread"])
    assert guessed["found"] == pytest.approx(0.01, abs=0.006)


def test_a_segment_is_aligned_with_the_message_made_from_it_and_lies_in_its_span():
    bench, rng = _load("membership"), np.random.default_rng(0)
    found = rng.normal(size=(3, 4, 50))
    scores = bench.cosines(2.0 * found[:, 0] + 1e-3, found)
    assert (scores.argmax(axis=1) == 0).all()
    assert scores[:, 0] == pytest.approx(1.0, abs=1e-4)
    assert (bench.cosines(np.zeros((3, 50)), found) == 0.0).all()
    seen = rng.normal(size=(3, 4, 8, 17))  # of three messages, four candidates of eight steps
    rows = np.concatenate([seen[:, 0], np.ones((3, 8, 1))], axis=-1)
    layer = np.einsum("mti,mtu->miu", rows, rng.normal(size=(3, 8, 64)))
    scores = bench.spanned(layer, seen, 0.0)
    assert scores[:, 0] == pytest.approx(1.0, abs=1e-6)
    assert (scores[:, 1:] < 0.8).all()
    assert bench.spanned(layer, seen, 1e6).max() < 1e-3, "beneath the noise there is no direction"


def test_what_the_private_mode_leaves_is_the_worst_of_its_rows():
    bench = _load("membership")
    who = {"auc": 0.5, "spread": 0.1, "found": 0.01}
    rows = {row.name: {"insider": who, "outsider": who} for row in bench.TABLE}
    rows[bench.PRIVATE[1].name] = {"insider": {"auc": 0.7, "spread": 0.1, "found": 0.2}, "outsider": who}
    told = bench.conclude(rows)
    assert (told["private_auc"], told["private_found"], told["private"]) == (0.7, 0.2, False)
    assert bench.conclude({})["private_auc"] is None
    assert {row.updates for row in bench.PRIVATE} == {32}

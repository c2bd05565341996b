from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
BENCHES = ("hogwild", "on_device", "cartpole", "startup")


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
    made = _load("_common").record("hogwild", arguments, {}, {"sb3": {"error": "does not install"}})
    assert made["command"] == "shoal bench hogwild --quick --only a3c --purejaxrl DIR"  # no path of this machine
    assert made["peers"]["sb3"]["error"] == "does not install"
    assert made["machine"]["cores"] >= 1
    assert made["versions"]["jax"]


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
    }
    results = _load("hogwild").compare(rates)
    assert results["sb3_a2c_steps_per_s"] == 8.5
    assert results["ratio_sb3_repeats"] == [12.5, 10.0]
    assert results["sb3_a2c_ours_steps_per_s"] == 12.5  # the better of the two thread counts
    assert results["ratio_sb3_ours_repeats"] == [10.0, 6.0]
    assert results["scaling_2_repeats"] == [2.0, 1.5]
    assert results["ratio_pfrl"] is None  # not measured: null, never 0
    assert set(_load("hogwild").KEYS) <= set(results)


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
    arguments = argparse.Namespace(json=path, quick=False, seeds=10, fresh=False)
    common.save(path, cartpole.made(arguments, dict.fromkeys(cartpole.PARTS, runs)))
    monkeypatch.setattr(common, "commit", lambda: "b")
    kept = cartpole.earlier(arguments, wanted=["a3c"])
    assert list(kept["a3c"]) == ["1"]
    assert list(kept["a3c_lstm"]) == ["0", "1"]  # not measured now: left as it is
    arguments.fresh = True
    assert cartpole.earlier(arguments, wanted=["a3c"])["a3c"] == {}


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (0.0412, "0.0412"), (7.128, "7.13"), (475.4, "475"), (113_456.0, "113,000")]
)
def test_numbers_are_shown_with_three_digits_that_matter(value, shown):
    assert _load("table").number(value) == shown


def test_a_table_shows_the_spread_the_command_and_why_a_peer_is_missing():
    hogwild, table = _load("hogwild"), _load("table")
    results = hogwild.compare({"shoal_1": [50e3, 52e3], "shoal_2": [100e3, 101e3], "sb3, its": [10e3, 10e3]})
    peers = {"sb3": {"versions": {}}, "pfrl": {"error": "does not install: no wheel"}}
    text = table.render(_record("hogwild", results, peers=peers), "hogwild")
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
    record = _record("on_device", {"ratio_purejaxrl": 2.0, "envs": {"4": {}}}, quick=True)
    found = table.problems(record)
    assert "on_device: no 'ratio_one_pass' in the results" in found
    assert "on_device: no 'envs.4.compile_s' in the results" in found
    assert "on_device: measured with --quick" in found
    assert "hogwild: no 'machine'" in table.problems({"bench": "hogwild"})


@pytest.mark.parametrize("bench", BENCHES)
def test_every_benchmark_has_keys_a_table_and_a_place_on_the_page(bench):
    assert _load(bench).KEYS
    assert bench in _load("table").TABLES
    assert f"<!-- bench:{bench} -->" in (BENCHMARKS / "README.md").read_text()


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
    assert stand.report == {"echo": {"versions": {"echo": "1"}}}

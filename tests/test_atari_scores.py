"""Human-normalised scores: the published aggregates from the shipped table, and the verb that shows them."""

from __future__ import annotations

import importlib.util
import json

import pytest

from shoal.core import errors
from shoal.report import atari
from tests import faults

LISTED = atari.listed_random()


@pytest.mark.parametrize(
    ("column", "instead", "mean", "median", "games"),
    [
        ("a3c_ff_1d", 0.0, 344.13, 68.24, 57),
        ("a3c_ff_4d", 0.0, 496.89, 116.67, 57),
        ("a3c_lstm_4d", 0.0, 623.11, 112.57, 57),
        ("a3c_ff_1d", 20452.0, 262.96, 60.61, 57),
        ("a3c_ff_4d", 20452.0, 346.21, 114.33, 57),
        ("a3c_lstm_4d", 20452.0, 406.31, 104.70, 57),
        ("gorila", 20452.0, 215.25, 71.34, 49),
        ("gorila", 0.0, 268.75, 78.04, 49),
    ],
)
def test_published_aggregates_come_out_with_their_random_scores(column, instead, mean, median, games):
    found = atari.aggregate(atari.column(column), LISTED | {"video_pinball": instead})
    assert found == (pytest.approx(mean, abs=0.01), pytest.approx(median, abs=0.01), games)


def test_the_table_is_as_published_and_nothing_in_it_is_mended():
    table = atari.table()
    assert len(table) == 57
    assert (LISTED["video_pinball"], table["video_pinball"].human) == (20452.0, 15641.1)
    assert set(table["berzerk"].published) == {"a3c_ff_1d", "a3c_ff_4d", "a3c_lstm_4d"}, "Gorila did not report it"


def test_hand_numbers():
    assert atari.normalised(16.0, 1.0, 31.0) == 50.0
    assert atari.normalise({"breakout": 27.9, "pong": -18.0}, LISTED) == {"breakout": 100.0, "pong": 0.0}


def test_what_is_not_in_the_tables_is_refused():
    with pytest.raises(errors.Refused, match="did you mean 'pong'"):
        atari.normalise({"pongg": 1.0}, LISTED)
    with pytest.raises(errors.Refused, match="no random score of pong"):
        atari.normalise({"pong": 1.0}, {})
    with pytest.raises(errors.Refused, match="CartPole-v1"):
        atari.game("CartPole-v1")


def test_ids_of_both_adapters_lead_to_the_table():
    assert atari.game("ALE/UpNDown-v5") == atari.game("envpool:UpNDown-v5") == "up_n_down"
    if importlib.util.find_spec("ale_py"):
        import ale_py.roms

        assert set(atari.table()) <= set(ale_py.roms.get_all_rom_ids())
        ids = {"".join(part.capitalize() for part in name.split("_")): name for name in atari.table()}
        assert {atari.game(f"ALE/{camel}-v5") for camel in ids} == set(atari.table())


# ---------------------------------------------------------------------------------------------- the verb


@pytest.fixture
def pong(tmp_path):
    """Two finished runs on a game."""
    for seed, score in enumerate((15.5, -18.0)):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        config = {"schema": 1, "preset": "dqn", "env": "ALE/Pong-v5", "seed": seed}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "summary.json").write_text(json.dumps({"status": "completed", "eval_return_mean": score}))
    return [tmp_path / "seed-0", tmp_path / "seed-1"]


def test_runs_stand_beside_published_scores(capsys, pong):
    found = faults.call(capsys, "report", *pong, "--atari", "--json").json
    assert [row["human_normalised"] for row in found["runs"]] == [100.0, 0.0]
    assert found["aggregate"] == {"dqn": {"mean": 50.0, "median": 50.0, "games": 1}}, "of the game, over its seeds"
    published = found["runs"][0]["published"]["gorila"]
    assert (published["score"], published["human_normalised"]) == (16.71, pytest.approx(103.61, abs=0.01))
    shown = faults.call(capsys, "report", *pong, "--atari").out
    assert "103.61 %" in shown
    assert "human starts" in shown
    assert not (pong[0] / "report.html").exists()


def test_a_run_that_was_not_evaluated_has_no_score(capsys, pong):
    (pong[0] / "summary.json").write_text(json.dumps({"status": "interrupted", "eval_return_mean": None}))
    found = faults.call(capsys, "report", pong[0], "--atari", "--json").json
    assert (found["runs"][0]["score"], found["aggregate"]) == (None, {})
    assert "no run was evaluated" in faults.call(capsys, "report", pong[0], "--atari").out


def test_presets_are_not_averaged_together_and_other_tasks_are_left_out(capsys, pong):
    for folder, preset, env in ((pong[0], "a3c", "ALE/Pong-v5"), (pong[1].with_name("other"), "a3c", "CartPole-v1")):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"schema": 1, "preset": preset, "env": env, "seed": 0}))
    other = pong[1].with_name("other")
    found = faults.call(capsys, "report", *pong, other, "--atari", "--json").json
    assert {preset: one["mean"] for preset, one in found["aggregate"].items()} == {"a3c": 100.0, "dqn": 0.0}
    assert (len(found["runs"]), found["left_out"]) == (2, [str(other)])
    assert f"no Atari games: {other}" in faults.call(capsys, "report", *pong, other, "--atari").out


def test_other_experiments_of_one_preset_are_not_averaged_together(capsys, pong):
    config = json.loads((pong[1] / "config.json").read_text())
    (pong[1] / "config.json").write_text(json.dumps(config | {"steps": 50_000_000}))
    ended = faults.call(capsys, "report", *pong, "--atari", "--json")
    assert ended.json["aggregate"].keys() == {"dqn (steps null)", "dqn (steps 50000000)"}


def test_without_runs_the_published_aggregates(capsys):
    found = faults.call(capsys, "report", "--atari", "--json").json
    assert found["published"]["original"]["a3c_lstm_4d"]["median"] == pytest.approx(112.57, abs=0.01)
    assert found["published"]["listed"]["gorila"]["mean"] == pytest.approx(215.25, abs=0.01)
    shown = faults.call(capsys, "report", "--atari", "--random", "video_pinball=0").out
    assert "623.11 %" in shown
    assert "406.31 %" not in shown


def test_mistakes_cost_one_line(capsys, pong, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"schema": 1, "preset": "a2c", "env": "CartPole-v1"}))
    for words in (
        (other, "--atari"),
        ("--atari", "--random", "pongg=1"),
        ("--atari", "--random", "pong"),
        ("--atari", "--random", "pong=nan"),
        ("--atari", "--random", "pong=15.5"),  # a human's: there is nothing between the two
        (*pong, "--random", "pong=1"),
        (*pong, "--atari", "--out", tmp_path / "page.html"),
    ):
        ended = faults.call(capsys, "report", *words)
        assert ended.code == 2
        assert len(ended.err.strip().splitlines()) == 1
        assert not ended.out

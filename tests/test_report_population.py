"""The section about populations: what it draws is what the lineage says."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from shoal.report import population
from shoal.report import runs as run_folders
from shoal.report.population import courses, told, tree
from shoal.runtimes.population import chronicle, lineage
from tests.test_lineage import BY_HAND, DISCOUNT, RATE
from tests.test_report import make_run, written

SUMMARY = {
    "members": 3, "best": {"member": 2, "fitness": 7.0}, "mean": 6.5, "spread": 0.5, "min_distance": 0.25,
    "exchanges": 2, "devices": 2, "member_steps_per_s": 12345.0, "measuring_s": 0.925, "compilations": 3,
    "compilations_after_first_exchange": 0, "bytes_per_member": 115000,
    "dispatch": {"mode": "map", "block": 4, "candidates": [
        {"mode": "vmap", "block": 3, "seconds": 0.25, "compiling_s": 40.0},
        {"mode": "map", "block": 4, "seconds": 0.125, "compiling_s": 20.0},
    ]},
}  # fmt: skip
RUNTIME = {
    "name": "population", "members": 3, "exchange": "truncation", "interval": 1000, "episodes": 10, "fraction": 0.4,
    "copy": "policy", "explore": "resample", "factors": [0.8, 1.25], "intervals": [1, 10],
    "prior": [f"{RATE}=log_uniform(0.01,1)", f"{DISCOUNT}=uniform(0.9,1)"],
}  # fmt: skip
END = chronicle.measured(300, 3000, np.array([6.0, np.nan, 8.0]))


def make(path, events=(*BY_HAND, *END), summary=SUMMARY, runtime=RUNTIME, **more):
    make_run(path, preset="pbt_ppo", env="gymnax:CartPole-v1", steps=9000, population=summary, **more)
    config = json.loads((path / "config.json").read_text())
    config["parts"]["runtime"] = runtime
    (path / "config.json").write_text(json.dumps(config))
    journal = lineage.Lineage()
    journal.add(events)
    journal.write(path, {})
    return path


@pytest.fixture
def one(tmp_path):
    return make(tmp_path / "one")


def test_one_population_shows_what_its_files_hold(one, tmp_path):
    _, page = written(tmp_path, one)
    for shown in (
        population.TITLE, "Members 3 115 kB each", "Best fitness 7 member 2; fresh episodes: 496.5",
        "Mean fitness 6.500 ± 0.500",
        "Exchanges 2 truncation, 3 times a member took over", "Computed by map blocks of 4, on 2 devices",
        "Steps of members 12,345 / s 20 % of the time measures fitness",
        "Programs compiled 3 0 of them after the first exchange", "Members replaced, not finite 1",
        "the ancestry of member 2, which won", "vmap 250 ms 40.0 s", "map, blocks of 4 125 ms 20.0 s chosen",
        "optimiser.learning_rate log-uniform 0.01, 1 0.1 0.5", "algorithm.discount uniform 0.9, 0.9999 0.9 0.9",
        "fraction 0.4", "smallest distance of two policies 0.25", "members in the winner's ancestry 3",
    ):  # fmt: skip
        assert shown in page.said, shown
    assert "intervals [1, 10]" not in page.said.partition("Configuration")[0], "of another exchange"


def test_the_tree_draws_every_takeover_and_the_winners_ancestry(one):
    history = told.history(run_folders.read(one))
    assert [round.steps for round in history.rounds] == [3000, 6000, 9000], "of all members together"
    assert [dict(round.source) for round in history.rounds] == [{2: 0}, {0: 2, 1: 0}, {}]
    assert history.ancestry == [(0, 0), (6000, 1), (7500, 2)]
    assert history.failures == [(7500, 2)]
    drawn = str(tree.figure(history))
    assert drawn.count("member 2 was not finite and was replaced at step 7,500") == 2, "wide and narrow"
    kin = re.findall(r'<path d="([^"]*)" class="kin"', drawn)
    assert [path.count("M") for path in kin] == [3, 3]
    winning = re.findall(r'<path d="([^"]*)" class="winning"', drawn)
    assert [(path.count("C"), path.count("H")) for path in winning] == [(2, 3), (2, 3)]
    lefts = {
        float(left)
        for path in re.findall(r'<path d="([^"]*)" class="cell', drawn.partition("narrow")[0])
        for left in re.findall(r"M([0-9.]+) ", path)
    }
    assert sorted(lefts) == [50.0, pytest.approx(315.3, abs=0.1), pytest.approx(580.7, abs=0.1)], "one after the other"
    cells = sum(path.count("M") for path in re.findall(r'<path d="([^"]*)" class="cell', drawn))
    assert cells == 2 * 9, "three members, three intervals"
    assert 'class="cell unfit"' in drawn


def test_colours_go_from_the_worst_to_the_best(one):
    history = told.history(run_folders.read(one))
    levels = tree.edges(history)
    assert (levels[0], levels[-1]) == (3.0, 8.0)
    places = [tree._level(value, levels) for value in (3.0, 4.0, 5.0, 6.0, 7.0, 8.0)]
    assert places == sorted(places)
    assert (places[0], places[-1]) == ("fit0", "fit7")
    assert tree._level(float("nan"), levels) == "unfit"


def test_schedules_are_the_winners(one):
    history = told.history(run_folders.read(one))
    assert courses.along(history, RATE) == ([0, 6000, 7500], [0.1, 0.11, 0.5])
    x, y = courses._stairs(np.array([0.0, 6000.0]), np.array([1.0, 2.0]), 9000)
    assert (x.tolist(), y.tolist()) == ([0, 6000, 6000, 9000], [1, 1, 2, 2])
    drawn = "".join(map(str, courses.schedules(history)))
    assert "0.1 → 0.5, 2 changes" in drawn
    assert "<h3>optimiser, learning rate</h3>" in drawn
    assert [name for name in ("0.01", "0.1", "1") if f">{name}</text>" in drawn] == ["0.01", "0.1", "1"], "decades"


def test_fitness_is_drawn_of_all_members(one):
    drawn = str(courses.fitness(told.history(run_folders.read(one))))
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', drawn).group(1))
    curves = {one["name"]: (one["x"], one["y"]) for one in data["series"]}
    assert curves["best"] == ([3000, 6000, 9000], [5, 7, 8])
    assert curves["mean"] == ([3000, 6000, 9000], [4, 6.5, 7])
    assert curves["member 1"] == ([3000], [4]), "where there is no fitness there is no point"


def test_of_several_there_is_a_table(one, tmp_path):
    other = make(tmp_path / "other", seed=1, runtime={**RUNTIME, "exchange": "mf_pbt"})
    _, page = written(tmp_path, one, other)
    assert "3 truncation 7 496.5 ± 4.1" in page.said
    assert "3 mf-pbt 7 497.5 ± 4.1" in page.said
    assert "Family tree" not in page.said


def test_a_run_under_way_or_with_a_lost_lineage_is_still_shown(tmp_path):
    going = make(tmp_path / "going", events=BY_HAND)
    (going / "summary.json").unlink()
    _, page = written(tmp_path, going)
    assert "Members 3" in page.said
    assert "Best fitness not measured" in page.said
    assert "Family tree" in page.said
    lost = make(tmp_path / "lost")
    (lost / "lineage.jsonl").write_text("no event\n")
    _, page = written(tmp_path / "second", lost)
    assert "missing or damaged, so no tree is drawn" in page.said
    assert "Best fitness 7" in page.said


def test_before_the_first_exchange_nothing_breaks(tmp_path):
    young = make(tmp_path / "young", events=BY_HAND[:3], summary={"members": 3})
    _, page = written(tmp_path, young)
    assert "Family tree" in page.said
    assert "Nothing was measured yet." in page.said


def test_sub_populations_are_parted(tmp_path):
    events = [chronicle.Event("init", 0, 0, member, hyperparameters={RATE: 0.1}) for member in range(8)]
    events += chronicle.measured(10, 100, np.arange(8.0))
    found = make(
        tmp_path / "mf", events=events, runtime={**RUNTIME, "exchange": "mf_pbt", "intervals": [1, 10, 25, 50]}
    )
    history = told.history(run_folders.read(found))
    assert history.apart == 4
    assert str(tree.figure(history)).count('class="rule"') == 2


def test_other_runs_have_no_such_section(tmp_path):
    _, page = written(tmp_path, make_run(tmp_path / "plain"))
    assert population.TITLE not in page.said


def test_runs_on_different_schedules_are_different_experiments(tmp_path):
    folders = []
    for name, value in (("a", 0.1), ("b", 0.2), ("c", None)):
        path = make_run(tmp_path / name)
        config = json.loads((path / "config.json").read_text())
        if value is not None:
            config["schedule"] = [[0, {RATE: 1.0}], [100, {RATE: value}]]
        (path / "config.json").write_text(json.dumps(config))
        folders.append(path)
    content, _ = written(tmp_path, *folders)
    assert len(set(re.findall(r"schedule 1 change \([0-9a-f]{6}\)", content))) == 2
    assert "schedule null" in content
    assert "[[0," not in content

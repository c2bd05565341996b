"""The section about parties: what it draws is what the files of the run say."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from shoal.report import closing, comparison, federation, groups
from shoal.report import runs as run_folders
from shoal.report.federation import cards, courses, rounds, told
from tests.test_report import make_run, written

SUMMARY = {
    "rounds": 4, "failed_rounds": 1, "participation": {"min": 0.5, "mean": 0.75}, "form": "A", "mode": "gradient",
    "aggregator": "trimmed_mean", "bytes_up": 6000, "bytes_down": 9000, "global_params": 4482, "local_params": 130,
    "staleness": {"median": 0, "max": 2}, "dropped_stale": 1, "rejected": {"norm": 2, "not_finite": 1},
    "clip_fraction": 0.25, "update_norm": {"median": 0.5, "max": 4.25}, "epsilon": 3.189, "epsilon_rdp": 3.5,
    "privacy_warning": "four owners are few", "delta": 1e-5,
    "privacy_unit": "trajectory", "max_epsilon": 8.0,
    "parties": [
        {"name": "north", "env": "owners:CartPole-lengths/0", "env_steps": 4000, "return": 90.0, "evaluation": 100.0},
        {"name": "south", "env": "owners:CartPole-lengths/1", "env_steps": 4000, "return": 40.0, "evaluation": 50.0},
    ],
}  # fmt: skip
RUNTIME = {
    "name": "federated", "parties": 2, "exchange": "gradient", "asynchronous": True, "local_updates": 10,
    "noise": 10.0, "paces": [1.0, 5.0],
}  # fmt: skip
AUDIT = (  # direction, party, round, outcome, lag
    ("up", 0, 1, "ok", 0), ("up", 1, 1, "ok", 1), ("down", 0, 1, "ok", 0), ("up", 0, 2, "ok", 2),
    ("up", 1, 2, "rejected:norm", 0), ("up", 0, 3, "ok", 0), ("up", 1, 3, "rejected:late", 0), ("up", 0, 4, "ok", 0),
    ("up", 1, 4, "skipped", 0),
)  # fmt: skip
RETURNS = ((0, 10.0, 20.0), (2000, 80.0, 30.0), (4000, 100.0, 50.0))


def make(path, *, summary=SUMMARY, runtime=RUNTIME, preset="collab_dqn", seed=0, returns=RETURNS, audit=AUDIT):
    make_run(path, preset=preset, env="owners:CartPole-lengths", steps=8000, seed=seed, federation=summary)
    config = json.loads((path / "config.json").read_text())
    config["parts"]["runtime"] = runtime
    (path / "config.json").write_text(json.dumps(config))
    files = {
        "audit.jsonl": [
            dict(zip(("direction", "party", "round", "outcome", "lag"), one, strict=True)) for one in audit
        ],
        "parties.jsonl": [{"env_steps": at, "returns": list(each)} for at, *each in returns],
        "ledger.jsonl": [{"party": 0, "turn": at, "epsilon": 0.5 * (at + 1)} for at in range(6)],
    }
    for name, lines in files.items():
        (path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def one(tmp_path):
    return make(tmp_path / "one")


def test_one_federation_shows_what_its_files_hold(one, tmp_path):
    _, page = written(tmp_path, one)
    for shown in (
        federation.TITLE, "Parties 2 form A, 4,482 global and 130 local parameters",
        "Mean over the parties 75 greedy episodes of every party", "Worst party 50 party south",
        "Rounds 4 gradient, asynchronous, trimmed mean, 1 failed",
        "Sent up 6 kB 1 kB a party and round", "Sent down 9 kB 1.5 kB a party and round",
        "Epsilon spent 3.189 4.5 of 8 left; at delta 1e−5; unit: one trajectory", "Four owners are few.",
        "Messages rejected 3 2 norm, 1 not finite", cards.SENTENCE,
        "north owners:CartPole-lengths/0 4,000 90 100 4 0 0 0", "south owners:CartPole-lengths/1 4,000 40 50 1 1 1 1",
        "Who took part in which round", "Staleness of the updates applied", "budget 8",
        "(simulated DP, no protection)", "Simulated: how slow each party is", "updates that were clipped 25 %",
        "norm of an update, most 4.25", "job of each party", "environment steps of a party",
    ):  # fmt: skip
        assert shown in page.said, shown


def test_of_rounds_it_is_told_who_took_part(tmp_path):
    _, page = written(tmp_path, make(tmp_path / "one", runtime={**RUNTIME, "asynchronous": False}))
    assert "Rounds 4 gradient, trimmed mean, 75 % take part, 1 failed" in page.said
    assert "share of the parties in a round, least 50 %" in page.said
    counted = {**SUMMARY, "participation_min": 1, "participation_mean": 1.5}
    del counted["participation"]
    _, page = written(
        tmp_path / "more", make(tmp_path / "two", summary=counted, runtime={**RUNTIME, "asynchronous": False})
    )
    assert "75 % take part" in page.said, "as the server counts them"


def test_curves_are_those_of_every_party_their_mean_and_whichever_is_worst(one):
    drawn = "".join(map(str, courses.returns(run_folders.read(one))))
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', drawn).group(1))
    curves = {each["name"]: (each["x"], each["y"]) for each in data["series"]}
    assert curves["north"] == ([0, 2000, 4000], [10, 80, 100]), "environment steps of one party"
    assert curves["mean"] == ([0, 2000, 4000], [15, 55, 75])
    assert curves["worst"] == ([0, 2000, 4000], [10, 30, 50]), "first the one, then the other"


def test_without_evaluations_the_episodes_of_each_party_are_drawn(tmp_path):
    path = make(tmp_path / "one", returns=())
    (path / "episodes.csv").write_text(
        "env_steps,episode_return,length,worker,wall_s\n200,10,9,0,1\n400,30,9,1,2\n600,20,9,0,3\n"
    )
    x, y = told.episodes(run_folders.read(path), 0)
    assert (x.tolist(), y.tolist()) == ([100, 300], [10, 15]), "half of the steps of both, its own episodes alone"
    (path / "parties.jsonl").unlink()
    _, page = written(tmp_path, path)
    assert "Return of every party" in page.said


def test_steps_of_who_learns_from_all_owners_at_once_are_divided_too(tmp_path):
    path = make_run(tmp_path / "pooled", preset="pooled", env="owners:CartPole-lengths")
    config = json.loads((path / "config.json").read_text())
    config["parts"]["environment"] = {"parties": 5}
    (path / "config.json").write_text(json.dumps(config))
    assert run_folders.read(path).parties == 5
    (path / "config.json").write_text(json.dumps(config | {"env": "owners:CartPole-lengths/2"}))
    assert run_folders.read(path).parties == 1, "one owner's alone"


def test_what_breaks_the_boundary_says_so_on_its_page_and_at_its_end(tmp_path):
    text = "pooled breaks the boundary between owners"
    path = make_run(tmp_path / "pooled", preset="pooled", env="owners:CartPole-lengths", caution=text)
    _, page = written(tmp_path, path)
    assert "Pooled breaks the boundary between owners." in page.said
    assert text in closing.text(json.loads((path / "summary.json").read_text()), path)
    plain = make_run(tmp_path / "shared", preset="shared", env="owners:CartPole-lengths")
    assert "caution" not in closing.text(json.loads((plain / "summary.json").read_text()), plain)


def test_the_last_screen_names_a_command_that_can_be_typed_as_it_stands(tmp_path):
    path = make_run(tmp_path / "my run", preset="shared", env="owners:CartPole-lengths")
    summary = json.loads((path / "summary.json").read_text()) | {"status": "interrupted", "stopped_by": "SIGINT"}
    assert f"shoal resume '{path}'" in closing.text(summary, path)


def test_the_last_screen_says_where_restarts_are_told_of(tmp_path):
    path = make_run(tmp_path / "run", preset="shared", env="owners:CartPole-lengths")
    summary = json.loads((path / "summary.json").read_text()) | {"faults": {"restarts": 2}}
    assert "2 restarts; faults.log tells why" in closing.text(summary, path), "one that was killed leaves no traceback"


def test_the_last_screen_says_how_many_took_part_and_who_did_worst(one):
    summary = json.loads((one / "summary.json").read_text())
    summary["federation"] |= {"owners": 2, "evaluation": {"worst": 50.0, "worst_party": "south"}}
    assert re.search(r"parties +2, 4 rounds, worst 50\.0 \(party south\), 4 kB a round, 1 rounds? failed",
                     closing.text(summary, one))  # fmt: skip
    summary["federation"] |= {"evaluation": None, "rounds": 0, "failed_rounds": 0}
    assert re.search(r"parties +2, nothing exchanged\n", closing.text(summary, one))


def test_rounds_say_who_counted_was_late_and_was_refused(one):
    found = rounds.taken(told.messages(run_folders.read(one)), 2, 120)
    assert found.edges.tolist() == [1, 2, 3, 4, 5]
    assert found.counted.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert found.refused.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0]]
    assert found.late.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]
    assert found.idle.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]
    halves = rounds.taken(told.messages(run_folders.read(one)), 2, 2)
    assert halves.counted.tolist() == [[1, 1], [0.5, 0]]
    drawn = str(rounds.figure(run_folders.read(one)))
    assert drawn.count('class="cell refused"') == drawn.count('class="cell late"') == 2, "wide and narrow"
    assert rounds.taken(told.messages(run_folders.read(one))._replace(party=np.full(8, 9)), 2, 5) is None


def test_staleness_is_counted_of_what_was_applied(one, tmp_path):
    assert told.lags(run_folders.read(one)) == {"0": 3, "1": 1, "2": 1}
    listed = make(tmp_path / "listed", summary={**SUMMARY, "staleness": [7, 0, 2, 0, 0]})
    assert told.lags(run_folders.read(listed)) == {"0": 7, "1": 0, "2": 2}, "as the server counts them"


def test_what_was_spent_is_of_the_party_that_spent_most(one):
    with (one / "ledger.jsonl").open("a") as file:
        file.write(json.dumps({"party": 1, "turn": 1, "epsilon": 1.75}) + "\n" + '{"party": 1, "tu')
    releases, spent = told.spending(run_folders.read(one))
    assert (releases.tolist(), spent.tolist()) == ([1, 2, 3, 4, 5, 6], [0.5, 1.75, 1.75, 2.0, 2.5, 3.0])


def test_parties_of_different_kinds_have_no_mean_and_a_chart_each(tmp_path):
    owners = [{**one, "env": f"{env}-v1"} for one, env in zip(SUMMARY["parties"], ("CartPole", "Acrobot"), strict=True)]
    path = make(tmp_path / "one", summary={**SUMMARY, "parties": owners})
    run = run_folders.read(path)
    assert not told.comparable(run)
    assert cards.levels(run) is None
    _, page = written(tmp_path, path)
    assert "Mean and worst party not measured parties have environments of different kinds" in page.said
    assert re.findall(r"<h3>(north|south): return</h3>", str(courses.returns(run)[0])) == ["north", "south"]


def test_parties_that_send_nothing_have_no_rounds(tmp_path):
    path = make(tmp_path / "one", runtime={"name": "federated", "parties": 2, "exchange": "none"},
                summary={"mode": "none", "parties": SUMMARY["parties"]}, audit=())  # fmt: skip
    _, page = written(tmp_path, path)
    assert "Messages none every party learns alone" in page.said
    assert "Who took part" not in page.said
    assert "Worst party 50" in page.said


def test_several_are_a_row_each_experiment_and_steps_are_those_of_a_party(one, tmp_path):
    more = [make(tmp_path / f"more{seed}", seed=seed) for seed in (1, 2)]
    alone = make(tmp_path / "alone", preset="independent", summary={"mode": "none", "parties": SUMMARY["parties"]},
                 runtime={**RUNTIME, "exchange": "none"})  # fmt: skip
    _, page = written(tmp_path, one, *more, alone)
    assert "collab_dqn on owners:CartPole-lengths, 3 seeds 2 form A gradient" in page.said
    assert "independent on owners:CartPole-lengths, seed 0 2" in page.said
    assert "The worst party" in page.said
    found = groups.split(run_folders.read_all([one, alone]))
    assert groups.steps_of(found) == "each"
    assert groups.learning(found[0].runs[0], "each").x[-1] == groups.learning(found[0].runs[0], "step").x[-1] / 2
    assert groups.column(found[0].runs[0], "each")[-1] == 4000


def test_a_comparison_of_presets_is_drawn_over_the_steps_of_a_party(tmp_path):
    for name in ("collab_dqn", "independent"):
        for seed in (0, 1):
            make(tmp_path / "both" / name / f"seed-{seed}", preset=name, seed=seed)
    config = {"comparison": ["collab_dqn", "independent"], "env": "owners:CartPole-lengths", "seeds": [0, 1],
              "steps": 8000, "solved_at": None, "command": "shoal compare"}  # fmt: skip
    (tmp_path / "both" / "config.json").write_text(json.dumps(config))
    comparison.write(tmp_path / "both", comparison.summary(tmp_path / "both"))
    page = (tmp_path / "both" / "report.html").read_text()
    assert "4,000 of each of 2 parties" in page
    assert "environment steps of a party" in page
    assert "<h2>The parties</h2>" in page
    assert "environment steps of a party" in (tmp_path / "both" / "comparison.svg").read_text()
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page).group(1))
    assert max(data["series"][0]["x"]) <= 4000


def test_a_run_under_way_has_no_summary_but_what_was_sent(one, tmp_path):
    (one / "summary.json").unlink()
    _, page = written(tmp_path, one)
    assert "Parties 2" in page.said
    assert "Worst party 50 party 1" in page.said, "they are numbered, and their evaluations are there"
    assert "Who took part in which round" in page.said

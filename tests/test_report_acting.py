"""The section about compressed actors: what it says is what the files say, and it is honest where nothing is gained."""

from __future__ import annotations

import json

import numpy as np
import pytest

from shoal.report import acting, comparison, groups, svg, words
from shoal.report import runs as run_folders
from shoal.report.acting import cards, courses, told
from tests import monitored
from tests.monitored import ACTOR, COMPRESSION, CORRECTION, LEARNER, changed
from tests.test_report import make_run, written


@pytest.fixture
def one(tmp_path):
    return monitored.make(tmp_path / "one")


def read(path):
    return run_folders.read(path)


def test_one_run_shows_what_its_summary_holds(one, tmp_path):
    _, page = written(tmp_path, one)
    for shown in (
        acting.TITLE,
        "Compression pays: inference takes 70 % of the wall-clock at full precision and is 9.87× as fast packed, which "
        "should save 63 % of it.",
        "Alarm: mean exp |log pi - log mu| 1.07 is above 1.05: the acting policy has drifted.",
        "Packed policy 9.87× as fast (s); 1.29 ms at full precision, 131 µs packed",
        "Return of the packed policy 478.1 481.2 at full precision, same seeds",
        "Same action 97 %", "KL by compression 0.0061 nats by staleness 0.016 nats",
        "Effective sample size 87 % vtrace, 14 % of steps clipped",
        "Staleness, median 3 updates 95 % within 7, at most 19",
        "inference 18 % (14.2 s), environment 59 % (46.1 s), loading snapshots 2.8 % (2.2 s), other 16 % (12.1 s), "
        "waiting 4.4 % (3.4 s)",
        "updates 41 % (16.1 s), publishing 1.3 % (0.50 s), other 1.3 % (0.50 s), waiting 56 % (21.9 s)",
        "inference 180 %, environment 59 %, loading snapshots 2.8 %, other 16 %",
        "bytes packed 2.19 MB (15.4× smaller)", "bytes a second on the wire 911 kB", "multiply-adds compressed 99.8 %",
        "compressing 118 ms, 95 % within 205 ms", "snapshot to first action 142 ms, 95 % within 290 ms",
        "of it transfer 2.1 ms", "snapshots refused 0", "publishing, of the learner's time 1.3 %",
        "KL to full precision, exact 0.0057 nats", "KL in all 0.022 nats", "mean weight 0.998",
        "log weight −0.0218 ± 0.3100", "rollouts learned from 3,126", "steps rejected, weight too low 0 %",
        "Measured at the start for a batch of 1; onnx was chosen.",
    ):  # fmt: skip
        assert shown in page.said, shown


def test_the_columns_of_the_section_are_not_drawn_twice(one, tmp_path):
    content, page = written(tmp_path, one)
    assert "Learning metrics" in page.said
    for column in told.COLUMNS:
        assert f"<h3>{column.replace('_', ' ')}</h3>" not in content
    assert "<h3>entropy</h3>" in content
    plain = make_run(tmp_path / "plain")
    rows = [json.loads(line) | {"ess": 0.5} for line in (plain / "metrics.jsonl").read_text().splitlines()]
    (plain / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content, page = written(tmp_path, plain)
    assert acting.TITLE not in page.said, "a run without actors has no such section"
    assert "<h3>ess</h3>" in content, "and a learning metric of that name is one"


def test_decisions_are_marks_on_the_steps_and_rows_with_their_causes(one, tmp_path):
    marks = courses.moments(read(one))
    assert [one.label for one in marks] == ["1", "2", "3", "4"]
    np.testing.assert_allclose([one.x for one in marks], [6600, 13200, 15280, 27200], atol=20)
    assert marks[2].told == "3: prune+distil+quantise to identity, action agreement 0.47 < 0.5: identity at once"
    content, page = written(tmp_path, one)
    assert "3 764 prune+distil+quantise → identity action agreement 0.47 < 0.5: identity at once" in page.said
    assert content.count("<title>2: quantise to prune+distil+quantise, KL of compression 0.006 &lt; 0.01") == 9
    assert courses.moments(read(monitored.full(tmp_path / "full"))) == ()


def test_names_of_moments_do_not_touch():
    frame = svg.Frame(svg.Size("half", 430, 240, 5), (0.0, 100.0), (0.0, 1.0))
    drawn = svg.numbered(frame, [(0.0, "1", "a"), (1.0, "2", "b"), (2.0, "3", "c"), (50.0, "4", "d")])
    assert drawn.count("<line") == 4
    assert [f">{i}</text>" in drawn for i in (1, 2, 3, 4)] == [True, False, False, True]


def test_the_staleness_histogram_is_drawn(one, tmp_path):
    content, _ = written(tmp_path, one)
    assert "lag 3, 1,010 (32.3 %)" in content
    assert "lag 16-31, 2 (0.1 %)" in content


SLOW = changed(ACTOR, split__inference_s=4.0, amdahl__full_us=7.7, amdahl__packed_us=9.9)
LITTLE = changed(ACTOR, split__inference_s=0.5, amdahl__full_us=30.0, amdahl__packed_us=10.0)
BOUND = changed(
    LEARNER, split={"wait_s": 0.2, "update_s": 116.0, "publish_s": 3.0, "other_s": 0.5}, publish_share=0.025
)
WAITING = changed(ACTOR, split__wait_s=163.0)


@pytest.mark.parametrize(
    ("actor", "learner", "why"),
    [
        (SLOW, LEARNER, "the packed policy is no faster than full precision on its fastest engine (9.9 µs a decision "
                        "against 7.7 µs)"),
        (LITTLE, LEARNER, "inference is only 2.4 % of the wall-clock at full precision; the simulators take 72 %"),
        (WAITING, BOUND, "the learner sets the pace, and actors wait for it 69 % of their time"),
    ],
)  # fmt: skip
def test_where_compression_does_not_pay_that_is_said(actor, learner, why, tmp_path):
    """Specification 11.16."""
    path = monitored.make(tmp_path / "r", actor=actor, learner=learner, coarse=False)
    assert told.pays(read(path)) is False
    _, page = written(tmp_path, path)
    assert f"Compression does not pay here: {why}." in page.said
    assert "Compression pays" not in page.said


def test_a_learner_that_now_sets_the_pace_is_told(tmp_path):
    learner = changed(
        LEARNER, split={"wait_s": 0.5, "update_s": 38.0, "publish_s": 0.9, "other_s": 0.1}, publish_share=0.023
    )
    path = monitored.make(tmp_path / "r", learner=learner)
    _, page = written(tmp_path, path)
    assert "Compression pays" in page.said
    assert "Now the learner sets the pace, so a policy faster still would gain nothing." in page.said
    assert "publishing, of the learner's time 2.3 %, above the goal of 2 %" in page.said


def test_full_precision_is_told_what_it_could_gain(tmp_path):
    _, page = written(tmp_path, monitored.full(tmp_path / "full"))
    assert "spend 69 % of their time on it: compression could save at most 70 % of the wall-clock." in page.said
    assert "Inference, median 1.29 ms" in page.said
    assert "Packed policy" not in page.said
    assert "computed" not in page.said
    idle = changed(ACTOR, split__inference_s=1.0, amdahl__packed_us=1293.0)
    _, page = written(tmp_path, monitored.full(tmp_path / "idle", actor=idle))
    assert "Compression would not pay here: inference is only 1.6 % of the wall-clock" in page.said


def test_several_runs_are_one_table_with_measured_beside_predicted(one, tmp_path):
    """Measured against runs at full precision that differ in nothing else but the compressor, or the corrector too."""
    base = monitored.full(tmp_path / "full", train_s=11.1)
    slow = monitored.make(tmp_path / "slow", actor=SLOW, coarse=False, train_s=12.0)
    wider = monitored.make(tmp_path / "wider", learning_rate=0.1)
    found = groups.split(run_folders.read_all([one, base, slow, wider]))
    assert cards.saved(found, read(one)) == pytest.approx(1 - 4.625 / 11.1)
    assert cards.saved(found, read(slow)) == pytest.approx(1 - 12.0 / 11.1)
    assert cards.saved(found, read(wider)) is None, "nothing to compare it with"
    _, page = written(tmp_path, one, base, slow, wider)
    assert (
        "yes prune+distil+quantise 70 % 9.87× 63 % 58 % 0.0061 nats 0.016 nats 87 % 97 % −3.1 1.3 % onnx" in page.said
    )
    assert "- full precision 70 % 1× 0 % baseline" in page.said
    assert "no prune+distil+quantise 4.9 % 0.778× −1.4 % −8.1 %" in page.said
    assert page.said.count(acting.TITLE) == 1
    assert "Time of actors and learner" in page.said
    assert "KL by staleness, nats" in page.said


def test_many_runs_share_bars_and_findings(tmp_path):
    runs = [monitored.make(tmp_path / str(seed), seed=seed, actor=SLOW if seed == 3 else ACTOR) for seed in range(7)]
    content, page = written(tmp_path, *runs)
    assert "Compression pays in 6 of 7 runs." in page.said
    assert "Compression does not pay in 1 of 7 runs: the packed policy is no faster" in page.said
    assert "Alarms in 7 of 7 runs, the first: mean exp" in page.said
    assert "accerl on CartPole-v1, 7 runs together: actors" in page.said
    assert content.count('class="bar"') == 7 + 2, "those of all runs, and two that they share"


def test_null_is_not_zero_and_nothing_is_invented(tmp_path):
    def emptied(given):
        return {
            key: emptied(value) if isinstance(value, dict) else [] if isinstance(value, list) else None
            for key, value in given.items()
        }

    objects = {"compression": emptied(COMPRESSION) | {"name": "quantise"}, "correction": emptied(CORRECTION)}
    path = make_run(tmp_path / "r", preset="accerl", actor=emptied(ACTOR), learner=emptied(LEARNER), **objects)
    _, page = written(tmp_path, path)
    section = page.said[page.said.index(acting.TITLE) : page.said.index("Learning metrics")]
    assert section.count(words.MISSING) >= 20
    assert "0 %" not in section
    assert "pay" not in section
    only = make_run(tmp_path / "only", preset="accerl", actor={"engine": "numpy"})
    assert acting.TITLE in written(tmp_path, only)[1].said


def test_a_run_under_way_shows_its_curves(one, tmp_path):
    (one / "summary.json").unlink()
    _, page = written(tmp_path, one)
    assert "How far acting is from learning" in page.said
    assert "Snapshots" not in page.said
    assert "does not pay" not in page.said


def test_hostile_names_stay_text(tmp_path):
    hostile = "<img src=x>"
    compression = changed(COMPRESSION, level=hostile, decisions=[{"update": 9, "from": hostile, "to": None}, hostile])
    correction = changed(CORRECTION, alarms=[hostile], name=hostile)
    actor = changed(ACTOR, engine=hostile, engines_us={hostile: 3.0, "numpy": None})
    path = monitored.make(tmp_path / "r", actor=actor, compression=compression, correction=correction)
    _, page = written(tmp_path, path)
    assert "img" not in page.tags
    assert f"Alarm: {hostile}." in page.said
    odd = make_run(tmp_path / "odd", actor=[1], learner="x", compression={"decisions": 3}, correction=None)
    written(tmp_path, odd)


def test_a_comparison_has_the_section_too(tmp_path):
    for name, level in (("one", "identity"), ("two", "chain")):
        made = monitored.full if level == "identity" else monitored.make
        path = made(tmp_path / name / "seed-0")
        config = json.loads((path / "config.json").read_text()) | {"preset": name}
        (path / "config.json").write_text(json.dumps(config))
    whole = {"comparison": ["one", "two"], "env": "CartPole-v1", "seeds": [0], "steps": 40_000, "solved_at": None,
             "command": "shoal compare one two"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(whole))
    files = comparison.write(tmp_path, comparison.summary(tmp_path))
    assert acting.TITLE in (tmp_path / "report.html").read_text()
    assert files["report"].endswith("report.html")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "not measured"), (0.0, "0 %"), (0.5812, "58 %"), (0.0412, "4.1 %"), (0.0003, "0.03 %"), (-0.027, "−2.7 %"),
     (0.998, "99.8 %"), (1.0, "100 %"), (1.8, "180 %")],
)  # fmt: skip
def test_shares_in_words(value, shown):
    assert words.percent(value) == shown


def test_short_durations_bytes_and_factors_in_words():
    given = (None, 7.43e-6, 0.0031, 2.4, 1e-9)
    assert [words.brief(value) for value in given] == ["not measured", "7.43 µs", "3.1 ms", "2.4 s", "0.001 µs"]
    assert [words.size(value) for value in (740, 38_211, 16_900_000, 3.2e9)] == [
        "740 B",
        "38.2 kB",
        "16.9 MB",
        "3.2 GB",
    ]
    assert [words.factor(value) for value in (None, 9.8702, 0.5)] == ["not measured", "9.87×", "0.5×"]

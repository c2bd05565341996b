"""The page about runs: what it shows is what the files say, and it needs nothing but itself."""

from __future__ import annotations

import html
import html.parser
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from shoal import report
from shoal.core import errors
from shoal.report import groups, headline, markup, picture, svg, words
from shoal.report import runs as run_folders

HOSTILE = '<script>alert("x")</script>&\'-v0'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def make_run(path, *, seed=0, preset="a3c", env="CartPole-v1", learning_rate=0.0007, steps=40_000, unit=1.0, **changes):
    """A run folder as `shoal train` leaves it; `changes` go into the summary, None leaves it out."""
    rng = np.random.default_rng(seed + 7)
    path.mkdir(parents=True)
    config = {
        "schema": 1, "preset": preset, "env": env, "seed": seed, "steps": steps,
        "command": f"shoal train {preset} --env {env} --seed {seed}",
        "parts": {
            "algorithm": {"name": "actor_critic", "learning_rate": learning_rate, "n_steps": 5},
            "network": {"name": "mlp", "sizes": [64, 64]},
            "runtime": {"name": "hogwild", "workers": 2},
        },
        "versions": {"shoal": "0.1.0", "jax": "0.10.2", "python": "3.11.7"},
        "machine": {"cpu": "Example CPU", "cores": 2, "memory_gb": 24},
        "a_later_key": {"is": "fine"},
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    ends = np.cumsum(20 + 440 * np.linspace(0, 1, 600) ** 1.5 + rng.uniform(0, 30, 600)).astype(int)
    ends = ends[ends <= steps]
    lengths = np.diff(ends, prepend=0)
    rows = [
        f"{end},{length * unit:.1f},{length},{i % 2},{end / 9000:.4f}"
        for i, (end, length) in enumerate(zip(ends, lengths, strict=True))
    ]
    (path / "episodes.csv").write_text("\n".join(["env_steps,episode_return,length,worker,wall_s", *rows]) + "\n")
    with (path / "metrics.jsonl").open("w") as file:
        for i, step in enumerate(np.linspace(400, steps, 60).astype(int).tolist()):
            seconds = step / 9000
            row = {
                "step": step, "wall_s": seconds, "env_steps_per_s": 9000 + rng.normal() * 300,
                "return_mean": None if i < 3 else step / 100, "rss_mb": 400 + i, "restarts": 0,
                "split_environment": seconds * 0.5, "split_inference": seconds * 0.9, "split_learning": seconds * 0.4,
                "split_waiting": seconds * 0.04, "loss": 3 * np.exp(-i / 20) + rng.normal() * 0.1,
                "entropy": 0.69 - i / 150, "gradient_norm": float(rng.gamma(2)), "learning_rate": 0.0007 * (1 - i / 60),
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    summary = {
        "run": path.name, "preset": preset, "env": env, "seed": seed, "status": "completed", "env_steps": steps,
        "updates": steps // 10, "wall_s": 6.4, "train_s": 4.625, "startup_s": 1.875, "env_steps_per_s": 8648.6 + seed,
        "return_mean": 480.25 + seed, "return_std": 21.375, "eval_return_mean": 496.5 + seed, "eval_return_std": 4.125,
        "eval_episodes": 20, "episodes": 913, "params_sha256": f"{seed:02x}ab" * 16, "peak_rss_mb": 512.0,
        "workers": {"of": 2}, "faults": {"restarts": 0}, "solved_at_step": 31_234 + seed, "goal": 475.0,
    }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary | changes))
    return path


class Page(html.parser.HTMLParser):
    """Checks that every element is closed in order, and gathers what the page says and loads."""

    def __init__(self, content):
        super().__init__()
        self.open, self.text, self.loads, self.tags, self.ids = [], [], [], [], []
        self.feed(content)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.loads += [value for name, value in attrs if name in ("src", "href", "action", "srcset", "data", "poster")]
        if tag not in markup.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.text.append(data)

    @property
    def said(self):
        return " ".join(" ".join(self.text).split())


def written(tmp_path, *folders):
    content = report.write(list(folders), tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    return content, Page(content)


@pytest.fixture
def single(tmp_path):
    return make_run(tmp_path / "a3c-0")


@pytest.fixture
def seeds(tmp_path):
    return [make_run(tmp_path / f"a3c-{seed}", seed=seed) for seed in range(4)]


def test_one_run_shows_the_numbers_of_its_files(single, tmp_path):
    _, page = written(tmp_path, single)
    for shown in (
        "a3c on CartPole-v1, seed 0",
        "solved (mean return of the last 100 episodes 480.2 ≥ 475) after 31,234 steps, 4.6 s of training, 2 workers",
        "480.2 ± 21.4", "496.5 ± 4.1", "8,649", "1.9 s", "512 MB", "20 episodes", "00ab00ab00",
        "shoal train a3c --env CartPole-v1 --seed 0", "0.0007", "Example CPU", "0.10.2", "goal 475",
    ):  # fmt: skip
        assert shown in page.said, shown
    assert "IQM" not in page.said
    assert "Faults" not in page.said
    assert "differs" not in page.said


def test_the_page_loads_nothing(seeds, tmp_path):
    content, page = written(tmp_path, *seeds)
    assert page.loads == []
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|<link|<iframe|<img", content)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", content)
    assert "default-src 'none'" in html.unescape(content)
    assert len(page.ids) == len(set(page.ids))


def test_seeds_are_aggregated(seeds, tmp_path):
    _, page = written(tmp_path, *seeds)
    assert "a3c on CartPole-v1, 4 seeds" in page.said
    assert "4 of 4 runs solved (goal 475), after a median of 31,236 steps" in page.said
    # Middle two of 480.25 to 483.25.
    assert "mean return of the last 100 episodes 481.8 (IQM of 4 runs, 95 % interval" in page.said
    assert "IQM of 4 runs" in page.said
    assert all(f"seed {seed}" in page.said for seed in range(4))


def test_a_running_run_says_so(single, tmp_path):
    (single / "summary.json").unlink()
    _, page = written(tmp_path, single)
    assert "unfinished (no summary yet: still going, or killed); 40,000 steps so far" in page.said
    assert "mean return of the last 100 episodes 400" in page.said  # the last row of the metrics
    assert words.MISSING in page.said


def test_a_fresh_run_has_no_numbers_yet(single, tmp_path):
    for name in ("summary.json", "metrics.jsonl", "episodes.csv"):
        (single / name).unlink()
    _, page = written(tmp_path, single)
    assert "Nothing was measured yet." in page.said


def test_null_is_not_zero(tmp_path):
    folder = make_run(tmp_path / "r", eval_return_mean=None, eval_return_std=None, startup_s=None, peak_rss_mb=None)
    found = groups.split(run_folders.read_all([folder]))
    tiles = {tile.label: tile.value for tile in headline.tiles(found[0])}
    assert tiles["Evaluation"] == tiles["Start-up"] == tiles["Peak memory"] == "not measured"
    assert tiles["Restarts"] == "0"  # counted, and there were none
    assert written(tmp_path, folder)[1].said.count("not measured") >= 4


def test_a_line_cut_by_kill_is_left_out_and_counted(single, tmp_path):
    whole = run_folders.read(single)
    for name in ("metrics.jsonl", "episodes.csv"):
        kept = (single / name).read_bytes()
        (single / name).write_bytes(kept[: len(kept) - 6])
    cut = run_folders.read(single)
    assert cut.damaged == 2
    assert len(cut.episodes["env_steps"]) == len(whole.episodes["env_steps"]) - 1
    assert len(cut.metrics["step"]) == len(whole.metrics["step"]) - 1
    assert "2 lines of its logs could not be read" in written(tmp_path, single)[1].said


def test_damage_in_the_middle_of_a_resumed_file(single):
    lines = (single / "episodes.csv").read_text().splitlines()
    lines[5] = lines[5][:4] + lines[5]  # a torn line that the next one was appended to
    lines[9] = "\x00\x00"
    (single / "episodes.csv").write_text("\n".join(lines) + "\n")
    run = run_folders.read(single)
    assert len(run.episodes["env_steps"]) >= len(lines) - 3
    assert run.damaged >= 1


def test_a_resumed_run_counts_repeated_steps_once(single):
    with (single / "metrics.jsonl").open("a") as file:
        for step in (30_000, 40_500):
            file.write(json.dumps({"step": step, "wall_s": 9.0, "loss": 0.5}) + "\n")
    steps = run_folders.read(single).metrics["step"]
    assert (np.diff(steps) > 0).all()
    assert steps[-2:].tolist() == [30_000, 40_500]


@pytest.mark.parametrize("what", ["missing", "empty", "file", "not a run", "not json", "newer"])
def test_what_is_not_a_run_folder_is_refused_in_one_line(what, tmp_path):
    folder = tmp_path / "x"
    if what == "file":
        folder.write_text("")
    elif what != "missing":
        folder.mkdir()
    content = {"not a run": "[1]", "not json": "{", "newer": '{"schema": 99, "preset": "a3c", "env": "e"}'}.get(what)
    if content:
        (folder / "config.json").write_text(content)
    with pytest.raises(errors.Refused) as refused:
        report.write([folder], tmp_path / "report.html")
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "upgrade" in str(refused.value) if what == "newer" else "config.json" in str(refused.value)
    assert not (tmp_path / "report.html").exists()


def test_no_folder_and_a_folder_as_output_are_refused(single, tmp_path):
    with pytest.raises(errors.Refused, match="no run folder"):
        report.write([], tmp_path / "report.html")
    with pytest.raises(errors.Refused, match="is a folder"):
        report.write([single], tmp_path)


def test_hostile_strings_stay_text(tmp_path):
    folder = make_run(tmp_path / "r", env=HOSTILE, preset="</title><marquee>", params_sha256='"><img src=x>')
    config = json.loads((folder / "config.json").read_text())
    config["parts"][HOSTILE] = {"</td>": "\ud800 </script><!--"}
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 50_000, "wall_s": 7.0, HOSTILE: 1.0}) + "\n")
    content, page = written(tmp_path, folder, make_run(tmp_path / "s", env=HOSTILE))
    assert HOSTILE in page.said
    assert "alert" not in "".join(re.findall(r"<script>(.*?)</script>", content, re.S))
    assert not {"img", "marquee"} & set(page.tags)
    assert "<!--" not in content


def test_groups_are_compared_and_never_averaged_together(tmp_path):
    folders = [make_run(tmp_path / f"a{seed}", seed=seed) for seed in range(2)]
    folders += [make_run(tmp_path / f"b{seed}", seed=seed, learning_rate=0.01) for seed in range(2)]
    folders += [make_run(tmp_path / "c", preset="a2c")]
    found = groups.split(run_folders.read_all(folders))
    assert [group.title for group in found] == [
        "a3c on CartPole-v1 (learning_rate 0.0007)",
        "a3c on CartPole-v1 (learning_rate 0.01)",
        "a2c on CartPole-v1",
    ]
    assert [len(group.runs) for group in found] == [2, 2, 1]
    _, page = written(tmp_path, *folders)
    assert page.said.count("Learning on CartPole-v1") == 1  # one environment, one figure
    assert "algorithm.learning_rate differs" in page.said
    assert len(groups.split(run_folders.read_all([folders[0], folders[0]]))[0].runs) == 1  # named twice, read once


def configured(path, seed, **changes):
    """A run whose ``config.json`` says something else."""
    made = make_run(path, seed=seed)
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | changes))
    return made


GOAL = {"target": 475.0, "window": 100}


@pytest.mark.parametrize(
    ("one", "other", "titles"),
    [
        ({"steps": 1000}, {"steps": 2000}, ["steps 1000", "steps 2000"]),
        ({"goal": GOAL}, {"goal": None}, ["goal 475", "goal none"]),
        ({"goal": GOAL}, {"goal": {"target": 475.0, "window": 10}}, ["goal 475", "goal 475 over 10 episodes"]),
        ({}, {"episodes": 50}, ["episodes null", "episodes 50"]),
        ({}, {"what_comes_later": {"is": "other"}}, ["is null", "is other"]),
        ({"steps": 1000, "goal": GOAL}, {"steps": 2000}, ["steps 1000, goal 475", "steps 2000, goal none"]),
    ],
)
def test_only_runs_that_differ_in_nothing_but_the_seed_are_pooled(one, other, titles, tmp_path):
    folders = [configured(tmp_path / f"a{seed}", seed, **one) for seed in range(2)]
    folders += [configured(tmp_path / f"b{seed}", seed, **other) for seed in range(2)]
    found = groups.split(run_folders.read_all(folders))
    assert [group.title for group in found] == [f"a3c on CartPole-v1 ({title})" for title in titles]
    assert [(len(group.runs), group.seeds) for group in found] == [(2, 2), (2, 2)]


@pytest.mark.parametrize(
    "change", [{"versions": {"jax": "0.11"}}, {"machine": {"cores": 8}}, {"command": "python train.py"}]
)
def test_where_and_how_it_was_run_makes_no_other_experiment(change, tmp_path):
    folders = [make_run(tmp_path / "a"), configured(tmp_path / "b", 1, **change)]
    (group,) = groups.split(run_folders.read_all(folders))
    assert (group.title, group.seeds) == ("a3c on CartPole-v1", 2)


def test_environments_have_a_figure_each(tmp_path):
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b", env="Acrobot-v1")]
    _, page = written(tmp_path, *folders)
    assert "Learning on CartPole-v1" in page.said
    assert "Learning on Acrobot-v1" in page.said


def test_one_seed_twice_is_not_two_seeds(tmp_path):
    folders = [make_run(tmp_path / name) for name in ("a", "b")]
    group = groups.split(run_folders.read_all(folders))[0]
    assert group.seeds == 1
    assert group.names() == ["seed 0, run 1", "seed 0, run 2"]
    assert groups.band(group, "step") is None


def test_a_score_so_far_is_not_averaged_with_results(seeds):
    (seeds[3] / "summary.json").unlink()
    group = groups.split(run_folders.read_all(seeds))[0]
    tile = headline.tiles(group)[0]
    assert (tile.value, tile.note[:19]) == ("481.2", "IQM of 3 of 4 runs,")  # of 480.25, 481.25 and 482.25
    assert headline.outcome(group) == "stopped"


def test_time_split_adds_up(single, tmp_path):
    _, page = written(tmp_path, single)
    # The last row holds 0.5, 0.9, 0.4 and 0.04 of 4.444 s.
    assert "environment 27 % (2.2 s), inference 49 % (4.0 s), learning 22 % (1.8 s), waiting 2 % (0.18 s)" in page.said


def test_a_part_of_the_time_with_another_name_is_shown(single, tmp_path):
    row = {"step": 50_000, "wall_s": 8.0, "split_on_device": 7.5}
    (single / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert "on device 100 % (7.5 s)" in written(tmp_path, single)[1].said


def test_lags_are_drawn_as_shares_of_a_groups_gradients(tmp_path):
    late = {"of": 2, "overlapped": 12, "contended_share": 0.0004, "lag_histogram": {"0": 30, "1": 60, "2": 0, "3": 10}}
    runs = [make_run(tmp_path / f"late-{seed}", seed=seed, workers=late) for seed in range(2)]
    content, page = written(tmp_path, *runs)
    assert "Asynchrony" in page.said
    assert page.tags.count("rect") == 4
    assert "lag 1, 120 (60.0 %)" in content
    assert "lag 2, 0 (0.0 %)" in content
    alone = written(tmp_path, runs[0])[1].said
    assert "12 applies met another in memory; at most 0.04 % of element updates were lost" in alone
    assert "Asynchrony" not in written(tmp_path, make_run(tmp_path / "plain"))[1].said


def test_many_runs_share_a_bar(tmp_path):
    folders = [make_run(tmp_path / str(seed), seed=seed, steps=4000) for seed in range(13)]
    content, page = written(tmp_path, *folders)
    assert "a3c on CartPole-v1, 13 runs together" in page.said
    assert content.count('class="bar"') == 1


def test_the_report_needs_no_jax_and_no_matplotlib():
    code = "import sys; from shoal import report; sys.exit('matplotlib' in sys.modules or 'jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_faults_are_told_in_words(tmp_path):
    folder = make_run(tmp_path / "r", faults={"restarts": 2, "dropped_updates": 1, "odd_kind": 3, "none": 0})
    _, page = written(tmp_path, folder)
    assert "had 2 worker restarts, 1 dropped update and 3 × odd kind, and finished all the same" in page.said


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"goal": None, "solved_at_step": None}, "finished (MEAN 480.2) after 40,000"),
        ({"solved_at_step": None, "return_mean": 212.4}, "did not reach its goal (MEAN 212.4 < 475)"),
        ({"return_mean": 431.0}, "solved (goal 475) after 31,234 steps, but ended lower (MEAN 431)"),
        ({"status": "interrupted", "solved_at_step": None}, "interrupted after 40,000 steps, MEAN 480.2 ≥ 475"),
        ({"return_mean": None, "goal": {"target": 475}}, "solved (MEAN not measured) after"),
    ],
)
def test_verdicts(changes, expected, tmp_path):
    found = groups.split(run_folders.read_all([make_run(tmp_path / "r", **changes)]))
    assert expected.replace("MEAN", "mean return of the last 100 episodes") in headline.verdict(found[0])


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "not measured"), (0.0, "0"), (92160, "92,160"), (487.3, "487.3"), (999.96, "1,000"), (0.0007, "0.0007"),
     (20.957, "20.96"), (-1.5, "−1.5"), (1e-7, "1e−07"), (100.04, "100.0"), (123456.7, "123,457")],
)  # fmt: skip
def test_numbers(value, expected):
    assert words.number(value) == expected


def test_durations():
    assert [words.seconds(s) for s in (0.25, 3.06, 99.9, 260, 7500)] == [
        "0.25 s",
        "3.1 s",
        "99.9 s",
        "4 min 20 s",
        "2 h 05 min",
    ]


def test_running_mean_by_hand():
    np.testing.assert_allclose(groups.running_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2), [1, 2, 4, 6])


def test_thinning_keeps_the_spikes_and_the_gaps():
    y = np.zeros(100_000)
    y[[31_415, 77_777]] = 5.0, -5.0
    y[50_000:50_400] = np.nan
    x, thinned = svg.thin(np.arange(100_000.0), y, 400)
    assert len(x) < 1000
    assert {31_415.0, 77_777.0, 0.0, 99_999.0} <= set(x.tolist())
    assert np.isnan(thinned).any()


@pytest.mark.parametrize(("low", "high"), [(0, 500), (-1600, 3), (0, 1e-9), (1e6, 1e6 + 1)])
def test_ticks_are_few_and_inside(low, high):
    found = svg.ticks(low, high, 5)
    assert 2 <= len(found) <= 11
    assert found[0] >= low - 1e-9 * abs(high)
    assert found[-1] <= high + 1e-9 * abs(high)


def test_a_million_episodes_are_read_fast_and_drawn_thin(single, tmp_path):
    ends = np.arange(1, 300_001) * 20
    table = np.stack([ends, ends % 500, np.full_like(ends, 20), ends % 2, ends / 1e5], axis=1)
    header = "env_steps,episode_return,length,worker,wall_s"
    np.savetxt(single / "episodes.csv", table, fmt="%.6g", delimiter=",", header=header, comments="")
    content, page = written(tmp_path, single)
    assert len(content) < 400_000
    assert "one of every 200 finished episodes" in page.said


def test_the_page_is_the_same_every_time(seeds, tmp_path):
    assert written(tmp_path, *seeds)[0] == written(tmp_path, *seeds)[0]


def test_the_picture(seeds, tmp_path):
    out = picture.save(seeds, tmp_path / "figures" / "curve.png")
    assert out.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(errors.Refused, match="one environment"):
        picture.save([seeds[0], make_run(tmp_path / "other", env="Acrobot-v1")], out)


if CHROMIUM:

    def test_a_browser_runs_the_page(seeds, tmp_path):
        out = report.write(seeds, tmp_path / "report.html")
        flags = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"]
        flags += ["disable-background-networking", "disable-component-update", f"user-data-dir={tmp_path / 'profile'}"]
        command = [CHROMIUM, *(f"--{flag}" for flag in flags), "--dump-dom", out.as_uri()]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert 'class="copy">Copy' in ran.stdout  # the script ran to its end: it revealed the button


def resume_at(folder, *steps):
    """As if the run had been stopped and resumed at some steps of its metrics."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    ends = [max(row["step"] for row in rows if row["step"] <= step) for step in steps]
    lives = [sum(row["step"] > end for end in ends) for row in rows]
    rows = [row | ({"life": life} if life else {}) for row, life in zip(rows, lives, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ends


def test_where_a_run_was_resumed_there_is_a_labelled_line(single, tmp_path):
    assert "moment hue" not in written(tmp_path, single)[0], "it never was"
    ends = resume_at(single, 12_000, 30_000)
    assert run_folders.read(single).resumed("step").tolist() == ends
    content, page = written(tmp_path, single)
    assert content.count('class="moment hue0"') == len(ends) * 2 * 2, "over steps and time, in two sizes"
    wide = re.search(r'class="wide".*?data-x="0.0 ([\d.]+)".*?</svg>', content, re.DOTALL)
    drawn = [float(x) for x in re.findall(r'<line x1="([\d.]+)"[^>]*class="moment', wide.group(0))]
    assert drawn == pytest.approx([50 + end / float(wide.group(1)) * (860 - 50 - 14) for end in ends], abs=0.1)
    assert page.said.count("resumed") == len(ends) * 2 * 2 + 1, "each line's name, and the caption"
    assert "Vertical lines: there a run was stopped and resumed." in page.said
    assert "life" not in page.said, "it is no learning metric"


def test_of_several_runs_the_lines_have_the_colour_of_theirs(seeds, tmp_path):
    resume_at(seeds[1], 20_000)
    content, page = written(tmp_path, *seeds)
    hue = re.search(r'class="thin hue(\d)"[^>]*>|class="line thin hue(\d)"', content)
    assert hue, "runs are drawn"
    assert content.count('class="moment hue2"') == 2 * 2, "the second run's"
    assert content.count('class="moment ') == 2 * 2
    assert page.said.count("resumed") == 1, "the caption's"

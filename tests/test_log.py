from __future__ import annotations

import csv
import errno
import io
import json
import os
import pathlib
import pty
import re
import subprocess
import sys
import traceback
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from shoal import log
from shoal.core import types
from shoal.log import live, plain, sinks, wording

STATUS = log.Status(
    preset="a3c",
    env="CartPole-v1",
    runtime="hogwild",
    seed=0,
    step=120_000,
    steps=300_000,
    steps_per_s=8450.4,
    return_mean=187.2,
    best=231.0,
    episodes=1234,
    split={"waiting": 0.7, "environment": 4.1, "inference": 3.0, "learning": 2.2},
    workers={"up": 2, "of": 2},
    restarts=0,
    rss_mb=512.0,
    checkpoint_age_s=None,
    eta_s=21.3,
    goal=475.0,
)
UNKNOWN = STATUS._replace(
    steps_per_s=None, return_mean=None, best=None, split={}, workers={}, rss_mb=None, eta_s=None, goal=None, episodes=0
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def records(folder: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def episode(step: int, value: float = 1.5) -> types.Episode:
    return types.Episode(step, value, 10, 1)


def events(folder: pathlib.Path) -> list[Any]:
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*"), key=os.path.getmtime):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            found.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + size]))
            at += 12 + size + 4
    return found


# ------------------------------------------------------------------------------------------------ files


def test_metrics_are_one_object_a_line_and_there_at_once(tmp_path: pathlib.Path) -> None:
    with log.Log(tmp_path, log.Quiet()) as book:
        book.write(100, 1.23456, {"loss": 0.5, "count": 3, "numpy": np.float32(2.0), "jax": jnp.asarray(7)})
        assert records(tmp_path) == [{"step": 100, "wall_s": 1.235, "loss": 0.5, "count": 3, "numpy": 2.0, "jax": 7}]
        book.write(200, 2.0, {"loss": float("nan"), "up": np.inf, "none": None, "half": jnp.bfloat16(-jnp.inf)})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert records(tmp_path)[1] == {"step": 200, "wall_s": 2.0, "loss": None, "up": None, "none": None, "half": None}
    assert "NaN" not in text
    assert "Infinity" not in text


def test_step_and_wall_time_cannot_be_overwritten(tmp_path: pathlib.Path) -> None:
    with log.Log(tmp_path, log.Quiet()) as book:
        book.write(np.int64(5), np.float32(1), {"step": 9, "wall_s": 9})  # type: ignore[arg-type]
    assert records(tmp_path) == [{"step": 5, "wall_s": 1.0}]


def test_episodes_csv(tmp_path: pathlib.Path) -> None:
    with log.Log(tmp_path, log.Quiet()) as book:
        book.episodes([episode(10, 0.1), episode(20, np.float32(-3))], 1.0)
        book.episodes([], 2.0)
    rows = list(csv.reader((tmp_path / "episodes.csv").read_text().splitlines()))
    assert rows == [
        ["env_steps", "episode_return", "length", "worker", "wall_s"],
        ["10", "0.1", "10", "1", "1.000"],
        ["20", "-3.0", "10", "1", "1.000"],
    ]


def test_tensorboard_events_are_grouped_and_skip_what_is_unknown(tmp_path: pathlib.Path) -> None:
    with log.Log(tmp_path, log.Quiet()) as book:
        book.write(100, 1.5, {"return_mean": 20.0, "speed/env": 3.0, "loss": None, "nan": float("nan")})
    (scalars,) = [e for e in events(tmp_path) if e.summary.value]
    assert scalars.step == 100
    assert {v.tag: v.simple_value for v in scalars.summary.value} == {
        "train/return_mean": 20.0,
        "speed/env": 3.0,
        "time/wall_s": 1.5,
    }


def test_after_three_resumes_no_step_appears_twice(tmp_path: pathlib.Path) -> None:
    at: dict[str, int] | None = None
    for life in range(4):
        with log.Log(tmp_path, log.Quiet(), at) as book:
            first = life * 5
            for step in range(first, first + 8):  # the last three are lost with the process
                if step == first + 5:
                    book.sync()
                    at = book.lengths()
                book.write(step, float(step), {"life": life})
                book.episodes([episode(step)], float(step))
            assert at is not None
    assert [r["step"] for r in records(tmp_path)] == list(range(23))
    assert [r["life"] for r in records(tmp_path)] == [min(i // 5, 3) for i in range(23)]
    rows = list(csv.DictReader((tmp_path / "episodes.csv").read_text().splitlines()))
    assert [int(r["env_steps"]) for r in rows] == list(range(23))
    starts = [e.step for e in events(tmp_path) if e.HasField("session_log")]
    assert starts == [5, 10, 15]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 4


def test_events_of_a_life_that_was_never_saved_are_hidden(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        with log.Log(tmp_path, log.Quiet()) as book:
            book.write(7, 1.0, {"loss": 1.0})
    assert [e.step for e in events(tmp_path) if e.HasField("session_log")] == [0]
    assert [r["step"] for r in records(tmp_path)] == [7]


def test_lengths_are_those_of_the_files(tmp_path: pathlib.Path) -> None:
    with log.Log(tmp_path, log.Quiet()) as book:
        book.write(1, 1.0, {"é": 1.0})
        book.episodes([episode(1)], 1.0)
        lengths = book.lengths()
        assert lengths == {name: (tmp_path / name).stat().st_size for name in ("metrics.jsonl", "episodes.csv")}


@pytest.mark.parametrize("torn", [b"", b'{"step": 2, "wal'])
def test_a_file_shorter_than_recorded_is_cut_to_whole_lines(tmp_path: pathlib.Path, torn: bytes) -> None:
    with log.Log(tmp_path, log.Quiet()) as book:
        book.write(1, 1.0, {})
        lengths = book.lengths()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(torn)
    with log.Log(tmp_path, log.Quiet(), {**lengths, "metrics.jsonl": 10_000}) as book:
        book.write(3, 3.0, {})
    assert [r["step"] for r in records(tmp_path)] == [1, 3]


def test_a_new_run_begins_with_empty_files(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        with log.Log(tmp_path, log.Quiet()) as book:
            book.write(1, 1.0, {})
            book.episodes([episode(1)], 1.0)
    assert len(records(tmp_path)) == 1
    assert len((tmp_path / "episodes.csv").read_text().splitlines()) == 2


# ------------------------------------------------------------------------------------------------ broken sinks


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_drops_the_sink_with_one_warning(tmp_path: pathlib.Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    stream = io.StringIO()
    with log.Log(tmp_path, log.Plain(stream)) as book:
        for step in range(3):
            book.write(step, 1.0, {"loss": 1.0})
            book.episodes([episode(step)], 1.0)
        book.sync()
        assert book.lengths()["metrics.jsonl"] == 0
        assert book.dropped == ["metrics.jsonl"]
    assert stream.getvalue() == (
        "warning: metrics.jsonl is no longer written (No space left on device); the run goes on\n"
    )
    assert len((tmp_path / "episodes.csv").read_text().splitlines()) == 4
    assert len([e for e in events(tmp_path) if e.summary.value]) == 3


def test_a_line_half_written_is_cut_off_again(tmp_path: pathlib.Path) -> None:
    class Filling(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data)[:5])

    lines = sinks.Lines(tmp_path / "x.csv", 0)
    lines.start()
    lines.append("whole\n")
    assert lines._file is not None
    lines._file.close()
    lines._file = Filling(tmp_path / "x.csv", "a")
    with pytest.raises(OSError, match="No space left"):
        lines.append("another line\n")
    lines.close()
    assert (tmp_path / "x.csv").read_text() == "whole\n"
    assert lines.length == 6


@pytest.mark.parametrize("verb", ["start", "write", "episodes", "sync", "close"])
@pytest.mark.parametrize("kind", [sinks.JsonLines, sinks.Csv, sinks.TensorBoard])
def test_any_sink_may_break_anywhere(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kind: Any, verb: str
) -> None:
    close = kind.close

    def fail(sink: Any, *_: Any) -> None:
        close(sink)  # or Python complains about the file left open
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(kind, verb, fail)
        with log.Log(tmp_path, log.Plain(stream)) as book:
            for step in range(2):
                book.write(step, 1.0, {})
                book.episodes([episode(step)], 1.0)
                book.sync()
    assert stream.getvalue().count("no longer written (Input/output error)") == 1
    if kind is not sinks.JsonLines:
        assert [r["step"] for r in records(tmp_path)] == [0, 1]


def test_a_sink_that_never_opened_keeps_the_length_it_was_to_continue(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with log.Log(tmp_path, log.Quiet()) as book:
        book.write(1, 1.0, {})
        lengths = book.lengths()

    def fail(*_: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(sinks.JsonLines, "start", fail)
    with log.Log(tmp_path, log.Quiet(), lengths) as book:
        assert book.lengths() == lengths
    assert len(records(tmp_path)) == 1


def test_a_terminal_that_went_away_does_not_end_the_run(tmp_path: pathlib.Path) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    with log.Log(tmp_path, log.Plain(Gone(), first=0.0)) as book:
        book.tick(STATUS)
        book.note("hello")
        book.fault("worker died", "Traceback")
        book.write(1, 1.0, {})
    assert len(records(tmp_path)) == 1


# ------------------------------------------------------------------------------------------------ plain lines


def test_plain_line() -> None:
    assert plain.line(STATUS) == (
        "step=120000/300000 steps/s=8450 return=187.2 left=21s env=41% inference=30% learning=22% waiting=7% "
        "workers=2/2 restarts=0 mem=512MB"
    )
    assert plain.line(UNKNOWN) == "step=120000/300000 steps/s=- return=- left=- restarts=0 mem=-"
    assert plain.line(STATUS._replace(checkpoint_age_s=130.0)).endswith(" mem=512MB ckpt=2m10s")


def test_plain_pacing_and_a_last_line() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = log.Plain(stream, every=10.0, first=2.0, clock=clock)
    for tenth in range(250):
        clock.now = tenth / 10
        shown.show(STATUS._replace(step=tenth))
    steps = [int(re.findall(r"step=(\d+)", line)[0]) for line in stream.getvalue().splitlines()]
    assert steps == [20, 120, 220]
    shown.close()
    shown.close()
    assert stream.getvalue().splitlines()[3:] == [plain.line(STATUS._replace(step=249))]


def test_plain_output_has_no_control_characters() -> None:
    stream = io.StringIO()
    shown = log.Plain(stream, first=0.0)
    shown.show(STATUS)
    shown.note("saved \x1b[31mred\x1b[0m\x07\r\nand more")
    shown.fault("worker \x1b[1mdied", "Traceback (most recent call last):\r\n\x1b[35mValueError\x1b[0m: no\n")
    shown.close()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", stream.getvalue())
    assert stream.getvalue().splitlines()[1:] == [
        "saved red and more",
        "fault: worker died",
        "Traceback (most recent call last):",
        "ValueError: no",
    ]


def test_durations_and_shares() -> None:
    words = [wording.duration(s) for s in (None, float("nan"), -1, 0, 59.4, 59.6, 190, 3600, 3900, 90000)]
    assert words == ["-", "-", "-", "0s", "59s", "1m00s", "3m10s", "1h00m", "1h05m", "1d01h"]
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = rng.uniform(0, 5, size=int(rng.integers(1, 6))).tolist()
        parts = wording.shares(values, 100)
        assert sum(parts) == 100
        assert all(abs(p - 100 * v / sum(values)) < 1 for p, v in zip(parts, values, strict=True))
    assert wording.percents({"waiting": 0.0, "environment": 0.0}) == {}
    assert list(wording.percents({"waiting": 1, "other": 1, "environment": 1})) == ["environment", "waiting", "other"]


def test_which_console(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    for name in ("CI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(log.pick(stream=Terminal()), live.Live)
    assert isinstance(log.pick(quiet=True, stream=Terminal()), log.Quiet)
    assert isinstance(log.pick(stream=io.StringIO()), log.Plain)
    for name, value in (("CI", "true"), ("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert isinstance(log.pick(stream=Terminal()), log.Plain), name
    Terminal.encoding = "ascii"
    assert isinstance(log.pick(stream=Terminal()), log.Plain)


def test_quiet_prints_nothing(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    with log.Log(tmp_path, log.pick(quiet=True)) as book:
        book.tick(STATUS)
        book.note("note")
        book.fault("kind", "text")
        book.write(1, 1.0, {"loss": 1.0})
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------ live table


def picture(status: log.Status, width: int, returns: list[float]) -> list[str]:
    import rich.console

    screen = rich.console.Console(width=width, record=True, file=io.StringIO())
    screen.print(live.render(status, width, returns))
    return screen.export_text().rstrip("\n").split("\n")


@pytest.mark.parametrize("width", [24, 36, 50, 64, 76, 80, 120, 250])
@pytest.mark.parametrize(
    "status",
    [
        STATUS,
        UNKNOWN,
        STATUS._replace(step=300_000, checkpoint_age_s=12.0),
        STATUS._replace(step=0, steps=0, split={"learning": 1.0}),
        STATUS._replace(step=10**10, steps=10**10, return_mean=-123456.7, env="module:A[very]Long-Name-v0" * 3),
    ],
)
def test_the_table_is_compact_at_any_width(status: log.Status, width: int) -> None:
    lines = picture(status, width, [1.0, 5.0, 3.0])
    assert len(lines) <= 14
    assert {len(line) for line in lines} == {min(width, live.WIDEST)}


def test_the_table_says_what_matters() -> None:
    text = "\n".join(picture(STATUS._replace(checkpoint_age_s=12.0, restarts=3), 80, [1.0, 2.0, 9.0]))
    for words in (
        "shoal · a3c · CartPole-v1 · hogwild · seed 0",
        "40 %",
        "21s left",
        "120,000 of 300,000",
        "8,450",
        "187.2  goal 475",
        "231.0  ▁▁█",
        "1,234",
        "environment 41 %",
        "inference 30 %",
        "learning 22 %",
        "waiting 7 %",
        "2 of 2, 3 restarted",
        "512 MB",
        "12s ago",
    ):
        assert words in text, words
    assert "done" in "\n".join(picture(STATUS._replace(step=300_000), 80, []))


def test_the_table_shows_how_late_gradients_are() -> None:
    workers = {"up": 2, "of": 2, "lag_mean": 1.04}
    assert "2 of 2, lag 1.0" in "\n".join(picture(STATUS._replace(workers=workers), 80, []))


def test_the_table_and_the_line_show_how_late_and_how_far_actors_are() -> None:
    told = {"staleness": 3.0, "ess": 0.912, "actor_inference_share": 0.58}
    status = STATUS._replace(workers={"up": 2, "of": 2}, restarts=0, acting=told)
    assert "2 of 2, 3 late, ESS 0.91" in "\n".join(picture(status, 80, []))
    assert " late=3 ess=0.912 acting=0.58 " in plain.line(status)
    assert "late=" not in plain.line(STATUS)
    assert "2 of 2, 3 late" in "\n".join(picture(status._replace(acting={"staleness": 3.0}), 80, []))


def test_names_are_never_read_as_markup() -> None:
    assert "probe:[red]x" in "\n".join(picture(STATUS._replace(env="probe:[red]x"), 80, []))


def test_live_draws_four_times_a_second_at_most() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = live.Live(stream, width=80, clock=clock)
    drawn = []
    shown._draw = lambda draw=shown._draw: (drawn.append(clock.now), draw())  # type: ignore[method-assign,misc]
    for hundredth in range(101):
        clock.now = hundredth / 100
        shown.show(STATUS._replace(step=hundredth))
    assert drawn == [0.0, 0.25, 0.5, 0.75, 1.0]
    shown.close()


ON_A_TERMINAL = """
import pathlib, sys
sys.path[:0] = sys.argv[2:]
import test_log
from shoal import log
with log.Log(pathlib.Path(sys.argv[1]), log.pick()) as book:
    book.tick(test_log.STATUS)
    print("during")
    book.note("a note [bold]kept as it is[/bold]")
    book.fault("worker 1 died", "Traceback (most recent call last):\\n  boom")
    book.tick(test_log.STATUS._replace(step=300_000))
print("result")
"""


def test_on_a_real_terminal(tmp_path: pathlib.Path) -> None:
    leader, follower = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR")} | {
        "TERM": "xterm-256color",
        "COLUMNS": "80",
    }
    command = [sys.executable, "-c", ON_A_TERMINAL, str(tmp_path), str(pathlib.Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, stdin=subprocess.DEVNULL, env=env)
    os.close(follower)
    seen = b""
    try:
        while chunk := os.read(leader, 65536):
            seen += chunk
    except OSError:  # the other end was closed
        pass
    finally:
        os.close(leader)
    with process:
        out = process.stdout.read() if process.stdout else b""
    assert process.returncode == 0, seen.decode()
    assert out == b"during\nresult\n"  # standard output carries the result and nothing else
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "a note [bold]kept as it is[/bold]" in text
    assert "fault: worker 1 died" in text
    assert text.index("boom") < text.rindex("shoal · a3c")  # above the table
    assert "done" in text[text.rindex("shoal · a3c") :]
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")  # the cursor is back


def test_a_fault_carries_the_whole_traceback(tmp_path: pathlib.Path) -> None:
    stream = io.StringIO()
    try:
        raise ValueError("bad observation")
    except ValueError:
        text = traceback.format_exc()
    with log.Log(tmp_path, log.Plain(stream)) as book:
        book.fault("worker 1 raised", text)
    assert stream.getvalue() == f"fault: worker 1 raised\n{text}"


# ------------------------------------------------------------------------------------------------ stages

COMPILING = STATUS._replace(step=0, stage=types.Stage("compiling"), stage_s=12.0)
STARTING = STATUS._replace(step=0, stage=types.Stage("starting 2 workers", 1, 2), stage_s=3.0)


def test_a_plain_line_says_what_is_done_before_the_first_step_and_after_the_last() -> None:
    assert plain.line(COMPILING) == "compiling, 12s"
    assert plain.line(STARTING) == "starting 2 workers: 1 of 2, 3s"
    assert plain.line(STATUS._replace(stage=types.Stage("evaluating", 3, 20))) == "evaluating: 3 of 20, 0s"


def test_plain_lines_of_another_stage_come_sooner_but_not_at_once() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = log.Plain(stream, every=10.0, first=2.0, clock=clock)
    for tenth in range(275):
        clock.now = tenth / 10
        status = STARTING._replace(stage_s=clock.now) if clock.now < 3 else COMPILING._replace(stage_s=clock.now - 3)
        shown.show(status if clock.now < 16 else STATUS)
    words = [line.split(":")[0] for line in stream.getvalue().splitlines()]
    assert words[:3] == ["starting 2 workers", "compiling, 1s", "compiling, 11s"], "2 s, 4 s, 14 s"
    assert [word.split()[0] for word in words[3:]] == ["step=120000/300000"] * 2, "16 s, 26 s"
    shown.show(COMPILING)
    shown.close()
    assert stream.getvalue().count("compiling") == 2, "a run that ended before it trained has no last line"


@pytest.mark.parametrize("width", [24, 36, 50, 80, 120])
def test_the_table_says_what_is_done_in_place_of_the_time_left(width: int) -> None:
    unknown = UNKNOWN._replace(step=0, stage=types.Stage("starting 200 bundles", 117, 200), stage_s=95.0)
    for status in (COMPILING, STARTING, unknown):
        lines = picture(status, width, [])
        assert len(lines) <= 14
        assert {len(line) for line in lines} == {min(width, live.WIDEST)}
    shown = "\n".join(picture(STARTING, width, []))
    assert ("starting 2 workers: 1 of 2, 3s" in shown) == (width >= 50)
    assert "starting" in shown or width < 30
    assert "left" not in shown
    assert "compiling, 12s" in "\n".join(picture(COMPILING, 80, []))


def test_the_curve_goes_on_where_earlier_lives_ended_in_proportion_to_steps() -> None:
    shown = live.Live(io.StringIO(), width=80, clock=Clock())
    earlier = ((1000, 10.0), (5000, 20.0))  # lines of metrics: few, far apart
    drawn = []
    shown._draw = lambda: drawn.append(live.evenly(shown._returns, 5))  # type: ignore[method-assign]
    for step in range(6000, 9001, 10):  # looks at the screen: many
        shown.show(STATUS._replace(step=step, return_mean=step / 100, earlier=earlier))
    assert drawn[0] == [10.0, 10.0, 60.0], "of three points, three"
    assert drawn[-1] == [10.0, 10.0, 20.0, 70.0, 90.0]
    assert live.evenly([(5, 1.0)]) == [1.0]
    assert live.evenly([]) == []


def test_a_column_of_the_lines_that_were_kept(tmp_path: pathlib.Path) -> None:
    with log.Log(tmp_path, log.Quiet()) as book:
        book.write(100, 1.0, {"return_mean": None})
        book.write(200, 2.0, {"return_mean": 1.5})
        book.write(300, 3.0, {"loss": 1.0})
        book.write(400, 4.0, {"return_mean": -2})
        kept = book.lengths()
        book.write(500, 5.0, {"return_mean": 9.0})
    with log.Log(tmp_path, log.Quiet(), kept) as book:
        assert book.earlier("return_mean") == ((200, 1.5), (400, -2.0))


def test_events_are_written_without_importing_all_that_their_library_would(tmp_path: pathlib.Path) -> None:
    """Its package imports PyTorch where that is installed: seconds before a run begins."""
    code = (
        "import pathlib, sys; from shoal import log\n"
        "with log.Log(pathlib.Path(sys.argv[1]), log.Quiet()) as book: book.write(1, 1.0, {'loss': 0.5})\n"
        "assert not {'torch', 'tensorboardX', 'tensorboardX.writer'} & set(sys.modules)\n"
        "sys.modules['torch'] = None\n"  # as where it is not installed: it would take seconds
        "import tensorboardX\n"
        "assert tensorboardX.SummaryWriter, 'the real one'\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert len(events(tmp_path)) > 1

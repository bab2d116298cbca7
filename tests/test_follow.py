"""Watching a run and comparing runs, on logs whose numbers are known."""

import json
import math
from pathlib import Path

import pytest

from igebm import follow
from igebm.cli import main
from igebm.report.found import Log
from igebm.training.run import alone, in_use


def run_folder(path: Path, steps: int, slope: float, lr: float) -> Path:
    path.mkdir()
    (path / "preset.json").write_text(json.dumps({"settings": {"steps": 100, "lr": lr, "batch": 8}}))
    lines = [{"step": 10 * i, "gap": slope * i, "e_pos": 1.0, "seconds": 2.0 * i} for i in range(1, steps // 10 + 1)]
    lines.insert(3, {"event": "rollback", "diverged_at": 35, "cause": "the loss is not finite", "back_to": 30})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_sparkline_rises_with_its_numbers():
    assert follow.sparkline(range(8)) == "▁▂▃▄▅▆▇█"
    assert follow.sparkline([5, 5]) == "▅▅" and follow.sparkline([0, 0.0]) == "▁▁"
    assert follow.sparkline([None, float("nan")]) == ""
    assert follow.sparkline(range(1000), width=4) == "▁▃▆█"  # means 124.5, 374.5, 624.5, 874.5


def test_watch_tells_step_rate_time_left_and_rollbacks(tmp_path, capsys):
    with alone(run_folder(tmp_path / "a", 50, 1.0, 0.1)):
        assert main(["watch", str(tmp_path / "a")]) == 0
    shown = capsys.readouterr().out
    # 10 steps in 2 seconds, 50 left: 10 seconds.
    assert "step 50 of 100, 0.2 s each, 0:10 left" in shown
    assert "went back at step 35 to 30: the loss is not finite" in shown


def test_a_run_that_was_gone_on_with_has_the_rate_of_its_own_time(tmp_path, capsys):
    """30 steps in 15 s, then a clock that starts anew, then 20 steps in 10 s: half a second each, and 30 left."""
    run = run_folder(tmp_path / "a", 10, 1.0, 0.1)
    clocks = [(10, 5.0), (20, 10.0), (30, 15.0), (40, 20.0), (50, 2.0), (60, 7.0), (70, 12.0)]
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": k, "seconds": s}) + "\n" for k, s in clocks))
    with alone(run):
        assert main(["watch", str(run)]) == 0
    assert "step 70 of 100, 0.5 s each, 0:15 left" in capsys.readouterr().out


@pytest.mark.parametrize("steps, head", [(50, "step 50 of 100, 0.2 s each, not running"), (100, "100, 0.2 s each")])
def test_a_run_that_nobody_is_at_has_no_time_left(steps, head, tmp_path, capsys):
    run = run_folder(tmp_path / "a", steps, 1.0, 0.1)
    assert main(["watch", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(head)
    assert main(["watch", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["running"] is False and found["seconds_left"] is None


@pytest.mark.parametrize("minutes, left", [(0.25, 5.0), (1.0, 10.0), (0.0, 10.0), (0.1, 0.0)])
def test_the_time_left_is_the_less_of_steps_and_minutes(minutes, left, tmp_path, capsys):
    """50 of 100 steps in 10 s: 10 s are left of the steps, 5 of a quarter of a minute, none of a tenth."""
    run = run_folder(tmp_path / "a", 50, 1.0, 0.1)
    (run / "preset.json").write_text(json.dumps({"settings": {"steps": 100, "minutes": minutes, "network": "image"}}))
    with alone(run):
        assert main(["watch", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seconds_left"] == pytest.approx(left)


def test_fast_steps_share_the_hundredths_of_their_clock(tmp_path, capsys):
    """Steps of 2 ms, logged each, by a clock of 10 ms: 20 ms over ten steps."""
    run = run_folder(tmp_path / "a", 10, 1.0, 0.1)
    clocks = [(k, round(0.002 * k + 0.0001, 2)) for k in range(0, 11)]
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": k, "seconds": s}) + "\n" for k, s in clocks))
    assert main(["watch", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seconds_each"] == pytest.approx(0.002)


def test_compare_shows_last_numbers_and_what_differs(tmp_path, capsys):
    a, b = run_folder(tmp_path / "a", 50, 1.0, 0.1), run_folder(tmp_path / "b", 30, -1.0, 0.2)
    assert main(["compare", str(a), str(b), "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["gap"] for row in found["runs"]] == [5.0, -3.0] and [row["step"] for row in found["runs"]] == [50, 30]
    assert found["differing"] == {"--lr": [0.1, 0.2]}
    assert (tmp_path / "out" / "compare.png").stat().st_size > 0
    assert main(["compare", str(a), str(b), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("means over the last tenth of each log:\n")


@pytest.mark.parametrize(("lines", "last", "mean"), [(100, 10, 95.5), (19, 1, 19.0), (20, 2, 19.5), (5, 1, 5.0)])
def test_compare_averages_over_the_last_tenth_of_the_log(lines, last, mean):
    """Line i says i: of a hundred lines the mean of 91 ... 100; a number that is not finite does not count."""
    entries = [{"step": i, "gap": float(i), "loss": math.inf if i % 2 else 7.0} for i in range(1, lines + 1)]
    row = follow.row(Path("a"), Log(entries))
    assert row["gap"] == mean and row["step"] == lines
    assert row.get("loss") == (7.0 if last > 1 else None)


@pytest.mark.parametrize("words", [["watch", "nowhere"], ["compare", "nowhere", "either"], ["compare", "nowhere"]])
def test_folders_that_hold_no_run_are_one_line(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_tensorboard_shows_the_numbers_of_the_log(tmp_path):
    """What TensorBoard's own reader finds: each line of metrics.jsonl, the grid, and histograms that count a batch; a
    resumed run goes on in them, and what it does again is there once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    small = ["--width", "4", "--blocks", "1d", "--batch", "8", "--buffer-size", "16", "--chain-steps", "1"]
    small += ["--log-every", "1", "--grid-every", "2", "--save-every", "2", "--sample-steps", "1", "--threads", "1"]
    assert main(["train", "digits", "--steps", "4", "--out", str(run), "--dtype", "float32", *small]) == 0
    assert main(["train", "--resume", str(run), "--steps", "6"]) == 0
    found = EventAccumulator(str(run / "tensorboard"), {"histograms": 0, "images": 0, "scalars": 0}).Reload()
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("e_pos", "gap", "gradient"):
        curve = found.Scalars(name)
        assert [point.step for point in curve] == [1, 2, 3, 4, 5, 6]
        assert [point.value for point in curve] == pytest.approx([line[name] for line in log], rel=1e-4)
    assert [i.step for i in found.Images("buffer")] == [2, 4, 6]
    for name in ("E(x+)", "E(x-)"):
        assert [(h.step, h.histogram_value.num) for h in found.Histograms(name)] == [(2, 8), (4, 8), (6, 8)]
        means = [h.histogram_value.sum / 8 for h in found.Histograms(name)]
        key = {"E(x+)": "e_pos", "E(x-)": "e_neg"}[name]
        assert means == pytest.approx([line[key] for line in log[1::2]], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("every", ["nan", "inf", "0", "-1", "1e9"])
def test_seconds_between_looks_are_seconds(every, tmp_path, capsys):
    assert main(["watch", str(run_folder(tmp_path / "a", 50, 1.0, 0.1)), "--every", every]) == 2
    assert "give a number of seconds above 0" in capsys.readouterr().err


@pytest.mark.parametrize("settings", ['{"settings": []}', '{"settings": {"steps": "abc"}}', "[]", "{", "[" * 100_000])
def test_settings_that_are_none_are_one_line(settings, tmp_path, capsys):
    run = run_folder(tmp_path / "a", 50, 1.0, 0.1)
    (run / "preset.json").write_text(settings)
    assert main(["watch", str(run)]) == 2 and "is damaged" in capsys.readouterr().err


def test_a_log_that_cannot_be_read_is_said(tmp_path, capsys):
    run = run_folder(tmp_path / "a", 50, 1.0, 0.1)
    (run / "metrics.jsonl").write_text('{"step": 10, "gap": 1.0}\n{"step": "x"}\n')
    assert main(["watch", str(run)]) == 0
    assert "line 2 is cut or damaged" in capsys.readouterr().err
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    assert main(["watch", str(run)]) == 0
    assert "metrics.jsonl cannot be read" in capsys.readouterr().err


def test_watching_ends_where_nobody_trains(tmp_path, monkeypatch, capsys):
    """In a terminal, too, and for a run that was killed before its first line; what is wrong is said once."""
    folder = run_folder(tmp_path / "a", 50, 0.1, 1e-3)
    (folder / "metrics.jsonl").unlink()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    looks = []
    monkeypatch.setattr("igebm.follow.in_use", lambda _: len(looks) < 3)
    monkeypatch.setattr("igebm.follow.time.sleep", looks.append)
    assert main(["watch", str(folder), "--every", "7"]) == 0
    assert looks == [7.0, 7.0, 7.0]
    folder = run_folder(tmp_path / "b", 50, 0.1, 1e-3)
    with open(folder / "metrics.jsonl", "a") as log:
        log.write("{cut")
    looks.clear()
    assert main(["watch", str(folder)]) == 0
    told = capsys.readouterr()
    assert (told.out + told.err).count("cut or damaged") == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_a_log_cannot_move_the_cursor(terminal, tmp_path, monkeypatch, capsys):
    """Nor may what a run's settings say, in the table of compare: escape codes are shown as text, lines stay lines."""
    a, b = run_folder(tmp_path / "a", 50, 1.0, 0.1), run_folder(tmp_path / "b", 30, -1.0, 0.2)
    entry = {"event": "rollback", "diverged_at": 60, "back_to": 50, "cause": "x\x1b[2J\x9b1A\ry"}
    with open(a / "metrics.jsonl", "a") as log:
        log.write(json.dumps(entry) + "\n")
    (a / "preset.json").write_text(json.dumps({"settings": {"steps": 50, "data": "d\x1b]0;title\x07"}}))
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert main(["watch", str(a)]) == 0
    assert "went back at step 60 to 50: x\\x1b[2J\\x9b1A\\x0dy" in (shown := capsys.readouterr().out)
    assert "\x1b[2J" not in shown and "\x9b" not in shown
    settings = json.loads((b / "preset.json").read_text())["settings"] | {"data": "e"}
    (b / "preset.json").write_text(json.dumps({"settings": settings}))
    assert main(["compare", str(a), str(b), "--out", str(tmp_path / "out")]) == 0
    assert "d\\x1b]0;title\\x07" in (shown := capsys.readouterr().out) and "\x1b" not in shown
    assert len(shown.splitlines()) > 5


def test_every_run_is_in_the_legend(tmp_path, monkeypatch):
    """A folder that begins with an underscore, too, which matplotlib leaves out."""
    from igebm.report import figures

    monkeypatch.chdir(tmp_path)
    runs = [str(run_folder(Path(name), 50, 1.0, lr)) for name, lr in (("_mine", 0.1), ("$\\frac$", 0.2))]
    legends = []
    save = lambda figure, *_: legends.extend(t.get_text() for t in figure.axes[0].get_legend().get_texts())
    monkeypatch.setattr(figures, "save", save)
    assert main(["compare", *runs, "--out", "out"]) == 0
    assert legends == ["\u200b_mine", "$\\frac$"]


def test_compare_looks_at_its_folder_first(tmp_path, capsys):
    a, b = run_folder(tmp_path / "a", 50, 1.0, 0.1), run_folder(tmp_path / "b", 30, -1.0, 0.2)
    (tmp_path / "taken").write_text("")
    assert main(["compare", str(a), str(b), "--out", str(tmp_path / "taken")]) == 2
    assert capsys.readouterr().out == ""


def test_a_run_is_in_use_while_a_process_holds_it(tmp_path):
    """What ends `watch` on a run that was stopped: the lock that training holds, and that a look at it leaves free."""
    assert not in_use(tmp_path)
    with alone(tmp_path):
        assert in_use(tmp_path)
    assert not in_use(tmp_path)
    with alone(tmp_path):
        pass

"""What long work prints while it runs."""

import pytest

from lsid_ray import progress
from lsid_ray.progress import counter, format_duration, live_table, training_progress
from lsid_ray.train.loop import _Pace


def test_a_counter_ends_with_count_rate_and_time_left(capsys: pytest.CaptureFixture) -> None:
    with counter("packing", "files") as progress:
        for done in range(6):
            progress(done, 5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("packing: 0/5 files") and len(lines) == 2, "off a terminal few lines are printed"
    assert lines[-1].startswith("packing: 5/5 files, ") and lines[-1].endswith("0 s left")


def test_a_terminal_gets_a_bar_that_ends_full(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with counter("packing", "files") as update:
        update(0, 2)
        update(1, 2, "left out a.dng")
        update(2, 2)
    written = capsys.readouterr().out
    assert "packing: left out a.dng" in written
    assert "\x1b[2K" in written, "the bar is drawn over itself"
    last = written.rstrip().rpartition("\x1b[2K")[2]
    assert "packing" in last and "━" * 20 in last and "2/2 files, " in last and "0 s left" in last


def test_a_table_is_printed_when_it_changed(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TABLE_SECONDS", 0.0)
    with live_table() as show:
        show(["one [bold]"])
        show(["one [bold]"])
        show(["two"])
    assert capsys.readouterr().out == "one [bold]\n\ntwo\n\n"


def test_training_shows_steps_validation_and_where_it_continues(capsys: pytest.CaptureFixture) -> None:
    with training_progress() as show:
        show({"kind": "start", "step": 4, "total_steps": 10, "workers": 1})
        show({"kind": "train", "step": 6, "epoch": 1, "l1": 0.25, "learning_rate": 1e-3, "samples_per_s": 12.5,
              "waiting_for_data": 0.25, "seconds_left": 125.0})  # fmt: skip
        show({"kind": "validation", "step": 8, "epoch": 2, "psnr_db": 20.125, "ssim": 0.5, "frames": 3, "seconds": 1})
    written = capsys.readouterr().out
    assert "resuming from step 4 of 10 with 1 worker\n" in written
    assert "step 6/10, epoch 1, l1 0.2500, 12.5 samples/s, 25% waiting for data, 2:05 min left" in written
    assert "epoch 2: validation PSNR 20.12 dB, SSIM 0.500 on 3 full frames" in written


def test_the_first_steps_which_are_slow_tell_no_rate(capsys: pytest.CaptureFixture) -> None:
    with training_progress() as show:
        show({"kind": "start", "step": 0, "total_steps": 10, "workers": 1})
        show({"kind": "train", "step": 1, "epoch": 0, "l1": 0.5, "learning_rate": 1e-3, "samples_per_s": 1.0,
              "waiting_for_data": 0.9, "seconds_left": None})  # fmt: skip
    assert "step 1/10, epoch 0, l1 0.5000\n" in capsys.readouterr().out


def test_the_time_left_includes_validations_and_leaves_out_the_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([20.0, 21.0, 30.0, 31.0])  # the first second came after 20, and between 21 and 30 was a validation
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    pace = _Pace()
    assert [pace.seconds_left(step, 200) for step in (2, 12, 102, 112)] == [None, None, 9.8, 8.8]


def test_waiting_is_a_line_a_minute_off_a_terminal_and_does_not_lower_the_rate(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: seconds[0])
    with counter("packing", "files") as update:
        update(0, 20)
        for now in range(115, 250, 10):
            seconds[0] = float(now)
            progress.show_waiting(f"1 CPU: 0 of 4 CPUs free, {now - 100} s")
        seconds[0] += 10
        update(20, 20)
    lines = capsys.readouterr().out.splitlines()
    waits = [f"packing: waiting for 1 CPU: 0 of 4 CPUs free, {waited} s" for waited in (15, 75, 135)]
    assert lines == ["packing: 0/20 files, 0.0 files/s, ? left", *waits, "packing: 20/20 files, 2.0 files/s, 0 s left"]


def test_waiting_is_shown_on_the_bar_of_a_terminal(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with training_progress() as show:
        show({"kind": "waiting", "message": "2 workers with 1 CPU each: 0.5 of 2 CPUs free", "seconds": 200.0})
    written = capsys.readouterr().out
    assert "waiting for 2 workers with 1 CPU each: 0.5 of 2 CPUs free, 3:20 min" in written and "\x1b[2K" in written


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (61, "1:01 min"), (3599, "59:59 min"), (7260, "2:01 h")]
)
def test_durations_are_formatted(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text

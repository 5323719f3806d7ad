"""What long work prints."""

import pytest

from lsid_ray.progress import counting, duration, training


def test_counting_ends_with_a_line_of_count_rate_and_time_left(capsys: pytest.CaptureFixture) -> None:
    with counting("packing", "files") as progress:
        for done in range(6):
            progress(done, 5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("packing: 0/5 files") and len(lines) == 2, "off a terminal few lines are printed"
    assert lines[-1].startswith("packing: 5/5 files, ") and lines[-1].endswith("0 s left")


def test_a_terminals_line_is_written_over(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with counting("packing", "files") as progress:
        progress(0, 2)
        progress(2, 2)
    said = capsys.readouterr().out
    assert said.count("\r") == 2 and said.count("\n") == 1 and said.endswith("\n")


def test_training_shows_steps_validation_and_where_it_continues(capsys: pytest.CaptureFixture) -> None:
    with training() as show:
        show({"kind": "start", "step": 4, "total_steps": 10})
        show({"kind": "train", "step": 6, "epoch": 1, "l1": 0.25, "learning_rate": 1e-3, "samples_per_s": 12.5,
              "waiting_for_data": 0.25, "seconds_left": 125.0})  # fmt: skip
        show({"kind": "validation", "step": 8, "epoch": 2, "psnr_db": 20.125, "ssim": 0.5, "frames": 3, "seconds": 1})
    said = capsys.readouterr().out
    assert "continuing from step 4 of 10" in said
    assert "step 6/10, epoch 1, l1 0.2500, 12.5 samples/s, 25% waiting for data, 2:05 min left" in said
    assert "epoch 2: validation PSNR 20.12 dB, SSIM 0.500 on 3 full frames" in said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (59, "59 s"), (61, "1:01 min"), (3599, "59:59 min"), (7260, "2:01 h")]
)
def test_durations_read_well(seconds: float, said: str) -> None:
    assert duration(seconds) == said

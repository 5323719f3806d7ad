"""Benchmarks measure what they claim; no test depends on the speed of the machine."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lsid_ray.benchmark.faults import Recovery, check_faults, faults_table, measure_faults
from lsid_ray.benchmark.feed import PARTS, Feed, feed_table, measure_feed
from lsid_ray.benchmark.history import History
from lsid_ray.benchmark.memory import peak_bytes
from lsid_ray.benchmark.pack import measure_pack, pack_table
from lsid_ray.benchmark.predict import PredictTimes, measure_predict, predict_table
from lsid_ray.benchmark.step import Step, measure_step, step_table
from lsid_ray.benchmark.training import Train, measure_training, training_table
from lsid_ray.benchmark.validate import Validate, ValidationCost, measure_validation, validation_table
from lsid_ray.config.presets import PRESETS
from lsid_ray.config.schema import ClusterConfig, DiscriminatorConfig, GeneratorConfig, TrainingConfig
from lsid_ray.errors import InputError


def test_prediction_is_measured_in_bands_and_in_one_pass():
    tiny = GeneratorConfig(width=4, depth=2)
    times = measure_predict(tiny, 200, 300, memory_bytes=1 << 20, rounds=1, with_whole=True, use_gpu=False)
    assert times.megapixels == 0.06 and times.bands_s > 0 and times.whole_s > 0
    assert 50 << 20 < times.bands_bytes < 4 << 30 and 50 << 20 < times.whole_bytes < 4 << 30
    assert times.difference <= 1e-5
    assert "0.1 MP" in predict_table([times])


def test_the_prediction_table_is_aligned_and_summarized():
    times = [PredictTimes(12.1, 8.0, 1 << 30, 10.0, 4 << 30, 2e-7), PredictTimes(60.2, 50.0, 2 << 30, None, None, None)]
    text = predict_table(times)
    assert "In bands, 12 megapixels take 25% of the memory of one pass, at 1.25 of its speed." in text
    lines = text.splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines[:3]}) == 1, "columns are aligned"


def test_a_step_is_compared_with_a_plain_loop():
    times = measure_step(Step("demo", batch_size=1, crop=32, steps=1, rounds=1))
    assert times.step_s > 0 and times.plain_s > 0 and times.peak_bytes is None
    assert f"{times.relative_speed:.2f} times as fast as the plain loop (CPU" in step_table(times)
    without = measure_step(Step("chen", crop=32, steps=1, rounds=1))
    assert without.flops > times.flops, "chen has the larger network"
    for options, message in (
        (Step("demos"), "demos: no such preset, expected one of demo, "),
        (Step("demo", steps=0), "--steps is 0: expected 1 to"),
        (Step("demo", crop=20), "--training.crop is 20: expected a multiple of 8"),
    ):
        with pytest.raises(InputError, match=message):
            measure_step(options)


@pytest.mark.slow
def test_a_stream_is_compared_with_a_data_loader(shards: Path, tmp_path: Path):
    training = TrainingConfig(batch_size=4, crop=16)
    feed = Feed(str(shards), 30.0, 20, 1, 4, training, ClusterConfig(num_workers=2, cpus_per_worker=0.5))
    result = measure_feed(feed, tmp_path)
    assert result.sample_bytes == 2 * (4 * 17**2 + 3 * 34**2)
    assert result.paced.samples_per_s <= 4 / 0.030 and result.stream.samples_per_s > 0 < result.loader.samples_per_s
    assert {"readers", "split coordinator", "consumer", "rest of Ray"} <= result.stream.cpu_s_per_gb.keys()
    assert result.loader.cpu_s_per_gb["loader workers"] > 0
    for rate in (result.stream, result.paced, result.loader):
        assert rate.longest_wait_s > 0 and rate.waiting < 1
        assert rate.memory_bytes.keys() == rate.cpu_s_per_gb.keys()
    assert 20e6 < result.stream.memory_bytes["readers"] < 2e9
    lines = feed_table(result).splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == [
        "DataLoader over .npy files", "stream", "stream, 30 ms a step",
    ]  # fmt: skip
    assert lines[5].split() == ["MB", "of", "memory", *" ".join(dict.fromkeys(PARTS.values())).split()]
    assert lines[-1].startswith("At 30 ms a step the device waits for data ")
    with pytest.raises(InputError, match=r"--step-ms is -1: expected more than 0"):
        measure_feed(replace(feed, step_ms=-1), tmp_path)


def test_peak_memory_excludes_the_parent_process():
    parent_memory = bytearray(300 << 20)
    assert parent_memory[-1] == 0
    small, large = peak_bytes(bytearray, 1 << 20), peak_bytes(bytearray, 200 << 20)
    assert small < 150 << 20 and 190 << 20 < large - small < 210 << 20


@pytest.mark.slow
def test_packing_is_compared_with_libraw_alone(cluster: None, data_root: Path, tmp_path: Path):
    times = measure_pack(data_root, tmp_path, largest=(400, 600))
    assert (times.shorts, times.longs) == (10, 5)
    assert times.raw_bytes == sum(path.stat().st_size for path in data_root.glob("*/*.dng"))
    assert times.shard_bytes == sum(path.stat().st_size for path in (tmp_path / "shards").glob("*/*.parquet"))
    assert times.libraw_s > 0 and times.pool_s > 0 and times.ray_s > 0 and times.peak_bytes > 50 << 20
    text = pack_table(times)
    assert (
        f"{times.relative_speed:.2f} of the speed of LibRaw alone, and at {times.pool_relative_speed:.2f} without Ray"
        in text
    )


def test_a_data_set_with_a_broken_file_is_not_benchmarked(cluster: None, data_root: Path, tmp_path: Path):
    root = shutil.copytree(data_root, tmp_path / "set")
    broken = min((root / "short").iterdir())
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(InputError, match=rf"1 files cannot be packed, so nothing to compare; short/{broken.name}: "):
        measure_pack(root, tmp_path)


def test_the_table_of_faults_says_whose_result_differs():
    lines = faults_table([Recovery("worker killed", 2.04, 14.0, 300, True), Recovery("driver", None, 20.0, 0)]).split(
        "\n"
    )
    assert lines[1].split() == ["worker", "killed", "2.0", "14.0", "300", "yes"]
    assert lines[2].split() == ["driver", "20.0", "0", "NO"]
    with pytest.raises(InputError, match="--kills is -1: expected 0 to 1,000,000"):
        check_faults(-1, 1)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_every_fault_leaves_the_weights_of_an_undisturbed_run(node_folder: Callable[[], Path]):
    recoveries, _ = measure_faults(node_folder(), 400, 2, print)
    assert len(recoveries) == 6 and all(recovery.is_equal for recovery in recoveries)


def test_the_history_of_a_run_says_when_and_why_its_workers_changed(tmp_path: Path):
    def at(time: float, kind: str, step: int, **fields: object) -> str:
        return json.dumps({"kind": kind, "time": time, "step": step, **fields}) + "\n"

    log = [
        at(100, "start", 0, workers=2),
        at(110, "train", 20),
        at(115, "failure", 16, reason="worker 1 died"),
        at(130, "start", 16, workers=1),
        at(140, "train", 26),
        at(150, "train", 36),
        at(160, "start", 36, workers=1),
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(log))
    table, phases = History(str(tmp_path), tmp_path / "history.png").run(tmp_path)
    assert [(phase.cause, phase.began_s, phase.workers) for phase in phases] == [
        ("", 0, 2),
        ("workers lost", 30, 1),
        ("same command again", 60, 1),
    ]
    assert phases[1].points == ((40, 26), (50, 36))
    assert table.splitlines()[2].split() == ["30", "workers", "lost", "1", "16", "36", "1.00"]
    assert (tmp_path / "history.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="expected the folder of a run"):
        History(str(tmp_path / "none"), tmp_path / "none.png").run(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_is_compared_with_its_step_on_a_cached_batch(shards: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("lsid_ray.benchmark.training.MIN_SECONDS", 0.5)
    tiny = replace(
        PRESETS["demo"][1],
        generator=GeneratorConfig(width=4, depth=2),
        discriminator=DiscriminatorConfig(width=4, layers=1),
        training=TrainingConfig(batch_size=3, crop=16),
    )
    monkeypatch.setitem(PRESETS, "tiny", ("", tiny))
    cluster = ClusterConfig(num_workers=2, cpus_per_worker=0.5)
    rates = measure_training(Train("tiny", str(shards), seconds=2, steps=3, cluster=cluster), tmp_path)
    assert (rates.batch_size, rates.workers) == (3, 2) and rates.share > 0 and 0 <= rates.waiting < 1
    assert f"Training keeps {rates.share:.0%} of the speed of its step" in training_table(rates)
    with pytest.raises(InputError, match=r"--training.crop is 256"):
        measure_training(Train("sid-sony", str(shards), cluster=cluster), tmp_path)


def test_what_a_validation_costs_is_computed_from_frames_that_are_timed(shards: Path, monkeypatch):
    tiny = replace(
        PRESETS["demo"][1],
        generator=GeneratorConfig(width=4, depth=2),
        discriminator=DiscriminatorConfig(width=4, layers=1),
        training=TrainingConfig(batch_size=4, crop=16, validate_every=5, crops_per_pair=2),
    )
    monkeypatch.setitem(PRESETS, "tiny", ("", tiny))
    cost = measure_validation(Validate("tiny", str(shards), step_ms=1000, frames=1, slots=3))
    assert (cost.frames, cost.megapixels, cost.interval_s) == (2, 144 * 192 / 1e6, 15), "3 steps an epoch"
    assert 0 < cost.frame_s < 10 and cost.blocked_s == cost.save_s > 0
    cost = ValidationCost("x", 234, 12.0, 100.0, 2, 39, 2.0, 4.0, 0.5)
    assert cost.in_line_s == 234.5 and cost.apart_s == 24 and cost.share(cost.blocked_s) == 0.5 / 100.5
    slow = replace(cost, slots=1)
    assert slow.blocked_s == 0.5 + 936 - 100
    lines = validation_table(cost).splitlines()
    assert lines[2].split() == ["apart", "4", "39", "24", "0.5", "0.5%"]
    assert validation_table(slow).endswith("Apart, training waits 836 s for the validation before.")
    assert validation_table(replace(cost, slots=0)).endswith("so training stops for each validation.")
    with pytest.raises(InputError, match=r"--frames is 0: expected 1 to"):
        measure_validation(Validate("tiny", str(shards), frames=0))

"""Benchmarks measure what they say; how fast a machine is decides no test."""

import shutil
from pathlib import Path

import pytest

from lsid_ray import config
from lsid_ray.benchmark.memory import peak_bytes
from lsid_ray.benchmark.pack import measure_pack, pack_table
from lsid_ray.benchmark.predict import PredictTimes, measure_predict, predict_table
from lsid_ray.errors import InputError


def test_prediction_is_measured_in_bands_and_whole():
    tiny = config.Generator(width=4, depth=2)
    times = measure_predict(tiny, 200, 300, memory_bytes=1 << 20, rounds=1, with_whole=True, use_gpu=False)
    assert times.megapixels == 0.06 and times.bands_s > 0 and times.whole_s > 0
    assert 50 << 20 < times.bands_bytes < 4 << 30 and 50 << 20 < times.whole_bytes < 4 << 30
    assert times.difference <= 1e-5
    assert "0.1 MP" in predict_table([times])


def test_a_table_of_prediction_says_what_its_figures_mean():
    times = [PredictTimes(12.1, 8.0, 1 << 30, 10.0, 4 << 30, 2e-7), PredictTimes(60.2, 50.0, 2 << 30, None, None, None)]
    text = predict_table(times)
    assert "In bands, 12 megapixels take 25% of the memory of one pass, at 1.25 of its speed." in text
    lines = text.splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines[:3]}) == 1, "columns lie below each other"


def test_the_peak_of_a_process_is_its_own():
    here = bytearray(300 << 20)  # of the parent: must not count
    assert here[-1] == 0
    small, large = peak_bytes(bytearray, 1 << 20), peak_bytes(bytearray, 200 << 20)
    assert small < 150 << 20 and 190 << 20 < large - small < 210 << 20


def test_packing_is_measured_against_libraw_alone(cluster: None, data_root: Path, tmp_path: Path):
    times = measure_pack(data_root, tmp_path, largest=(400, 600))
    assert (times.shorts, times.longs) == (10, 5)
    assert times.raw_bytes == sum(path.stat().st_size for path in data_root.glob("*/*.dng"))
    assert times.shard_bytes == sum(path.stat().st_size for path in (tmp_path / "shards").glob("*/*.parquet"))
    assert times.libraw_s > 0 and times.plain_s > 0 and times.pack_s > 0 and times.largest_bytes > 50 << 20
    text = pack_table(times)
    assert f"{times.speed:.2f} of the speed of LibRaw alone, at {times.plain_speed:.2f} in plain processes" in text


def test_a_file_that_cannot_be_packed_leaves_nothing_to_compare(cluster: None, data_root: Path, tmp_path: Path):
    root = shutil.copytree(data_root, tmp_path / "set")
    broken = min((root / "short").iterdir())
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(InputError, match=rf"1 files cannot be packed, so nothing to compare; short/{broken.name}: "):
        measure_pack(root, tmp_path)

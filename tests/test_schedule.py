import itertools
from dataclasses import replace

import numpy as np
import pytest

from lsid_ray.config.schema import TrainingConfig
from lsid_ray.data.index import PackedFrame, Pair
from lsid_ray.data.schedule import Crop, Schedule
from lsid_ray.data.shard import Shard
from lsid_ray.errors import InputError
from lsid_ray.raw.mosaic import BAYER_PHASES, XTRANS, layout_of, phase_padding

TRAINING = TrainingConfig(epochs=4, batch_size=4, crop=16, crops_per_pair=3, seed=5)


def make_pair(scene: int, frame: int = 0, cfa: str = "RGGB", height: int = 80, width: int = 96) -> Pair:
    """A pair as the index describes it; no pixel is read."""
    name = f"1{scene:04}_{frame:02}_0.1s"
    top, bottom, left, right = phase_padding(cfa, height, width)
    block = layout_of(cfa).block
    packed = (len(layout_of(cfa).colors), (height + top + bottom) // block, (width + left + right) // block)
    short = Shard(f"short/{name}.parquet", f"{name}.ARW", 1, 1, "", packed, 256)
    long = Shard(f"long/1{scene:04}_00_10s.parquet", f"1{scene:04}_00_10s.ARW", 1, 1, "", (3, height, width), 512)
    short_frame = PackedFrame(
        shard=short,
        height=height,
        width=width,
        cfa=cfa,
        black=(512.0,) * len(cfa),
        white=16383.0,
        white_balance=(2.0, 1.0, 1.5),
        color_matrix=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        orientation=1,
        camera="Sony ILCE-7SM2",
        iso=100.0,
        exposure_s=0.1,
    )
    return Pair(
        name=name,
        scene=f"1{scene:04}",
        split="train",
        frame=frame,
        ratio=100,
        misaligned=False,
        short=short_frame,
        long=replace(short_frame, shard=long),
    )


PAIRS = tuple(make_pair(scene, frame) for scene in range(3) for frame in range(3))


def all_samples(schedule: Schedule) -> list[Crop]:
    return schedule.samples(range(schedule.total_steps * schedule.training.batch_size))


def test_an_epoch_contains_every_pair_crops_per_pair_times():
    schedule = Schedule(PAIRS, replace(TRAINING, batch_size=9))  # 27 samples, a multiple of the batch size
    for epoch in range(4):
        assert sorted(schedule.order(epoch)) == sorted(list(range(9)) * 3)
    assert [s.pair for s in schedule.samples(range(27, 54))] == schedule.order(1).tolist()


def test_the_last_batch_is_filled_up_from_the_start_of_the_epoch():
    schedule = Schedule(PAIRS, TRAINING)  # 27 samples in batches of 4
    assert (schedule.steps_per_epoch, schedule.total_steps) == (7, 28)
    for epoch in range(4):
        order = schedule.order(epoch)
        assert len(order) == 28
        assert sorted(order[:27]) == sorted(list(range(9)) * 3)
        assert order[27] == order[0]


def test_a_batch_larger_than_an_epoch_is_filled_up():
    schedule = Schedule(PAIRS[:2], replace(TRAINING, batch_size=16, crops_per_pair=1))
    assert schedule.steps_per_epoch == 1
    assert sorted(schedule.order(0)) == [0] * 8 + [1] * 8


def test_the_order_depends_only_on_seed_and_epoch():
    orders = {}
    for seed, epoch in itertools.product(range(3), range(3)):
        schedule = Schedule(PAIRS, replace(TRAINING, seed=seed))
        orders[seed, epoch] = tuple(schedule.order(epoch))
        np.random.seed(seed * 7 + epoch)  # the global random state must have no effect
        longer = Schedule(tuple(PAIRS), replace(TRAINING, seed=seed, epochs=100, flip_probability=0))
        longer.order(2 - epoch)
        assert tuple(longer.order(epoch)) == orders[seed, epoch]
    assert len(set(orders.values())) == 9


def test_samples_depend_only_on_the_seed():
    assert all_samples(Schedule(PAIRS, TRAINING)) == all_samples(Schedule(PAIRS, TRAINING))
    other = all_samples(Schedule(PAIRS, replace(TRAINING, seed=6)))
    pairs_differ, crops_differ = zip(
        *(
            (a.pair != b.pair, (a.y, a.x) != (b.y, b.x))
            for a, b in zip(all_samples(Schedule(PAIRS, TRAINING)), other, strict=True)
        ),
        strict=True,
    )
    assert np.mean(pairs_differ) > 0.5 and np.mean(crops_differ) > 0.9


@pytest.mark.parametrize("chunk", [1, 2, 4, 10, 28, 50])
def test_samples_do_not_depend_on_how_the_run_is_divided(chunk: int):
    schedule = Schedule(PAIRS, TRAINING)
    expected, samples = all_samples(schedule), []
    assert len(expected) == 4 * 28
    for start in range(0, len(expected), chunk):
        samples += Schedule(PAIRS, TRAINING).samples(range(start, min(start + chunk, len(expected))))
    assert samples == expected


@pytest.mark.parametrize("start", [0, 1, 27, 28, 29, 57, 111])
def test_a_resumed_run_gets_the_remaining_samples_unchanged(start: int):
    schedule = Schedule(PAIRS, TRAINING)
    assert Schedule(PAIRS, TRAINING).samples(range(start, 112)) == all_samples(schedule)[start:]
    assert schedule.samples(range(start, start)) == []


def test_crops_of_a_pair_vary():
    samples = all_samples(Schedule(PAIRS, TRAINING))
    origins = [(s.y, s.x) for s in samples if s.pair == 4]
    assert len(origins) >= 12 and len(set(origins)) > 0.8 * len(origins)


def test_drawing_scenes_takes_one_first_frame_per_scene():
    pairs = tuple(
        replace(make_pair(scene, frame), name=f"{scene}_{frame}_{exposure}")
        for scene in range(4)
        for frame in range(2)
        for exposure in (0.04, 0.1, 0.033)
    )
    schedule = Schedule(pairs, replace(TRAINING, epoch_draw="scenes", batch_size=1, crops_per_pair=1, epochs=60))
    assert schedule.steps_per_epoch == 4
    drawn = []
    for epoch in range(60):
        chosen = [pairs[i] for i in schedule.order(epoch)]
        assert sorted(pair.scene for pair in chosen) == ["10000", "10001", "10002", "10003"]
        assert all(pair.frame == 0 for pair in chosen)
        drawn += [pair.name for pair in chosen]
    counts = {name: drawn.count(name) for name in drawn}
    assert len(counts) == 12 and min(counts.values()) >= 8  # 20 on average


def test_a_scene_without_a_first_frame_is_drawn_from_its_other_frames():
    pairs = (make_pair(0, 0), make_pair(1, 3), make_pair(1, 4))
    schedule = Schedule(pairs, replace(TRAINING, epoch_draw="scenes", batch_size=2, crops_per_pair=1))
    drawn = {i for epoch in range(20) for i in schedule.order(epoch).tolist()}
    assert drawn == {0, 1, 2}


@pytest.mark.parametrize("height, width", [(40, 44), (41, 44), (40, 45), (41, 45)])
@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_windows_contain_no_padding_and_reach_the_edges_of_the_sensor(cfa: str, height: int, width: int):
    pair = make_pair(0, 0, cfa, height, width)
    training = replace(TRAINING, crops_per_pair=400, epochs=1)
    samples = all_samples(Schedule((pair,), training))
    (top, _, left, _), side = pair.short.padding, 17
    for length, padding, starts in ((height, top, [s.y for s in samples]), (width, left, [s.x for s in samples])):
        first = 2 * min(starts) - padding  # in sensels
        last = 2 * (max(starts) + side) - padding
        assert 0 <= first <= 1 and length - 1 <= last <= length
        assert set(starts) == set(range(min(starts), max(starts) + 1))


@pytest.mark.parametrize("cfa, height, width", [("RGGB", 34, 34), ("BGGR", 36, 36), ("GRBG", 34, 36), ("BGGR", 35, 35)])
def test_a_frame_of_the_smallest_possible_size_is_accepted(cfa: str, height: int, width: int):
    assert all_samples(Schedule((make_pair(0, 0, cfa, height, width),), TRAINING))


@pytest.mark.parametrize("cfa, height, width", [("RGGB", 33, 40), ("RGGB", 40, 32), ("BGGR", 34, 50), ("GRBG", 50, 34)])
def test_an_error_names_the_frame_that_is_too_small_for_a_crop(cfa: str, height: int, width: int):
    small = make_pair(7, 0, cfa, height, width)
    with pytest.raises(InputError, match=r"--training\.crop is 16: 10007_00_0\.1s packs to") as caught:
        Schedule((*PAIRS, small), TRAINING)
    assert "\n" not in str(caught.value)


def test_the_error_gives_the_smallest_size_that_fits_the_crop():
    with pytest.raises(InputError) as caught:
        Schedule((make_pair(0, 0, "GRBG", 34, 34),), TRAINING)
    packed, needed = str(caught.value).split("expected at least ")
    assert "packs to 17x18" in packed and needed == "17x19"


@pytest.mark.parametrize("flip, transpose", [(0.2, 0.7), (0.5, 0.0), (1.0, 0.3), (0.0, 1.0)])
def test_flips_are_independent_and_have_the_configured_probabilities(flip: float, transpose: float):
    training = replace(TRAINING, flip_probability=flip, transpose_probability=transpose, crops_per_pair=100)
    samples = all_samples(Schedule(PAIRS, training))
    flips = np.array([(s.flip_rows, s.flip_columns, s.transpose) for s in samples])
    assert len(flips) == 3600
    for combination in itertools.product([0, 1], repeat=3):
        share = (flips == combination).all(axis=1).mean()
        expected = np.prod([p if on else 1 - p for p, on in zip((flip, flip, transpose), combination, strict=True)])
        assert share == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("top, left", [(0, 0), (1, 0), (2, 5), (4, 4)])
def test_xtrans_windows_begin_at_a_repeat_of_the_pattern_and_contain_no_padding(top: int, left: int):
    pattern = np.array(list(XTRANS.pattern)).reshape(6, 6)
    cfa = "".join(np.roll(pattern, (-top, -left), (0, 1)).flat)
    height, width = 101, 112
    pair = make_pair(0, 0, cfa, height, width)
    samples = all_samples(Schedule((pair,), replace(TRAINING, crops_per_pair=400, epochs=1)))
    (top_padding, _, left_padding, _), side = pair.short.padding, 18
    rows, columns = [s.y for s in samples], [s.x for s in samples]
    for length, padding, starts in ((height, top_padding, rows), (width, left_padding, columns)):
        assert all(start % 2 == 0 for start in starts)
        assert 0 <= 3 * min(starts) - padding <= 5 and length - 8 <= 3 * (max(starts) + side) - padding <= length


def test_a_run_with_two_kinds_of_sensors_is_refused():
    with pytest.raises(InputError, match=r"10001_00_0\.1s is xtrans and 10000_00_0\.1s is bayer"):
        Schedule((make_pair(0), make_pair(1, cfa=XTRANS.pattern)), TRAINING)

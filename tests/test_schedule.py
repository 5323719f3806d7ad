import itertools
from dataclasses import replace

import numpy as np
import pytest

from lsid_ray import config
from lsid_ray.data.schedule import Sample, Schedule
from lsid_ray.data.shards import PackedPair, ShortFrame
from lsid_ray.data.tiles import ShardFile
from lsid_ray.errors import InputError
from lsid_ray.raw.mosaic import BAYER_PHASES, XTRANS, layout, phase_padding

TRAINING = config.Training(epochs=4, batch_size=4, crop=16, crops_per_pair=3, seed=5)


def make_pair(scene: int, frame: int = 0, cfa: str = "RGGB", height: int = 80, width: int = 96) -> PackedPair:
    """A pair as the index describes it; no pixel is read."""
    name = f"1{scene:04}_{frame:02}_0.1s"
    top, bottom, left, right = phase_padding(cfa, height, width)
    block = layout(cfa).block
    packed = (len(layout(cfa).colors), (height + top + bottom) // block, (width + left + right) // block)
    short = ShardFile(f"short/{name}.parquet", f"{name}.ARW", 1, 1, "", packed, 256)
    long = ShardFile(f"long/1{scene:04}_00_10s.parquet", f"1{scene:04}_00_10s.ARW", 1, 1, "", (3, height, width), 512)
    return PackedPair(
        name=name,
        scene=f"1{scene:04}",
        split="train",
        frame=frame,
        ratio=100,
        misaligned=False,
        short=ShortFrame(
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
        ),
        long=long,
    )


PAIRS = tuple(make_pair(scene, frame) for scene in range(3) for frame in range(3))


def all_samples(schedule: Schedule) -> list[Sample]:
    return schedule.samples(range(schedule.total_steps * schedule.training.batch_size))


def test_an_epoch_takes_every_pair_as_often_as_asked():
    schedule = Schedule(PAIRS, replace(TRAINING, batch_size=9))  # 27 draws, nothing to fill up
    for epoch in range(4):
        assert sorted(schedule.order(epoch)) == sorted(list(range(9)) * 3)
    assert [s.pair for s in schedule.samples(range(27, 54))] == schedule.order(1).tolist()


def test_an_epoch_is_filled_up_to_whole_batches_from_its_own_start():
    schedule = Schedule(PAIRS, TRAINING)  # 27 draws in steps of 4
    assert (schedule.steps_per_epoch, schedule.total_steps) == (7, 28)
    for epoch in range(4):
        order = schedule.order(epoch)
        assert len(order) == 28
        assert sorted(order[:27]) == sorted(list(range(9)) * 3)
        assert order[27] == order[0]


def test_a_batch_larger_than_the_epoch_is_filled_up_too():
    schedule = Schedule(PAIRS[:2], replace(TRAINING, batch_size=16, crops_per_pair=1))
    assert schedule.steps_per_epoch == 1
    assert sorted(schedule.order(0)) == [0] * 8 + [1] * 8


def test_the_order_is_a_function_of_the_seed_and_the_epoch_alone():
    orders = {}
    for seed, epoch in itertools.product(range(3), range(3)):
        schedule = Schedule(PAIRS, replace(TRAINING, seed=seed))
        orders[seed, epoch] = tuple(schedule.order(epoch))
        np.random.seed(seed * 7 + epoch)  # the global state plays no part
        longer = Schedule(tuple(PAIRS), replace(TRAINING, seed=seed, epochs=100, flip_probability=0))
        longer.order(2 - epoch)
        assert tuple(longer.order(epoch)) == orders[seed, epoch]
    assert len(set(orders.values())) == 9


def test_samples_are_a_function_of_the_seed_alone():
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


@pytest.mark.parametrize("part", [1, 2, 4, 10, 28, 50])
def test_any_division_of_the_run_gives_the_same_samples(part: int):
    schedule = Schedule(PAIRS, TRAINING)
    whole, parts = all_samples(schedule), []
    assert len(whole) == 4 * 28
    for start in range(0, len(whole), part):
        parts += Schedule(PAIRS, TRAINING).samples(range(start, min(start + part, len(whole))))
    assert parts == whole


@pytest.mark.parametrize("start", [0, 1, 27, 28, 29, 57, 111])
def test_a_run_that_continues_gets_the_samples_it_would_have_had(start: int):
    schedule = Schedule(PAIRS, TRAINING)
    assert Schedule(PAIRS, TRAINING).samples(range(start, 112)) == all_samples(schedule)[start:]
    assert schedule.samples(range(start, start)) == []


def test_each_pass_over_a_pair_takes_other_crops():
    samples = all_samples(Schedule(PAIRS, TRAINING))
    places = [(s.y, s.x) for s in samples if s.pair == 4]
    assert len(places) >= 12 and len(set(places)) > 0.8 * len(places)


def test_drawing_scenes_takes_one_first_frame_of_each():
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


def test_a_scene_without_a_first_frame_is_drawn_from_what_it_has():
    pairs = (make_pair(0, 0), make_pair(1, 3), make_pair(1, 4))
    schedule = Schedule(pairs, replace(TRAINING, epoch_draw="scenes", batch_size=2, crops_per_pair=1))
    drawn = {i for epoch in range(20) for i in schedule.order(epoch).tolist()}
    assert drawn == {0, 1, 2}


@pytest.mark.parametrize("height, width", [(40, 44), (41, 44), (40, 45), (41, 45)])
@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_windows_stay_on_the_sensor_and_reach_its_ends(cfa: str, height: int, width: int):
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
def test_the_smallest_frame_that_holds_a_crop_is_allowed(cfa: str, height: int, width: int):
    assert all_samples(Schedule((make_pair(0, 0, cfa, height, width),), TRAINING))


@pytest.mark.parametrize("cfa, height, width", [("RGGB", 33, 40), ("RGGB", 40, 32), ("BGGR", 34, 50), ("GRBG", 50, 34)])
def test_a_frame_too_small_for_a_crop_is_named(cfa: str, height: int, width: int):
    small = make_pair(7, 0, cfa, height, width)
    with pytest.raises(InputError, match=r"--training\.crop is 16: 10007_00_0\.1s packs to") as caught:
        Schedule((*PAIRS, small), TRAINING)
    assert "\n" not in str(caught.value)


def test_the_size_that_a_crop_needs_is_larger_than_a_frame_too_small_for_it():
    with pytest.raises(InputError) as caught:
        Schedule((make_pair(0, 0, "GRBG", 34, 34),), TRAINING)
    packed, needed = str(caught.value).split("expected at least ")
    assert "packs to 17x18" in packed and needed == "17x19"


@pytest.mark.parametrize("flip, transpose", [(0.2, 0.7), (0.5, 0.0), (1.0, 0.3), (0.0, 1.0)])
def test_flips_come_as_often_as_asked_and_independently(flip: float, transpose: float):
    training = replace(TRAINING, flip_probability=flip, transpose_probability=transpose, crops_per_pair=100)
    samples = all_samples(Schedule(PAIRS, training))
    flips = np.array([(s.flip_rows, s.flip_columns, s.transpose) for s in samples])
    assert len(flips) == 3600
    for combination in itertools.product([0, 1], repeat=3):
        share = (flips == combination).all(axis=1).mean()
        expected = np.prod([p if on else 1 - p for p, on in zip((flip, flip, transpose), combination, strict=True)])
        assert share == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("top, left", [(0, 0), (1, 0), (2, 5), (4, 4)])
def test_windows_of_xtrans_begin_where_its_pattern_does_and_stay_on_the_sensor(top: int, left: int):
    square = np.array(list(XTRANS.pattern)).reshape(6, 6)
    cfa = "".join(np.roll(square, (-top, -left), (0, 1)).flat)
    height, width = 101, 112
    pair = make_pair(0, 0, cfa, height, width)
    samples = all_samples(Schedule((pair,), replace(TRAINING, crops_per_pair=400, epochs=1)))
    (above, _, before, _), side = pair.short.padding, 18
    for length, added, starts in ((height, above, [s.y for s in samples]), (width, before, [s.x for s in samples])):
        assert all(start % 2 == 0 for start in starts)
        assert 0 <= 3 * min(starts) - added <= 5 and length - 8 <= 3 * (max(starts) + side) - added <= length


def test_two_kinds_of_sensors_in_one_run_are_named():
    with pytest.raises(InputError, match=r"10001_00_0\.1s is xtrans and 10000_00_0\.1s is bayer"):
        Schedule((make_pair(0), make_pair(1, cfa=XTRANS.pattern)), TRAINING)

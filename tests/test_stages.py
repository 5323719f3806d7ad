"""Decoding, predicting and finishing in stages of their own, as evaluation and enhancing do it with GPUs."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ray.util.state import list_actors

from lsid_ray.benchmark.nodes import until
from lsid_ray.data.stages import Arrays, staged_map
from lsid_ray.errors import InputError

IN_PLACE_OF_A_GPU = {"CPU": 0.5, "GPU": 0}


def pid() -> np.ndarray:
    return np.array([os.getpid()])


class Stages:
    """Adds 1 in each stage, to numbers that share a file if they are equal up to the last digit."""

    def __init__(self, calls: Path, victim: int = -1):
        self.calls, self.victim = calls, victim

    def key(self, number: int) -> int:
        return number // 10

    def decode(self, numbers: list[int]) -> Iterator[Arrays]:
        (self.calls / f"{'-'.join(map(str, numbers))}").touch()
        for number in numbers:
            if number == self.victim:
                os._exit(1)
            yield {"value": np.full((3, number + 1), number + 1, np.uint16), "decoder": pid()}

    def predictor(self) -> Callable[[int, Arrays], Arrays]:
        def predict(number: int, arrays: Arrays) -> Arrays:
            return {"predicted": arrays["value"].astype(np.float32) + 1, "predictor": pid()}

        return predict

    def finish(self, number: int, arrays: Arrays) -> tuple[float, tuple[int, ...], list[int]]:
        if number == 99:
            raise InputError("99 cannot be finished")
        pids = [int(arrays["predictor"][0]), int(arrays["decoder"][0]), os.getpid()]
        assert arrays["value"].dtype == np.uint16 and (arrays["value"] == number + 1).all()
        return float(arrays["predicted"].max() + 1), arrays["predicted"].shape, pids

    def run(self, numbers: list[int]) -> dict[int, tuple | None]:
        stages = (self.decode, self.predictor, self.finish)
        return dict(staged_map(numbers, self.key, *stages, IN_PLACE_OF_A_GPU, actors=1))


def predictors() -> int:
    return sum("MapWorker" in actor.class_name and actor.state != "DEAD" for actor in list_actors())


def test_each_item_is_decoded_with_its_file_and_predicted_in_a_process_that_only_predicts_and_ends(
    cluster: None, tmp_path: Path
) -> None:
    numbers = [*range(10, 19), 20, 21, 30]
    results = Stages(tmp_path).run(numbers)
    assert {number: result[:2] for number, result in results.items()} == {n: (n + 3, (3, n + 1)) for n in numbers}
    predicting = {pids[0] for *_, pids in results.values()}
    others = {pid for *_, pids in results.values() for pid in pids[1:]}
    assert len(predicting) == 1 and not predicting & others, "the predictor does nothing else"
    assert {path.name for path in tmp_path.iterdir()} == {"10-11-12-13-14-15-16-17", "18", "20-21", "30"}
    assert until(lambda: predictors() == 0, 10), "a predictor would keep its GPU"


def test_a_process_that_dies_loses_one_item_and_an_error_ends_all(cluster: None, tmp_path: Path) -> None:
    results = Stages(tmp_path, victim=11).run([10, 11, 12, 20])
    assert {n for n, result in results.items() if result is None} == {11} and len(results) == 4
    with pytest.raises(InputError, match=r"^99 cannot be finished$"):
        Stages(tmp_path).run([10, 99])
    assert until(lambda: predictors() == 0, 10)

"""The interface for notebooks, as the package's README shows it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lsid_ray import api
from lsid_ray.config.presets import PRESETS
from lsid_ray.errors import InputError
from lsid_ray.inference.frame import enhance_raw
from lsid_ray.raw.frame import read_raw
from lsid_ray.train.events import SHOWN_ONLY


def test_an_experiment_is_run_read_and_used(data_root: Path, shards: Path, tmp_path: Path) -> None:
    experiment = api.preset(
        "demo",
        name="tiny",
        storage=str(tmp_path),
        data={"root": "", "shards": str(shards)},
        generator={"width": 4, "depth": 2},
        loss={"warmup_steps": 0, "ramp_steps": 0},
        training={"epochs": 1, "batch_size": 2, "crop": 16, "crops_per_pair": 1, "validate_every": 1},
        discriminator={"width": 4, "layers": 1},
        cluster={"num_workers": 1},
    )
    seen = []
    run = api.run_experiment(experiment, on_event=seen.append)
    events = api.read_metrics(run.folder)
    assert events == [event for event in seen if event["kind"] not in SHOWN_ONLY]
    assert events[-1]["kind"] == "validation"
    assert events[-1]["psnr_db"] == run.metrics["psnr_db"]

    generator, loaded = api.load_checkpoint(run.best)
    assert loaded == experiment
    file = next((data_root / "short").glob("1*"))
    image = api.enhance(generator, file, ratio=100)
    frame = read_raw(file)
    assert image.shape == (*frame.mosaic.shape, 3) and image.dtype == np.uint16
    np.testing.assert_array_equal(image, enhance_raw(generator, frame, 100.0, torch.device("cpu")))
    assert api.enhance(generator, str(file)).shape == image.shape
    mean = enhance_raw(generator, frame, 100.0, torch.device("cpu"), self_ensemble=True)
    np.testing.assert_array_equal(api.enhance(generator, file, ratio=100, self_ensemble=True), mean)


def test_a_preset_is_changed_field_by_field() -> None:
    changed = api.preset("demo", name="mine", training={"epochs": 4})
    demo = PRESETS["demo"][1]
    assert (changed.name, changed.training.epochs) == ("mine", 4)
    assert changed.training.crop == demo.training.crop and changed.loss == demo.loss
    with pytest.raises(InputError, match="preset 'dmeo': expected one of demo"):
        api.preset("dmeo")
    with pytest.raises(TypeError, match="epoch"):
        api.preset("demo", training={"epoch": 4})

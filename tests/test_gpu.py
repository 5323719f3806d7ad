"""The step, the copies and the prediction on a GPU. Needs no Ray: `pytest -m gpu`."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from test_step import BASE, CPU

from lsid_ray.benchmark.step import Step, measure_step
from lsid_ray.config.schema import Experiment
from lsid_ray.data.batch import Batch
from lsid_ray.inference.bands import predict
from lsid_ray.model.generator import Generator
from lsid_ray.train.step import GanStep

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
DEVICE = torch.device("cuda")
ON_DEVICE = ("short", "long", "black", "white", "white_balance", "ratio")
MakeBatch = Callable[..., Batch]


def with_precision(precision: str) -> Experiment:
    return replace(BASE, training=replace(BASE.training, precision=precision, clip_norm=10.0))


def on_device(batch: Batch) -> Batch:
    return replace(batch, **{name: getattr(batch, name).to(DEVICE) for name in ON_DEVICE})


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_step_never_waits_for_the_gpu(precision: str, make_batch: MakeBatch) -> None:
    step, batch = GanStep(with_precision(precision), 10, DEVICE), on_device(make_batch())
    step(batch)  # copies what later steps need
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.02), ("float32", 1e-3)])
def test_the_losses_are_those_of_a_cpu(precision: str, tolerance: float, make_batch: MakeBatch) -> None:
    e = with_precision(precision)
    expected = GanStep(e, 10, CPU)(make_batch())
    losses = GanStep(e, 10, DEVICE)(on_device(make_batch()))
    for name, loss in expected.items():
        assert losses[name].item() == pytest.approx(loss.item(), rel=tolerance, abs=tolerance / 4), name


def test_bands_equal_a_single_pass() -> None:
    torch.manual_seed(0)
    generator, planes = Generator(BASE.generator).eval(), torch.rand(1, 4, 200, 120)
    with torch.no_grad():
        whole = generator(planes)
    bands = predict(generator.to(DEVICE), planes.to(DEVICE), memory_bytes=1 << 20)
    torch.testing.assert_close(bands.cpu(), whole, rtol=5e-3, atol=5e-3)  # the GPU may compute in TF32


def test_the_step_is_measured_with_its_memory() -> None:
    times = measure_step(Step("demo", batch_size=2, crop=32, steps=1, rounds=1, use_gpu=True))
    assert times.step_s > 0 and times.peak_bytes > 1 << 20 and times.device == torch.cuda.get_device_name()

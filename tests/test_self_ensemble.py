"""The self-ensemble is the mean of eight predictions of whole frames, each flipped back."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_export import OTHER_CAMERA, make_generator

from lsid_ray.data.preprocess import network_input, to_camera_colors
from lsid_ray.errors import InputError
from lsid_ray.inference import frame as inference_frame
from lsid_ray.inference.frame import enhance_frame, enhance_raw
from lsid_ray.model.generator import Generator
from lsid_ray.raw.color import srgb_from_camera
from lsid_ray.raw.frame import RawFrame
from lsid_ray.raw.mosaic import LAYOUTS, pack

CPU = torch.device("cpu")
RATIO = 90.0


def make_frame(kind: str, phase: tuple[int, int], height: int, width: int) -> RawFrame:
    """A frame that begins at a phase of the CFA, in which no two positions of the pattern have one black level."""
    layout = LAYOUTS[kind]
    square = np.array(list(layout.pattern)).reshape(layout.period, layout.period)
    cfa = "".join(np.roll(square, phase, (0, 1)).ravel())
    return RawFrame(
        cfa=cfa,
        black=tuple(500.0 + 3 * position for position in range(len(cfa))),
        white=16383.0,
        white_balance=(2.0, 1.0, 1.5),
        color_matrix=OTHER_CAMERA,
        orientation=0,
        camera="A camera",
        iso=None,
        exposure_s=None,
        mosaic=np.random.default_rng(height).integers(500, 700, (height, width)).astype(np.uint16),
        source="frame",
    )


def whole_frame_image(generator: Generator, mosaic: np.ndarray, letters: np.ndarray, black: np.ndarray) -> np.ndarray:
    """The image of a mosaic, given the letter and the black level of each sensel, in one pass: (H, W, 3) in [0, 1]."""
    layout = LAYOUTS[generator.config.cfa]
    period = layout.period
    first = np.array(list(layout.pattern)).reshape(period, period)
    # Continue mosaic and levels before the first sensel, by as few rows and columns as bring it to its pattern's phase.
    paddings = sorted(itertools.product(range(period), repeat=2), key=sum)
    square = letters[:period, :period]
    top, left = next(padding for padding in paddings if (np.roll(square, padding, (0, 1)) == first).all())
    bottom, right = -(mosaic.shape[0] + top) % layout.block, -(mosaic.shape[1] + left) % layout.block

    def continued(values: np.ndarray) -> np.ndarray:
        for axis, (before, after) in enumerate(((top, bottom), (left, right))):
            head = values.take(range(period - before, period), axis)
            tail = values.take(range(values.shape[axis] - period, values.shape[axis] - period + after), axis)
            values = np.concatenate([head, values, tail], axis)
        return values

    planes = torch.from_numpy(pack(continued(mosaic), layout.pattern))[None]
    levels = torch.from_numpy(pack(continued(black), layout.pattern)).float()[None, :, : layout.repeat, : layout.repeat]
    gains, ratio = torch.tensor([[2.0, 1.0, 1.5]]), torch.tensor([RATIO])
    inputs = network_input(planes, levels, torch.tensor([16383.0]), gains, ratio, generator.config)
    with torch.no_grad():
        image = generator(F.pad(inputs, 4 * (8,), mode="reflect"))[0]
    top, left = top + 8 * layout.block, left + 8 * layout.block
    image = image[:, top : top + mosaic.shape[0], left : left + mosaic.shape[1]]
    matrix = torch.from_numpy(srgb_from_camera(OTHER_CAMERA)).float()
    return to_camera_colors(image, matrix, generator.config).clamp(0, 1).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("kind", "phase", "size"),
    [
        ("bayer", (0, 0), (60, 44)),
        ("bayer", (1, 0), (61, 43)),
        ("xtrans", (0, 0), (60, 66)),
        ("xtrans", (4, 1), (71, 64)),
    ],
)
def test_the_image_is_the_mean_of_eight_whole_frames_flipped_back(
    kind: str, phase: tuple[int, int], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, frame = make_generator(cfa=kind, input_curve="tone", input_ratio=True), make_frame(kind, phase, *size)
    period = LAYOUTS[kind].period
    repeats = [-(-side // period) for side in size]
    letters, black = (
        np.tile(np.array(values).reshape(period, period), repeats)[: size[0], : size[1]]
        for values in (list(frame.cfa), frame.black)
    )
    images = []
    for transpose, axes in itertools.product((False, True), ((), (0,), (1,), (0, 1))):
        views = [np.flip(values, axes) for values in (frame.mosaic, letters, black)]
        image = whole_frame_image(generator, *(np.ascontiguousarray(view.T if transpose else view) for view in views))
        images.append(np.flip(image.swapaxes(0, 1) if transpose else image, axes))
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(images, 2)) > 1e-3, "each sees something else"

    limits = []
    predict_bands = inference_frame.predict_bands

    def recorded(*arguments: object, memory_bytes: int, **more: object) -> object:
        limits.append(memory_bytes)
        return predict_bands(*arguments, memory_bytes=memory_bytes, **more)

    monkeypatch.setattr(inference_frame, "predict_bands", recorded)
    planes = pack(frame.mosaic, frame.cfa)
    image, weights = enhance_frame(generator, planes, frame, RATIO, CPU, 1 << 10, self_ensemble=True)
    np.testing.assert_allclose(image.numpy(), np.mean(images, axis=0), atol=1e-5)
    assert limits == [1 << 10] * 8
    alone, alone_weights = enhance_frame(generator, planes, frame, RATIO, CPU)
    np.testing.assert_allclose(alone.numpy(), images[0], atol=1e-5)
    torch.testing.assert_close(weights, alone_weights)

    rotated = enhance_raw(generator, frame, RATIO, CPU, self_ensemble=True)
    assert rotated.dtype == np.uint16
    np.testing.assert_allclose(rotated / 65535, np.mean(images, axis=0), atol=2e-5)


def test_half_resolution_is_refused() -> None:
    generator, frame = make_generator(output="half"), make_frame("bayer", (0, 0), 60, 44)
    with pytest.raises(InputError, match=r"--self-ensemble: .* expected a network with --generator.output full"):
        enhance_raw(generator, frame, RATIO, CPU, self_ensemble=True)

"""Exported files give the image of `enhance_frame`, for frames of any size; what they mean stands in them."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lsid_ray.config.schema import Experiment, GeneratorConfig
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.inference import export as exporting
from lsid_ray.inference.export import Developer, check_export, export
from lsid_ray.inference.frame import enhance_frame
from lsid_ray.model.checkpoint import save_checkpoint
from lsid_ray.model.generator import Generator
from lsid_ray.raw.color import A7S2_COLOR_MATRIX, srgb_from_camera
from lsid_ray.raw.frame import RawFrame
from lsid_ray.raw.mosaic import LAYOUTS, pack

OTHER_CAMERA = ((0.9, -0.3, -0.1), (-0.4, 1.2, 0.2), (-0.1, 0.2, 0.6))
DIFFERENCE = 1e-5  # of images in [0, 1]
has_onnx = all(importlib.util.find_spec(name) for name in exporting.ONNX_PACKAGES)
needs_onnx = pytest.mark.skipif(not has_onnx, reason="pip install onnx onnxscript onnxruntime")


def make_generator(**options: object) -> Generator:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(**{"width": 4, "depth": 2, **options}))
    torch.nn.init.constant_(generator.head.bias, 0.5)  # or half of the image would be clipped
    return generator.eval()


def make_frame(kind: str, height: int, width: int, matrix: tuple = OTHER_CAMERA) -> RawFrame:
    pattern = LAYOUTS[kind].pattern
    return RawFrame(
        cfa=pattern,
        black=tuple(512.0 + 3 * position for position in range(len(pattern))),
        white=16383.0,
        white_balance=(2.0, 1.0, 1.5),
        color_matrix=matrix,
        orientation=0,
        camera="A camera",
        iso=None,
        exposure_s=None,
        focal_length_mm=None,
        taken=None,
        mosaic=np.random.default_rng(height).integers(500, 700, (height, width)).astype(np.uint16),
        source="frame",
    )


def feed(frame: RawFrame, ratio: float) -> dict[str, np.ndarray]:
    return {
        "mosaic": frame.mosaic,
        "black": np.float32(frame.black),
        "white": np.float32([frame.white]),
        "white_balance": np.float32(frame.white_balance),
        "srgb_from_camera": np.float32(srgb_from_camera(frame.color_matrix)),
        "ratio": np.float32([ratio]),
    }


def expected_image(generator: Generator, frame: RawFrame, ratio: float) -> np.ndarray:
    image, _ = enhance_frame(generator, pack(frame.mosaic, frame.cfa), frame, ratio, torch.device("cpu"))
    assert ((image > 0) & (image < 1)).float().mean() > 0.5
    return image.numpy()


def save(folder: Path, generator: Generator) -> Path:
    folder.mkdir()
    experiment = Experiment(name="exported", generator=generator.config)
    save_checkpoint(folder, experiment, generator, {}, {"step": 120, "epoch": 3, "psnr_db": 21.5})
    return folder


def onnx_session(path: Path):
    return pytest.importorskip("onnxruntime").InferenceSession(path.read_bytes())


@pytest.mark.parametrize(
    "options",
    [
        {"input_curve": "tone"},
        {"input_curve": "tone", "residual": True},
        {"cfa": "xtrans", "input_curve": "tone", "depth": 3, "input_ratio": True},
        {"norm": "batch", "output": "half", "white_balance": False, "color_matrix": False},
        {"upsample": "transpose", "gates": False},
    ],
    ids=lambda options: ",".join(map(str, options.values())),
)
@pytest.mark.parametrize("periods", [(13, 21), (16, 16)])
@pytest.mark.parametrize("matrix", [OTHER_CAMERA, A7S2_COLOR_MATRIX], ids=["other camera", "reference camera"])
def test_the_developer_gives_the_image_of_enhance_frame(options: dict, periods: tuple[int, int], matrix: tuple):
    generator = make_generator(**options)
    period = LAYOUTS[generator.config.cfa].period
    frame = make_frame(generator.config.cfa, period * periods[0], period * periods[1], matrix)
    with torch.no_grad():
        image = Developer(generator)(*(torch.from_numpy(value) for value in feed(frame, 90.0).values()))
    expected = expected_image(generator, frame, 90.0)
    assert image.shape == expected.shape
    np.testing.assert_allclose(image, expected, atol=DIFFERENCE)


@needs_onnx
@pytest.mark.parametrize("kind", ["bayer", "xtrans"])
def test_onnx_gives_the_same_image_for_frames_of_several_sizes(tmp_path: Path, kind: str):
    generator = make_generator(cfa=kind, input_curve="tone", input_ratio=kind == "bayer", residual=kind == "bayer")
    out = tmp_path / "deep" / "network.onnx"
    exported = export(save(tmp_path / "checkpoint", generator), out)
    assert exported.size_bytes == out.stat().st_size and exported.largest_difference < DIFFERENCE
    session = onnx_session(out)
    metadata = session.get_modelmeta().custom_metadata_map
    multiple = int(metadata["multiple"])
    for sides in ((11, 30), (25, 16)):  # in planes neither is a multiple of the network's stride
        frame = make_frame(kind, *(multiple * side for side in sides))
        (image,) = session.run(["image"], feed(frame, 120.0))
        np.testing.assert_allclose(image, expected_image(generator, frame, 120.0), atol=DIFFERENCE)
    least = make_frame(kind, *2 * (int(metadata["least_side"]),))
    (image,) = session.run(None, feed(least, 1.0))
    np.testing.assert_allclose(image, expected_image(generator, least, 1.0), atol=DIFFERENCE)
    assert metadata["cfa"] == LAYOUTS[kind].pattern and metadata["input_curve"] == "tone"
    assert json.loads(metadata["checkpoint"])["step"] == 120
    assert json.loads(metadata["experiment"])["name"] == "exported"
    assert [each.name for each in session.get_inputs()] == list(json.loads(metadata["inputs"]))
    np.testing.assert_allclose(
        json.loads(metadata["reference_srgb_from_camera"]), srgb_from_camera(A7S2_COLOR_MATRIX), atol=1e-6
    )


def test_pt2_gives_the_same_image_and_metadata(tmp_path: Path):
    generator = make_generator(input_curve="tone", input_ratio=True, residual=True)
    out = tmp_path / "network.pt2"
    export(save(tmp_path / "checkpoint", generator), out)
    extra = {"metadata.json": ""}
    program = torch.export.load(out, extra_files=extra).module()
    metadata = json.loads(extra["metadata.json"])
    assert metadata["cfa"] == "RGGB" and json.loads(metadata["checkpoint"])["step"] == 120
    for sides in ((22, 60), (50, 32)):
        frame = make_frame("bayer", *sides)
        with torch.no_grad():
            image = program(*(torch.from_numpy(value) for value in feed(frame, 120.0).values()))
        np.testing.assert_allclose(image, expected_image(generator, frame, 120.0), atol=DIFFERENCE)


def test_a_file_that_gives_another_image_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    generator = make_generator()

    def write(program: None, description: dict[str, str]) -> tuple[bytes, exporting.Run]:
        return b"a network", lambda frame: Developer(generator)(*frame) + 1e-3

    monkeypatch.setattr(exporting, "_trace", lambda developer: None)
    monkeypatch.setitem(exporting.WRITERS, ".pt2", write)
    out = tmp_path / "network.pt2"
    out.write_text("an older one")
    with pytest.raises(PartialFailure, match=r"network.pt2 was not written: its image differs .* 0.001, expected less"):
        export(save(tmp_path / "checkpoint", generator), out)
    assert out.read_text() == "an older one"


@pytest.mark.parametrize(
    "name, message",
    [
        ("network.bin", r"--out .*network.bin: expected a file name that ends in .onnx or .pt2"),
        ("folder.pt2", r"--out .*folder.pt2: a folder; expected the name of a file"),
        ("file/network.pt2", r"--out .*no file can be created in"),
    ],
)
def test_an_unusable_file_name_is_refused(tmp_path: Path, name: str, message: str):
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=message):
        check_export(tmp_path / name)


def test_a_missing_package_is_one_line_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(InputError, match=r"onnxscript.*not installed; pip install onnx onnxscript onnxruntime$"):
        check_export(tmp_path / "network.onnx")
    check_export(tmp_path / "network.pt2")


def test_a_network_too_large_for_onnx_is_refused_before_it_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    generator = make_generator()
    bytes_of_weights = sum(value.nbytes for value in generator.state_dict().values())
    monkeypatch.setattr(exporting, "MAX_ONNX_BYTES", bytes_of_weights - 1)
    monkeypatch.setattr(exporting, "ONNX_PACKAGES", ())
    monkeypatch.setattr(exporting, "_trace", lambda developer: pytest.fail("it was traced"))
    with pytest.raises(InputError, match=r"network.onnx: .* GiB of weights .* expected a name that ends in .pt2"):
        export(save(tmp_path / "checkpoint", generator), tmp_path / "network.onnx")


def test_a_checkpoint_whose_weights_do_not_fit_its_experiment_is_refused(tmp_path: Path):
    checkpoint = save(tmp_path / "checkpoint", make_generator())
    other = save(tmp_path / "other", make_generator(width=6))
    (checkpoint / "experiment.json").write_bytes((other / "experiment.json").read_bytes())
    with pytest.raises(InputError, match="does not fit"):
        export(checkpoint, tmp_path / "network.pt2")
    assert not (tmp_path / "network.pt2").exists()

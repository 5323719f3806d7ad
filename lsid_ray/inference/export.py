"""Export a generator, and all that is done around it, as one ONNX or `torch.export` file.

The file takes what a camera file holds (mosaic, black and white level, white balance, color matrix) and returns an sRGB
image. Its input could have been normalized, packed planes; but then every user would have to repeat the order of the
planes, the input curve, the mirrored margin and the color conversion, and an error in any of them is hard to see. The
image is that of `inference.frame.enhance_frame`; the frame goes through the network in one pass, not in bands.
"""

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsid_ray import __version__, storage
from lsid_ray.config.serialization import jsonable, to_json
from lsid_ray.data.preprocess import REFERENCE_MATRIX, apply_color_matrix, is_reference, network_input
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.inference.frame import MARGIN
from lsid_ray.model.checkpoint import load_generator, load_metrics
from lsid_ray.model.generator import Generator
from lsid_ray.raw.mosaic import LAYOUTS, pack
from lsid_ray.storage import AnyPath

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
METADATA_FILE = "metadata.json"  # among the extra files of a .pt2
MAX_ONNX_BYTES = (2 << 30) - (16 << 20)  # of weights: protobuf ends at 2 GiB
TOLERANCE = 1e-4  # between images of the file and of the network, in [0, 1]; measured: 3e-7
INPUTS = {
    "mosaic": "(H, W) uint16, sensor counts of the visible area. It begins at the first letter of cfa, and both sides "
    "are multiples of `multiple` and at least `least_side`: leave out rows and columns at the sides",
    "black": "(N,) float32, black level in counts for each of the N letters of cfa",
    "white": "(1,) float32, white level in counts",
    "white_balance": "(3,) float32, the camera's gains for R, G, B, divided by that for G",
    "srgb_from_camera": "(3, 3) float32, linear sRGB from white-balanced linear camera RGB, each row with the sum 1 "
    "(rawpy: color_matrix[:3, :3])",
    "ratio": "(1,) float32, how much to amplify: the wanted exposure time over that of the frame",
}
OUTPUT = "image"
Run = Callable[[tuple[Tensor, ...]], Tensor]
"""Arguments of `Developer.forward` -> its result."""


@dataclass(frozen=True)
class Exported:
    """A file that was exported."""

    path: AnyPath
    size_bytes: int
    largest_difference: float
    """Between its image of a random frame and the network's, in [0, 1]."""


class Developer(nn.Module):
    """A mosaic to an image, as `inference.frame.enhance_frame`, without Python that depends on values or sizes."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator, self.config = generator, generator.config
        self.layout = LAYOUTS[generator.config.cfa]
        period = self.layout.period
        positions = pack(np.arange(period**2).reshape(period, period), self.layout.pattern)
        self.register_buffer("from_reference", torch.linalg.inv(REFERENCE_MATRIX))
        self.register_buffer("order", torch.from_numpy(positions.ravel()))  # CFA position of each plane's sensels

    def forward(
        self,
        mosaic: Tensor,
        black: Tensor,
        white: Tensor,
        white_balance: Tensor,
        srgb_from_camera: Tensor,
        ratio: Tensor,
    ) -> Tensor:
        """For the arguments see INPUTS. Returns (H, W, 3) float32 in [0, 1], sRGB; of half the size for half output."""
        layout = self.layout
        sensels = F.pixel_unshuffle(mosaic.float()[None, None], layout.period)
        planes = F.pixel_shuffle(sensels.index_select(1, self.order), layout.repeat)
        black = black[self.order].reshape(1, -1, layout.repeat, layout.repeat)
        planes = network_input(planes, black, white, white_balance[None], ratio, self.config)
        height, width = planes.shape[2:]
        rows, columns = (_margin_indices(side, self.generator.stride) for side in (height, width))
        image = self.generator(planes.index_select(2, rows).index_select(3, columns))[0]
        scale = self.generator.scale
        image = image.narrow(1, MARGIN * scale, height * scale).narrow(2, MARGIN * scale, width * scale)
        if self.config.color_matrix:
            converted = apply_color_matrix(image, srgb_from_camera @ self.from_reference)
            image = torch.where(is_reference(srgb_from_camera), image, converted)
        return image.clamp(0, 1).permute(1, 2, 0)

    def example(self, periods: tuple[int, int]) -> tuple[Tensor, ...]:
        """Arguments of `forward` for a random frame of so many periods of the CFA."""
        random = torch.Generator().manual_seed(0)
        height, width = (self.layout.period * side for side in periods)
        return (
            torch.randint(512, 700, (height, width), generator=random).to(torch.uint16),
            512 + torch.rand(self.layout.period**2, generator=random),
            torch.tensor([16383.0]),
            torch.tensor([2.0, 1.0, 1.5]),
            torch.tensor([[1.6, -0.4, -0.2], [-0.2, 1.6, -0.4], [0.0, -0.5, 1.5]]),
            torch.tensor([100.0]),
        )

    @property
    def least_periods(self) -> int:
        """Least side of a frame, in periods of the CFA, that can be mirrored at its edges."""
        return -(-(MARGIN + 1) // self.layout.repeat)


def _margin_indices(side: int, stride: int) -> Tensor:
    """Indices that continue a side of planes by MARGIN at both ends, mirrored, and then to a multiple of the stride."""
    padded = side + 2 * MARGIN
    indices = torch.arange((padded + stride - 1) // stride * stride)
    indices = (indices.clamp_max(padded - 1) - MARGIN).abs()
    return side - 1 - (side - 1 - indices).abs()


def check_export(out: AnyPath) -> None:
    """Raises: InputError if a file of that name cannot be exported here."""
    if out.suffix not in WRITERS:
        raise InputError(f"--out {out}: expected a file name that ends in {' or '.join(WRITERS)}")
    if out.is_dir():
        raise InputError(f"--out {out}: a folder; expected the name of a file")
    missing = [name for name in ONNX_PACKAGES if out.suffix == ".onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--out {out}: {', '.join(missing)} not installed; pip install {' '.join(ONNX_PACKAGES)}")
    storage.check_writable(out.parent, "--out")


def export(checkpoint: str | AnyPath, out: AnyPath) -> Exported:
    """Write the generator of a checkpoint to a file (.onnx or .pt2), which replaces one of that name.

    The file holds weights and `metadata`. Before it is written, its image of a frame is compared with the network's.
    Raises: InputError if the checkpoint cannot be read or the file cannot be made; PartialFailure if its image differs.
    """
    check_export(out)
    generator, experiment = load_generator(checkpoint)
    developer = Developer(generator).eval()
    description = metadata(developer) | {
        "experiment": to_json(experiment),
        "checkpoint": json.dumps(jsonable(load_metrics(checkpoint))),
    }
    weights_bytes = sum(value.nbytes for value in generator.state_dict().values())
    if out.suffix == ".onnx" and weights_bytes > MAX_ONNX_BYTES:
        raise InputError(
            f"--out {out}: the network has {weights_bytes / 2**30:.1f} GiB of weights and an ONNX file holds less than "
            "2; expected a name that ends in .pt2"
        )
    program = _trace(developer)
    content, run = WRITERS[out.suffix](program, description)
    frame = developer.example((developer.least_periods + 3, developer.least_periods + 10))
    with torch.no_grad():
        difference = float((run(frame) - developer(*frame)).abs().max())
    if not difference < TOLERANCE:
        raise PartialFailure(
            f"{out} was not written: its image differs from the network's by up to {difference:.2g}, expected less "
            f"than {TOLERANCE:g}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with storage.atomic_write(out) as file:
        file.write(content)
    return Exported(out, len(content), difference)


def metadata(developer: Developer) -> dict[str, str]:
    """What must be known to use the file; values that are no text are JSON."""
    layout, config = developer.layout, developer.config
    return {
        "lsid_ray": __version__,
        "inputs": json.dumps(INPUTS),
        "output": f"{OUTPUT}: ({'H, W' if config.output == 'full' else 'H/2, W/2'}, 3) float32 in [0, 1], sRGB with "
        "LibRaw's tone curve, in the sensor's orientation",
        "cfa": layout.pattern,
        "multiple": str(layout.period),
        "least_side": str(layout.period * developer.least_periods),
        "input_curve": config.input_curve,
        "uses_white_balance": json.dumps(config.white_balance),
        "uses_srgb_from_camera": json.dumps(config.color_matrix),
        "reference_srgb_from_camera": json.dumps(REFERENCE_MATRIX.tolist()),
    }


def _trace(developer: Developer) -> torch.export.ExportedProgram:
    """The program for frames of any whole number of periods of the CFA."""
    least, period = developer.least_periods, developer.layout.period
    height, width = (period * torch.export.Dim(name, min=least) for name in ("rows", "columns"))
    example = developer.example((least + 5, least + 2))
    others = [None] * (len(example) - 1)
    with _quiet():
        return torch.export.export(developer, example, dynamic_shapes=({0: height, 1: width}, *others))


def _as_onnx(program: torch.export.ExportedProgram, description: dict[str, str]) -> tuple[bytes, Run]:
    """An ONNX file with its metadata, and a function that runs it."""
    import onnxruntime

    with _quiet():
        model = torch.onnx.export(program, dynamo=True, verbose=False, output_names=[OUTPUT]).model_proto
    for key, value in description.items():
        model.metadata_props.add(key=key, value=value)
    for each in model.graph.input:
        each.doc_string = INPUTS[each.name]
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(frame: tuple[Tensor, ...]) -> Tensor:
        feed = {name: value.numpy() for name, value in zip(INPUTS, frame, strict=True)}
        return torch.from_numpy(session.run([OUTPUT], feed)[0])

    return content, run


def _as_pt2(program: torch.export.ExportedProgram, description: dict[str, str]) -> tuple[bytes, Run]:
    """A `torch.export` file with its metadata as METADATA_FILE, and a function that runs it."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(description, indent=1)})
        loaded = torch.export.load(io.BytesIO(file.getvalue())).module()
    return file.getvalue(), lambda frame: loaded(*frame)


WRITERS = {".onnx": _as_onnx, ".pt2": _as_pt2}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks about its own internals and packages that are not needed here (2.13)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

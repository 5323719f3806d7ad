"""DNGs of several images: the raw one is read, whatever lies beside it; of several raw ones it is said."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from dng_file import LONG, SHORT, write_dng_file
from PIL import Image
from test_dng_specification import camera_tags

from lsid_ray.config.schema import Experiment, GeneratorConfig
from lsid_ray.data import preview
from lsid_ray.data.convert import PackTask, pack_file
from lsid_ray.errors import InputError
from lsid_ray.inference.files import enhance_files
from lsid_ray.inference.raw_file import Amplification
from lsid_ray.model.checkpoint import save_checkpoint
from lsid_ray.model.generator import Generator
from lsid_ray.raw.frame import read_raw
from lsid_ray.raw.mosaic import XTRANS

SIDE = 96
RANDOM = np.random.default_rng(0)
RAW = RANDOM.integers(600, 9000, (SIDE, SIDE)).astype(np.uint16)
OTHER_RAW = RANDOM.integers(600, 9000, (SIDE, SIDE)).astype(np.uint16)
PREVIEW = RANDOM.integers(0, 255, (64, 64, 3)).astype(np.uint8)
LARGE = 2 * SIDE
CFA = {"photometric": 32803, "planarconfig": None}
MATRIX = (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1)
SEVERAL = "its file has 2 raw images, of which one is read: the largest, or the first of them"
HEAD = [
    (50706, "B", 4, bytes([1, 4, 0, 0]), False),
    (50708, "s", 0, "Acme One", False),
    (50728, "2I", 3, (1, 2, 1, 1, 5, 8), False),
    (50721, "2i", 9, MATRIX, False),
    (33434, "2I", 1, (1, 30), False),
]
SIDE_PAGES = {  # larger images that are no raw ones
    "float depth": (RANDOM.random((LARGE, LARGE), np.float32), {"photometric": "minisblack", "subfiletype": 16}),
    "float16 gain": (RANDOM.random((LARGE, LARGE)).astype("f2"), {"photometric": "minisblack", "subfiletype": 16}),
    "float enhanced": (RANDOM.random((LARGE, LARGE, 3), np.float32), {"photometric": 34892, "subfiletype": 1}),
    "linear": (RANDOM.integers(0, 16000, (LARGE, LARGE, 3)).astype("u2"), {"photometric": 34892, "subfiletype": 1}),
    "RGB preview": (RANDOM.integers(0, 255, (LARGE, LARGE, 3)).astype("u1"), {"photometric": "rgb", "subfiletype": 1}),
    "mask": (RANDOM.integers(0, 255, (LARGE, LARGE)).astype("u1"), {"photometric": 4, "subfiletype": 1}),
}


def cfa_tags(black: int = 512, cfa: str = "RGGB") -> list[tuple]:
    period = 2 if len(cfa) == 4 else 6
    pattern = bytes("RGB".index(letter) for letter in cfa)
    return [
        (33421, "H", 2, (period, period), False),
        (33422, "B", len(cfa), pattern, False),
        (50714, "I", 1, black, False),
        (50717, "I", 1, 16383, False),
    ]


def raw_page(mosaic: np.ndarray, subfiletype: int = 0, **levels: object) -> tuple[np.ndarray, dict]:
    return mosaic, {"subfiletype": subfiletype, "extratags": cfa_tags(**levels), **CFA}


def write(path: Path, *pages: tuple[np.ndarray, dict], preview_first: bool = True) -> Path:
    """pages: in the first directory, or beside it if that is a preview."""
    with tifffile.TiffWriter(path) as file:
        main, *others = [(PREVIEW, {"photometric": "rgb", "subfiletype": 1}), *pages] if preview_first else pages
        tags = [*HEAD, *main[1].get("extratags", [])]
        file.write(main[0], metadata=None, subifds=len(others), **{**main[1], "extratags": tags})
        for data, options in others:
            file.write(data, metadata=None, **options)
    return path


@pytest.mark.parametrize("preview_first", [True, False])
@pytest.mark.parametrize("name", SIDE_PAGES)
def test_a_larger_image_beside_the_raw_one_has_no_say(name: str, preview_first: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "a.dng", raw_page(RAW), SIDE_PAGES[name], preview_first=preview_first)
    frame = read_raw(path)
    np.testing.assert_array_equal(frame.mosaic, RAW)
    assert (frame.black, frame.white, frame.remarks) == ((512,) * 4, 16383, ())


def test_a_preview_may_be_cut_off_but_not_the_raw_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dng", raw_page(RAW), SIDE_PAGES["RGB preview"])
    path.write_bytes(path.read_bytes()[:-1000])
    np.testing.assert_array_equal(read_raw(path).mosaic, RAW)
    path = write(tmp_path / "b.dng", SIDE_PAGES["RGB preview"], raw_page(RAW))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"b\.dng: truncated: the file has \d+ bytes, but its image data end at"):
        read_raw(path)


@pytest.mark.parametrize("cfa", ["RGGB", XTRANS.pattern], ids=["bayer", "xtrans"])
@pytest.mark.parametrize("small_first", [True, False])
def test_the_levels_are_those_of_the_raw_page(small_first: bool, cfa: str, tmp_path: Path) -> None:
    pages = [raw_page(RAW[:36, :36].copy(), 1, black=64, cfa=cfa), raw_page(RAW, black=512, cfa=cfa)]
    frame = read_raw(write(tmp_path / "a.dng", *(pages if small_first else pages[::-1])))
    assert frame.mosaic.shape == (SIDE, SIDE) and set(frame.black) == {512} and frame.remarks == ()


@pytest.mark.parametrize("preview_first", [True, False])
def test_of_two_raw_images_the_first_is_read_with_its_own_levels(preview_first: bool, tmp_path: Path) -> None:
    pages = raw_page(RAW, black=500), raw_page(OTHER_RAW, black=64)
    frame = read_raw(write(tmp_path / "a.dng", *pages, preview_first=preview_first))
    np.testing.assert_array_equal(frame.mosaic, RAW)
    assert set(frame.black) == {500} and frame.remarks == (SEVERAL,)


def test_of_two_samples_of_a_mosaic_the_first_is_read_and_it_is_said(tmp_path: Path) -> None:
    pair = np.stack([RAW, OTHER_RAW], axis=-1).reshape(SIDE, 2 * SIDE)
    tags = {**camera_tags("RGGB", 16383), 256: (LONG, [SIDE]), 277: (SHORT, [2]), 258: (SHORT, [16, 16])}
    frame = read_raw(write_dng_file(tmp_path / "a.dng", pair, tags))
    np.testing.assert_array_equal(frame.mosaic, RAW)
    assert frame.remarks == (SEVERAL,)


def test_of_two_raw_images_it_is_said_when_they_are_packed_shown_and_enhanced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, shards = tmp_path / "set", tmp_path / "shards"
    for kind, name in (("short", "00001_00_0.1s.dng"), ("long", "00001_00_10s.dng")):
        (root / kind).mkdir(parents=True)
        (shards / kind).mkdir(parents=True)
        write(root / kind / name, raw_page(RAW), raw_page(OTHER_RAW))
        task = PackTask(f"{kind}/{name}", str(root / kind / name), None, "", False)
        assert pack_file(task, str(shards), 64).oddities == SEVERAL
    lines = []
    draw = preview.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        preview.ImageDraw.ImageDraw,
        "text",
        lambda self, at, text, *rest: lines.append(text) or draw(self, at, text, *rest),
    )
    preview.contact_sheet(root, tmp_path / "a.png", 1)
    assert sum(SEVERAL in line for line in lines) == 2, "of the short and of the long exposure"
    (tmp_path / "best").mkdir()
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(width=4, depth=2))
    save_checkpoint(tmp_path / "best", Experiment("x", generator=generator.config), generator, {}, {"psnr_db": 1.0})
    todo = ((root / "short" / "00001_00_0.1s.dng", tmp_path / "out.png"),)
    (result,) = enhance_files(tmp_path / "best", todo, Amplification(ratio=10.0))
    assert (result.error, result.oddities) == ("", SEVERAL)
    assert Image.open(tmp_path / "out.png").size == (SIDE, SIDE)

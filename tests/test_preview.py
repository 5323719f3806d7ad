"""The contact sheet: the selected pairs, their captions, and broken files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lsid_ray.data import preview
from lsid_ray.data.preview import contact_sheet
from lsid_ray.errors import InputError


@pytest.fixture
def captions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of text drawn so far."""
    lines = []
    draw = preview.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        preview.ImageDraw.ImageDraw,
        "text",
        lambda self, at, text, *rest: (lines.append(text), draw(self, at, text, *rest)),
    )
    return lines


def test_raw_files_and_their_shards_give_the_same_sheet(data_root: Path, shards: Path, tmp_path: Path):
    assert contact_sheet(data_root, tmp_path / "raw.png", 4) == ()
    assert contact_sheet(shards, tmp_path / "shards.png", 4) == ()
    raw, packed = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("raw", "shards"))
    np.testing.assert_array_equal(raw, packed)


def test_every_split_is_shown_with_its_metadata(data_root: Path, tmp_path: Path, captions: list[str]):
    calls = []
    contact_sheet(data_root, tmp_path / "a.png", 3, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (3, 3)
    headings = [line for line in captions if " x" in line]
    assert {line.split()[1] for line in headings} == {"train", "validation", "test"}
    assert all("ISO" in line and "SONY ILCE-7SM2" in line for line in headings)
    assert sum("RGGB, black 512, white 16383" in line for line in captions) == 3


def test_both_images_of_a_pair_are_similarly_bright(data_root: Path, tmp_path: Path, captions: list[str]):
    contact_sheet(data_root, tmp_path / "a.png", 5)
    for line in captions:
        if line.startswith("mean of the images"):
            amplified, long = (float(token) for token in line.replace(",", "").split() if token[0].isdigit())
            assert amplified == pytest.approx(long, rel=0.4)


def test_a_broken_file_is_reported(data_root: Path, tmp_path: Path):
    root = shutil.copytree(data_root, tmp_path / "data")
    broken = sorted((root / "short").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:4000])
    (failure,) = contact_sheet(root, tmp_path / "a.png", 100)
    assert failure.startswith(broken.stem) and "truncated" in failure
    assert (tmp_path / "a.png").exists()


def test_a_sheet_that_cannot_be_made_is_an_input_error(data_root: Path, tmp_path: Path):
    with pytest.raises(InputError, match="no such folder"):
        contact_sheet(tmp_path / "none", tmp_path / "a.png", 4)
    root = shutil.copytree(data_root, tmp_path / "data")
    for path in (root / "short").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="no pair can be shown"):
        contact_sheet(root, tmp_path / "a.png", 4)
    with pytest.raises(InputError, match="expected the name of an image file"):
        contact_sheet(data_root, tmp_path / "a.xyz", 1)
    assert not list(tmp_path.glob("*a.*"))

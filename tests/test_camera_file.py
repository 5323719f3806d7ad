"""The noise of a camera as a file: written, read back, refused; and as others have published it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lsid_ray.errors import InputError
from lsid_ray.synthesis.camera import CameraNoise, IsoNoise, Sensor, StandardErrors
from lsid_ray.synthesis.camera_file import read_camera, write_camera
from lsid_ray.synthesis.noise import A7S2

SENSOR = Sensor("GBRG", (600, 601, 602, 601), 16000, ((0.9, -0.3, -0.1), (-0.5, 1.2, 0.2), (-0.1, 0.2, 0.7)))
CAMERA = CameraNoise(
    "NIKON TEST",
    601.0,
    16000.0,
    {
        100: IsoNoise(0.4, -0.1, 0.9, 0.2, 1.5, 0.1, StandardErrors(0.01, 0.002, 0.003, 0.004, 0.005, 0.006)),
        6400: IsoNoise(None, None, 4.0, 0.0, -1.5, 0.0),
    },
    SENSOR,
)


def test_a_camera_is_read_back_as_it_was_written(tmp_path: Path):
    for camera in (CAMERA, A7S2, replace(CAMERA, sensor=None)):
        write_camera(tmp_path / "camera.json", camera)
        assert read_camera(str(tmp_path / "camera.json")) == camera
        assert read_camera(f"{tmp_path / 'camera.json'}#{camera.name}") == camera
    assert [path.name for path in tmp_path.iterdir()] == ["camera.json"]


def edited(*keys: str | int, value: object) -> Callable[[dict], None]:
    """Sets content[keys[0]][keys[1]]... to `value`."""

    def edit(content: dict) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return edit


ISO = ("by_iso", "100")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edited("version", value=2), "version 2 of this format; expected 1"),
        (edited("format", value="other"), "not the noise of a camera; expected a file of jobs/calibrate.py"),
        (edited("color", value=1), "color: 1: Unexpected"),
        (edited(*ISO, "gian", value=1.0), "by_iso.100.gian: 1.0: Unexpected"),
        (edited(*ISO, "gain", value="0.4"), "by_iso.100.gain: '0.4': Input should be a valid number"),
        (edited(*ISO, "gain", value=0.0), "ISO 100: gain is 0.0: expected more than 0, or null"),
        (edited(*ISO, "gain", value=math.inf), "ISO 100: gain is inf"),
        (edited(*ISO, "read_lambda", value=-0.5), "ISO 100: read_lambda is -0.5: expected more than -0.5, at most 1.0"),
        (edited(*ISO, "read_scale", value=0), "ISO 100: a scale or a standard deviation is negative"),
        (edited(*ISO, "row_sigma", value=-0.1), "ISO 100: a scale or a standard deviation is negative"),
        (edited(*ISO, "black_error", value=math.nan), "ISO 100: a value is not finite"),
        (edited("by_iso", value={}), "by_iso is empty"),
        (edited("by_iso", value={"0": {**IsoNoise(1.0, 0.1, 1.0, 1.0, 1.0, 1.0).__dict__}}), "ISO 0: expected 1 to"),
        (edited("by_iso", value={"ISO100": {}}), "by_iso.ISO100"),
        (edited("white", value=500.0), "black is 601.0, white is 500.0: expected 0 <= black < white"),
        (edited("sensor", "cfa", value="RGBW"), "CFA pattern 'RGBW' cannot be packed"),
        (edited("sensor", "black", value=[600]), "1 black levels for the 4 CFA positions"),
        (edited("sensor", "white", value=70000), "white level 70000: expected 0 <= black < white <= 65535"),
        (edited("sensor", "color_matrix", value=[[1.0, 0.0], [0.0, 1.0]]), "color_matrix: expected 3 rows of 3"),
        (edited("sensor", "color_matrix", value=[[1.0, 2.0, 3.0]] * 3), "color_matrix cannot be inverted"),
        (lambda content: content.pop("name"), "name: is missing"),
        (lambda content: content["by_iso"]["6400"].pop("gain"), "by_iso.6400.gain: is missing"),
    ],
)
def test_an_impossible_file_is_refused_in_one_line(tmp_path: Path, edit: Callable[[dict], None], message: str):
    path = tmp_path / "camera.json"
    write_camera(path, CAMERA)
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_camera(str(path))
    assert str(caught.value).startswith(f"--camera {path}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1, 2]", "not the noise of a camera"), ("{", "not JSON"), ("\xff", "not JSON"), ("[" * 100_000, "not JSON")],
)
def test_what_is_no_object_of_json_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=rf"--camera .*x\.json: {message}; expected a file of jobs/calibrate\.py"):
        read_camera(str(tmp_path / "x.json"))


def test_what_is_no_file_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere\.json: No such file"):
        read_camera(str(tmp_path / "nowhere.json"))
    with pytest.raises(InputError, match="not a file"):
        read_camera(str(tmp_path))
    (tmp_path / "huge.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(InputError, match=r"huge\.json: larger than 1048576 bytes"):
        read_camera(str(tmp_path / "huge.json"))


def line(slope: float, bias: float) -> dict:
    return {"slope": slope, "bias": bias, "sigma": 0.2}


ELD = {
    "params": {
        name: {
            "Kmin": 0.2,
            "Kmax": 12.8,
            "G_shape": [-0.1, 0.0, 0.04],
            "Profile-1": {"g_scale": line(9.0, 9.0), "G_scale": line(0.5, 0.1), "R_scale": line(0.25, -1.0)},
            "color_bias": [[1.0, 1.0, 1.0, 1.0]],
        }
        for name in ("CanonTest", "NikonTest")
    }
}


def test_elds_parameters_are_read_as_lines_over_the_gain(tmp_path: Path):
    path = tmp_path / "eld.json"
    path.write_text(json.dumps(ELD))
    camera = read_camera(f"{path}#NikonTest")
    assert (camera.name, camera.white - camera.black, camera.sensor) == ("NikonTest", 16383 - 800, None)
    assert list(camera.by_iso) == [100, 200, 400, 800, 1600, 3200, 6400]
    for doublings, noise in enumerate(camera.by_iso.values()):
        gain = 0.2 * 2**doublings
        assert noise.gain == pytest.approx(gain)
        assert noise.read_lambda == pytest.approx(-0.02)
        assert noise.read_scale == pytest.approx(math.exp(0.1) * math.sqrt(gain))
        assert noise.row_sigma == pytest.approx(math.exp(-1.0) * gain**0.25)
        assert (noise.black_error, noise.black_sigma, noise.standard_errors) == (0.0, 0.0, None)
    names = "CanonTest, NikonTest"
    for text in (str(path), f"{path}#Nikon"):
        with pytest.raises(InputError, match=rf"--camera .*: expected .*eld\.json#NAME with a name of {names}"):
            read_camera(text)


def test_pmns_parameters_are_read_for_each_iso(tmp_path: Path):
    path = tmp_path / "pmn.json"
    entry = {"Kmax": 0.1, "lam": 0.15, "sigTL": 0.7, "sigR": 0.14, "biassig": 0.01, "bl": 512, "wp": 16383, "bias": 9}
    content = {"per_iso": {"100": entry, "200": entry | {"Kmax": 0.2}}, "black_level_error_DN": {"100": 1.7, "200": -1}}
    path.write_text(json.dumps(content))
    camera = read_camera(str(path))
    assert (camera.name, camera.black, camera.white) == ("SonyA7S2", 512.0, 16383.0)
    assert camera.by_iso[100] == IsoNoise(0.1, 0.15, 0.7, 0.14, 1.7, 0.01)
    assert camera.by_iso[200] == IsoNoise(0.2, 0.15, 0.7, 0.14, -1.0, 0.01)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"params": {"X": {"Kmin": 1.0}}}, "Profile-1 is missing; expected the parameters of ELD or PMN"),
        ({"params": 3}, "not the parameters of ELD or PMN"),
        ({"params": {"X": {**ELD["params"]["CanonTest"], "Kmin": -1.0}}}, "not the parameters of ELD or PMN"),
        ({"params": {"X": {**ELD["params"]["CanonTest"], "G_shape": []}}}, "not the parameters of ELD or PMN"),
        ({"params": {"X": {**ELD["params"]["CanonTest"], "G_shape": [-0.7]}}}, "ISO 100: read_lambda is -0.7"),
        ({"params": {}}, "not the noise of a camera"),
        ({"per_iso": {"100": {"bl": 512, "wp": 16383}}}, "Kmax is missing"),
        ({"per_iso": {"100": {"bl": 512, "wp": 1}, "200": {"bl": 64, "wp": 1}}}, "expected the same at every ISO"),
    ],
)
def test_damaged_parameters_are_refused_in_one_line(tmp_path: Path, content: dict, message: str):
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_camera(str(tmp_path / "x.json"))
    assert message in str(caught.value) and "\n" not in str(caught.value)

"""Unusable options and files are refused by every job in one line, before Ray starts."""

import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lsid_ray import cluster
from lsid_ray.config.schema import Experiment, GeneratorConfig
from lsid_ray.config.serialization import to_json
from lsid_ray.model.checkpoint import save_checkpoint
from lsid_ray.model.generator import Generator

JOBS = Path(__file__).parent.parent / "jobs"
NOT_UTF8 = "\udcff"  # how Python spells the byte 0xff in a file name
RAW = "set/short/00003_00_0.1s.dng"
WRITE = {  # option -> a command that ends with it and the folder that it writes to
    "--storage": "train.py demo --data.root set --storage",
    "--storage (sweep)": "tune.py demo --data.root set --storage",
    "--data.shards": "train.py demo --data.root set --storage here --data.shards",
    "folder of the shards": "pack.py pack set --out",
    "--out (synthesize)": "synthesize.py --photos photos --out",
    "--out (enhance)": f"enhance.py best {RAW} --out",
}
ELSEWHERE = {  # place -> why no file can be created there
    "file": ("Not a directory", "is not a data set"),
    "file/below": ("Not a directory",),
    "broken": ("No such file or directory",),
    "loop": ("Too many levels of symbolic links",),
    "pipe": ("Not a directory", "is not a data set"),
    "/dev/null": ("Not a directory", "is not a data set"),
    "/proc/x": ("No such file or directory",),
    300 * "x": ("File name too long",),
    f"here/{NOT_UTF8}": ("its name is not UTF-8",),
    "http://host/x": ("expected a folder, or s3://BUCKET/NAME",),
    "s3://": ("expected a folder, or s3://BUCKET/NAME",),
}

Refused = Callable[..., str]


class RayStarted(BaseException):
    """A job joined the cluster."""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """A folder with a data set, photographs, a checkpoint and things that are no usable file or folder."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(data_root, folder / "set")
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(width=4, depth=2))
    for name in ("best", "unscored"):
        (folder / name).mkdir()
        save_checkpoint(folder / name, Experiment("x", generator=generator.config), generator, {}, {"psnr_db": 1.0})
    (folder / "unscored" / "checkpoint.json").unlink()
    photos = folder / "photos"
    photos.mkdir()
    for number, path in enumerate((folder / "set" / "long").iterdir()):
        shutil.copy(path, photos / f"{number}.dng")
    for name in ("here", "empty"):
        (folder / name).mkdir()
    (folder / "file").write_bytes(b"\xff\x00 no text")
    (folder / "broken").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.dng")
    os.mkfifo(folder / "pipe.png")
    experiment = json.loads(to_json(Experiment("x")))
    contents = {"nan": {"loss": {"adv_weight": float("nan")}}, "huge": {"generator": {"width": 10**9}}}
    contents |= {"unknown": {"colour": 1}, "nul": {"name": "a\0b"}, "nameless": {"name": None}, "good": {}}
    contents |= {"nul-storage": {"storage": "a\0b"}}
    for name, change in contents.items():
        changed = {**experiment, "data": {"root": "set", "shards": ""}, **change}
        (folder / f"{name}.json").write_text(json.dumps(changed))
    (folder / "deep.json").write_text(100_000 * "[")
    (folder / "long.json").write_bytes((folder / "good.json").read_bytes() + (2 << 20) * b" ")
    return folder


@pytest.fixture
def refused(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Refused:
    """Runs a job in a copy of `prepared`, and returns its line on stderr: refused("train.py demo", "--name", "x/y")."""
    folder = tmp_path / "inputs"
    shutil.copytree(prepared, folder, symlinks=True, copy_function=os.link, ignore=lambda _, names: {
        name for name in names if name.startswith("pipe")
    })  # fmt: skip
    for name in ("pipe", "pipe.dng", "pipe.png"):
        os.mkfifo(folder / name)
    monkeypatch.chdir(folder)

    def start() -> None:
        raise RayStarted

    monkeypatch.setattr(cluster, "connect", start)

    def run(command: str, *arguments: str, code: int = 2) -> str:
        script, *options = command.split()
        monkeypatch.setattr(sys, "argv", [f"jobs/{script}", *options, *arguments])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(JOBS / script), run_name="__main__")
        lines = capsys.readouterr().err.splitlines()
        assert (caught.value.code, len(lines)) == (code, 1), lines
        return lines[0]

    return run


@pytest.mark.parametrize("place", ELSEWHERE)
@pytest.mark.parametrize("option", WRITE)
def test_a_folder_that_cannot_be_written_to_is_refused(option: str, place: str, refused: Refused) -> None:
    line = refused(WRITE[option], place)
    assert any(reason in line for reason in ELSEWHERE[place]) and place.replace(NOT_UTF8, r"\udcff") in line, line
    assert "no file can be created" not in line or option.split(" (")[0] in line, line


@pytest.mark.parametrize("option", WRITE)
def test_a_folder_without_write_permission_is_refused(
    option: str, refused: Refused, unreadable: Callable[[Path], Path]
) -> None:
    Path("private").mkdir()
    unreadable(Path("private").absolute())
    assert "Permission denied" in refused(WRITE[option], "private/new")


@pytest.mark.parametrize("option", WRITE)
def test_a_full_disk_is_refused(option: str, refused: Refused, full_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (full_disk / "more").write_bytes(bytes(1 << 20))
    line = refused(WRITE[option], str(full_disk / "new"))
    assert "No space left on device" in line and option.split(" (")[0] in line, line


@pytest.mark.parametrize(
    "command, message",
    [
        ("train.py demo --data.root {}", "{}: no such folder"),
        ("train.py demo --data.root= --data.shards {}", "{}"),
        ("train.py --experiment {}", "--experiment {}"),
        ("train.py demo --data.root set --storage here --init {}", "--init {}"),
        ("evaluate.py {} --shards empty", "{}"),
        ("evaluate.py best --shards {}", "{}"),
        (f"enhance.py {{}} {RAW} --out here", "{}"),
        ("pack.py pack {} --out here", "{}: no such folder"),
        ("pack.py verify {}", "{}"),
        ("pack.py repair set --out {}", "{}"),
        ("pack.py preview {}", "{}: no such folder"),
        ("synthesize.py --out here --photos {}", "--photos {}: no"),
        ("benchmark.py pack {}", "{}: no such folder"),
        ("benchmark.py feed {}", "{}"),
    ],
)
@pytest.mark.parametrize("place", ["missing", "file", "broken", "loop", "pipe", "/dev/zero", "file/below"])
def test_an_input_that_is_nothing_usable_is_refused(command: str, message: str, place: str, refused: Refused) -> None:
    assert message.format(place) in refused(command.format(place))


@pytest.mark.parametrize(
    "command, words",
    [
        ("train.py --experiment", "--experiment: no file given"),
        ("train.py --experiment=missing.json", "--experiment missing.json: No such file or directory"),
        ("train.py --experiment file", "--experiment file is not an experiment of this version: Invalid JSON"),
        ("train.py --experiment best", "--experiment best: not a file; expected experiment.json of a run"),
        ("train.py --experiment set/synthesis.json", "the field name is missing"),
        ("train.py --experiment deep.json", "Invalid JSON: recursion limit exceeded"),
        ("train.py --experiment long.json", "--experiment long.json: larger than 1048576 bytes"),
        ("train.py --experiment unknown.json", "the field colour is unknown"),
        ("train.py --experiment nameless.json", "the field name is None"),
        ("train.py --experiment nan.json", "--loss.adv-weight is nan: expected 0 to 1,000,000"),
        ("train.py --experiment huge.json", "--generator.width is 1000000000: expected 1 to 4,096"),
        ("train.py --experiment nul.json", r"--name is 'a\x00b'"),
        ("train.py --experiment nul-storage.json", r"--storage a\x00b/x: no file can be created"),
        ("train.py demo --storage=", "--storage is empty"),
        ("train.py demo --nope 3", "--nope"),
        ("train.py demo --training.crop 50", "--training.crop is 50: expected a multiple of 8"),
        ("train.py demo --data.root set --storage here --training.crop 72", "packs to 72x96, expected at least 73x73"),
        ("tune.py demo --data.root set --storage here --training.crop 72", "--training.crop is 72: "),
        ("train.py sid-fuji --data.root set --storage here", "cfa is xtrans: the frames in set are bayer"),
        (f"train.py demo --name {300 * 'x'}", "expected a folder name of at most 200 bytes"),
        ("train.py sid-sony --data.root empty", "empty: expected it to contain the folders short/ and long/"),
        ("train.py demo --data.root=", "--data.root is empty"),
        (
            "train.py demo --data.root= --data.shards s --data.lists a.csv",
            "--data.lists is a.csv: expected --data.root",
        ),
        ("train.py demo --data.root set --data.lists none.csv", "list none.csv: no such file"),
        ("pack.py pack set --list none.csv", "list none.csv: no such file"),
        ("pack.py preview set --list empty", "list empty: not a file"),
        ("train.py demo --cluster.readers-on CPU", "--cluster.readers-on is CPU: expected a custom resource"),
        ("train.py demo --generator.depth 1_000", "--generator.depth is 1000: expected 1 to 12"),
        (f"train.py demo --discriminator.layers {300 * '1'}", "expected 1 to 12"),
        ("train.py demo --optimizer.generator-lr 1e-300", "generator-lr is 1e-300: expected 1e-12 to 1e+30"),
        ("train.py demo --optimizer.betas 0.9 nan", "--optimizer.betas is (0.9, nan)"),
        ("train.py demo --training.seed -1", "--training.seed is -1: expected 0 to 4,294,967,295"),
        ("train.py demo --cluster.cpus-per-worker 1e-300", "--cluster.cpus-per-worker is 1e-300"),
        ("train.py demo --cluster.wait-minutes inf", "--cluster.wait-minutes is inf: expected 0 to 1,000,000"),
        ("tune.py demo --search.loss.nothing choice:1", "--search.loss.nothing: loss has no such field"),
        ("tune.py demo --searcher hyperopt", "hyperopt"),
        ("tune.py demo --objectives flip psnr", "--objectives is flip psnr: expected one, or psnr and one or two"),
        ("tune.py demo --hours nan", "--hours is nan: expected 0 to 1,000,000"),
        (f"tune.py demo --trials 1{30 * '0'}", "expected 0 to 1,000,000,000"),
        ("tune.py demo --search.loss.adv-weight uniform:0:1e300", "--loss.adv-weight is 1e+300"),
        ("evaluate.py unscored --shards empty", "unscored/checkpoint.json cannot be read"),
        ("evaluate.py best --shards empty --memory-gb nan", "--memory-gb is nan: expected more than 0"),
        ("evaluate.py best --shards empty --images -1", "--images is -1"),
        (f"enhance.py none {RAW} --out here", "none is not a checkpoint"),
        ("enhance.py best none.dng --out here", "none.dng: no such file or folder"),
        ("enhance.py best --out here", "no raw file given"),
        (f"enhance.py best {RAW} --out here --ratio 0.5", "--ratio is 0.5: expected a number from 1"),
        (f"enhance.py best {RAW} --out here --memory-gb 0", "--memory-gb is 0.0: expected more than 0"),
        pytest.param(
            f"enhance.py best {RAW} --out here --use-gpu",
            "--use-gpu: PyTorch finds no GPU on ",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
        ("enhance.py best empty --out here", "empty: no raw file in this folder"),
        (f"enhance.py best {RAW} --out here --memory-gb 1e300", "--memory-gb is 1e+300"),
        (f"enhance.py best {RAW} --out here --ratio nan", "--ratio is nan"),
        ("pack.py pack set --tile 0", "--tile is 0: expected 1 to 65,536"),
        (f"pack.py pack set --tile 1{30 * '0'}", "expected 1 to 65,536"),
        ("pack.py preview set --out set", "--out set: expected the name of an image file"),
        ("pack.py preview set --out file/x.png", "--out file: no file can be created"),
        ("pack.py preview set --count 0", "--count is 0"),
        ("synthesize.py --out new --photos photos --seed -1", "--seed -1: expected 0 to 4,294,967,295"),
        ("synthesize.py --out new --photos pipe.png", "--photos pipe.png: no photographs"),
        ("synthesize.py --out new --photos photos --frames 101", "--frames 101: expected 1 to 100"),
        ("benchmark.py step demos", "demos: no such preset, expected one of demo, "),
        ("benchmark.py feed set --step-ms 0", "--step-ms is 0.0: expected more than 0"),
        ("benchmark.py predict --memory-gb 0", "--memory-gb is 0.0"),
        ("benchmark.py predict --memory-gb inf", "--memory-gb is inf"),
        ("benchmark.py predict --rounds 0", "--rounds is 0: expected 1 to 1000"),
        ("benchmark.py predict --generator.width 0", "--generator.width is 0: expected 1 to 4,096"),
        ("benchmark.py predict --generator.negative-slope nan", "--generator.negative-slope is nan"),
    ],
)
def test_an_unusable_value_is_refused_with_its_option(command: str, words: str, refused: Refused) -> None:
    assert words in refused(command)


@pytest.mark.parametrize(
    "command, written",
    [
        ("enhance.py best {} --out here", "{}: no such file or folder"),
        ("pack.py pack {}", "data folder"),
        ("train.py --experiment {}", "--experiment {}: No such file or directory"),
        ("train.py demo --name {}", "--name is"),
        ("tune.py demo --search.{} choice:1", "--search.{}"),
    ],
)
@pytest.mark.parametrize("name, escaped", [("a\nb", r"a\nb"), ("\x1b[31m", r"\x1b[31m"), ("a\udcffb", r"a\udcffb")])
def test_a_name_with_control_characters_stays_on_one_line(
    command: str, written: str, name: str, escaped: str, refused: Refused
) -> None:
    script, *arguments = command.split()
    line = refused(script, *(argument.format(name) for argument in arguments))
    assert written.format(escaped) in line and escaped in line


@pytest.mark.parametrize("name", ["generator.safetensors", "experiment.json"])
def test_an_unreadable_file_of_a_checkpoint_is_named_with_the_reason(
    name: str, refused: Refused, unreadable: Callable[[Path], Path]
) -> None:
    path = Path("best", name).absolute()
    content = path.read_bytes()
    path.unlink()  # it is linked to the other tests' file
    path.write_bytes(content)
    unreadable(path)
    assert refused(f"enhance.py best {RAW} --out here") == f"error: best/{name}: Permission denied"


def test_with_nothing_left_to_enhance_nothing_is_started(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", f"enhance.py best {RAW} --out here".split())
    for _ in range(2):
        runpy.run_path(str(JOBS / "enhance.py"), run_name="__main__")
    assert "skipping existing images in here: 1" in capsys.readouterr().out


def test_of_raw_files_the_unusable_are_named_and_the_others_enhanced(
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    unreadable: Callable[[Path], Path],
) -> None:
    Path("night/private").mkdir(parents=True)
    shutil.copy(RAW, f"night/a{NOT_UTF8}b.dng")
    os.mkfifo("night/pipe.dng")
    Path("here").chmod(0o777)
    Path("best").chmod(0o755)
    unreadable(Path("night/private").absolute())
    monkeypatch.setattr(sys, "argv", ["enhance.py", "best", "night", "--out", "here"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(JOBS / "enhance.py"), run_name="__main__")
    written = capsys.readouterr()
    assert caught.value.code == 1 and written.err == "incomplete: 2 raw files were not enhanced\n"
    assert "failed night/pipe.dng: not a file" in written.out
    assert "failed night/private: Permission denied" in written.out
    assert r"a\udcffb.dng: here/a\udcffb.png, x" in written.out and Path(f"here/a{NOT_UTF8}b.png").is_file()


def test_a_report_that_cannot_be_written_is_refused_before_frames_are_scored(shards: Path, refused: Refused) -> None:
    for out, reason in (
        ("file", "is a file"),
        ("best", "holds checkpoint.json"),
        ("/proc/x", "no file can be created"),
    ):
        assert reason in refused(f"evaluate.py best --shards {shards} --out", out)

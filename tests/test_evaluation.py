"""Scoring over the cluster gives what a plain loop over all full frames would."""

import json
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from test_perceptual import random_weights, save_weights
from test_shard import messages_of_damage

from lsid_ray.config.schema import Experiment, GeneratorConfig
from lsid_ray.data.index import Shards, open_shards
from lsid_ray.data.pack import pack_dataset
from lsid_ray.data.parallel import parallel_map
from lsid_ray.errors import InputError
from lsid_ray.evaluate import evaluation
from lsid_ray.evaluate.backbones import build
from lsid_ray.evaluate.evaluation import evaluate
from lsid_ray.evaluate.measures import METRICS
from lsid_ray.evaluate.report import perceptual_lines
from lsid_ray.evaluate.score import at_output_scale, decode, score_frame
from lsid_ray.inference import frame as inference_frame
from lsid_ray.inference.frame import enhance_frame, frame_input
from lsid_ray.model.checkpoint import save_checkpoint
from lsid_ray.model.generator import Generator
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import read_raw
from lsid_ray.raw.render import plain_rendering, reference_rendering

CPU = torch.device("cpu")


@pytest.fixture
def opened(shards: Path) -> Shards:
    return open_shards(shards, ["test"])


def make_generator(**fields: object) -> Generator:
    torch.manual_seed(0)
    return Generator(GeneratorConfig(width=4, depth=2, **fields)).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "best"
    folder.mkdir(parents=True)
    generator = make_generator()
    experiment = Experiment(name="x", generator=generator.config)
    save_checkpoint(folder, experiment, generator, {}, {"step": 7, "epoch": 1, "psnr_db": 1.0, "ssim": 0.1})
    return folder


def test_every_image_is_scored_once_and_equals_scikit_image(saved: Path, shards: Path, opened: Shards) -> None:
    calls: list[tuple[int, int]] = []
    done = evaluate(saved, shards, "test", saved.parent / "report", memory_bytes=1, images=1, progress=_append(calls))
    report = json.loads((saved.parent / "report" / "report.json").read_text())
    assert [score["name"] for score in report["scores"]] == [pair.name for pair in opened.pairs]
    assert calls[-1] == (len(opened.pairs), len(opened.pairs))
    generator = make_generator()
    for pair, score in zip(opened.pairs, report["scores"], strict=True):
        image = enhance_frame(generator, opened.planes(pair), pair.short, pair.ratio, CPU)[0].numpy().astype(float)
        target = opened.target(pair).transpose(1, 2, 0) / 65535
        plain = plain_rendering(pair.short.raw_frame(opened.planes(pair)), pair.ratio) / 65535
        ssim = {"channel_axis": 2, "data_range": 1, "gaussian_weights": True, "sigma": 1.5}
        for prefix, rendering in (("", image), ("plain_", plain)):
            psnr = peak_signal_noise_ratio(target, rendering, data_range=1)
            similarity = structural_similarity(target, rendering, use_sample_covariance=False, **ssim)
            assert score[f"{prefix}psnr_db"] == pytest.approx(psnr, abs=1e-4)
            assert score[f"{prefix}ssim"] == pytest.approx(similarity, abs=1e-5)
    assert report["record"]["split"] == "test" and report["record"]["rendering"]["libraw"]
    assert done.summary["groups"][0]["images"] == len(opened.pairs)
    assert len(list((saved.parent / "report" / "images").glob("*_gate_?.png"))) == 2, "one per level"


def test_scores_do_not_depend_on_the_threads_that_earlier_tasks_have_set(
    saved: Path, shards: Path, cluster: None, tmp_path: Path
) -> None:
    def set_threads(_: int, threads: int) -> None:
        torch.set_num_threads(threads)
        time.sleep(0.2)  # so that all processes take part

    scores = []
    for threads in (1, 3):
        assert len(list(parallel_map(set_threads, range(12), threads))) == 12
        evaluate(saved, shards, "test", tmp_path / str(threads), images=0)
        scores.append(json.loads((tmp_path / str(threads) / "report.json").read_text())["scores"])
    assert [score["psnr_db"] for score in scores[0]] == [score["psnr_db"] for score in scores[1]]


def test_scores_in_stages_are_those_of_one_process(
    saved: Path, shards: Path, opened: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages are what GPUs take; here a CPU stands for one."""
    pytest.importorskip("torchmetrics", reason="needs lsid-ray[perceptual]")
    weights = save_weights(tmp_path / "weights", monkeypatch, "alexnet").parent
    options = {"images": 1, "metrics": ["flip", "lpips"], "weights": weights}
    evaluate(saved, shards, "test", tmp_path / "one", **options)
    in_stages = partial(evaluation._scored_in_stages, needs={"CPU": 0.5, "GPU": 0})
    monkeypatch.setattr(evaluation, "_scored", in_stages)
    evaluate(saved, shards, "test", tmp_path / "staged", **options)
    one, staged = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "staged"))
    for score, expected in zip(staged["scores"], one["scores"], strict=True):
        assert score.pop("seconds") > 0 and expected.pop("seconds") > 0
        assert score.keys() == expected.keys()
        for name, value in score.items():
            is_number = isinstance(value, float)
            assert value == (pytest.approx(expected[name], rel=1e-4) if is_number else expected[name]), name
    images = [sorted((tmp_path / name / "images").glob("*.png")) for name in ("one", "staged")]
    assert [path.name for path in images[0]] == [path.name for path in images[1]] and len(images[0]) > 4
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*images, strict=True) if a.name != "texture.png")


def test_learned_metrics_are_scored_in_every_process_or_said_to_be_missing(
    saved: Path, shards: Path, opened: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchmetrics", reason="needs lsid-ray[perceptual]")
    weights = save_weights(tmp_path / "weights", monkeypatch, "alexnet")
    done = evaluate(saved, shards, "test", tmp_path / "a", images=0, metrics=["flip", "lpips"], weights=weights.parent)
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    network = {"alexnet": build("alexnet", random_weights("alexnet"), CPU)}
    for pair, score in zip(opened.pairs, report["scores"], strict=True):
        image = enhance_frame(make_generator(), opened.planes(pair), pair.short, pair.ratio, CPU)[0]
        target = at_output_scale(opened.target(pair).transpose(1, 2, 0), pair, 2, CPU)
        for name in ("flip", "lpips"):
            expected = METRICS[name].function(image, target, network)
            assert expected > 0.001 and score[name] == pytest.approx(expected, rel=1e-3)
            assert score[f"plain_{name}"] > 0.001
        assert score["lpips_vgg"] is None and score["plain_dists"] is None
    assert done.summary["groups"][0]["by_image"]["network"]["lpips"]["mean"] > 0.001

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    done = evaluate(saved, shards, "test", tmp_path / "b", images=0, metrics=["lpips", "dists"], self_ensemble=True)
    mean = json.loads((tmp_path / "b" / "report.json").read_text())
    assert mean["record"]["self-ensemble"] == "mean of 8 predictions" and "self-ensemble" not in report["record"]
    for pair, score, alone in zip(opened.pairs, mean["scores"], report["scores"], strict=True):
        image = enhance_frame(make_generator(), opened.planes(pair), pair.short, pair.ratio, CPU, self_ensemble=True)[0]
        target = opened.target(pair).transpose(1, 2, 0) / 65535
        expected = peak_signal_noise_ratio(target, image.numpy().astype(float), data_range=1)
        assert score["psnr_db"] == pytest.approx(expected, abs=1e-5) != alone["psnr_db"]
    assert set(done.not_measured) == {"flip", "lpips", "lpips_vgg", "dists"}
    page = (tmp_path / "b" / "report.html").read_text()
    assert page.count("not measured: weights not at hand; to get them: python -c") == 4  # table and record
    lines = perceptual_lines(done.summary, done.not_measured).splitlines()
    assert len(lines) == 5 and lines[2].endswith(done.not_measured["lpips"])
    assert lines[1].endswith("FLIP: not measured: see --metrics"), "other metrics were asked for"


def _append(calls: list) -> object:
    return lambda done, total: calls.append((done, total))


def test_misaligned_scenes_are_excluded_and_named_unless_included(
    saved: Path, shards: Path, opened: Shards, tmp_path: Path
) -> None:
    marked = shutil.copytree(shards, tmp_path / "marked")
    index = json.loads((marked / "index.json").read_text())
    victim = next(pair for pair in index["pairs"] if pair["split"] == "test")
    victim["misaligned"] = True
    (marked / "index.json").write_text(json.dumps(index))
    done = evaluate(saved, marked, "test", tmp_path / "a", images=0)
    assert done.excluded == (victim["name"],)
    assert done.summary["groups"][0]["images"] == len(opened.pairs) - 1
    asked = evaluate(saved, marked, "test", tmp_path / "b", images=0, include_misaligned=True)
    assert asked.excluded == () and asked.summary["groups"][0]["images"] == len(opened.pairs)


@pytest.mark.parametrize("cut", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("output", ["full", "half"])
def test_outputs_of_any_phase_and_odd_size_are_aligned_with_their_targets(
    cluster: None, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: tuple[int, int], output: str
) -> None:
    """A network that passes the planes through must match its target best without a shift."""
    row, column = cut
    root = tmp_path / "cut"
    for kind in ("short", "long"):
        (root / kind).mkdir(parents=True)
        for path in (data_root / kind).glob("1*"):
            frame = read_raw(path)
            cfa = "".join("RGGB"[(y + row) % 2 * 2 + (x + column) % 2] for y in (0, 1) for x in (0, 1))
            write_dng(root / kind / path.name, replace(frame, mosaic=frame.mosaic[row:, column:], cfa=cfa))
    pack_dataset(root, tmp_path / "packed", tile=32)
    opened = open_shards(tmp_path / "packed", ["test"])
    pair = opened.pairs[0]
    generator = make_generator(output=output)

    def planes_as_image(planes: torch.Tensor) -> torch.Tensor:
        rgb = torch.stack([planes[:, 0], (planes[:, 1] + planes[:, 3]) / 2, planes[:, 2]], 1) ** 0.45
        return rgb if output == "half" else rgb.repeat_interleave(2, 2).repeat_interleave(2, 3)

    monkeypatch.setattr(inference_frame, "predict_bands", lambda _, planes, **__: [planes_as_image(planes)])
    image, _ = enhance_frame(generator, opened.planes(pair), pair.short, pair.ratio, CPU)
    reference = reference_rendering(root / "long" / pair.long.shard.source)
    target = at_output_scale(reference, pair, generator.scale, CPU)
    assert image.shape == target.shape
    if output == "full":
        assert image.shape[:2] == (pair.short.height, pair.short.width) == reference.shape[:2]

    def error(dy: int, dx: int) -> float:
        inner = target[4:-4, 4:-4]
        moved = image[4 + dy : image.shape[0] - 4 + dy, 4 + dx : image.shape[1] - 4 + dx]
        return float(np.mean((_gray(inner) - _gray(moved)) ** 2))

    errors = {(dy, dx): error(dy, dx) for dy in (-2, 0, 2) for dx in (-2, 0, 2)}
    assert min(errors, key=errors.get) == (0, 0)


def test_edges_are_as_bright_as_the_rest(opened: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolutions' zeros do not reach into the image."""
    pair = opened.pairs[0]
    torch.manual_seed(1)
    generator = Generator(GeneratorConfig(width=8, depth=1)).eval()
    flat = np.full(pair.short.shard.shape, 700, np.uint16)

    def unevenness() -> float:
        image, (weights,) = enhance_frame(generator, flat, pair.short, 10.0, CPU)
        assert image.shape[:2] == (pair.short.height, pair.short.width) and weights.shape == flat.shape[1:]
        image = image[::2, ::2]  # of a new network the four pixels of a packed one differ
        return (image - image[30, 30]).abs().max().item()

    mirrored = unevenness()
    monkeypatch.setattr(inference_frame, "MARGIN", 0)
    assert mirrored < 0.1 * unevenness()


def _gray(image: torch.Tensor) -> np.ndarray:
    gray = image.mean(-1).numpy()
    return (gray - gray.mean()) / gray.std()


def test_the_images_of_a_frame_have_all_views_at_full_size(opened: Shards) -> None:
    pair = opened.pairs[0]
    score, frame_images = score_frame(make_generator(), pair, decode(opened, pair), CPU, 1 << 20, with_images=True)
    assert frame_images is not None and frame_images.name == score.name
    assert set(frame_images.images) == {"short", "plain", "output", "target", "gate_2", "gate_1"}
    assert frame_images.images["short"].mean() < frame_images.images["plain"].mean()
    assert {frame_images.images[v].shape for v in ("short", "plain", "output", "target")} == {(144, 192, 3)}
    assert [frame_images.images[view].shape for view in ("gate_2", "gate_1")] == [(36, 48), (72, 96)]
    inputs = frame_input(opened.planes(pair), pair.short, pair.ratio, make_generator(), CPU)
    for seen, expected in zip(("gate_2", "gate_1"), make_generator().with_attention(inputs)[1], strict=True):
        inside = (slice(12, -12),) * 2  # the frame is continued beyond its edges
        assert frame_images.images[seen][inside] == pytest.approx(expected[0, 0].detach().numpy()[inside], abs=1e-5)
    without = score_frame(make_generator(gates=False), pair, decode(opened, pair), CPU, 1 << 20, with_images=True)[1]
    assert without is not None and set(without.images) == {"short", "plain", "output", "target"}


def test_an_evaluation_that_cannot_run_is_an_input_error(saved: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no index\.json"):
        evaluate(saved, tmp_path / "none", "test", tmp_path / "out")
    with pytest.raises(InputError, match=r"expected generator\.safetensors"):
        evaluate(tmp_path, shards, "test", tmp_path / "out")
    wider = json.loads((saved / "experiment.json").read_text())
    wider["generator"]["width"] = 8
    (saved / "experiment.json").write_text(json.dumps(wider))
    with pytest.raises(InputError, match=r"generator\.safetensors does not fit"):
        evaluate(saved, shards, "test", tmp_path / "out")
    with pytest.raises(InputError, match="the cluster has no GPU"):
        wider["generator"]["width"] = 4
        (saved / "experiment.json").write_text(json.dumps(wider))
        evaluate(saved, shards, "test", tmp_path / "out", use_gpu=True)
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_ends_the_evaluation_with_one_line_that_names_it(
    saved: Path, shards: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    victim, other = (next((copy / "long").glob(f"{split}*")) for split in "10")
    for message in messages_of_damage(victim, other):
        with pytest.raises(InputError) as caught:
            evaluate(saved, copy, "test", tmp_path / "out", images=0)
        assert message.fullmatch(str(caught.value))
    assert not (tmp_path / "out").exists()
    evaluate(saved, copy, "test", tmp_path / "out", images=0)


def test_a_second_evaluation_scores_what_the_checkpoint_has_become(saved: Path, shards: Path, tmp_path: Path) -> None:
    def scores(name: str) -> list[float]:
        evaluate(saved, shards, "test", tmp_path / name, images=0)
        return [score["psnr_db"] for score in json.loads((tmp_path / name / "report.json").read_text())["scores"]]

    first = scores("first")
    generator = make_generator()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(1.5)
    shutil.rmtree(saved)
    saved.mkdir()
    save_checkpoint(saved, Experiment(name="x", generator=generator.config), generator, {}, {"step": 8})
    second = scores("second")
    assert all(abs(a - b) > 0.01 for a, b in zip(first, second, strict=True))
    assert scores("third") == pytest.approx(second, abs=1e-6)  # the number of threads may differ

import csv
import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lsid_ray.errors import InputError
from lsid_ray.evaluate.report import headline, summarize, table, write_report
from lsid_ray.evaluate.score import FrameImages, Score
from lsid_ray.evaluate.texture import BANDS


def score(scene: str, frame: int, ratio: float, gain: float, **other) -> Score:
    values = {
        "name": f"{scene}_{frame:02d}_x{ratio:.0f}.ARW",
        "scene": scene,
        "camera": "Sony ILCE-7SM2",
        "iso": 1600.0,
        "ratio": ratio,
        "first_frame": frame == 0,
        "misaligned": scene == "10034",
        "psnr_db": 18 + gain,
        "ssim": 0.8,
        "psnr8_db": 17.9 + gain,
        "ssim8": 0.79,
        "plain_psnr_db": 18.0,
        "plain_ssim": 0.3,
        "plain_psnr8_db": 17.9,
        "plain_ssim8": 0.29,
        "seconds": 0.5,
    }
    texture = {f"{name}_{band}": 0.5 for name in ("texture", "coherence") for band in BANDS}
    values |= {
        f"{who}{name}": 0.2 for who in ("", "plain_") for name in ("texture", "flip", "lpips", "lpips_vgg", "dists")
    }
    values |= texture | {f"plain_{name}": 2.0 for name in texture}
    return Score(**(values | other))


@pytest.fixture
def scores() -> list[Score]:
    """Three scenes of unequal bursts, one of them misaligned."""
    return [
        score("10003", 0, 99.99, 4),
        score("10003", 1, 99.99, 6),
        score("10003", 2, 300, 8),
        score("10006", 0, 300, 10),
        score("10034", 0, 250, 0),
    ]


@pytest.fixture
def frame(scores: list[Score]) -> FrameImages:
    views = np.random.default_rng(0).random((4, 40, 60, 3), np.float32)
    images = dict(zip(("short", "plain", "output", "target"), views, strict=True))
    return FrameImages(scores[0].name, 100, images | {"gate_2": views[0, ::4, ::4, 0], "gate_1": views[0, ::2, ::2, 0]})


def group(summary: dict, name: str) -> dict:
    return next(g for g in summary["groups"] if name in g["names"])


def gain_of(part: dict, over: str = "by_image") -> float:
    return part[over]["gain"]["psnr_db"]["mean"]


def test_the_four_protocols_match_counts_and_means_done_by_hand(scores: list[Score]):
    summary = summarize(scores)
    counts = {name: (g["images"], g["scenes"]) for g in summary["groups"] for name in g["names"]}
    assert counts == {
        "all": (5, 3),
        "aligned": (4, 2),
        "first frames": (3, 3),
        "first frames, aligned": (2, 2),
    }
    assert summary["headline"] == "aligned"
    aligned = headline(summary)
    assert gain_of(aligned) == pytest.approx((4 + 6 + 8 + 10) / 4)
    assert gain_of(aligned, "by_scene") == pytest.approx((6 + 10) / 2)
    assert aligned["by_image"]["plain"]["ssim"]["mean"] == pytest.approx(0.3)
    assert [(r["ratio"], r["images"], gain_of(r)) for r in aligned["by_ratio"]] == [
        (100, 2, pytest.approx(5)),
        (300, 2, pytest.approx(9)),
    ]


def test_protocols_of_the_same_images_are_listed_once():
    summary = summarize([score("10003", 0, 100, 1), score("10006", 0, 100, 2)])
    assert [g["names"] for g in summary["groups"]] == [["all", "aligned", "first frames", "first frames, aligned"]]


def test_misaligned_scenes_alone_are_still_summarized():
    assert summarize([score("10034", 0, 100, 1)])["headline"] == "all"


def test_the_interval_resamples_scenes_and_not_images():
    # Many equal frames of each of six scenes: resampling images would give a far narrower interval.
    gains = [0, 1, 2, 3, 4, 5]
    scores = [score(f"1000{i}", frame, 100, gain) for i, gain in enumerate(gains) for frame in range(50)]
    for over in ("by_image", "by_scene"):
        cell = headline(summarize(scores))[over]["gain"]["psnr_db"]
        resampled = np.random.default_rng(7).choice(gains, (20000, len(gains))).mean(axis=1)
        assert cell["mean"] == pytest.approx(2.5)
        assert [cell["low"], cell["high"]] == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.2)


def test_the_summary_is_the_same_each_time(scores: list[Score]):
    assert summarize(scores) == summarize(scores)


def test_equal_scene_numbers_of_two_cameras_are_two_scenes(scores: list[Score]):
    fuji = [dataclasses.replace(s, camera="Fujifilm X-T2") for s in scores]
    assert summarize(scores + fuji)["groups"][0]["scenes"] == 6


def test_one_scene_has_no_interval():
    cell = headline(summarize([score("10003", 0, 100, 1)]))["by_image"]["gain"]["psnr_db"]
    assert cell["mean"] == pytest.approx(1) and cell["low"] is None and cell["high"] is None


def test_no_scores_are_refused():
    with pytest.raises(ValueError, match="no scores"):
        summarize([])


def test_the_last_row_of_the_table_is_over_all_ratios(scores: list[Score]):
    lines = table(summarize(scores)).splitlines()
    assert re.split(r"\s{2,}", lines[0].strip())[:3] == ["ratio", "images", "plain PSNR/SSIM"]
    assert re.split(r"\s{2,}", lines[2].strip())[:5] == [
        "x100",
        "2",
        "18.00 / 0.300",
        "23.00 / 0.800",
        "+5.00",
    ]
    assert re.split(r"\s{2,}", lines[-1].strip())[:5] == [
        "all",
        "4",
        "18.00 / 0.300",
        "25.00 / 0.800",
        "+7.00",
    ]
    assert len({len(line) for line in lines}) == 1


def test_a_report_holds_every_score_and_its_links_resolve(tmp_path, scores, frame):
    page = write_report(tmp_path / "run" / "report", scores, [frame], {"split": "test", "git": {"commit": "a1"}})
    folder = tmp_path / "run" / "report"
    assert page == folder / "report.html"
    assert sorted(p.name for p in folder.parent.iterdir()) == ["report"]
    report = json.loads((folder / "report.json").read_text())
    assert report["summary"] == summarize(scores)
    assert [Score(**s) for s in report["scores"]] == scores
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert [(row["name"], float(row["psnr_db"])) for row in rows] == [(s.name, s.psnr_db) for s in scores]

    links: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: links.extend(
        value for key, value in attributes if key in ("src", "href") or (tag, key) == ("option", "value")
    )
    parser.feed(page.read_text())
    assert len(links) > 10 and all((folder / link).is_file() for link in links)
    assert "git.commit" in page.read_text() and "22.00 dB, SSIM 0.800" in page.read_text()


def test_images_keep_their_pixels_and_wide_ones_are_reduced(tmp_path, scores, frame):
    wide = np.zeros((10, 3200, 3), np.uint8)
    images = frame.images | {"target": wide}
    write_report(tmp_path / "report", scores, [dataclasses.replace(frame, images=images)], {})
    (output,) = (tmp_path / "report" / "images").glob("*_output.png")
    (target,) = (tmp_path / "report" / "images").glob("*_target.png")
    np.testing.assert_array_equal(np.asarray(Image.open(output)), np.round(images["output"] * 255).astype(np.uint8))
    assert Image.open(target).size == (1600, 5)


def test_each_gate_is_shown_in_the_range_in_which_it_varies(tmp_path, scores, frame):
    coarse, fine = np.full((10, 15), 0.25, np.float32), np.full((20, 30), 0.95, np.float32)
    coarse[:, 5:], fine[:, 15:] = 0.75, 0.97
    images = frame.images | {"gate_2": coarse, "gate_1": fine}
    written = write_report(tmp_path / "report", scores, [dataclasses.replace(frame, images=images)], {})
    for name, weights in (("gate_2", coarse), ("gate_1", fine)):
        (image,) = (tmp_path / "report" / "images").glob(f"*_{name}.png")
        assert np.array_equal(np.asarray(Image.open(image)), np.where(weights == weights.max(), 255, 0))
    captions = re.findall(r"<figcaption>Gate at (.*)<br><small>(.*)</small>", written.read_text())
    assert captions == [("1/2", "black: 0.250, white: 0.750"), ("packed resolution", "black: 0.950, white: 0.970")]


def test_json_holds_no_nan_or_infinity(tmp_path, scores):
    perfect = dataclasses.replace(scores[0], psnr_db=math.inf, plain_psnr_db=math.inf)
    record = {"loss": math.nan, "sizes": [np.float32(1), np.int64(2)], "shards": Path("a")}
    write_report(tmp_path / "report", [perfect, *scores[1:]], [], record)

    def refuse(constant: str):
        raise AssertionError(f"{constant} in JSON")

    report = json.loads((tmp_path / "report" / "report.json").read_text(), parse_constant=refuse)
    assert report["record"] == {"loss": None, "sizes": [1.0, 2], "shards": "a"}
    assert gain_of(report["summary"]["groups"][0]) is None
    table(report["summary"])


def test_a_name_cannot_leave_the_folder_or_inject_markup(tmp_path, scores, frame):
    name = "../<b>x&y</b>.ARW"
    named = [dataclasses.replace(scores[0], name=name)]
    page = write_report(tmp_path / "report", named, [dataclasses.replace(frame, name=name)], {"a": "<i>"})
    assert "<b>x" not in page.read_text() and "<i>" not in page.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_a_new_report_replaces_an_older_one_completely(tmp_path, scores, frame):
    write_report(tmp_path / "report", scores, [frame], {"n": 1})
    write_report(tmp_path / "report", scores, [], {"n": 2})
    assert json.loads((tmp_path / "report" / "report.json").read_text())["record"] == {"n": 2}
    assert [path.name for path in (tmp_path / "report" / "images").iterdir()] == ["texture.png"]


def test_a_failed_report_leaves_nothing_behind_and_keeps_the_older_one(tmp_path, scores, frame):
    broken = dataclasses.replace(frame, images={"short": frame.images["short"]})
    with pytest.raises(ValueError, match="lacks"):
        write_report(tmp_path / "report", scores, [broken], {})
    assert list(tmp_path.iterdir()) == []
    write_report(tmp_path / "report", scores, [frame], {"n": 1})
    with pytest.raises(ValueError, match="no score of that name"):
        write_report(tmp_path / "report", scores, [dataclasses.replace(frame, name="other")], {})
    assert json.loads((tmp_path / "report" / "report.json").read_text())["record"] == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path, scores):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        write_report(tmp_path, scores, [], {})
    with pytest.raises(InputError, match="is a file, expected a folder"):
        write_report(tmp_path / "thesis.tex", scores, [], {})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"

"""A report from files alone: everything in one page, nothing from elsewhere, and no markup from files."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from elit_serve.charts import VARIABLES
from elit_serve.cli import main
from elit_serve.errors import CheckpointError, DataError, ElitError, InvalidInput
from elit_serve.evaluation.report.folder import read_measurements
from elit_serve.evaluation.report.page import answers, write_page
from elit_serve.files.evaluation import read_evaluation
from elit_serve.files.quality import OWN_SCALE

HASH = "0123456789ab"
HOSTILE = "<script>alert('x')</script>"
GUIDANCE = {"method": "ccfg", "scale": 4.5, "weak_level": 1, "interval": [0.1, 1.0]}
DISTANCES = {16: 160.0, 4: 161.0, 1: 230.0}
STEPS = [(level, weak) for level in (1, 4, 16) for weak in (None, 1, 16) if weak is None or weak <= level]
COSTS = {"none": 0.6, "ccfg": 1.0}  # over the cost of CCFG

WITHOUT_PHOTOGRAPHS = {"full_plan": "ccfg-16", "reference": "prompts.txt: 18 pictures by ccfg-16", "scale": OWN_SCALE}


def value(number: float, half_width: float) -> dict[str, float]:
    return {"value": number, "half_width": half_width}


def evaluation() -> dict[str, Any]:
    """Three levels, as `elit-serve evaluate` writes them."""
    scores = {"kernel": value(0.0123, 0.001), "precision": value(0.75, 0.02), "recall": value(0.5, 0.03)}
    plans = [
        {
            "level": level,
            "budget": level / 16,
            "frechet_over_floor": distance / 80,
            "plan": {"levels": [level] * 4, "guidance": GUIDANCE, "time_shift": 1.0},
            "num_samples": 18,
            "repeats": 1,
            "frechets": [distance],
            "frechet": value(distance, 2.0),
            "nearest_ratio": 1.1,
            "nearest_half_width": 0.04,
            "images_per_second": 12.5,
            **scores,
        }
        for level, distance in DISTANCES.items()
    ]
    return {
        "format_version": 2,
        "model": "garden",
        "model_hash": HASH,
        "metric": "Pooled-FD",
        "features_sha256": "0" * 64,
        "num_samples": 18,
        "num_reference": 60,
        "held_out": "held-out.tar",
        "class_distribution": {"daisy": 4, "rose": 6, "tulip": 8},
        "sampler": "Euler",
        "seeds": "sample i has seed i",
        "autoencoder": "pixels",
        "picture": {"height": 32, "width": 32},
        "intervals": "95 %",
        "floor": {"frechet": value(80.0, 2.5), "nearest_ratio": value(1.0, 0.05), **scores},
        "plans": plans,
        "provenance": {"command": HOSTILE, "date": "2026-11-25", "device": "a device"},
    }


def quality() -> dict[str, Any]:
    """Each level with and without guidance; guided ones are on the front."""
    plans = [
        {
            "name": f"{method}-{level}",
            "levels": [[level, 4]],
            "guidance": GUIDANCE | {"method": method},
            "time_shift": 1.0,
            "repeats": 2,
            "distance": {"value": distance + extra, "half_width": 3.0},
            "quality": {"value": 80 / (distance + extra), "half_width": 0.01},
            "gflops": (4.0 + level) * COSTS[method],
            "on_front": method == "ccfg",
        }
        for level, distance in DISTANCES.items()
        for method, extra in (("ccfg", 0.0), ("none", 100.0))
    ]
    return {"model": "garden", "model_hash": HASH, "metric": "Pooled-FD", "features_sha256": "0" * 64,
            "reference": HOSTILE, "num_samples": 18, "floor": {"value": 80.0, "half_width": 2.0},
            "levels": {"1": 0.3, "16": 0.5}, "default": "ccfg-16", "plans": plans}  # fmt: skip


def latency() -> dict[str, Any]:
    steps = [{"level": level, "weak_level": weak, "batch": 1, "step_ms": 2.0 if weak is None else 3.0}
             for level, weak in STEPS]  # fmt: skip
    return {"model": "garden", "backbone_hash": "x", "device": "a device", "dtype": "float32", "torch_version": "2",
            "elit_serve_version": "0", "date": "2026-11-25T00:00:00Z", "repeats": 2, "overhead_ms": 0.5,
            "steps": steps}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An evaluation with everything."""
    for name, content in (("evaluation", evaluation()), ("quality", quality()), ("latency", latency())):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "attention").mkdir()
    for name in ("budgets.png", "attention/reads.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    return tmp_path


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_needs_nothing_but_itself(folder: Path) -> None:
    page = Page(write_page(folder))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    source = (folder / "report.html").read_text()
    assert "url(" not in source
    assert "http" not in source
    assert page.named("html")[0]["lang"] == "en"


def test_drawings_have_colours_for_the_dark_and_ids_of_their_own(folder: Path) -> None:
    page = Page(write_page(folder))
    source = (folder / "report.html").read_text()
    dark = source.partition("prefers-color-scheme: dark")[2].partition("}")[0]
    drawn = set(re.findall(r"var\((--\w+), #", source))
    assert {"--text", "--soft", "--line", "--muted", "--s0", "--s1"} <= drawn
    for colour in VARIABLES.values():
        assert f"{colour}: #" in dark
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {mark["href"] for mark in page.named("use")} <= {f"#{name}" for name in ids}


def test_what_comes_from_files_is_escaped(folder: Path) -> None:
    source = write_page(folder).read_text()
    assert "<script" not in source
    assert source.count("&lt;script&gt;") == 2  # the command and the reference


def test_every_picture_and_drawing_has_words(folder: Path) -> None:
    page = Page(write_page(folder))
    assert len(page.named("img")) == 2
    assert all(image["alt"] for image in page.named("img"))
    drawings = [drawing["aria-label"] for drawing in page.named("svg")]
    assert drawings == [
        "Pooled-FD at each level, beside the floor",
        "Quality against cost",
        "Quality against cost in measured time",
        "Pooled-FD against the guidance scale",
    ]


def test_the_figures_stand_in_the_tables(folder: Path) -> None:
    text = re.sub(r"\s+", " ", Page(write_page(folder)).text)
    assert "80.0" in text
    assert "230.0 ± 2.0" in text
    assert "160.0 ± 3.0" in text
    assert "0.0123 ± 0.0010" in text
    assert "80.0 ± 2.5" in text
    assert "held-out.tar; 3 classes of 4 to 8" in text
    assert "11.5" in text  # an unguided step of 2 ms, three guided ones of 3 ms, and 0.5 ms to the file
    assert "date: 2026-11-25" in text


def test_conclusions_go_as_far_as_the_uncertainty(folder: Path) -> None:
    sentences = list(answers(read_measurements(folder)))
    assert "level 16, 4 steps" in sentences[0]
    assert "2.00 times the floor of 80.0" in sentences[0]
    assert "44% worse at the lowest" in sentences[1]
    assert sentences[2].startswith("This measure cannot tell level 4 from level 16")
    assert sentences[3].startswith("3 of 6 plans are worth their cost")


@pytest.mark.parametrize("missing", [("quality.json", "latency.json"), ("evaluation.json", "latency.json")])
def test_one_of_both_files_is_enough(folder: Path, missing: tuple[str, ...]) -> None:
    for name in missing:
        (folder / name).unlink()
    page = Page(write_page(folder))
    assert "Pooled-FD at each level, beside the floor" in [drawing["aria-label"] for drawing in page.named("svg")]
    assert len(page.named("table")) == 1


def test_without_photographs_none_are_told_of(folder: Path) -> None:
    (folder / "evaluation.json").unlink()
    (folder / "quality.json").write_text(json.dumps(quality() | WITHOUT_PHOTOGRAPHS))
    text = Page(write_page(folder)).text
    assert "floor: other pictures of the full plan" in text
    assert "How good its own pictures are was not measured" in text
    assert "photograph" not in text


def test_an_evaluation_against_photographs_is_not_told_beside_a_sweep_without(folder: Path) -> None:
    (folder / "quality.json").write_text(json.dumps(quality() | WITHOUT_PHOTOGRAPHS))
    with pytest.raises(DataError, match=r"evaluation\.json is against photographs, and quality\.json against the full"):
        write_page(folder)


def test_an_inception_score_has_a_column_where_there_is_one(folder: Path) -> None:
    assert "Inception Score" not in Page(write_page(folder)).text
    facts = evaluation()
    for scored in (facts["floor"], *facts["plans"]):
        scored["inception_score"] = value(7.5, 0.25)
    (folder / "evaluation.json").write_text(json.dumps(facts))
    text = Page(write_page(folder)).text
    assert text.count("Inception Score") == 1
    assert text.count("7.50 ± 0.25") == 4  # three plans and the floor


def test_bad_folders_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="folder"):
        write_page(folder / "nowhere")
    with pytest.raises(InvalidInput, match=r"evaluation\.json"):
        write_page(folder / "attention")
    (folder / "evaluation.json").write_text(json.dumps(evaluation() | {"model_hash": "ba9876543210"}))
    with pytest.raises(DataError, match="ba9876543210"):
        write_page(folder)
    (folder / "evaluation.json").write_text(json.dumps(evaluation() | {"num_samples": 80}))
    with pytest.raises(DataError, match="num_samples is 80"):
        write_page(folder)
    (folder / "evaluation.json").write_text('{"model": 3}')
    with pytest.raises(ElitError, match=r"metric.*num_samples"):
        write_page(folder)


def test_an_evaluation_of_an_earlier_version_is_read(folder: Path) -> None:
    """It said what an engine would make, and not how near it came; a later one may say more."""
    facts = evaluation() | {"something": "new"}
    for plan in facts["plans"]:
        plan["predicted_images_per_second"] = 20.0
    (folder / "evaluation.json").write_text(json.dumps(facts))
    read = read_evaluation(folder)
    assert read is not None
    assert [plan.frechet.value for plan in read.plans] == list(DISTANCES.values())
    assert read.plans[0].share_of_saturated is None


def test_an_evaluation_of_a_plan_that_cannot_be_is_named(folder: Path) -> None:
    facts = evaluation()
    facts["plans"][2]["plan"]["guidance"] = GUIDANCE | {"method": "ag"}  # at level 1, as is its weak level
    (folder / "evaluation.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"evaluation\.json.*weak level below the lowest"):
        write_page(folder)


def test_the_command_writes_it_and_says_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["elit-serve", "report", str(folder)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    assert capsys.readouterr().out.strip() == str(folder / "report.html")


def test_a_real_evaluation_becomes_a_page(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_model_dir: Path,
    training: Path,
    held_out: Path,
    feature_file: Path,
) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", tiny_model_dir, "--reference", training, "--held-out", held_out, "--device", "cpu"]
    sizes = ["--features", f"torchscript:{feature_file}", "--levels", "1,4", "--seeds", 1, "--steps", 2, "--out", out]
    monkeypatch.setattr(sys, "argv", ["elit-serve", *map(str, [*arguments, *sizes])])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    facts = json.loads((out / "evaluation.json").read_text())
    page = Page(write_page(out))
    assert f"{facts['plans'][0]['frechet']['value']:.1f} ± " in page.text
    assert len(page.named("img")) == 2
    assert "How good are the pictures of tiny?" in page.text

"""`elit-serve evaluate`, from the command line to its files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from elit_serve.cli import main
from elit_serve.evaluation.report.sheets import evenly
from elit_serve.files.evaluation import read_evaluation


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Runs the command line in this process and returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["elit-serve", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_the_command_writes_figures_and_pictures_and_its_reference_serves_again(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_model_dir: Path,
    training: Path,
    held_out: Path,
    feature_file: Path,
) -> None:
    out, kept = tmp_path / "results" / "tiny", tmp_path / "reference.safetensors"
    arguments = ("evaluate", tiny_model_dir, "--features", f"torchscript:{feature_file}", "--device", "cpu")
    sampling = ("--levels", "1,2,4", "--seeds", 2, "--steps", 3, "--guidance", "cfg", "--scale", 1.5)
    sampling += ("--interval-end", 0.7, "--batch-size", 8, "--show", "rose")
    photographs = ("--reference", training, "--held-out", held_out, "--save-reference", kept)
    assert run(monkeypatch, *arguments, *sampling, *photographs, "--out", out) == 0
    assert {"budgets.png", "evaluation.json", "nearest.png", "table.md"} < {file.name for file in out.iterdir()}
    assert (out / "table.md").read_text().strip() == capsys.readouterr().out.strip()
    facts = json.loads((out / "evaluation.json").read_text())
    read = read_evaluation(out)
    assert read is not None
    assert read.model_dump(mode="json") == facts
    assert [plan["level"] for plan in facts["plans"]] == [4, 2, 1]
    assert facts["plans"][0]["plan"]["guidance"] == {
        "method": "cfg",
        "scale": 1.5,
        "weak_level": 1,
        "interval": [0.0, 0.7],
    }
    assert facts["plans"][0]["kernel"]["half_width"] > 0
    assert facts["plans"][0]["inception_score"] is None
    assert (facts["num_samples"], facts["num_reference"]) == (18, 60)
    assert facts["class_distribution"] == {"daisy": 4, "rose": 6, "tulip": 8}
    assert (facts["sampler"], facts["autoencoder"]) == ("Euler", "pixels")
    assert facts["provenance"]["command"].startswith("elit-serve evaluate ")
    with Image.open(out / "budgets.png") as budgets, Image.open(out / "nearest.png") as pairs:
        assert budgets.height > 3 * 128
        assert pairs.width > 10 * 128

    again = tmp_path / "again"
    assert run(monkeypatch, *arguments, *sampling, "--reference", kept, "--out", again) == 0
    repeated = json.loads((again / "evaluation.json").read_text())
    assert repeated["floor"] == facts["floor"]
    for first, second in zip(facts["plans"], repeated["plans"], strict=True):
        assert second["frechets"] == pytest.approx(first["frechets"], rel=1e-6)
    assert not (again / "nearest.png").exists()  # the file has no photographs


def test_another_size_of_the_model_is_measured_and_keeps_features_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_model_dir: Path,
    training: Path,
    held_out: Path,
    feature_file: Path,
) -> None:
    config = json.loads((tiny_model_dir / "config.json").read_text())
    config["shapes"] = {"32x32": [3, 32, 32], "24x32": [3, 24, 32]}
    (tiny_model_dir / "config.json").write_text(json.dumps(config))
    arguments = ("evaluate", tiny_model_dir, "--features", f"torchscript:{feature_file}", "--device", "cpu")
    sampling = ("--levels", "1", "--seeds", 1, "--steps", 1, "--guidance", "none", "--out", tmp_path / "results")
    pictures = []
    for size in ((), ("--size", "32x24")):
        assert run(monkeypatch, *arguments, *sampling, *size, "--reference", training, "--held-out", held_out) == 0
        facts = json.loads((tmp_path / "results" / "evaluation.json").read_text())
        pictures.append(facts["picture"])
    assert [(picture["width"], picture["height"]) for picture in pictures] == [(32, 32), (32, 24)]
    assert len(list((tmp_path / "results" / "features").iterdir())) == 2


def test_without_held_out_photographs_some_of_the_reference_are_held_out(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_model_dir: Path,
    feature_file: Path,
    training: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    doubled = tmp_path / "photographs"  # 40 of each class, so that 4 are held out
    shutil.copytree(training, doubled)
    for file in list(doubled.glob("*/*.png")):
        shutil.copy(file, file.with_name(f"again-{file.name}"))
    (doubled / "rose" / "notes.txt").write_text("no picture")
    options = (
        "--features",
        f"torchscript:{feature_file}",
        "--levels",
        1,
        "--seeds",
        1,
        "--steps",
        1,
        "--device",
        "cpu",
    )
    out = tmp_path / "out"
    arguments = ("evaluate", tiny_model_dir, "--reference", doubled, *options, "--device", "cpu", "--out", out)
    assert run(monkeypatch, *arguments) == 0
    facts = json.loads((out / "evaluation.json").read_text())
    assert (facts["num_samples"], facts["num_reference"]) == (12, 108)
    assert facts["held_out"] == "every 10th reference photograph of each class"
    assert caplog.messages == [f"{doubled}: left out files of other kinds (.txt 1): 1"]


def test_bad_values_stop_the_command_before_any_sampling(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_model_dir: Path,
    training: Path,
    held_out: Path,
    feature_file: Path,
) -> None:
    strangers, lone, missing, small = (
        Path(shutil.copytree(held_out, tmp_path / name)) for name in ("strangers", "lone", "missing", "small")
    )
    (strangers / "rose").rename(strangers / "orchid")
    for file in sorted(lone.glob("*/*"))[1:]:
        file.unlink()
    shutil.rmtree(missing / "rose")
    for file in small.glob("*/*"):
        with Image.open(file) as image:
            image.resize((31, 40)).save(file)
    no_tensors = tmp_path / "reference.safetensors"
    no_tensors.write_bytes(b"oops")
    good = {
        "--reference": training,
        "--held-out": held_out,
        "--features": f"torchscript:{feature_file}",
        "--out": tmp_path / "out",
        "--device": "cpu",
        "--seeds": 1,
        "--levels": "1",
        "--steps": 1,
    }
    for option, value, words in (
        ("--held-out", strangers, "held_out: 'orchid' is not allowed"),
        ("--held-out", lone, "held_out: 1 is not allowed; at least 8 photographs"),
        ("--reference", missing, "reference: 'no photograph of rose' is not allowed"),
        ("--reference", small, "31 x 40' is not allowed; photographs of at least the model's 32 x 32 pixels"),
        ("--reference", tmp_path / "nowhere", "does not exist"),
        ("--reference", no_tensors, "a reference file has it all"),
        ("--features", "vgg", "features: 'vgg' is not allowed; torchscript:PATH"),
        ("--levels", "1,7", "levels: 7 is not allowed"),
        ("--levels", "all", "levels: 'all' is not allowed"),
        ("--show", "orchid", "show: 'orchid' is not allowed"),
        ("--interval-end", 1.5, "guidance.interval"),
        ("--out", feature_file, "out: "),
    ):
        arguments = [part for pair in (good | {option: value}).items() for part in pair]
        assert run(monkeypatch, "evaluate", tiny_model_dir, *arguments) == 2
        error = capsys.readouterr().err
        assert words in error
        assert "Traceback" not in error
    assert not (tmp_path / "out" / "features").exists()


@pytest.mark.parametrize(("count", "wanted"), [(10, 1), (10, 10), (10, 4), (715, 10), (2, 2)])
def test_an_even_selection_is_sorted_distinct_and_within_range(count: int, wanted: int) -> None:
    chosen = evenly(count, wanted)
    assert len(set(chosen)) == wanted
    assert chosen == sorted(chosen)
    assert set(chosen) <= set(range(count))

"""Models of prompts, measured: against captioned photographs, and against pictures of their own full plan."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from dense.folders import pipeline_of
from PIL import Image
from safetensors.torch import load_file, save_file
from text_models import save_text_model
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from elit_serve.cli import app
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import DataError, InvalidInput
from elit_serve.evaluation.features import open_features
from elit_serve.evaluation.report.page import write_page
from elit_serve.evaluation.runs.comparable import open_on_scale, quality_compared_with
from elit_serve.evaluation.runs.opening import ReferenceOptions, open_evaluator, open_reference
from elit_serve.evaluation.runs.own_pictures import full_plan_of
from elit_serve.evaluation.runs.reference import Reference
from elit_serve.files.evaluation import read_evaluation
from elit_serve.files.quality import OWN_SCALE, Quality, read_quality
from elit_serve.files.records import read_records
from elit_serve.files.skips import read_skips
from elit_serve.importing.diffusers_folder import import_folder
from elit_serve.nn.backbones.elit_mmdit import KIND as MMDIT
from elit_serve.photographs.grammar import WORDS
from elit_serve.plans.plan import Plan
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable
from tests.evaluation.conftest import write_photographs

PROMPTS = ("a red tulip", "the small rose on grass", "photo of a daisy", "a green rose")
FULL = "8 steps at 1, cfg 4 in 0-1"


class Coarse(nn.Module):
    """Pixels, half as many each way: [B, 3, H, W] -> [B, 3 H/2 W/2]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2).flatten(1)


@pytest.fixture(scope="module")
def coarse(torchscript: Callable[[nn.Module, str], Path]) -> Path:
    return torchscript(Coarse(), "coarse_features.ts")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join(PROMPTS), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of PRX, whose velocity is so large that fewer steps are seen; it samples in 8."""
    pipeline = pipeline_of("prx")
    with torch.no_grad():
        pipeline.transformer.final_layer.linear.weight.mul_(100)
    made = tmp_path_factory.mktemp("dense") / "painter"
    pipeline.save_pretrained(made)
    import_folder(made, steps=8)
    return made


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def swept(folder: Path, prompts: Path, coarse: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The folder with its `quality.json`, longer steps included, and what commands say to measure as the sweep did."""
    out = tmp_path_factory.mktemp("sweep")
    said = ("--prompts", prompts, "--samples", 24, "--features", f"torchscript:{coarse}", "--device", "cpu")
    said += ("--batch-size", 24)
    run("sweep", folder, *said, "--steps", "2,4", "--max-repeats", 1, "--write-defaults", "--out", out)
    run("grids", folder, *said, "--repeats", 1, "--grids", "2,4,4@0.5-1", "--write", "--out", out)
    return {"folder": folder, "out": out, "said": said}


@pytest.fixture
def quality(swept: dict[str, Any]) -> Quality:
    return read_quality(swept["folder"] / "quality.json")


def test_plans_of_a_dense_model_are_worth_what_they_keep_of_its_full_plan(quality: Quality) -> None:
    assert quality.reference == f"prompts.txt: 24 pictures by {FULL}"
    assert (quality.full_plan, quality.default, quality.scale) == (FULL, FULL, OWN_SCALE)
    assert [plan.steps for plan in quality.front] == [2, 4, 8]
    worth = [plan.quality.value for plan in quality.front]
    assert worth[0] < worth[1] < 0.6
    assert worth[2] > 0.75, "other seeds of the same plan"
    assert quality.levels == {1: worth[2]}


def test_a_sweep_that_goes_on_makes_no_picture_again_and_keeps_the_full_plan_it_had(
    swept: dict[str, Any], quality: Quality, tmp_path: Path
) -> None:
    """The model's own sampling is what was recommended by then; with fewer steps, it would be another full plan."""
    model = shutil.copytree(swept["folder"], tmp_path / "painter")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["sampling"]["steps"] = 4
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    out = shutil.copytree(swept["out"], tmp_path / "out")
    kept = sorted(out.glob("features/*"))
    said = run("sweep", model, *swept["said"], "--steps", "2,4", "--max-repeats", 1, "--out", out)
    assert f"The full plan is that of the model's quality.json: {FULL}" in " ".join(said.split())
    again = read_quality(out / "quality.json")
    assert again.plans == quality.plans
    assert again.full_plan == FULL
    assert sorted(out.glob("features/*")) == kept


def test_a_full_plan_on_a_time_grid_that_is_no_longer_the_models_is_not_kept(
    swept: dict[str, Any], tmp_path: Path
) -> None:
    model = shutil.copytree(swept["folder"], tmp_path / "painter")
    assert full_plan_of(Pipeline.load(model, device="cpu")).time_shift != 7.5
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["sampling"]["time_shift"] = 7.5
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    pipeline = Pipeline.load(model, device="cpu")
    assert full_plan_of(pipeline) == pipeline.plan()
    with pytest.raises(InvalidInput, match=r"model: .*one whose time grid is that of its quality\.json"):
        run("grids", model, *swept["said"], "--grids", "2", "--out", tmp_path / "out")


def test_pictures_by_another_text_encoder_are_made_anew(swept: dict[str, Any], tmp_path: Path) -> None:
    model, out = shutil.copytree(swept["folder"], tmp_path / "painter"), shutil.copytree(swept["out"], tmp_path / "out")
    kept = set(out.glob("features/*"))
    (weights,) = model.glob("text_encoder/*.safetensors")
    save_file({name: 2 * value for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    run("sweep", model, *swept["said"], "--steps", 2, "--max-repeats", 1, "--out", out)
    assert len(set(out.glob("features/*")) - kept) == 4, "two plans, and two sets of the full one to measure against"


def test_other_prompts_than_those_that_were_measured_are_refused(
    swept: dict[str, Any], quality: Quality, tmp_path: Path
) -> None:
    """They are known by their text, and not only by how far apart two sets of their pictures are."""
    others = tmp_path / "prompts.txt"
    others.write_text("\n".join((*PROMPTS[:3], "a green rose.")), encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"prompts: 'prompts of SHA-256 .*; those of the model") as refused:
        run("grids", swept["folder"], *swept["said"], "--prompts", others, "--grids", "2", "--out", tmp_path / "out")
    assert quality.prompts_sha256 is not None
    assert quality.prompts_sha256[:12] in str(refused.value)


def test_in_another_precision_the_full_plan_s_pictures_are_those_of_the_precision_that_was_measured(
    swept: dict[str, Any], prompts: Path, coarse: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(swept["out"], tmp_path / "out")
    kept = set(out.glob("features/*"))
    options = ReferenceOptions(prompts=prompts, samples=24, batch_size=24)
    pipelines = [Pipeline.load(swept["folder"], device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16")]
    extractor = open_features(f"torchscript:{coarse}", pipelines[0].device)
    measured, other = (open_on_scale(pipeline, extractor, options, out) for pipeline in pipelines)
    assert other.reference.features.equal(measured.reference.features)
    assert other.floor == measured.floor
    assert set(out.glob("features/*")) == kept
    plan = Plan(levels=(1, 1))
    assert not other.features(plan, 0).equal(measured.features(plan, 0))


def test_photographs_are_no_reference_beside_what_was_measured_without(
    swept: dict[str, Any], coarse: Path, tmp_path: Path
) -> None:
    pipeline = Pipeline.load(swept["folder"], device="cpu")
    extractor = open_features(f"torchscript:{coarse}", pipeline.device)
    photographs = ReferenceOptions(
        reference=captioned(tmp_path / "set", 9, seed=0), held_out=captioned(tmp_path / "unseen", 24, seed=1)
    )
    evaluator = open_evaluator(pipeline, extractor, photographs, tmp_path / "out")
    with pytest.raises(InvalidInput, match=r"reference: 'photographs' .*; pictures of the full plan, as in"):
        quality_compared_with(pipeline, evaluator)


@pytest.mark.parametrize(
    ("command", "changes", "why"),
    [
        ("sweep", ("--steps", "2,4", "--max-measurements", 2), "max_measurements: 2 .*at least 3"),
        ("grids", ("--samples", 16), "samples: 16 .*24, as in the model"),
        ("precision", ("--dtype", "bfloat16", "--samples", 16), "samples: 16 .*24, as in the model"),
        ("precision", ("--dtype", "bfloat16", "--plan", "gone"), "plan: 'gone'"),
    ],
)
def test_no_picture_is_made_for_what_will_be_refused(
    swept: dict[str, Any], tmp_path: Path, command: str, changes: tuple[object, ...], why: str
) -> None:
    with pytest.raises(InvalidInput, match=why):
        run(command, swept["folder"], *swept["said"], *changes, "--out", tmp_path)
    assert not list(tmp_path.glob("features/*"))


@pytest.mark.parametrize("command", ["sweep", "grids", "precision"])
def test_prompts_are_read_before_weights(tmp_path: Path, command: str) -> None:
    given = ("--prompts", tmp_path / "gone.txt", "--features", "inception", "--out", tmp_path)
    with pytest.raises(DataError, match=r"gone\.txt cannot be read"):
        run(command, tmp_path / "no model", *given)


def captioned(folder: Path, count: int, seed: int, captions: Sequence[str] = PROMPTS) -> Path:
    write_photographs(folder, {"flowers": count}, seed=seed)
    for number, file in enumerate(sorted(folder.glob("*/*.png"))):
        file.with_suffix(".txt").write_text(captions[number % len(captions)], encoding="utf-8")
    return folder


def test_captions_of_photographs_are_what_the_pictures_are_of(feature_file: Path, tmp_path: Path) -> None:
    model = save_text_model(tmp_path / "painter", spec=MMDIT.tiny)
    out, kept = tmp_path / "out", tmp_path / "reference.safetensors"
    said = ("evaluate", model, "--features", f"torchscript:{feature_file}", "--device", "cpu", "--out", out)
    said += ("--levels", "1,4", "--seeds", 1, "--steps", 1, "--show", "a rose")
    photographs = ("--reference", captioned(tmp_path / "set", 9, seed=0))
    photographs += ("--held-out", captioned(tmp_path / "unseen", 10, seed=1))
    assert "samples with the captions of the held-out photographs" in run(*said, *photographs, "--save-reference", kept)
    evaluation = read_evaluation(out)
    assert evaluation is not None
    assert (evaluation.num_samples, evaluation.class_distribution) == (10, {})
    assert [plan.following for plan in evaluation.plans] == [None, None], "these prompts are not of the grammar"
    reference = Reference.load(kept)
    assert reference.prompts == (PROMPTS * 3)[:10]
    (out / "evaluation.json").unlink()
    run(*said, "--reference", kept)
    assert read_evaluation(out) == evaluation.model_copy(update={"provenance": _provenance(out)})
    assert "with their captions" in write_page(out).read_text(encoding="utf-8")


def test_pictures_of_captions_of_the_grammar_are_looked_at_for_their_words(feature_file: Path, tmp_path: Path) -> None:
    model, out = save_text_model(tmp_path / "painter", spec=MMDIT.tiny), tmp_path / "out"
    captions = ("a red tulip", "several white daisies", "a close-up of a yellow rose")
    said = ("evaluate", model, "--features", f"torchscript:{feature_file}", "--device", "cpu", "--out", out)
    said += ("--levels", "1,4", "--seeds", 1, "--steps", 1, "--show", "a rose")
    photographs = ("--reference", captioned(tmp_path / "set", 9, 0, captions))
    photographs += ("--held-out", captioned(tmp_path / "unseen", 9, 1, captions))
    for tint, folder in enumerate((tmp_path / "set", tmp_path / "unseen")):
        for number, file in enumerate(sorted(folder.glob("*/*.png"))):
            Image.new("RGB", (40, 36), (100 * (number % 3) + 5 * tint, number, 0)).save(file)
    table = run(*said, *photographs)
    evaluation = read_evaluation(out)
    assert evaluation is not None
    assert "| held-out photographs |  |  |  |  | 1.000 ± 0.000 (0.333) |" in table, "each class has a colour of its own"
    for plan in evaluation.plans:
        assert plan.following is not None
        assert list(plan.following) == [*WORDS, "class"]
        assert all(0 <= each.share.value <= 1 and 0 <= each.chance <= 1 for each in plan.following.values())
        colour = plan.following["colour"]
        assert f"| {colour.share.text(3)} ({colour.chance:.3f}) |" in table
        assert f"<td>{colour.share.text(2)} ({colour.chance:.2f})</td>" in write_page(out).read_text(encoding="utf-8")


def _provenance(out: Path) -> dict[str, Any]:
    found = read_evaluation(out)
    assert found is not None
    return found.provenance


def test_a_reference_of_captions_is_not_for_a_model_of_classes_nor_one_of_classes_for_a_model_of_prompts(
    shared_tiny_model_dir: Path, feature_file: Path, training: Path, held_out: Path, tmp_path: Path
) -> None:
    florist = Pipeline.load(shared_tiny_model_dir, device="cpu")
    painter = Pipeline.load(save_text_model(tmp_path / "painter", spec=MMDIT.tiny), device="cpu")
    extractor = open_features(f"torchscript:{feature_file}", florist.device)
    photographs = (training, held_out), (captioned(tmp_path / "set", 9, 0), captioned(tmp_path / "unseen", 10, 1))
    of_classes, of_captions = (
        open_reference(pipeline, extractor, ReferenceOptions(reference=reference, held_out=unseen))
        for pipeline, (reference, unseen) in zip((florist, painter), photographs, strict=True)
    )
    of_classes.check(florist, extractor)
    of_captions.check(painter, extractor)
    with pytest.raises(InvalidInput, match="reference: '0 classes' is not allowed; the classes of tiny"):
        of_captions.check(florist, extractor)
    with pytest.raises(InvalidInput, match="reference: '3 classes' is not allowed"):
        of_classes.check(painter, extractor)


def test_prompts_of_a_model_of_classes_name_its_classes(
    tiny_model_dir: Path, feature_file: Path, tmp_path: Path
) -> None:
    pipeline = Pipeline.load(tiny_model_dir, device="cpu")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("tulip\nrose\nDaisy\na red tulip", encoding="utf-8")
    extractor = open_features(f"torchscript:{feature_file}", pipeline.device)
    with pytest.raises(InvalidInput, match=r"prompt: .*a red tulip"):
        open_evaluator(pipeline, extractor, ReferenceOptions(prompts=prompts, samples=8), tmp_path)
    prompts.write_text("tulip\nrose\nDaisy", encoding="utf-8")
    evaluator = open_evaluator(pipeline, extractor, ReferenceOptions(prompts=prompts, samples=8), tmp_path)
    assert [condition.words for condition in evaluator.conditions] == [*("tulip", "rose", "daisy") * 2, "tulip", "rose"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({}, "reference is missing; give photographs, or --prompts"),
        ({"reference": "a", "prompts": "b"}, "prompts: .*left out"),
        ({"reference": "a", "samples": 9}, "samples: 9.*left out"),
        ({"prompts": "b", "held_out": "c"}, "held_out: .*left out"),
        ({"prompts": "b", "save_reference": "c"}, "save_reference: .*left out"),
    ],
)
def test_photographs_and_prompts_exclude_each_other(said: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        ReferenceOptions(**{name: Path(value) if isinstance(value, str) else value for name, value in said.items()})


def test_a_set_of_few_pictures_is_refused(prompts: Path, coarse: Path, folder: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.load(folder, device="cpu")
    with pytest.raises(InvalidInput, match="samples: 4 is not allowed; at least 8 pictures in a set"):
        open_evaluator(
            pipeline,
            open_features(f"torchscript:{coarse}", pipeline.device),
            ReferenceOptions(prompts=prompts),
            tmp_path,
        )


STEP_MS = 1000.0  # predicted, of each picture of a batch: far above what it takes
NUM_CALLERS = 8


@pytest.fixture
def server(swept: dict[str, Any], start_server: Any, held: Any) -> Any:
    """One whose steps wait."""
    kinds = [StepKind("8x8", 1, weak)._replace(is_skipped=skipped) for weak in (None, 1) for skipped in (False, True)]
    cost = CostTable(steps_ms={(kind, batch): STEP_MS * batch for kind in kinds for batch in (1, 4)}, overhead_ms=0.0)
    return start_server(Pipeline.load(swept["folder"], device="cpu"), cost=cost, executor=held)


def test_time_buys_steps_of_a_dense_model(server: Any, quality: Quality) -> None:
    worth = {plan.steps: plan.quality.value for plan in quality.front}
    server.executor.may_run.set()
    assert server.client.get("/v1/models/painter").json()["quality"]["full_plan"] == FULL
    for latency_ms, steps in ((60_000, 8), (6_000, 4), (3_000, 2)):
        body = {"prompt": PROMPTS[0], "latency_ms": latency_ms}
        course = server.client.post("/v1/plan", json=body).json()["course"]
        assert course["expected_quality"] == pytest.approx(worth[steps], abs=1e-4)
        assert course["latency_ms"] < latency_ms
        answer = server.generate(body).json()
        assert answer["expected_quality"] == pytest.approx(worth[steps], abs=1e-4)
        assert answer["quality"] >= answer["expected_quality"]
    hopeless = server.generate({"prompt": PROMPTS[0], "latency_ms": STEP_MS})
    assert hopeless.status_code == 422
    assert hopeless.json()["min_latency_ms"] >= 2 * STEP_MS


def test_under_load_a_dense_model_takes_fewer_and_longer_steps(
    server: Any, quality: Quality, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """Each alone had time for all of its steps; together they have time for three steps each."""
    latency_ms = 3 * NUM_CALLERS * STEP_MS
    asked = [{"prompt": PROMPTS[seed % 4], "seed": seed, "latency_ms": latency_ms} for seed in range(NUM_CALLERS)]
    with ThreadPoolExecutor(NUM_CALLERS) as callers:
        answers = callers.map(server.generate, asked)
        eventually(lambda: server.client.get("/load").json()["server_load"] == NUM_CALLERS)
        server.executor.may_run.set()
        done = [(answer.status_code, answer.json()) for answer in answers]
    assert [status for status, _ in done] == [200] * NUM_CALLERS
    strides = [answer["images"][0]["strides"] for _, answer in done]
    assert 2 <= min(map(len, strides)) < 8
    assert max(map(max, strides)) <= 4, "no fewer steps than were measured"
    fewest, most = (quality.front[which].quality.value for which in (0, -1))
    assert min(answer["expected_quality"] for _, answer in done) < most
    assert fewest - 1e-4 <= min(answer["quality"] for _, answer in done) < most


def test_another_precision_is_compared_by_the_same_prompts(swept: dict[str, Any], tmp_path: Path) -> None:
    """The reference is of the precision that was measured, whose pictures the sweep has made already."""
    model, out = shutil.copytree(swept["folder"], tmp_path / "painter"), shutil.copytree(swept["out"], tmp_path / "out")
    said = ("precision", model, *swept["said"], "--dtype", "bfloat16", "--max-repeats", 1, "--write", "--out", out)
    kept = set(out.glob("features/*"))
    run(*said, "--plan", FULL)
    found = read_quality(model / "quality.json").precisions["bfloat16"]
    assert found.plans.keys() == {FULL}
    assert 0.5 < found.factor.value < 1.5
    assert len(set(out.glob("features/*")) - kept) == 1
    with pytest.raises(InvalidInput, match="samples: 16 is not allowed; 24, as in the model"):
        run(*said, "--samples", 16)


def test_what_a_server_made_of_prompts_is_made_again_and_measured(
    swept: dict[str, Any], server: Any, prompts: Path, tmp_path: Path
) -> None:
    server.executor.may_run.set()
    records, out = tmp_path / "records.jsonl", tmp_path / "out"
    load = ("--trace", "poisson", "--rate", 100, "--slo-scale", "0.5,1.5", "--requests", 8)
    run("bench", server.url, *load, "--prompts", prompts, "--records", records)
    assert {record.prompt for record in read_records(records)} <= set(PROMPTS)
    run("served", records, swept["folder"], *swept["said"], "--out", out)
    found = json.loads((out / "served.json").read_text(encoding="utf-8"))
    assert found["num_samples"] == 24
    assert 0 < found["num_served"] <= 8
    assert 0.4 < found["interpolated"] <= 1


def test_cores_are_calibrated_on_pictures_of_prompts(swept: dict[str, Any], prompts: Path, tmp_path: Path) -> None:
    said = ("calibrate", swept["folder"], "--steps", 4, "--samples", 2, "--device", "cpu")
    found = []
    for options in (("--prompts", prompts), ()):
        run(*said, *options, "--out", tmp_path / "skips.json")
        found.append(read_skips(tmp_path / "skips.json"))
    assert found[0].num_samples == found[1].num_samples == 2
    assert found[0].polynomial != found[1].polynomial, "without, they are of the model's examples"

"""References, the sampler and the evaluator, with the tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import Described
from elit_serve.evaluation.features.torchscript import TorchScriptFeatures
from elit_serve.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from elit_serve.evaluation.runs.evaluator import Evaluator
from elit_serve.evaluation.runs.reference import Reference, compact, make_reference, split
from elit_serve.evaluation.runs.sampler import Sampler, even_batch
from elit_serve.photographs import open_data_set
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline(shared_tiny_model_dir: Path) -> Pipeline:
    return Pipeline.load(shared_tiny_model_dir, device="cpu")


@pytest.fixture(scope="module")
def extractor(feature_file: Path) -> TorchScriptFeatures:
    return TorchScriptFeatures(feature_file, CPU)


@pytest.fixture(scope="module")
def reference(pipeline: Pipeline, extractor: TorchScriptFeatures, training: Path, held_out: Path) -> Reference:
    return make_reference(pipeline, extractor, open_data_set(training).photographs, open_data_set(held_out).photographs)


def interrupted_after(extractor: TorchScriptFeatures, num_batches: int) -> TorchScriptFeatures:
    """The same extractor, as if Ctrl-C came after so many batches."""

    class Interrupted(TorchScriptFeatures):
        def __init__(self) -> None:
            self.__dict__.update(extractor.__dict__)
            self._left = num_batches

        def __call__(self, images: Tensor) -> Described:
            if not self._left:
                raise KeyboardInterrupt
            self._left -= 1
            return super().__call__(images)

    return Interrupted()


def test_samples_repeat_the_held_out_class_mix(reference: Reference) -> None:
    assert reference.held_out_classes == (0,) * 4 + (1,) * 6 + (2,) * 8
    assert reference.class_distribution == {"daisy": 4, "rose": 6, "tulip": 8}
    assert reference.metric == "pooled-FD"


def test_a_saved_reference_is_the_same_reference(reference: Reference, tmp_path: Path) -> None:
    reference.save(tmp_path / "reference.safetensors")
    loaded = Reference.load(tmp_path / "reference.safetensors")
    assert torch.equal(loaded.features, reference.features)
    assert torch.equal(loaded.held_out, reference.held_out)
    assert replace(loaded, features=reference.features, held_out=reference.held_out) == replace(
        reference, photographs=()
    )


def test_features_are_kept_in_half_precision_where_that_loses_next_to_nothing() -> None:
    features = torch.randn(300, 20, generator=torch.Generator().manual_seed(0)).relu()
    other = FeatureStatistics.of(features[:100] + 0.3)
    exact, rounded = (FeatureStatistics.of(each) for each in (features, compact(features)))
    assert compact(features).dtype == torch.float16
    assert frechet_distance(rounded, other) == pytest.approx(frechet_distance(exact, other), rel=1e-4)
    for awkward in (features * 1e6, features * 1e-8):  # beyond what float16 can hold
        assert torch.equal(compact(awkward), awkward)


def test_without_held_out_photographs_every_tenth_of_a_class_is_held_out(training: Path) -> None:
    photographs = open_data_set(training).photographs
    rest, held_out = split(photographs)
    assert [photograph.name for photograph in held_out] == ["009.png", "019.png"] * 3
    assert len(rest) == 54
    assert {photograph.label for photograph in split(photographs[:25])[1]} == {"daisy", "rose"}


def test_held_out_photographs_that_are_the_reference_s_own_are_refused(
    pipeline: Pipeline, extractor: TorchScriptFeatures, training: Path
) -> None:
    photographs = open_data_set(training).photographs
    with pytest.raises(InvalidInput, match="held_out"):
        make_reference(pipeline, extractor, photographs, split(photographs)[1])


def test_a_reference_of_something_else_is_refused(
    reference: Reference, pipeline: Pipeline, extractor: TorchScriptFeatures, tmp_path: Path
) -> None:
    for change, words in (
        ({"fingerprint": "0" * 64}, "--features gives pooled-FD"),
        ({"classes": ("daisy", "rose")}, "the classes of tiny"),
        ({"height": 64}, "the model's 32 x 32"),
    ):
        with pytest.raises(InvalidInput, match=words):
            replace(reference, **change).check(pipeline, extractor)
    file = tmp_path / "other.safetensors"
    replace(reference, held_out=reference.held_out[:, :5]).save(file)
    with pytest.raises(InvalidInput, match=r"features \[m, F\] and held_out \[18, F\]"):
        Reference.load(file)
    file.write_bytes(b"not tensors")
    with pytest.raises(InvalidInput, match="a file from --save-reference"):
        Reference.load(file)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (-1, r"held_out_classes in .+tampered\.safetensors: .+; a class from 0 to 2"),
        (3, r"held_out_classes in .+tampered\.safetensors: .+; a class from 0 to 2"),
        (10**30, r"held_out_classes in .+tampered\.safetensors: .+; a class from 0 to 2"),
        (0.5, r"reference: .+ held_out_classes\.0: 0\.5 is not allowed"),
        ("rose", r"reference: .+ held_out_classes\.0: .*rose.* is not allowed"),
    ],
)
def test_a_reference_with_a_class_that_it_does_not_have_is_refused(
    index: object, words: str, reference: Reference, tmp_path: Path
) -> None:
    file = tmp_path / "tampered.safetensors"
    reference.save(file)
    with safe_open(file, framework="pt") as content:
        facts = json.loads(content.metadata()["reference"])
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (no mapping)
    facts["held_out_classes"][0] = index
    save_file(tensors, file, metadata={"reference": json.dumps(facts)})
    with pytest.raises(InvalidInput, match=words):
        Reference.load(file)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_reference_with_features_that_are_not_finite_is_refused(
    value: float, reference: Reference, tmp_path: Path
) -> None:
    file = tmp_path / "tampered.safetensors"
    features = reference.features.clone()
    features[0, 0] = value
    replace(reference, features=features).save(file)
    with pytest.raises(InvalidInput, match=r"features in .+tampered\.safetensors: .+; numbers are finite"):
        Reference.load(file)


def test_the_floor_is_what_held_out_photographs_score(
    pipeline: Pipeline, reference: Reference, extractor: TorchScriptFeatures
) -> None:
    evaluator = Evaluator(pipeline, reference, extractor, batch_size=8, cache=None)
    statistics = [FeatureStatistics.of(each) for each in (reference.features, reference.held_out)]
    assert evaluator.floor.value == pytest.approx(frechet_distance(*statistics), rel=1e-6)
    assert evaluator.floor.half_width > 0
    assert evaluator.floors.nearest_ratio.value == pytest.approx(1)
    assert evaluator.floors.inception_score is None


PLANS = {
    "level": Plan(levels=(4, 4, 4)),
    "low early": Plan(levels=(1, 2, 4), guidance=Guidance(method="ccfg", scale=2.0, weak_level=1)),
    "interval": Plan(levels=(4, 4, 2), guidance=Guidance(method="cfg", scale=1.5, interval=(0.3, 0.5)), time_shift=1.5),
    "autoguidance": Plan(levels=(4, 3), guidance=Guidance(method="ag", scale=1.5, weak_level=1)),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_sampler_makes_the_pictures_that_the_pipeline_makes(pipeline: Pipeline, plan: Plan) -> None:
    conditions, seeds = [pipeline.conditions[index] for index in (0, 1, 2, 0, 1)], [5, 6, 7, 1_000_000, 1_000_001]
    batches = list(Sampler(pipeline, batch_size=2).pictures(plan, conditions, seeds))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    expected = (pipeline.sample(conditions, seeds, plan) * 255).permute(0, 2, 3, 1)
    assert float((torch.cat(batches).float() - expected).abs().max()) < 0.51  # half a step of 8 bits, and rounding


def test_guidance_outside_its_interval_costs_no_weak_pass() -> None:
    def levels(plan: Plan) -> list[tuple[int, int | None]]:
        return [(kind.level, kind.weak_level) for kind in plan.step_kinds("s")]

    assert levels(PLANS["low early"]) == [(1, 1), (2, 1), (4, 1)]
    uniform = replace(PLANS["interval"], time_shift=1.0)  # at t = 0, 1/3 and 2/3
    assert levels(uniform) == [(4, None), (4, 4), (2, None)]
    assert levels(PLANS["level"]) == [(4, None)] * 3


@pytest.mark.parametrize(("count", "largest"), [(715, 64), (715, 32), (18, 18), (5, 2), (1, 8), (7, 100)])
def test_batches_are_even_and_as_few_as_can_be(count: int, largest: int) -> None:
    batch = even_batch(count, largest)
    assert batch <= largest
    assert -(-count // batch) == -(-count // largest)


def test_repeats_have_seeds_of_their_own_and_are_reproduced(
    pipeline: Pipeline, reference: Reference, extractor: TorchScriptFeatures
) -> None:
    plan = pipeline.plan(steps=2)
    evaluator = Evaluator(pipeline, reference, extractor, batch_size=8, cache=None)
    first, second = evaluator.measure(plan, repeats=2), evaluator.measure(plan, repeats=1, first_repeat=1)
    assert second.frechets == pytest.approx(first.frechets[1:], rel=1e-6)
    assert first.frechets[0] != first.frechets[1]
    assert first.scores.frechet.value == pytest.approx(sum(first.frechets) / 2)
    assert evaluator.seeds(1)[:2] == [1_000_000, 1_000_001]
    assert first.scores.frechet.value > evaluator.floor.value  # random weights make no photographs
    assert first.images_per_second > 0


def test_distances_in_the_background_are_those_of_all_metrics_together(
    pipeline: Pipeline, reference: Reference, extractor: TorchScriptFeatures
) -> None:
    evaluator = Evaluator(pipeline, reference, extractor, batch_size=8, cache=None)
    sets = [(pipeline.plan(steps=2), 0), (pipeline.plan(steps=1), 3), (pipeline.plan(steps=2), 1)]
    found = list(evaluator.distances(sets))
    alone = [evaluator.measure(plan, repeats=1, first_repeat=repeat).scores.frechet for plan, repeat in sets]
    assert [each.frechet for each in found] == alone
    assert all(each.images_per_second > 0 for each in found)
    assert evaluator.floor == evaluator.floors.frechet
    assert list(evaluator.distances([])) == []


def test_features_are_those_of_the_pictures_a_user_gets(
    pipeline: Pipeline, reference: Reference, extractor: TorchScriptFeatures
) -> None:
    plan = pipeline.plan(steps=2)
    conditions = [pipeline.conditions[index] for index in reference.held_out_classes]
    rounded = (pipeline.sample(conditions, range(18), plan) * 255).round() / 255
    features = Evaluator(pipeline, reference, extractor, batch_size=18, cache=None).features(plan, 0)
    torch.testing.assert_close(features, extractor(rounded).features, atol=1e-3, rtol=1e-3)


def test_an_interrupted_evaluation_goes_on_to_the_same_figures(
    pipeline: Pipeline, reference: Reference, extractor: TorchScriptFeatures, tmp_path: Path
) -> None:
    plan = pipeline.plan(steps=2)
    unbroken = Evaluator(pipeline, reference, extractor, batch_size=9, cache=None).measure(plan, repeats=3)
    dying = Evaluator(pipeline, reference, interrupted_after(extractor, 5), batch_size=9, cache=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        dying.measure(plan, repeats=3)
    assert len(list(tmp_path.iterdir())) == 2  # two sets of two batches each are whole
    only_the_rest = interrupted_after(extractor, 2)
    resumed = Evaluator(pipeline, reference, only_the_rest, batch_size=9, cache=tmp_path).measure(plan, repeats=3)
    assert resumed.frechets == unbroken.frechets
    assert resumed.scores == unbroken.scores


def test_kept_features_are_not_those_of_another_plan_or_batch_size_and_damage_is_made_good(
    pipeline: Pipeline, reference: Reference, extractor: TorchScriptFeatures, tmp_path: Path
) -> None:
    plan = pipeline.plan(steps=1)
    evaluator = Evaluator(pipeline, reference, extractor, batch_size=9, cache=tmp_path)
    features = evaluator.features(plan, 0)
    evaluator.features(pipeline.plan(steps=1, budget=0.25), 0)
    Evaluator(pipeline, reference, extractor, batch_size=6, cache=tmp_path).features(plan, 0)
    assert len(list(tmp_path.iterdir())) == 3
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:40])
    assert torch.equal(evaluator.features(plan, 0), features)


def test_no_repeats_and_no_batch_are_refused(
    pipeline: Pipeline, reference: Reference, extractor: TorchScriptFeatures
) -> None:
    with pytest.raises(InvalidInput, match="seeds"):
        Evaluator(pipeline, reference, extractor, batch_size=8, cache=None).measure(pipeline.plan(steps=1), repeats=0)
    with pytest.raises(InvalidInput, match="batch_size"):
        Sampler(pipeline, batch_size=0)

"""Kernel distance, precision and recall, Inception Score: against torchmetrics, direct formulas and known answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from elit_serve.errors import InvalidInput
from elit_serve.evaluation.metrics.inception_score import inception_scores
from elit_serve.evaluation.metrics.kernel import KernelReference
from elit_serve.evaluation.metrics.measures import from_halves, whole_and_halves
from elit_serve.evaluation.metrics.nearest import nearest
from elit_serve.evaluation.metrics.precision_recall import ManifoldReference

CPU = torch.device("cpu")
of_torchmetrics = pytest.mark.filterwarnings("ignore:Metric `:UserWarning", "ignore:std\\(\\):UserWarning")


class Identity(torch.nn.Module):
    """torchmetrics' extractor, for features as they are."""

    num_features = 16

    def forward(self, x: Tensor) -> Tensor:
        return x


def gaussian(n: int, seed: int, mean: float = 0.0, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + torch.randn(n, size, generator=generator, dtype=torch.float64)


def everyone(features: Tensor) -> Tensor:
    return torch.ones(1, len(features), dtype=torch.bool)


@of_torchmetrics
def test_kernel_distance_agrees_with_torchmetrics() -> None:
    first, second = gaussian(90, 0), gaussian(90, 1, mean=0.3)
    theirs = KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=90)
    theirs.update(first, real=True)
    theirs.update(second, real=False)
    ours = KernelReference(first).distances(second, everyone(second))
    assert ours == [pytest.approx(float(theirs.compute()[0]), rel=1e-3)]


def test_kernel_distance_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    photographs, samples = gaussian(50, 0), gaussian(41, 1)
    member = whole_and_halves(41, CPU, num_halves=3)
    whole = KernelReference(photographs).distances(samples, member)
    monkeypatch.setattr("elit_serve.evaluation.metrics.kernel.BLOCK", 7)
    assert KernelReference(photographs).distances(samples, member) == pytest.approx(whole, rel=1e-9)
    alone = [KernelReference(photographs).distances(samples[inside], everyone(samples[inside]))[0] for inside in member]
    assert whole == pytest.approx(alone, rel=1e-9)


def test_kernel_distance_of_equal_distributions_is_zero_on_average_at_any_n() -> None:
    reference = KernelReference(gaussian(400, 0))
    for n in (4, 40):
        draws = torch.tensor([reference.distances(s, everyone(s))[0] for s in (gaussian(n, i) for i in range(1, 200))])
        assert abs(float(draws.mean())) < 4 * float(draws.std()) / len(draws) ** 0.5 + 0.05


def test_kernel_distance_refuses_features_of_another_size() -> None:
    with pytest.raises(InvalidInput, match="the reference has 16 features"):
        KernelReference(gaussian(9, 0)).distances(gaussian(9, 0, size=5), torch.ones(1, 9, dtype=torch.bool))


def test_a_collapsed_model_has_precision_and_no_recall() -> None:
    photographs = gaussian(300, 0, size=2)
    collapsed = photographs[:1] + 0.001 * gaussian(60, 1, size=2)
    found = ManifoldReference(photographs).neighbours(collapsed, everyone(collapsed))
    assert found.precisions[0] > 0.9
    assert found.recalls[0] < 0.02


def test_a_scattered_model_has_recall_and_little_precision() -> None:
    photographs = gaussian(200, 0, size=2)
    scattered = 6 * gaussian(400, 1, size=2)
    found = ManifoldReference(photographs).neighbours(scattered, everyone(scattered))
    assert found.precisions[0] < 0.2
    assert found.recalls[0] > 0.75


def test_precision_and_recall_follow_their_definition_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    photographs, samples = gaussian(31, 0, size=3), gaussian(23, 1, size=3, mean=0.5)

    def inside(points: Tensor, centres: Tensor) -> float:
        radii = torch.cdist(centres, centres).sort(dim=1).values[:, 3]  # the first is the centre itself
        return float((torch.cdist(points, centres) <= radii).any(dim=1).double().mean())

    monkeypatch.setattr("elit_serve.evaluation.metrics.precision_recall.CHUNK", 8)
    member = whole_and_halves(23, CPU, num_halves=2)
    found = ManifoldReference(photographs).neighbours(samples, member)
    assert found.precisions == pytest.approx([inside(samples[part], photographs) for part in member])
    assert found.recalls == pytest.approx([inside(photographs, samples[part]) for part in member])
    torch.testing.assert_close(found.nearest, nearest(samples, photographs).distances)


@of_torchmetrics
def test_inception_score_agrees_with_torchmetrics_and_with_its_bounds() -> None:
    logits = 3 * gaussian(200, 0)
    theirs = InceptionScore(feature=Identity(), splits=1)
    theirs.update(logits)
    assert inception_scores(logits, everyone(logits)) == [pytest.approx(float(theirs.compute()[0]), rel=1e-3)]
    certain = 100 * torch.eye(16).repeat(4, 1)
    assert inception_scores(certain, everyone(certain)) == [pytest.approx(16)]
    assert inception_scores(certain[:1], everyone(certain[:1])) == [pytest.approx(1)]


def test_halves_estimate_the_standard_error() -> None:
    """Of a mean, whose standard error is known: 95 % of 1 / sqrt(400) about."""
    samples = gaussian(400, 0, size=1)[:, 0]
    means = [float(samples[inside].mean()) for inside in whole_and_halves(400, CPU, num_halves=200)]
    assert from_halves(means).half_width == pytest.approx(1.96 / 20, rel=0.2)


def test_subsets_are_everybody_and_then_distinct_halves() -> None:
    member = whole_and_halves(9, CPU, num_halves=4)
    assert member.sum(dim=1).tolist() == [9, 5, 5, 5, 5]
    assert torch.equal(member, whole_and_halves(9, CPU, num_halves=4))
    assert len({tuple(row) for row in member.tolist()}) > 2

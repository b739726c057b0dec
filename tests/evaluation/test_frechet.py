"""Fréchet distance against closed forms and against scipy's matrix square root."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from elit_serve.errors import InvalidInput
from elit_serve.evaluation.metrics.frechet import FeatureStatistics, FrechetReference, frechet_distance
from elit_serve.evaluation.metrics.measures import whole_and_halves


class Identity(torch.nn.Module):
    """torchmetrics' extractor, for features as they are."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, x: Tensor) -> Tensor:
        return x


def features(n: int, size: int, seed: int, scale: float = 1.0) -> Tensor:
    """Correlated, non-negative and skewed, as a network's pooled features are. -> [n, size]"""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return (torch.randn(n, size, generator=generator, dtype=torch.float64) @ mixing * scale).relu()


def gaussian(mean: list[float], covariance: Tensor) -> FeatureStatistics:
    return FeatureStatistics(mean=torch.tensor(mean, dtype=torch.float64), covariance=covariance.double(), n=1000)


def test_it_agrees_with_scipys_matrix_square_root() -> None:
    first, second = FeatureStatistics.of(features(500, 64, 0)), FeatureStatistics.of(features(400, 64, 1, 1.3))
    root = scipy.linalg.sqrtm(first.covariance.numpy() @ second.covariance.numpy())
    expected = (
        float((first.mean - second.mean).square().sum())
        + float(first.covariance.trace() + second.covariance.trace())
        - 2 * root.trace().real
    )
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_diagonal_gaussians_have_a_closed_form() -> None:
    first = gaussian([0, 1, -2], torch.diag(torch.tensor([1.0, 4.0, 0.0])))
    second = gaussian([1, 1, 0], torch.diag(torch.tensor([9.0, 1.0, 4.0])))
    assert frechet_distance(first, second) == pytest.approx(5 + (3 - 1) ** 2 + (2 - 1) ** 2 + 2**2)


def test_a_common_rotation_changes_nothing() -> None:
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    first, second = features(100, 8, 0), features(100, 8, 1)
    turned = frechet_distance(FeatureStatistics.of(first @ rotation), FeatureStatistics.of(second @ rotation))
    assert turned == pytest.approx(frechet_distance(FeatureStatistics.of(first), FeatureStatistics.of(second)))


@given(st.integers(2, 60), st.integers(2, 60), st.integers(1, 24))
@settings(deadline=None, max_examples=25)
def test_it_is_symmetric_non_negative_and_zero_for_equal_sets(n: int, m: int, size: int) -> None:
    first, second = FeatureStatistics.of(features(n, size, 0)), FeatureStatistics.of(features(m, size, 1))
    scale = float(first.covariance.trace() + second.covariance.trace())
    distance = frechet_distance(first, second)
    assert distance == pytest.approx(frechet_distance(second, first), abs=1e-6 * scale)
    assert distance > -1e-6 * scale
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6 * scale)


def test_fewer_samples_than_features_agree_with_the_form_that_never_builds_a_covariance() -> None:
    # tr (S1 S2)^(1/2) is the nuclear norm of X Y^T for centred, scaled X [n, F] and Y [m, F]
    first, second = features(30, 100, 0), features(500, 100, 1)
    x, y = ((part - part.mean(0)) / (len(part) - 1) ** 0.5 for part in (first, second))
    expected = (
        (first.mean(0) - second.mean(0)).square().sum()
        + x.square().sum()
        + y.square().sum()
        - 2 * torch.linalg.svdvals(x @ y.T).sum()
    )
    distance = frechet_distance(FeatureStatistics.of(first), FeatureStatistics.of(second))
    assert distance == pytest.approx(float(expected), rel=1e-5)


def test_features_as_wide_as_a_real_extractors_work_with_few_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = FrechetReference(FeatureStatistics.of(torch.rand(400, 640, generator=generator)))
    near = reference.distance(FeatureStatistics.of(torch.rand(300, 640, generator=generator)))
    far = reference.distance(FeatureStatistics.of(torch.rand(300, 640, generator=generator) + 0.5))
    assert far - near == pytest.approx(640 * 0.25, rel=0.2)


def test_a_matrix_that_is_no_covariance_raises() -> None:
    good = gaussian([0, 0], torch.eye(2))
    bad = gaussian([0, 0], torch.tensor([[1.0, 2.0], [2.0, 1.0]]))  # eigenvalues 3 and -1
    for first, second in ((good, bad), (bad, good)):
        with pytest.raises(InvalidInput, match="eigenvalues"):
            frechet_distance(first, second)


def test_nan_features_raise() -> None:
    broken = features(50, 4, 0)
    broken[3, 1] = torch.nan
    with pytest.raises(InvalidInput, match="NaN"):
        FeatureStatistics.of(broken)
    with pytest.raises(InvalidInput, match="NaN"):
        FrechetReference(FeatureStatistics.of(features(50, 4, 1))).distances(broken, torch.ones(1, 50).bool())


def test_sets_that_cannot_be_compared_raise() -> None:
    with pytest.raises(InvalidInput, match="the reference has 4 features"):
        frechet_distance(FeatureStatistics.of(features(9, 4, 0)), FeatureStatistics.of(features(9, 5, 0)))
    with pytest.raises(InvalidInput, match="the reference has 4 features"):
        FrechetReference(FeatureStatistics.of(features(9, 4, 0))).distances(features(9, 5, 0), torch.ones(1, 9).bool())
    with pytest.raises(InvalidInput, match="at least two vectors"):
        FeatureStatistics.of(features(1, 4, 0))
    with pytest.raises(InvalidInput, match="at least two vectors"):
        FeatureStatistics.of(torch.zeros(5))


def test_statistics_are_the_textbooks() -> None:
    statistics = FeatureStatistics.of(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    assert statistics.mean.tolist() == [1, 2]
    assert statistics.covariance.tolist() == [[2, 4], [4, 8]]
    assert statistics.n == 2


def test_it_agrees_with_torchmetrics_on_the_same_features() -> None:
    first, second = features(600, 32, 0), features(500, 32, 1, 1.2)
    theirs = FrechetInceptionDistance(feature=Identity(32))
    theirs.set_dtype(torch.float64)
    theirs.update(first, real=True)
    theirs.update(second, real=False)
    ours = FrechetReference(FeatureStatistics.of(first)).distances(second, torch.ones(1, 500, dtype=torch.bool))
    assert ours == [pytest.approx(float(theirs.compute()), rel=1e-3)]


@pytest.mark.parametrize("size", [16, 200])
def test_subsets_score_what_they_would_alone(size: int) -> None:
    reference = FrechetReference(FeatureStatistics.of(features(300, size, 0)))
    samples = features(80, size, 1)
    member = whole_and_halves(80, samples.device, num_halves=2)
    alone = [reference.distance(FeatureStatistics.of(samples[inside])) for inside in member]
    assert reference.distances(samples, member) == pytest.approx(alone, rel=1e-6)

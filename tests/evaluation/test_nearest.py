"""The nearest training photograph of each sample."""

from __future__ import annotations

import pytest
import torch

from elit_serve.evaluation.features import Described
from elit_serve.evaluation.metrics import Scorer
from elit_serve.evaluation.metrics.nearest import nearest


def test_each_sample_finds_its_nearest_photograph() -> None:
    photographs = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    found = nearest(torch.tensor([[3.0, 4.0], [10.0, 1.0], [0.0, 10.0]]), photographs)
    assert found.indices.tolist() == [0, 1, 2]
    assert found.distances.tolist() == pytest.approx([5, 1, 0], abs=1e-6)


def test_chunks_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    samples, photographs = torch.randn(50, 16, generator=generator), torch.randn(70, 16, generator=generator)
    whole, parts = nearest(samples, photographs), nearest(samples, photographs, chunk=7)
    assert torch.equal(whole.indices, parts.indices)
    torch.testing.assert_close(whole.distances, parts.distances)


def test_new_samples_score_about_one_and_copies_about_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    training, held_out, fresh = (torch.randn(300, 8, generator=generator) for _ in range(3))
    copies = training[:100] + 0.001 * torch.randn(100, 8, generator=generator)
    scorer = Scorer(training, Described(features=held_out), torch.device("cpu"))
    assert scorer.score(Described(features=fresh)).nearest_ratio.value == pytest.approx(1, abs=0.15)
    assert scorer.score(Described(features=copies)).nearest_ratio.value < 0.01

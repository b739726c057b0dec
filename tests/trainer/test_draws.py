"""What is random in a step: the right distributions, from (seed, step) alone, the same for any number of ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from elit_serve.trainer.draws import (
    StepDraws,
    augment,
    draw_levels,
    draw_permutation,
    draw_step,
    seed_of,
    to_unit,
)
from elit_serve.trainer.recipe import Budget, Data, Recipe, Training

CPU = torch.device("cpu")
SHAPE = (3, 4, 4)
LEVELS = tuple(range(1, 17))


def step_draws(step: int = 0, *, batch: int = 8, data: Data | None = None, **training: float) -> StepDraws:
    return draw_step(step, SHAPE, Training(steps=1, batch=batch, **training), data or Data(), CPU)


def levels_of(step: int, budget: Budget, levels: tuple[int, ...], seed: int = 0, steps: int = 1) -> tuple[int, ...]:
    return draw_levels(step, budget, levels, Training(steps=steps, batch=2, seed=seed))


def draw_level(step: int, budget: Budget, levels: tuple[int, ...], seed: int) -> int:
    (level,) = levels_of(step, budget, levels, seed)
    return level


def test_every_level_is_drawn_about_equally_often() -> None:
    steps = 16_000
    counts = Counter(draw_level(step, Budget(), LEVELS, seed=3) for step in range(steps))
    assert set(counts) == set(LEVELS)
    expected = steps / len(LEVELS)
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 37.7  # 15 degrees of freedom: exceeded once in a thousand seeds


def test_consecutive_levels_are_independent() -> None:
    pairs = Counter(
        (draw_level(step, Budget(), (1, 2), seed=0), draw_level(step + 1, Budget(), (1, 2), seed=0))
        for step in range(4_000)
    )
    assert all(900 < count < 1_100 for count in pairs.values())


def test_fixed_takes_the_largest_level_only(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(budget={"drawing": "fixed"}, sampling={"guidance": {"method": "none"}})
    assert recipe.levels == (4,)
    assert {draw_level(step, recipe.budget, recipe.levels, seed=0) for step in range(50)} == {4}


def test_only_the_levels_between_the_recipes_bounds_are_drawn(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(budget={"min_level": 2, "max_level": 3}, sampling={"guidance": {"weak_level": 2}})
    assert {draw_level(step, recipe.budget, recipe.levels, seed=0) for step in range(100)} == {2, 3}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75])
def test_a_share_of_all_samples_runs_at_the_full_level(share: float) -> None:
    budget, steps = Budget(full_share=share, min_level=1, max_level=4), 8_000
    drawn = [levels_of(step, budget, (1, 2, 3, 4)) for step in range(steps)]
    full = sum(sum(level == 4 for level in levels) / len(levels) for levels in drawn) / steps
    assert full == pytest.approx(share + (1 - share) / 4, abs=0.02)
    assert all(levels[0] == 4 for levels in drawn if len(levels) == 2), "the full half is the first"
    assert {len(levels) for levels in drawn} == {0.0: {1}, 0.25: {1, 2}, 0.5: {2}, 0.75: {1, 2}}[share]


def test_lower_levels_begin_where_the_recipe_says() -> None:
    budget = Budget(elastic_from=0.6, full_share=0.5)
    drawn = [levels_of(step, budget, LEVELS, steps=1000) for step in range(1000)]
    assert set(drawn[:600]) == {(16,)}
    assert all(len(levels) == 2 for levels in drawn[600:])
    assert len({lower for _, lower in drawn[600:]}) == 16


def test_random_drop_draws_the_same_levels_and_another_order_of_latents_every_step() -> None:
    drop = Budget(drawing="random-drop")
    assert all(draw_level(s, drop, LEVELS, seed=9) == draw_level(s, Budget(), LEVELS, seed=9) for s in range(50))
    orders = [draw_permutation(step, 16, seed=9) for step in range(50)]
    assert all(sorted(order.tolist()) == list(range(16)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 50


def test_the_draws_depend_on_seed_and_step_alone() -> None:
    first, again = step_draws(7, seed=1), step_draws(7, seed=1)
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(again, name)), name
    assert not torch.equal(first.noise, step_draws(8, seed=1).noise)
    assert not torch.equal(first.noise, step_draws(7, seed=2).noise)


def test_seeds_are_the_same_on_every_machine() -> None:
    assert seed_of(0, "step", 0) == 5243349180942421779
    assert [draw_level(step, Budget(), LEVELS, seed=0) for step in range(8)] == [12, 10, 11, 8, 4, 10, 4, 12]


def test_a_ranks_part_is_a_slice_of_the_global_draw() -> None:
    whole = step_draws(batch=8)
    for name, value in vars(whole).items():
        parts = [getattr(whole.part(rank, 2), name) for rank in range(2)]
        assert torch.equal(torch.cat(parts), value), name
        micro = whole.part(1, 2).part(0, 2)
        assert torch.equal(getattr(micro, name), value[4:6]), name


def test_times_are_logit_normal() -> None:
    logits = torch.logit(step_draws(batch=20_000, time_mean=0.5, time_std=0.8).t.double())
    assert logits.mean().item() == pytest.approx(0.5, abs=0.03)
    assert logits.std().item() == pytest.approx(0.8, abs=0.03)
    assert ((logits - 0.5) / 0.8).pow(4).mean().item() == pytest.approx(3, abs=0.3)  # a normal's kurtosis


def test_shifted_times_are_those_of_a_shifted_grid() -> None:
    shift = 2.22
    even, shifted = step_draws(time_mean=0.4).t, step_draws(time_mean=0.4, time_shift=shift).t
    assert torch.allclose(shifted, even / (1 + (shift - 1) * (1 - even)), atol=1e-6)


def test_noise_is_standard_normal_and_flips_drops_and_shifts_have_their_rates() -> None:
    draws = step_draws(batch=10_000, class_dropout=0.1, data=Data(shift=2))
    assert draws.noise.shape == (10_000, *SHAPE)
    assert draws.noise.mean().item() == pytest.approx(0, abs=0.01)
    assert draws.noise.std().item() == pytest.approx(1, abs=0.01)
    assert draws.dropped.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert draws.flipped.float().mean().item() == pytest.approx(0.5, abs=0.03)
    for axis in range(2):
        counts = Counter(draws.shift[:, axis].tolist())
        assert set(counts) == {-2, -1, 0, 1, 2}
        assert all(1_800 < count < 2_200 for count in counts.values())


def still(count: int = 1) -> StepDraws:
    """Draws that leave pictures as they are."""
    zeros = torch.zeros(count)
    return StepDraws(
        noise=zeros, t=zeros, dropped=zeros.bool(), flipped=zeros.bool(), shift=torch.zeros(count, 2).long()
    )


def moved(picture: torch.Tensor, *, shift: tuple[int, int] = (0, 0), flipped: bool = False) -> list[list[int]]:
    """One channel of a hand-made picture after augmentation, as bytes again."""
    draws = StepDraws(**{**vars(still()), "shift": torch.tensor([shift]), "flipped": torch.tensor([flipped])})
    images = augment(picture.expand(1, 3, -1, -1), draws)
    assert torch.equal(images[:, 0], images[:, 2])
    return ((images[0, 0] + 1) * 127.5).round().int().tolist()


HAND_MADE = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.uint8)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        ({"flipped": True}, [[3, 2, 1], [6, 5, 4], [9, 8, 7]]),
        ({"shift": (1, 0)}, [[4, 5, 6], [7, 8, 9], [4, 5, 6]]),
        ({"shift": (-1, 0)}, [[4, 5, 6], [1, 2, 3], [4, 5, 6]]),
        ({"shift": (0, 2)}, [[3, 2, 1], [6, 5, 4], [9, 8, 7]]),
        ({"shift": (0, 1), "flipped": True}, [[2, 3, 2], [5, 6, 5], [8, 9, 8]]),
        ({"shift": (2, -2)}, [[9, 8, 7], [6, 5, 4], [3, 2, 1]]),
    ],
)
def test_pictures_move_and_mirror_with_reflection_at_the_border(
    options: dict[str, object], expected: list[list[int]]
) -> None:
    assert moved(HAND_MADE, **options) == expected  # type: ignore[arg-type]


def test_each_picture_of_a_batch_moves_by_its_own_draw() -> None:
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = draw_step(0, (3, 16, 16), Training(steps=1, batch=8), Data(shift=3), CPU)
    together = augment(images, draws)
    alone = torch.cat([augment(images[i : i + 1], draws.part(i, 8)) for i in range(8)])
    assert torch.equal(together, alone)


def test_without_flips_and_shifts_pictures_stay_as_they_are() -> None:
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = draw_step(0, (3, 16, 16), Training(steps=1, batch=8), Data(flip=False, shift=0), CPU)
    assert torch.equal(augment(images, draws), to_unit(images))
    assert to_unit(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]

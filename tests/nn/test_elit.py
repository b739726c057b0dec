"""The latent interface: group order, positions, Read and Write."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elit_serve.nn.fused import rotate
from elit_serve.nn.interface import (
    Read,
    Write,
    first_of_each_group,
    group_centres,
    in_every_group,
    latent_places,
    patchify,
    spread_places,
    token_positions,
    unpatchify,
    with_first_replaced,
)
from elit_serve.nn.layers import initialise, rope_table

CPU = torch.device("cpu")
DIM, HEADS, GROUPS, WINDOW = 32, 2, 4, (2, 2)


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    patch=st.integers(1, 3),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
@settings(deadline=None, max_examples=40)
def test_patchify_and_back_loses_nothing(
    batch: int, channels: int, patch: int, window: tuple[int, int], groups: tuple[int, int]
) -> None:
    height, width = groups[0] * window[0] * patch, groups[1] * window[1] * patch
    x = torch.randn(batch, channels, height, width)
    tokens = patchify(x, patch=patch, window=window)
    assert tokens.shape == (batch, height * width // patch**2, channels * patch**2)
    assert torch.equal(unpatchify(tokens, patch=patch, window=window, height=height, width=width), x)


def test_tokens_lie_group_by_group_and_row_by_row_inside() -> None:
    positions = token_positions(4, 6, (2, 3), CPU)
    assert positions[:6].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert positions[6:9].tolist() == [[0, 3], [0, 4], [0, 5]]
    assert positions[12:15].tolist() == [[2, 0], [2, 1], [2, 2]]
    centres = group_centres(positions, (2, 3))
    assert centres[:, 0].tolist() == [[0.5, 1], [0.5, 4], [2.5, 1], [2.5, 4]]
    assert torch.equal(centres, centres[:, :1].expand(4, 6, 2))


def test_one_latent_stands_on_each_token_of_its_group() -> None:
    positions = token_positions(4, 6, (2, 3), CPU)
    places = latent_places(positions, (2, 3))
    assert places.shape == (4, 6, 2)
    for group, tokens in zip(places.tolist(), positions.view(4, 6, 2).tolist(), strict=True):
        assert sorted(group) == sorted(tokens)
    assert torch.equal(places - places[:, :1], (places - places[:, :1])[:1].expand(4, 6, 2)), "alike in every group"


@given(st.tuples(st.integers(1, 6), st.integers(1, 6)))
@settings(deadline=None, max_examples=40)
def test_places_are_ordered_so_that_each_is_taken_once(window: tuple[int, int]) -> None:
    assert sorted(spread_places(window)) == list(range(window[0] * window[1]))


@pytest.mark.parametrize("side", [4, 8, 16])
def test_prefixes_of_places_cover_a_window_evenly(side: int) -> None:
    """A quarter of them is a grid of every second place, and a sixteenth one of every fourth."""
    order = [divmod(place, side) for place in spread_places((side, side))]
    for step in (2, 4):
        first = order[: (side // step) ** 2]
        assert len({(row % step, column % step) for row, column in first}) == 1


def test_a_patch_keeps_its_pixels_together() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert patchify(x, patch=2, window=(1, 2))[0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


def test_every_group_has_the_same_learned_vectors() -> None:
    learned = torch.randn(3, DIM)
    latents = in_every_group(learned, batch=2, num_groups=GROUPS).view(2, GROUPS, 3, DIM)
    assert torch.equal(latents, learned.expand(2, GROUPS, 3, DIM))


def test_the_first_of_each_group_are_taken_and_put_back() -> None:
    latents = torch.arange(GROUPS * 4.0).view(1, -1, 1)  # 4 in each group
    first = first_of_each_group(latents, 3, GROUPS)
    assert first.flatten().tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]
    assert all(
        first_of_each_group(torch.randn(2, GROUPS * 4, 3), level, GROUPS).is_contiguous() for level in range(1, 5)
    )
    changed = with_first_replaced(latents, -first, GROUPS)
    assert changed.flatten().tolist() == [0, -1, -2, 3, -4, -5, -6, 7, -8, -9, -10, 11, -12, -13, -14, 15]


@given(st.tuples(*[st.floats(-50, 50) for _ in range(4)]), st.tuples(st.floats(-50, 50), st.floats(-50, 50)))
@settings(deadline=None, max_examples=40)
def test_rope_products_depend_on_relative_positions_only(
    places: tuple[float, float, float, float], shift: tuple[float, float]
) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 16, generator=generator)
    here, moved = torch.tensor(places).view(2, 2), torch.tensor(places).view(2, 2) + torch.tensor(shift)

    def product(positions: Tensor) -> float:
        rope = rope_table(positions, 16)
        return float((rotate(query, rope[:, :1]) * rotate(key, rope[:, 1:])).sum())

    assert product(here) == pytest.approx(product(moved), abs=2e-4)


def test_rope_tells_rows_from_columns_and_keeps_lengths() -> None:
    query, key = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))

    def product(row: float, column: float) -> float:
        rope = rope_table(torch.tensor([[row, column]]), 16)
        return float((rotate(query, rope) * key).sum())

    assert product(3, 0) != pytest.approx(product(0, 3), abs=1e-3)
    rotated = rotate(query, rope_table(torch.tensor([[5.0, -2.0]]), 16))
    assert float(rotated.norm()) == pytest.approx(float(query.norm()), rel=1e-5)


Module = TypeVar("Module", Read, Write)


def scene(level: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Latents [1, G * L, D], tokens [1, N, D], condition [1, D] and both RoPE tables."""
    generator = torch.Generator().manual_seed(0)
    positions = token_positions(4, 4, WINDOW, CPU)
    places = latent_places(positions, WINDOW)[:, :level].flatten(0, 1)
    rope = rope_table(places, DIM // HEADS)
    latents = torch.randn(1, GROUPS * level, DIM, generator=generator)
    tokens = torch.randn(1, 16, DIM, generator=generator)
    return latents, tokens, torch.randn(1, DIM, generator=generator), rope, rope_table(positions, DIM // HEADS)


def randomised(module: Module) -> Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module


@pytest.mark.parametrize("level", [1, 3, 4])
def test_read_attends_inside_its_group_only(level: int) -> None:
    read = randomised(Read(DIM, HEADS))
    latents, tokens, c, rope, token_rope = scene(level)
    changed = tokens.clone()
    changed[:, 4:8] += 1  # the second group
    before = read(latents, tokens, read.modulation(c), rope, token_rope, GROUPS).settled().view(GROUPS, level, DIM)
    after = read(latents, changed, read.modulation(c), rope, token_rope, GROUPS).settled().view(GROUPS, level, DIM)
    differs = (before != after).any(-1).any(-1)
    assert differs.tolist() == [False, True, False, False]


@pytest.mark.parametrize("level", [1, 3, 4])
def test_write_attends_inside_its_group_only(level: int) -> None:
    write = randomised(Write(DIM, HEADS))
    latents, tokens, _, rope, token_rope = scene(level)
    changed = latents.clone()
    changed[:, 2 * level : 3 * level] += 1  # the third group
    before = write(tokens, tokens, latents, token_rope, rope, GROUPS).view(GROUPS, 4, DIM)
    after = write(tokens, tokens, changed, token_rope, rope, GROUPS).view(GROUPS, 4, DIM)
    assert (before != after).any(-1).any(-1).tolist() == [False, False, True, False]


def test_read_and_write_start_as_the_identity() -> None:
    read, write = Read(DIM, HEADS), Write(DIM, HEADS)
    initialise(read)
    initialise(write)
    latents, tokens, c, rope, token_rope = scene(4)
    assert torch.equal(read(latents, tokens, read.modulation(c), rope, token_rope, GROUPS).settled(), latents)
    assert torch.equal(write(tokens, tokens, latents, token_rope, rope, GROUPS), tokens)

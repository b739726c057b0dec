"""The paper's FLOPs and parameters, from the specs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elit_serve.errors import InvalidInput
from elit_serve.nn import ElitDiTSpec, ElitSpec, InterfaceSpec, build, count_parameters, preset, preset_names
from elit_serve.nn.backbones.elit_mmdit import ElitMMDiTSpec
from elit_serve.nn.backbones.hdit import HDiTSpec
from elit_serve.nn.backbones.mmdit import MMDiTSpec
from elit_serve.nn.flops import flops_iteration, flops_multi_budget


@pytest.mark.parametrize(("resolution", "tflops"), [(256, 181.8), (512, 805.3)])
def test_dit_xl_costs_what_the_paper_says(resolution: int, tflops: float) -> None:
    iteration = flops_iteration(preset("dit-xl/2", resolution).flops(1), batch=256)
    assert iteration.prefix / 1e12 == pytest.approx(tflops, rel=0.005)
    assert iteration.all_latents == iteration.prefix


@pytest.mark.parametrize(("resolution", "tflops"), [(256, 188.1), (512, 830.8)])
def test_elit_dit_xl_at_full_budget(resolution: int, tflops: float) -> None:
    spec = preset("elit-dit-xl/2", resolution)
    iteration = flops_iteration(spec.flops(spec.latents_per_group), batch=256)
    assert iteration.prefix / 1e12 == pytest.approx(tflops, rel=0.005)
    assert iteration.all_latents == iteration.prefix


@pytest.mark.parametrize(("resolution", "prefix", "paper"), [(256, 187.5, 189.7), (512, 793.4, 803.0)])
def test_multi_budget_training_in_both_conventions(resolution: int, prefix: float, paper: float) -> None:
    iteration = flops_iteration(flops_multi_budget(preset("elit-dit-xl/2", resolution)), batch=384)
    assert iteration.prefix / 1e12 == pytest.approx(prefix, rel=0.005)
    assert iteration.all_latents / 1e12 == pytest.approx(paper, rel=0.005)


def test_a_quarter_and_a_sixteenth_of_the_tokens_at_512() -> None:
    spec = preset("elit-dit-xl/2", 512)
    quarter = flops_iteration(spec.flops(16), batch=256)
    assert quarter.prefix / 1e12 == pytest.approx(375.7, rel=0.005)
    assert quarter.all_latents / 1e12 == pytest.approx(385.5, rel=0.005)
    lowest, full = spec.flops(4), spec.flops(64)
    assert lowest.prefix / full.prefix == pytest.approx(0.331, rel=0.005)
    assert lowest.all_latents / full.all_latents == pytest.approx(0.346, rel=0.005)


@pytest.mark.parametrize(("name", "millions"), [("dit-xl/2", 675), ("elit-dit-xl/2", 698)])
def test_parameters_are_counted_without_allocating_them(name: str, millions: float) -> None:
    assert count_parameters(preset(name, 256)) / 1e6 == pytest.approx(millions, rel=0.01)


def test_the_meta_count_is_the_built_count() -> None:
    spec = ElitDiTSpec(
        channels=3,
        height=16,
        width=16,
        patch=2,
        dim=32,
        depth=3,
        num_heads=2,
        num_classes=5,
        interface=InterfaceSpec(window=(2, 4), head=1, core=1, tail=1),
    )
    assert count_parameters(spec) == sum(parameter.numel() for parameter in build(spec).parameters())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_sixteen_groups_and_a_cost_that_falls_with_the_level(name: str) -> None:
    spec = preset(name, 512)
    costs = [spec.flops(level).prefix for level in range(1, spec.latents_per_group + 1)]
    assert costs == sorted(set(costs))
    if isinstance(spec, ElitSpec):
        assert spec.num_groups == 16


@given(
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    groups=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    split=st.tuples(st.integers(0, 4), st.integers(1, 12), st.integers(0, 4)),
    dim=st.sampled_from([64, 128, 384]),
)
def test_cost_rises_strictly_with_the_level(
    window: tuple[int, int], groups: tuple[int, int], split: tuple[int, int, int], dim: int
) -> None:
    spec = ElitDiTSpec(
        channels=3,
        height=2 * window[0] * groups[0],
        width=2 * window[1] * groups[1],
        patch=2,
        dim=dim,
        depth=sum(split),
        num_heads=4,
        num_classes=10,
        interface=InterfaceSpec(window=window, head=split[0], core=split[1], tail=split[2]),
    )
    costs = [spec.flops(level) for level in range(1, spec.latents_per_group + 1)]
    for lower, higher in pairwise(costs):
        assert lower.prefix < higher.prefix
        assert lower.all_latents < higher.all_latents
        assert lower.prefix <= lower.all_latents


@pytest.mark.parametrize(
    ("name", "resolution", "field"), [("dit-xxl/2", 256, "model"), ("elit-dit-b/2", 100, "resolution")]
)
def test_unknown_presets_and_sizes_are_refused(name: str, resolution: int, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        preset(name, resolution)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "millions"), [("uvit-xl/2", 707), ("elit-uvit-xl/2", 730), ("hdit-xl/2", 1365), ("elit-hdit-xl/2", 1389)]
)
def test_other_backbones_have_the_papers_parameters(name: str, millions: float) -> None:
    """Of both HDiT the paper says 1.4 billion and no more."""
    assert count_parameters(preset(name, 256)) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    ("name", "resolution", "tflops"),
    [
        ("uvit-xl/2", 256, 196),
        ("uvit-xl/2", 512, 861),
        ("elit-uvit-xl/2", 256, 202),
        ("elit-uvit-xl/2", 512, 886),
        ("hdit-xl/2", 256, 182),
        ("hdit-xl/2", 512, 776),
        ("elit-hdit-xl/2", 256, 188),
        ("elit-hdit-xl/2", 512, 801),
    ],
)
def test_other_backbones_cost_what_the_paper_says(name: str, resolution: int, tflops: float) -> None:
    """Table 1, in whole numbers; the paper seems to count embeddings and modulations too, less than half a percent."""
    spec = preset(name, resolution)
    iteration = flops_iteration(spec.flops(spec.levels[-1]), batch=256)
    assert iteration.prefix / 1e12 == pytest.approx(tflops, rel=0.005)


@pytest.mark.parametrize(("resolution", "tflops"), [(256, 204), (512, 858)])
def test_multi_budget_training_of_elit_uvit(resolution: int, tflops: float) -> None:
    iteration = flops_iteration(flops_multi_budget(preset("elit-uvit-xl/2", resolution)), batch=384)
    assert iteration.all_latents / 1e12 == pytest.approx(tflops, rel=0.005)


@pytest.mark.parametrize(("resolution", "ours", "paper"), [(256, 201, 191), (512, 800, 791)])
def test_multi_budget_training_of_elit_hdit_pays_for_whole_quads(resolution: int, ours: float, paper: float) -> None:
    """The paper counts as if a level between two multiples of four had parts of quads: a square in the level."""
    spec = preset("elit-hdit-xl/2", resolution)
    iteration = flops_iteration(flops_multi_budget(spec), batch=384)
    assert iteration.all_latents / 1e12 == pytest.approx(ours, rel=0.005)
    levels, whole = spec.levels, [4, 8, 16]
    square = np.polynomial.Polynomial.fit(whole, [spec.flops(level).all_latents for level in whole], deg=2)
    assert square(levels[-1]) == pytest.approx(spec.flops(levels[-1]).all_latents), "whole quads cost what they should"
    assert 3 * 384 * square(np.array(levels)).mean() / 1e12 == pytest.approx(paper, rel=0.006)


QWEN_IMAGE = {"channels": 16, "height": 128, "width": 128, "patch": 2, "dim": 3072, "depth": 60, "num_heads": 24}
ITS_TEXT = {"text_dim": 3584, "max_tokens": 100}


@pytest.mark.parametrize(("share", "of_dense"), [(1, 0.688), (1 / 2, 0.494), (1 / 4, 0.409), (1 / 8, 0.369)])
def test_elit_in_qwen_image_under_ccfg_costs_what_the_paper_says_of_the_dense_one_under_cfg(
    share: float, of_dense: float
) -> None:
    """At 1024 pixels; the weak pass has an eighth of the tokens. The paper's own count has 0.6 % less."""
    dense = MMDiTSpec(**QWEN_IMAGE, **ITS_TEXT)
    interface = InterfaceSpec(window=(16, 16), head=8, core=44, tail=8)
    elit = ElitMMDiTSpec(**QWEN_IMAGE, **ITS_TEXT, interface=interface)
    level, weak = int(share * elit.latents_per_group), elit.latents_per_group // 8
    guided = elit.flops(level).all_latents + elit.flops(weak).all_latents
    assert guided / (2 * dense.flops(1).all_latents) == pytest.approx(of_dense, rel=0.008)


def test_an_hdit_of_half_the_depth_is_the_papers_smaller_one() -> None:
    """Table 6, which names its 703 million parameters and 392 TFLOPs and not its blocks."""
    spec = preset("hdit-xl/2", 512)
    assert isinstance(spec, HDiTSpec)
    small = replace(spec, depth=spec.depth // 2, wide=spec.wide // 2)
    assert count_parameters(small) / 1e6 == pytest.approx(703, rel=0.01)
    assert flops_iteration(small.flops(1), batch=256).prefix / 1e12 == pytest.approx(392, rel=0.005)

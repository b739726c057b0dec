"""Float8 products on a CPU, whose torch has them: the layer's formula, what is replaced, and how far results move."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn import ElitDiTSpec, InterfaceSpec, build, fused
from elit_serve.nn.quantized import Fp8Linear, quantize_

STEP = 2.0**-3  # between neighbours of float8, relative; Triton's interpreter cuts where a GPU rounds to nearest
SMALLEST = 2.0**-9


def drawn_linear(into: int, out: int) -> nn.Linear:
    linear = nn.Linear(into, out)
    torch.manual_seed(0)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.normal_(linear.bias)
    return linear


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@torch.no_grad()
def test_a_product_is_that_of_the_rounded_weight_and_the_rounded_input() -> None:
    linear = drawn_linear(48, 32)
    layer = Fp8Linear(linear)
    x = torch.randn(2, 5, 48)
    rounded = x.to(torch.float8_e4m3fn).float()
    expected = F.linear(rounded, layer.weight.float() * layer.weight_scale, linear.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer(fused.to_fp8(x)), layer(x))
    assert relative_error(layer(x), linear(x)) < 0.05


@torch.no_grad()
def test_the_largest_weight_fills_the_range_whatever_its_size() -> None:
    for size in (1e-6, 1.0, 1e6):
        linear = drawn_linear(16, 16)
        linear.weight.data *= size
        layer = Fp8Linear(linear)
        assert float(layer.weight.float().abs().max()) == fused.FP8_MAX
        assert relative_error(layer.weight.float() * layer.weight_scale, linear.weight) < 0.05


def test_a_weight_of_zeros_stays_zero() -> None:
    linear = drawn_linear(16, 16)
    linear.weight.data.zero_()
    assert torch.equal(Fp8Linear(linear)(torch.randn(1, 3, 16))[0, 0], linear.bias)


def test_values_beyond_the_range_saturate_and_nan_stays() -> None:
    got = fused.to_fp8(torch.tensor([1e6, -460.0, 448.0, 0.3, float("inf"), float("nan")])).float()
    assert got[:5].tolist() == [448.0, -448.0, 448.0, 0.3125, 448.0]
    assert got[5].isnan()


def test_widths_that_no_gpu_multiplies_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"quantize: 'fp8' .* divisible by 16, and one is 24"):
        Fp8Linear(drawn_linear(16, 24))


@torch.no_grad()
def test_a_quantised_model_predicts_nearly_the_same_velocity() -> None:
    interface = InterfaceSpec(window=(2, 2), head=1, core=2, tail=1)
    torch.manual_seed(0)
    model = build(
        ElitDiTSpec(
            channels=3, height=32, width=32, patch=4, dim=64, depth=4, num_heads=2, num_classes=3, interface=interface
        )
    ).eval()
    for parameter in model.parameters():  # also those that start at zero: every layer must matter
        parameter.add_(torch.randn_like(parameter) * 0.05)
    x, t, label = torch.randn(2, 3, 32, 32), torch.tensor([0.3, 0.7]), torch.tensor([0, 2])
    expected = [model(x, t, label, level) for level in (1, 4)]
    quantize_(model)
    assert sum(isinstance(module, Fp8Linear) for module in model.modules()) == 4 * 3
    got = [model(x, t, label, level) for level in (1, 4)]
    for before, after in zip(expected, got, strict=True):
        assert 0 < relative_error(after, before) < 0.05


@pytest.fixture
def kernels() -> ModuleType:
    from elit_serve.nn import kernels

    return kernels


def assert_float8_close(got: Tensor, expected: Tensor) -> None:
    """Within a step of each other but for the few values just below a power of two, which the interpreter halves."""
    assert got.dtype == expected.dtype == torch.float8_e4m3fn
    close = torch.isclose(got.float(), expected.float(), rtol=STEP, atol=SMALLEST)
    halved = got.float() == expected.float() / 2
    assert bool((close | halved).all())
    assert close.float().mean() > 0.9


def test_the_kernels_for_gelu_and_conversion(kernels: ModuleType) -> None:
    x = 2 * torch.randn(3, 5, 1000, generator=torch.Generator().manual_seed(0))  # the last program is not full
    torch.testing.assert_close(kernels.gelu(x, torch.float32), F.gelu(x, approximate="tanh"))
    assert_float8_close(kernels.gelu(x, torch.float8_e4m3fn), fused.gelu_fp8(x))
    assert_float8_close(kernels.convert(300 * x, torch.float8_e4m3fn), fused.to_fp8(300 * x))


def test_the_kernels_with_a_norm_write_float8_and_keep_the_residual_stream_wide(kernels: ModuleType) -> None:
    draw = torch.Generator().manual_seed(0)
    x, update = torch.randn(2, 3, 5, 48, generator=draw)
    gate, shift, scale = torch.randn(3, 3 * 48, generator=draw).chunk(3, dim=-1)
    got = kernels.norm_modulate(x, shift, scale, fused.EPS, torch.float8_e4m3fn)
    assert_float8_close(got, fused.norm_modulate(x, shift, scale, fp8=True))
    total, got = kernels.gated_add_norm_modulate(x, update, gate, shift, scale, fused.EPS, torch.float8_e4m3fn)
    expected_total, expected = fused.settle_and_norm(fused.Residual(x, update, gate), shift, scale, fp8=True)
    torch.testing.assert_close(total, expected_total)
    assert_float8_close(got, expected)

"""A plain model becomes one with latents: at its full level it is the plain one until it learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from elit_serve.errors import InvalidInput
from elit_serve.nn import Backbone, BackboneSpec, build
from elit_serve.nn.backbones.elastic import ElasticSpec
from elit_serve.nn.backbones.table import KINDS
from tests.nn.test_every_backbone import inputs


def turned(kind: str, **interface: Any) -> Any:
    """The tiny spec of a kind, made for being turned into."""
    tiny: Any = KINDS[kind].tiny
    return replace(tiny, interface=replace(tiny.interface, start="tokens", **interface))


SPECS = {
    "elit-dit": turned("elit-dit"),
    "elit-dit that knows its level": turned("elit-dit", knows="level"),
    "elit-dit with zeros between": replace(turned("elit-dit"), zeros_between=1),
    "elit-uvit": turned("elit-uvit", head=1, core=4),
    "elit-hdit": turned("elit-hdit", window=(2, 2)),
    "elit-sit": turned("elit-sit"),
    "elit-mmdit": turned("elit-mmdit"),
}


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> Any:
    return SPECS[request.param]


def randomised(spec: BackboneSpec) -> Backbone:
    """None of its parameters are zero, so that everything matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(spec).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def turned_from(plain: Backbone, spec: ElasticSpec) -> Backbone:
    model = build(spec).requires_grad_(False)
    taken = model.from_plain(plain.state_dict())
    assert not model.load_state_dict(taken, strict=False).unexpected_keys
    return model


def test_at_the_full_level_it_is_the_plain_model_and_below_it_is_not(spec: ElasticSpec) -> None:
    plain = randomised(spec.plain())
    model, given = turned_from(plain, spec), inputs(spec)
    expected = plain(*given)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(model(*given, spec.levels[-1]), expected, atol=1e-5, rtol=1e-4)
    apart = [float((model(*given, level) - expected).square().mean()) for level in spec.levels[:-1]]
    assert min(apart) > 1e-6


def test_so_it_is_at_another_size_and_in_another_order_of_its_latents(spec: ElasticSpec) -> None:
    plain = randomised(spec.plain())
    model = turned_from(plain, spec)
    x, t, condition = inputs(spec)
    larger = torch.cat([x, x.flip(3)], dim=2)
    order = torch.randperm(spec.latents_per_group, generator=torch.Generator().manual_seed(0))
    full = spec.levels[-1]
    near = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(model(larger, t, condition, full), plain(larger, t, condition), **near)
    if spec.kind != "elit-hdit":  # whose quads are of latents that follow one another
        torch.testing.assert_close(model(x, t, condition, full, order), plain(x, t, condition), **near)


def test_every_sample_of_a_pass_is_as_it_would_be_at_its_own_level(spec: ElasticSpec) -> None:
    model = randomised(spec)
    own = [spec.levels[-1], 1, 2]
    x, t, condition = inputs(spec, batch=3)
    together = model(x, t, condition, own[0], own_levels=torch.tensor(own))
    for index, level in enumerate(own):
        alone = model(x[index : index + 1], t[index : index + 1], condition[index : index + 1], level)
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=1e-4)


def test_all_of_it_learns_within_two_steps(spec: ElasticSpec) -> None:
    """A gate that is closed learns first, and then what is behind it."""
    model = turned_from(randomised(spec.plain()), spec).requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, t, condition = inputs(spec, batch=6)
    condition = torch.cat([model.null_like(condition[:1]), condition[1:]])
    for _ in range(2):
        optimizer.zero_grad()
        model(x, t, condition, 2).square().mean().backward()
        optimizer.step()
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert still == []


def test_a_plain_model_becomes_nothing_else() -> None:
    spec = SPECS["elit-dit"]
    with pytest.raises(InvalidInput, match="one with a latent interface"):
        spec.plain().plain()
    with pytest.raises(InvalidInput, match=r"interface\.start: 'places' is not allowed; tokens"):
        KINDS["elit-dit"].tiny.plain()
    with pytest.raises(InvalidInput, match=r"interface\.window"):
        turned("elit-hdit").plain()
    with pytest.raises(InvalidInput, match=r"interface\.tail"):
        turned("elit-uvit").plain()
    with pytest.raises(InvalidInput, match="reach: 'prefix' is not allowed; all"):
        turned("elit-dit", reach="prefix")

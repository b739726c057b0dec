"""Every transformer of diffusers as a backbone, at the smallest size that has all of its parts."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from dense.folders import randomised
from dense.theirs import their_answer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from elit_serve.engine.executor.graphs import ATTENTION
from elit_serve.errors import InvalidInput
from elit_serve.files.config import TextConfig
from elit_serve.nn import InvalidSpec, build, build_empty, count_parameters, parse_spec, preset_conditions
from elit_serve.nn.backbones.dense.dense import Dense, DenseSpec, diffusers_class
from elit_serve.nn.backbones.dense.flux2 import Flux2Spec
from elit_serve.nn.backbones.dense.z_image import ZImageSpec
from elit_serve.nn.backbones.table import KINDS
from elit_serve.nn.compiling import compile_blocks
from elit_serve.nn.reuse import CoreChange
from elit_serve.nn.text import packed

FLUX2: dict[str, Any] = {"channels": 128, "height": 64, "width": 64, "patch": 1, "max_tokens": 512}
Z_IMAGE: dict[str, Any] = {"channels": 16, "height": 128, "width": 128, "patch": 2, "max_tokens": 512}
DENSE = {name: kind.tiny for name, kind in KINDS.items() if kind.is_published and len(kind.tiny.levels) == 1}


def lengths(spec: DenseSpec) -> tuple[int, int, int]:
    """Tokens of prompts; where nothing is masked, they fill all places."""
    return (spec.max_tokens, 3, 1) if spec.masks_text else (spec.max_tokens,) * 3


@pytest.fixture(params=DENSE)
def spec(request: pytest.FixtureRequest) -> DenseSpec:
    tiny = DENSE[request.param]
    assert isinstance(tiny, DenseSpec)
    return tiny


@pytest.fixture
def model(spec: DenseSpec) -> Dense:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: Dense = randomised(build(spec)).requires_grad_(False)
    return made


def inputs(spec: DenseSpec, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *spec.sample_shape, generator=generator)
    states = torch.randn(batch, spec.max_tokens, spec.text_dim, generator=generator)
    mask = torch.arange(spec.max_tokens) < torch.tensor(lengths(spec)[:batch]).unsqueeze(1)
    return x, torch.linspace(0.1, 0.9, batch), packed(states, mask, spec.max_tokens)


def assert_near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_it_is_what_diffusers_computes_with_the_sign_turned(model: Dense) -> None:
    theirs = diffusers_class(model.spec.their_class)(**model.spec.arguments()).eval()
    theirs.load_state_dict(model.state_dict())
    x, t, condition = inputs(model.spec)
    velocity = model(x, t, condition)
    assert velocity.abs().mean() > 0.01
    with torch.no_grad():
        for i, length in enumerate(lengths(model.spec)):
            states = condition[i : i + 1, :length, :-1]
            answer = their_answer(theirs, x[i : i + 1], 1 - t[i : i + 1], states)
            assert_near(velocity[i : i + 1], -answer)


@pytest.mark.gpu
@pytest.mark.parametrize("is_compiled", [False, True])
def test_in_bfloat16_on_a_gpu_it_is_what_diffusers_computes_there(model: Dense, *, is_compiled: bool) -> None:
    """Sums in another order change some of the last of 8 bits, in each of its blocks."""
    theirs = diffusers_class(model.spec.their_class)(**model.spec.arguments()).eval()
    theirs.load_state_dict(model.state_dict())
    theirs, ours = theirs.to("cuda", torch.bfloat16), model.to("cuda", torch.bfloat16)
    if is_compiled:
        compile_blocks(ours.unfused())
    x, _, condition = (each.cuda() for each in inputs(model.spec))
    sigma = torch.tensor([0.5, 0.25, 0.125], device="cuda")
    t = 1 - sigma  # diffusers rounds these to bfloat16, and of FLUX.2 what is 1000 times as much, where 750 is 752
    with torch.inference_mode(), sdpa_kernel(ATTENTION, set_priority=True):
        velocity = ours(x, t, condition)
        for i, length in enumerate(lengths(model.spec)):
            states = condition[i : i + 1, :length, :-1].bfloat16()
            answer = their_answer(theirs, x[i : i + 1].bfloat16(), 1 - t[i : i + 1], states)
            assert (velocity[i : i + 1] + answer).norm() < 0.03 * answer.norm()


def test_time_every_token_and_every_pixel_matter_and_padding_where_it_is_not_masked(model: Dense) -> None:
    x, t, condition = inputs(model.spec, batch=1)
    corner, word = x.clone(), condition.clone()
    corner[..., 0, 0] += 1
    word[0, model.spec.max_tokens - 1, :-1] += 1
    base = model(x, t, condition)
    for changed in ((x, t + 0.1, condition), (x, t, model.null_like(condition)), (corner, t, condition), (x, t, word)):
        assert not torch.allclose(base, model(*changed), atol=1e-4)
    x, t, condition = inputs(model.spec, batch=2)
    padded = condition.clone()
    padded[1, 3:, :-1] += 1
    is_same = torch.allclose(model(x, t, padded), model(x, t, condition), atol=1e-5, rtol=1e-4)
    assert is_same == model.spec.masks_text


def test_a_batch_equals_its_samples_alone(model: Dense) -> None:
    x, t, condition = inputs(model.spec)
    alone = [model(x[i : i + 1], t[i : i + 1], condition[i : i + 1]) for i in range(3)]
    assert_near(model(x, t, condition), torch.cat(alone))


def test_a_core_is_skipped_with_what_it_changed(model: Dense) -> None:
    x, t, condition = inputs(model.spec)
    change = CoreChange()
    velocity = model(x, t, condition)
    assert_near(model(x, t, condition, changes=[change]), velocity)
    assert change.value is not None
    assert change.value.shape == (3, *model.spec.core_shape(1))
    assert_near(model(x, t, condition, changes=[change]), velocity)
    assert not torch.allclose(model(x, t + 0.1, condition, changes=[change]), velocity, atol=1e-5)


def test_flops_of_its_blocks_are_those_that_torch_counts(model: Dense) -> None:
    for spec in (model.spec, model.spec.at_size(model.spec.height, 2 * model.spec.width)):
        x, t, condition = inputs(spec, batch=1)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(x, t, condition)
        counted = {name.split(".", 1)[-1]: sum(each.values()) for name, each in counter.get_flop_counts().items()}
        blocks = {name for name, module in model.named_modules() if module in set(model.every_block())}
        modulations = {name for name in counted if is_modulation(name) and name.rsplit(".", 1)[0] in blocks}
        in_blocks = sum(counted[name] for name in blocks) - sum(counted[name] for name in modulations)
        assert in_blocks == pytest.approx(spec.flops(1).executed, rel=0.01)


def is_modulation(name: str) -> bool:
    """A part whose FLOPs no spec counts: of one vector for all tokens."""
    return name.rsplit(".", 1)[-1] in {"modulation", "img_mod", "txt_mod", "adaLN_modulation"}


def test_it_runs_at_other_sizes_of_whole_patches(model: Dense) -> None:
    spec = model.spec
    wide = spec.at_size(spec.height, 2 * spec.width)
    _, t, condition = inputs(spec, batch=1)
    x = torch.randn(1, *wide.sample_shape)
    velocity = model(x, t, condition)
    assert velocity.shape == x.shape
    assert not torch.allclose(velocity, model(x.flip(3), t, condition).flip(3), atol=1e-4)
    less = spec.patch - 1
    with pytest.raises(InvalidInput, match=f"width: {less} is not allowed; it must be a multiple of"):
        spec.check_size(spec.height, less)


def test_its_configuration_and_its_file_give_its_spec(spec: DenseSpec) -> None:
    theirs = diffusers_class(spec.their_class)(**spec.arguments())
    ours = {"height": spec.height, "width": spec.width, "max_tokens": spec.max_tokens}
    assert type(spec).of_configuration(json.loads(theirs.to_json_string()), **ours) == spec
    fields = json.loads(json.dumps(spec.config_fields()))["backbone"]
    assert parse_spec(fields.pop("kind"), fields) == spec
    assert count_parameters(spec) == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.mark.parametrize(
    ("spec", "billions"),
    [
        (Flux2Spec(**FLUX2, dim=3072, num_heads=24, depth=5, single_depth=20, text_dim=7680), 3.88),
        (ZImageSpec(**Z_IMAGE, dim=3840, num_heads=30, depth=30, text_dim=2560), 6.15),
    ],
    ids=["klein-4B", "z-image"],
)
def test_published_models_have_as_many_parameters_as_they_are_named_for(spec: DenseSpec, billions: float) -> None:
    assert count_parameters(spec) == pytest.approx(billions * 1e9, rel=2e-3)


def test_a_configuration_that_cannot_be_is_refused_with_all_that_is_wrong(spec: DenseSpec) -> None:
    names = spec.their_names
    wrong: dict[str, Any] = {names["depth"]: 0, names["num_heads"]: "many", "novelty": 3}
    with pytest.raises(InvalidSpec) as refused:
        type(spec).of_configuration(wrong, height=spec.height, width=spec.width, max_tokens=7)
    assert {problem.place for problem in refused.value.problems} >= {("depth",), ("num_heads",), ("novelty",)}


def test_in_a_recipe_it_is_told_texts(spec: DenseSpec) -> None:
    assert set(preset_conditions(spec.kind)) == set(TextConfig.told_backbones)


def test_its_weights_are_called_as_in_diffusers(spec: DenseSpec) -> None:
    theirs = diffusers_class(spec.their_class)(**spec.arguments())
    ours = {name: tensor.shape for name, tensor in build_empty(spec).state_dict().items()}
    assert ours == {name: tensor.shape for name, tensor in theirs.state_dict().items()}

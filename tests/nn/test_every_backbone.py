"""What every kind of the table must do, at the smallest size that has all of its parts."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from elit_serve.engine import text_encoders
from elit_serve.engine.checkpoint import load_checkpoint, write_checkpoint
from elit_serve.engine.conditions import ClassConditions, TextConditions
from elit_serve.engine.executor import offline
from elit_serve.engine.executor.graphs import GraphExecutor
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.text_encoders import TextEncoderKind
from elit_serve.errors import InvalidInput
from elit_serve.files.config import (
    ClassesConfig,
    ModelConfig,
    SamplingConfig,
    TextConfig,
    TextEncoderConfig,
    WeightsConfig,
)
from elit_serve.nn import Backbone, BackboneSpec, build, count_parameters, parse_spec
from elit_serve.nn.backbones.elit import ElitSpec
from elit_serve.nn.backbones.table import KINDS
from elit_serve.nn.backbones.texts import TextSpec
from elit_serve.nn.compiling import compile_blocks
from elit_serve.nn.fused import Residual
from elit_serve.nn.reuse import CoreChange
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.skips import Skips
from elit_serve.plans.step_kind import StepKind
from elit_serve.sampling import initial_noise
from elit_serve.scheduler import CostTable
from elit_serve.trainer.loss import rectified_flow_loss
from tests.text_models import Letters

CLASSES = ("daisy", "rose", "tulip")
UNCOUNTED = ("modulation", "patch_embed", "time_embed", "text_embed", "mean_text_embed", "final")  # nor does the paper


TINY = {name: kind.tiny for name, kind in KINDS.items() if not kind.is_published}  # those are in tests/dense
ELASTIC = {name: spec for name, spec in TINY.items() if len(spec.levels) > 1}


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of texts read them letter by letter."""
    monkeypatch.setitem(text_encoders.KINDS, "letters", TextEncoderKind(make=lambda *_: Letters()))


@pytest.fixture(params=TINY)
def spec(request: pytest.FixtureRequest) -> BackboneSpec:
    return TINY[request.param]


@pytest.fixture
def model(spec: BackboneSpec) -> Backbone:
    return randomised(spec)


def randomised(spec: BackboneSpec) -> Backbone:
    """None of its parameters are zero, so that everything matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build(spec).eval().requires_grad_(False)
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made


def inputs(spec: BackboneSpec, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *spec.sample_shape, generator=generator)
    ids = torch.arange(batch) % len(CLASSES)
    condition = Letters().encode([CLASSES[index] for index in ids]) if isinstance(spec, TextSpec) else ids
    return x, torch.linspace(0.1, 0.9, batch), condition


def conditions_config(spec: BackboneSpec) -> ClassesConfig | TextConfig:
    """What its pictures may be of: one of the classes, or any prompt, of which the classes are some."""
    if not isinstance(spec, TextSpec):
        return ClassesConfig(names=CLASSES)
    encoder = TextEncoderConfig(kind="letters")
    return TextConfig(encoder=encoder, dim=spec.text_dim, max_tokens=spec.max_tokens, examples=CLASSES)


def conditions_of(spec: BackboneSpec) -> ClassConditions | TextConditions:
    config = conditions_config(spec)
    if isinstance(config, TextConfig):
        return TextConditions(config, model="tiny", encoder=Letters())
    return ClassConditions(config.names, model="tiny")


def repeated(tensor: Tensor, count: int) -> Tensor:
    """The samples of a batch, so many times. [B, ...] -> [count * B, ...]"""
    return torch.cat([tensor] * count)


def some_levels(spec: BackboneSpec) -> list[int]:
    """The lowest, the highest, and one in the middle."""
    return sorted({spec.levels[0], spec.levels[len(spec.levels) // 2], spec.levels[-1]})


def latents_and_text(spec: BackboneSpec, of_core: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """Tokens of a core at a level: those of groups [B, G, L, D], and those of a text [B, T, D]."""
    in_groups, text = of_core.split([spec.num_groups * level, spec.text_in_core], dim=1)
    return in_groups.unflatten(1, (spec.num_groups, level)), text


def assert_near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_says_what_its_presets_are_told(name: str) -> None:
    kind = KINDS[name]
    told = {"text_dim", "max_tokens"} if hasattr(kind.tiny, "text_dim") else {"num_classes"}
    assert kind.conditions.keys() == told


def test_every_level_gives_a_velocity_of_its_own(model: Backbone) -> None:
    spec = model.spec
    velocities = [model(*inputs(spec), level) for level in spec.levels]
    assert {velocity.shape for velocity in velocities} == {(2, *spec.sample_shape)}
    assert all(velocity.isfinite().all() for velocity in velocities)
    for index, velocity in enumerate(velocities):
        assert not any(torch.allclose(velocity, other, atol=1e-4) for other in velocities[:index])


def test_a_fresh_model_predicts_zero_everywhere(spec: BackboneSpec) -> None:
    assert not build(spec)(*inputs(spec), spec.levels[-1]).any()


def test_time_condition_and_every_pixel_matter(model: Backbone) -> None:
    x, t, condition = inputs(model.spec, batch=1)
    corner = x.clone()
    corner[..., 0, 0] += 1
    base = model(x, t, condition, 1)
    for changed in ((x, t + 0.1, condition), (x, t, model.null_like(condition)), (corner, t, condition)):
        assert not torch.allclose(base, model(*changed, 1), atol=1e-4)


def test_a_sample_may_be_larger_where_the_spec_says_so(model: Backbone) -> None:
    channels, *sides = model.spec.sample_shape
    larger = [2 * sides[0], *sides[1:]]
    model.spec.check_size(*larger)
    _, t, condition = inputs(model.spec, batch=1)
    for level in model.spec.levels:
        velocity = model(torch.randn(1, channels, *larger), t, condition, level)
        assert velocity.shape == (1, channels, *larger)


def test_a_sample_may_be_of_another_aspect_ratio_and_its_flops_are_counted_too(model: Backbone) -> None:
    channels, height, width = model.spec.sample_shape
    wide = model.spec.at_size(height, 2 * width)
    assert (wide.sample_shape, wide.num_tokens) == ((channels, height, 2 * width), 2 * model.spec.num_tokens)
    level, (_, t, condition) = model.spec.levels[-1], inputs(model.spec, batch=1)
    x = torch.randn(1, *wide.sample_shape)
    velocity = model(x, t, condition, level)
    assert velocity.shape == x.shape
    assert wide.flops(level).executed == pytest.approx(counted_flops(model, x, t, condition, level), rel=0.01)
    assert not torch.allclose(velocity, model(x.flip(3), t, condition, level).flip(3))  # places matter at every size


def test_a_side_that_is_no_whole_windows_is_refused_with_the_nearest(model: Backbone) -> None:
    _, height, width = model.spec.sample_shape
    with pytest.raises(InvalidInput, match=rf"width: {width + 1} is not allowed; .* as {width} and "):
        model.spec.check_size(height, width + 1)


def test_a_batch_equals_its_samples_alone(model: Backbone) -> None:
    x, t, condition = inputs(model.spec, batch=3)
    for level in model.spec.levels:
        alone = [model(x[i : i + 1], t[i : i + 1], condition[i : i + 1], level) for i in range(3)]
        assert_near(model(x, t, condition, level), torch.cat(alone))


@pytest.mark.parametrize("kind", ELASTIC)
def test_several_levels_in_one_call_equal_separate_calls(kind: str) -> None:
    model = randomised(ELASTIC[kind])
    levels = [model.spec.levels[-1], *model.spec.levels[:2]]
    x, t, condition = inputs(model.spec)
    together = model(repeated(x, 3), repeated(t, 3), repeated(condition, 3), levels)
    for part, level in zip(together.chunk(3), levels, strict=True):
        assert_near(part, model(x, t, condition, level))


def with_interface(spec: ElitSpec, reach: str, knows: str) -> ElitSpec:
    return replace(spec, interface=replace(spec.interface, reach=reach, knows=knows))


INTERFACES = ELASTIC | {
    f"{name} {reach} {knows}": with_interface(spec, reach, knows)
    for name, spec in ELASTIC.items()
    for reach, knows in (("prefix", "nothing"), ("all", "level"), ("prefix", "level"))
    if isinstance(spec, ElitSpec)
}


@pytest.mark.parametrize("name", INTERFACES)
@pytest.mark.parametrize("passes", [(8,), (6,), (8, 3), (5, 1)])
def test_samples_with_levels_of_their_own_equal_each_alone(name: str, passes: tuple[int, ...]) -> None:
    """Main passes of five samples at the first level, and weak ones at the second: each no higher than its own."""
    spec = INTERFACES[name]
    model = randomised(spec)
    x, t, condition = inputs(spec, batch=5)
    own = torch.tensor([2, passes[0], 1, 5, passes[0] - 1])
    count = len(passes)
    together = model(
        repeated(x, count),
        repeated(t, count),
        repeated(condition, count),
        passes,
        own_levels=torch.cat([own.clamp(max=level) for level in passes]),
    )
    for part, level in zip(together.chunk(count), passes, strict=True):
        alone = [model(x[i : i + 1], t[i : i + 1], condition[i : i + 1], min(int(own[i]), level)) for i in range(5)]
        assert_near(part, torch.cat(alone))


@pytest.mark.parametrize("kind", ELASTIC)
def test_a_sample_with_a_level_of_its_own_leaves_what_its_core_changed_there(kind: str) -> None:
    spec = ELASTIC[kind]
    model = randomised(spec)
    x, t, condition = inputs(spec, batch=3)
    own, change = torch.tensor([1, 6, 3]), CoreChange()
    model(x, t, condition, 6, changes=[change], own_levels=own)
    assert change.value is not None
    grouped, _ = latents_and_text(spec, change.value, 6)
    for i, level in enumerate(own.tolist()):
        alone = CoreChange()
        model(x[i : i + 1], t[i : i + 1], condition[i : i + 1], level, changes=[alone])
        assert alone.value is not None
        latents, _ = latents_and_text(spec, alone.value, level)
        assert_near(grouped[i, :, :level], latents[0])
        assert not grouped[i, :, level:].any()


def test_its_parts_are_given_tensors_without_gaps(model: Backbone) -> None:
    """Kernels for a GPU copy others first, and compiled code takes them for another kind of input."""
    with_gaps: set[str] = set()

    def look(part: torch.nn.Module, given: tuple[Any, ...]) -> None:
        if not all(tensor.is_contiguous() for tensor in streams_in(given)):
            with_gaps.add(type(part).__name__)

    def streams_in(given: Any) -> Iterator[Tensor]:
        """All tensors but the gates of residual streams, which are parts of a modulation."""
        if isinstance(given, Tensor):
            yield given
        elif isinstance(given, tuple):
            for each in given[:2] if isinstance(given, Residual) else given:
                yield from streams_in(each)

    for part in model.compilable():
        part.register_forward_pre_hook(look)
    for level in model.spec.levels:
        model(*inputs(model.spec), level)
    assert with_gaps == set()


def test_its_names_and_shapes_are_had_without_importing_a_compiler() -> None:
    """Every server reads them as it starts."""
    program = """if True:
        import sys
        from elit_serve.nn import build_empty
        from elit_serve.nn.backbones.table import KINDS

        for kind in KINDS.values():
            if not kind.is_published:  # diffusers imports it itself
                build_empty(kind.tiny)
                assert "sympy" not in sys.modules, kind.tiny
    """
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_parts_compute_what_they_do_uncompiled(model: Backbone, fresh_compiler: None) -> None:  # noqa: ARG001
    """Tracing alone: no machine code is made here."""
    compiled = copy.deepcopy(model)
    compile_blocks(compiled.compilable(), backend="eager")
    for level in some_levels(model.spec):
        assert_near(compiled(*inputs(model.spec), level), model(*inputs(model.spec), level))
    if len(model.spec.levels) > 1:
        own = {"own_levels": torch.tensor([2, 5])}
        assert_near(compiled(*inputs(model.spec), 5, **own), model(*inputs(model.spec), 5, **own))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_each_training_step_lowers_the_loss_and_all_parameters_learn(spec: BackboneSpec) -> None:
    torch.manual_seed(0)
    model = build(spec)
    data, t, condition = inputs(spec, batch=8)
    condition = torch.cat([model.null_like(condition[:1]), condition[1:]])  # what stands for it is learned too
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):  # what starts at zero holds others back in the first ones
        optimizer.zero_grad()
        loss = rectified_flow_loss(model, data, noise, t, condition, spec.levels[-1])
        torch.autograd.backward(loss)
        losses.append(loss.item())
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == len(losses)
    untouched = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]  # type: ignore[union-attr]
    assert untouched == []


def test_flops_are_those_that_torch_counts_in_blocks_and_between_them(model: Backbone) -> None:
    for level in model.spec.levels:
        counted = counted_flops(model, *inputs(model.spec, batch=1), level)
        assert counted == pytest.approx(model.spec.flops(level).executed, rel=0.01)


def test_a_core_is_skipped_with_what_it_changed_and_computes_nothing(model: Backbone) -> None:
    spec = model.spec
    x, t, condition = inputs(spec)
    later = t + 0.1, condition
    for level in spec.levels:
        change = CoreChange(levels=torch.full((2,), level))
        assert_near(model(x, t, condition, level, changes=[change]), model(x, t, condition, level))
        assert change.value is not None
        assert change.value.shape == (2, *spec.core_shape(level))
        assert_near(model(x, t, condition, level, changes=[change]), model(x, t, condition, level))
        assert not torch.allclose(model(x, *later, level, changes=[change]), model(x, *later, level), atol=1e-5)
        one = CoreChange(value=change.value[:1], levels=torch.tensor([level]))
        counted = counted_flops(model, *inputs(spec, batch=1), level, changes=[one])
        whole = spec.flops(level).executed
        assert counted == pytest.approx(whole - spec.core_flops(level), rel=0.01, abs=0.01 * whole)


@pytest.mark.parametrize("kind", ELASTIC)
def test_parts_of_several_levels_skip_their_cores_side_by_side(kind: str) -> None:
    model = randomised(ELASTIC[kind])
    x, t, condition = inputs(model.spec)
    levels = [model.spec.levels[-1], model.spec.levels[0]]
    twice = repeated(x, 2), repeated(t, 2), repeated(condition, 2), levels
    changes = [CoreChange(levels=torch.full((2,), level)) for level in levels]
    assert_near(model(*twice, changes=changes), model(*twice))
    later = repeated(x, 2), repeated(t, 2) + 0.1, repeated(condition, 2), levels
    together = model(*later, changes=changes)
    for part, level, change in zip(together.chunk(2), levels, changes, strict=True):
        assert_near(part, model(x, t + 0.1, condition, level, changes=[change]))


@pytest.mark.parametrize("kind", ELASTIC)
@pytest.mark.parametrize("knows", ["nothing", "level"])
def test_a_skipped_core_needs_no_level_of_its_own_where_read_and_write_see_all_latents(kind: str, knows: str) -> None:
    """At the full level, with zeros for the latents that the core did not have."""
    spec = ELASTIC[kind]
    if isinstance(spec, ElitSpec):
        spec = replace(spec, interface=replace(spec.interface, knows=knows))
    assert spec.skips_at_any_level
    model = randomised(spec)
    x, t, condition = inputs(spec)
    low, full = spec.levels[1], spec.levels[-1]
    change = CoreChange(levels=torch.full((2,), low))
    velocity = model(x, t, condition, low, changes=[change])
    assert change.value is not None
    grouped, text = latents_and_text(spec, change.value, low)
    padded = torch.cat([torch.nn.functional.pad(grouped, (0, 0, 0, full - low)).flatten(1, 2), text], dim=1)
    assert_near(model(x, t, condition, full, changes=[CoreChange(value=padded, levels=change.levels)]), velocity)


class Steps(NamedTuple):
    """What pictures go through together. plan: as of one alone; kinds: what its steps are."""

    plan: Plan
    kinds: list[StepKind]

    @classmethod
    def of_every_kind(cls, spec: BackboneSpec, method: Literal["cfg", "ccfg"]) -> Steps:
        """At each level, and where there are several mixed up to it: first all unguided, then all guided, each of them
        twice, the second time skipping its core."""
        each = [(level, is_mixed) for level in spec.levels for is_mixed in (False, True) if level > 1 or not is_mixed]
        steps = [*each, *(step for step in each for _ in ("computed", "skipped"))]
        skipped = tuple(range(len(each) + 1, len(steps), 2))
        guidance = Guidance(method=method, scale=2.0, weak_level=1, interval=(1 / 3 - 1e-6, 1.0))
        plan = Plan(levels=tuple(level for level, _ in steps), guidance=guidance, skips=Skips(core=skipped))
        of_plan = zip(plan.step_kinds(spec.shape.name), steps, strict=True)
        return cls(plan, [kind._replace(is_mixed=is_mixed and not kind.is_skipped) for kind, (_, is_mixed) in of_plan])


def own_level(kind: StepKind, seed: int) -> int:
    return max(1, kind.level - 2 * seed) if kind.is_mixed else kind.level


def drawing_of(model: Backbone) -> offline.BareModel:
    device = next(model.parameters()).device
    conditions = conditions_of(model.spec)
    return offline.BareModel(model=model, device=device, conditions=conditions, shapes=(model.spec.shape,))


def states_made(executor: Executor, spec: BackboneSpec, steps: Steps, seeds: Sequence[int]) -> list[Tensor]:
    """Of pictures that take all steps together, after each: [B, C, H, W] on the CPU. One alone is in no mixed step."""
    conditions = conditions_of(spec)
    noise = initial_noise(seeds, spec.sample_shape)
    pictures = offline.pictures_of([conditions[seed] for seed in seeds], seeds, steps.plan, spec.shape, noise)
    for picture in pictures:
        executor.add(picture)
    states: list[Tensor] = []
    for kind in steps.kinds:
        levels = [own_level(kind, seed) for seed in seeds]
        offline.advance(executor, pictures, kind.of_member(levels[0]) if len(seeds) == 1 else kind, levels).wait()
        states.append(executor.samples(pictures).cpu())
    return states


@pytest.mark.parametrize("method", ["cfg", "ccfg"])
def test_pictures_made_together_equal_each_alone(model: Backbone, method: Literal["cfg", "ccfg"]) -> None:
    steps = Steps.of_every_kind(model.spec, method)
    together, *alone = (
        states_made(Executor(drawing_of(model), num_slots=len(seeds), keeps=True), model.spec, steps, seeds)
        for seeds in ([0, 1, 2], [0], [1], [2])
    )
    for step, states in enumerate(together):
        assert_near(states, torch.cat([each[step] for each in alone]))


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["cfg", "ccfg"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_equal_eager(model: Backbone, dtype: torch.dtype, method: Literal["cfg", "ccfg"]) -> None:
    """Three pictures in graphs of four, so that one of each launch is padding. In bfloat16, for which a GPU has other
    kernels, whatever is added up in another order differs by some of the 0.01 that separates it from float32."""
    steps = Steps.of_every_kind(model.spec, method)
    drawing = drawing_of(model.to("cuda", dtype))
    eager = states_made(Executor(drawing, num_slots=3, keeps=True), model.spec, steps, [0, 1, 2])
    graphs = GraphExecutor(drawing, num_slots=3, keeps=True)
    graphs.capture([(kind, 4) for kind in dict.fromkeys(steps.kinds)])
    replayed = states_made(graphs, model.spec, steps, [0, 1, 2])
    for by_graph, by_kernel in zip(replayed, eager, strict=True):
        tolerance = 1e-4 if dtype == torch.float32 else 0.01
        torch.testing.assert_close(by_graph, by_kernel, atol=tolerance, rtol=10 * tolerance)


def counted_flops(
    model: Backbone, x: Tensor, t: Tensor, condition: Tensor, level: int, changes: Sequence[CoreChange] = ()
) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # others are not counted
        model(x, t, condition, level, changes=changes)
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    left_out = sum(count for name, count in by_module.items() if name.split(".", 1)[-1] in modules_left_out(model))
    return by_module["Global"] - left_out


def modules_left_out(model: Backbone) -> set[str]:
    names = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in UNCOUNTED}
    return {name for name in names if not name.startswith("final.")}  # a part of what is left out already


def test_parameters_are_counted_without_allocating_any(model: Backbone) -> None:
    assert count_parameters(model.spec) == sum(parameter.numel() for parameter in model.parameters())


def test_its_spec_survives_the_way_through_a_file(spec: BackboneSpec) -> None:
    fields = json.loads(json.dumps(spec.config_fields()))["backbone"]
    assert parse_spec(fields.pop("kind"), fields) == spec


def config_of(spec: BackboneSpec) -> ModelConfig:
    guidance = Guidance(method="ccfg" if len(spec.levels) > 1 else "cfg", scale=2.0, weak_level=1)
    return ModelConfig(
        name="tiny",
        **spec.config_fields(),
        levels=spec.levels,
        conditions=conditions_config(spec),
        sampling=SamplingConfig(steps=2, guidance=guidance),
        weights=WeightsConfig(dtype="float32", files={"model.safetensors": "0" * 64}),
    )


@pytest.fixture
def model_dir(model: Backbone, tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "tiny", config_of(model.spec), model.state_dict())
    return tmp_path / "tiny"


def test_what_is_written_computes_the_same_when_it_is_read(model: Backbone, model_dir: Path) -> None:
    loaded = load_checkpoint(model_dir, dtype=torch.float32).model
    for level in model.spec.levels:
        assert torch.equal(loaded(*inputs(model.spec), level), model(*inputs(model.spec), level))


def test_it_is_served_at_its_levels(model_dir: Path, start_server: Any) -> None:
    pipeline = Pipeline.load(model_dir, device="cpu")
    levels, shape = pipeline.config.levels, pipeline.shapes[0].name
    kinds = {StepKind(shape, level, weak) for level in levels for weak in (None, 1, level)}
    cost = CostTable(steps_ms={(kind, batch): float(kind.level) for kind in kinds for batch in (1, 4)}, overhead_ms=1)
    server = start_server(pipeline, executor=Executor, cost=cost)
    pictures = set()
    for level in {levels[0], levels[-1]}:
        budget = level / pipeline.config.latents_per_group
        answer = server.generate({"prompt": "rose", "seed": 3, "budget": budget}, accept="image/png")
        assert answer.status_code == 200, answer.text
        served = Image.open(io.BytesIO(answer.content)).convert("RGB")
        offline = pipeline.run([pipeline.conditions.prompted("rose")], [3], pipeline.plan(budget=budget))[0].image
        assert (served.size, served.tobytes()) == (offline.size, offline.tobytes())
        pictures.add(served.tobytes())
    assert len(pictures) == len({levels[0], levels[-1]})

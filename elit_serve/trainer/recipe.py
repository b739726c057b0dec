"""A training recipe: a TOML file, validated whole before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from elit_serve.catalogue import bundled_models
from elit_serve.engine.autoencoders import kind_of
from elit_serve.engine.text_encoders import KINDS, encoder_problems
from elit_serve.errors import InvalidInput, RecipeError
from elit_serve.files.config import (
    AutoencoderConfig,
    BackboneConfig,
    ClassesConfig,
    ConditionsConfig,
    SamplingConfig,
    TextConfig,
    TextEncoderConfig,
)
from elit_serve.files.opening import parse_toml, read_toml
from elit_serve.files.validation import as_validation_error, problems_in
from elit_serve.files.version_1 import with_kind
from elit_serve.nn import BackboneSpec, InvalidSpec, parse_spec, preset_conditions
from elit_serve.nn.fields import SpecProblem, as_table
from elit_serve.plans.bounds import MAX_LEVEL, MAX_TIME_SHIFT, MIN_TIME_SHIFT
from elit_serve.plans.shape import Shape
from elit_serve.plans.size import Size

MAX_STEPS = 10**9


class Section(BaseModel):
    """Unknown keys are errors, and so are numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RecipeBackbone(BackboneConfig):
    """The model: a kind of the table in `nn.backbones` and the fields of its spec, without what the data decides.

    Without `kind` it is an `elit-dit` where there is an `interface`, and otherwise a `dit`.
    """

    @model_validator(mode="wrap")
    @classmethod
    def _as_written_in_full(cls, content: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        """Two recipes that mean the same backbone are equal, whatever they leave out."""
        named = with_kind(content.model_dump() if isinstance(content, BackboneConfig) else content)
        if not isinstance(named, Mapping) or not isinstance(named.get("kind"), str):
            return read(named)
        try:
            conditions = preset_conditions(named["kind"])
            spec = _parsed(named, conditions)
            given = [
                SpecProblem((name,), None, f"{_who_decides(name)} decides it; leave it out")
                for name in conditions
                if name in named
            ]
            if given:
                raise InvalidSpec(given)
        except InvalidSpec as error:
            raise as_validation_error("backbone", error.problems) from None
        fields = as_table(spec, in_full=True)
        return read({"kind": spec.kind, **{name: fields[name] for name in fields if name not in conditions}})

    def spec(self, conditions: ConditionsConfig) -> BackboneSpec:
        """For pictures of these."""
        return _parsed(self.model_dump(), conditions.backbone_fields)

    @property
    def sketch(self) -> BackboneSpec:
        """The spec as far as this section alone decides it, for some conditions of its kind."""
        return _parsed(self.model_dump(), preset_conditions(self.kind))


def _parsed(backbone: Mapping[str, Any], conditions: Mapping[str, int]) -> BackboneSpec:
    fields = {name: value for name, value in backbone.items() if name != "kind"}
    return parse_spec(backbone["kind"], {**fields, **conditions})


def _encoder_problems(encoder: TextEncoderConfig, *, has_model: bool) -> list[str]:
    """has_model: whether there is the directory of a model, in which such encoders lie."""
    problems = [f"text.{problem.removeprefix('conditions.')}" for problem in encoder_problems(encoder)]
    if not problems and KINDS[encoder.kind].has_files and not has_model:
        carried = ", ".join(kind for kind, each in KINDS.items() if not each.has_files)
        problems.append(
            f"text.encoder.kind: {encoder.kind!r} is not allowed; one that comes with a package, as {carried}, "
            "where no [upcycle] or [distillation] names a model with its files"
        )
    return problems


def _who_decides(field: str) -> str:
    return "[text]" if field in TextConfig.told_backbones else "the data"


def _size(text: str) -> str:
    try:
        return str(Size.read(text))
    except InvalidInput as error:
        raise ValueError(error.allowed) from None


SizeText = Annotated[str, Field(max_length=40), AfterValidator(_size)]


class Stage(Section):
    """Steps that are of some of the recipe's sizes only, as pictures are small at first (progressive resolution)."""

    sizes: tuple[SizeText, ...] = Field(min_length=1)
    steps: int = Field(ge=1, le=MAX_STEPS)


class Data(Section):
    """How photographs become training samples.

    sizes: of samples beside that of [backbone], as WIDTHxHEIGHT (pixels, or an autoencoder's latent). A photograph goes
        to the size whose aspect ratio is nearest to its own; each step is of one size.
    stages: what the first steps are of, one stage after another. All that follow are of the sizes that no stage has.
    flip: mirror half of them. shift: move each by up to this many pixels, reflecting at the border.
    holdout: fraction kept out of training for the validation loss, unless a validation set is given.
    max_corrupt: fraction of unreadable pictures above which the run stops.
    memory_gb: decoded pictures up to this size are kept in memory; more are streamed by `workers` processes.
    """

    sizes: tuple[SizeText, ...] = ()
    stages: tuple[Stage, ...] = ()
    flip: bool = True
    shift: int = Field(default=0, ge=0, le=4096)
    holdout: float = Field(default=0.02, gt=0, lt=1)
    max_corrupt: float = Field(default=0.01, ge=0, le=1)
    memory_gb: float = Field(default=8.0, ge=0, le=1e6)
    workers: int = Field(default=8, ge=0, le=256)


class Budget(Section):
    """Which levels training visits (paper, section 3.4).

    `uniform` draws J̃ from min_level..max_level once per iteration and keeps that prefix; `fixed` always takes
    `max_level`; `random-drop` draws as `uniform` but keeps random latents instead of the first ones.
    Without `max_level` it is J.
    full_share: the share of all samples that run at `max_level` whatever is drawn for the others. At 0.5 it is one half
        of every batch (the sandwich rule of slimmable networks, Yu and Huang 2019).
    elastic_from: the share of the steps after which lower levels begin; before, all run at `max_level`.
    distilled: where a batch has two halves they hold the same samples, and the lower level learns what the full one
        predicts instead of the data.
    """

    drawing: Literal["uniform", "fixed", "random-drop"] = "uniform"
    min_level: int = Field(default=1, ge=1, le=MAX_LEVEL)
    max_level: int | None = Field(default=None, ge=1, le=MAX_LEVEL)
    full_share: float = Field(default=0.0, ge=0, lt=1)
    elastic_from: float = Field(default=0.0, ge=0, lt=1)
    distilled: bool = False

    @property
    def has_halves(self) -> bool:
        """Whether a batch may run at two levels."""
        return self.drawing != "fixed" and self.full_share > 0


Beta = Annotated[float, Field(ge=0, lt=1)]  # of a moving average: at 1 it would never move


class Optimizer(Section):
    """AdamW; `decay_steps` of the last steps lower the learning rate linearly to zero."""

    learning_rate: float = Field(default=1e-4, ge=1e-12, le=10)
    warmup_steps: int = Field(default=10_000, ge=0, le=MAX_STEPS)
    decay_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    clip: float = Field(default=1.0, ge=1e-9, le=1e9)
    ema: float = Field(default=0.9999, ge=0, lt=1)


class Training(Section):
    """The run itself. `batch` is global: over all ranks and accumulated micro-batches.

    time_mean, time_std: of the logistic normal distribution of times. time_shift: above 1 more of them lie near the
    noise, as in sampling with that shift.
    compile and graphs change only the speed: blocks compiled one by one (default: on a GPU); on one GPU, steps replayed
    as CUDA graphs.
    sharded and recompute change only the memory: weights, their average, the optimiser's state and the teacher spread
    over the ranks, where there are several; what a block computes inside computed again when its gradient is.
    """

    steps: int = Field(ge=1, le=MAX_STEPS)
    batch: int = Field(ge=1, le=1_000_000)
    accumulation: int = Field(default=1, ge=1, le=1_000_000)
    class_dropout: float = Field(default=0.1, ge=0, le=1)
    time_mean: float = Field(default=0.0, ge=-10, le=10)
    time_std: float = Field(default=1.0, ge=1e-3, le=10)
    time_shift: float = Field(default=1.0, ge=MIN_TIME_SHIFT, le=MAX_TIME_SHIFT)
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    compile: bool | None = None
    graphs: bool = True
    sharded: bool = False
    recompute: bool = False
    seed: int = Field(default=0, ge=0, lt=2**63)

    @property
    def mean_of_shifted_times(self) -> float:
        """Of the normal distribution whose logistic function times are: a shift as that of `plans.grid.time_grid` moves
        logit(t) by -log(shift), whatever t is."""
        return self.time_mean - math.log(self.time_shift)


class Upcycle(Section):
    """The trained model that a run begins with: a plain one, which the recipe's is at its full level then
    (`nn.Backbone.from_plain`), or one of the recipe's own backbone, which may have been trained at another size.

    model: its directory, or the name of a bundled one. new_only_steps: in the first ones only that learns which the
        plain model does not have: Read, Write and latents.
    """

    model: str = Field(min_length=1, max_length=4096)
    new_only_steps: int = Field(default=0, ge=0, le=MAX_STEPS)


class Distillation(Section):
    """A teacher that does not learn: its velocity is learned beside that of the data, at whatever level is drawn
    (paper, section 4.4).

    model: its directory, or the name of a bundled one; without it, that of [upcycle]. It runs at its highest level.
    scale: of the squared distance to its velocity, which is added to the loss (the paper takes 20).
    precision: in which it runs.
    """

    model: str | None = Field(default=None, min_length=1, max_length=4096)
    scale: float = Field(default=20.0, gt=0, le=1e6)
    precision: Literal["bfloat16", "float32"] = "bfloat16"


class Every(Section):
    """How often, in steps, things happen. `keep` checkpoints stay on disk."""

    log: int = Field(default=100, ge=1, le=MAX_STEPS)
    validation: int = Field(default=5_000, ge=1, le=MAX_STEPS)
    samples: int = Field(default=5_000, ge=1, le=MAX_STEPS)
    checkpoint: int = Field(default=5_000, ge=1, le=MAX_STEPS)
    keep: int = Field(default=2, ge=1, le=MAX_STEPS)


class Recipe(Section):
    """Everything that decides a run but the data's place."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    backbone: RecipeBackbone
    text: TextConfig | None = None
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    data: Data = Data()
    budget: Budget = Budget()
    optimizer: Optimizer = Optimizer()
    training: Training
    upcycle: Upcycle | None = None
    distillation: Distillation | None = None
    every: Every = Every()
    sampling: SamplingConfig = SamplingConfig()
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _parts_agree(self) -> Recipe:
        problems = self._budget_problems() or self._guidance_problems()
        parts = self.training.accumulation * (2 if self.budget.has_halves else 1)
        if self.training.batch % parts:
            halved = ", times 2 for two levels in a batch" if self.budget.has_halves else ""
            problems.append(f"training.batch must be a multiple of training.accumulation{halved}")
        problems += self._text_problems()
        problems += self._size_problems()
        problems += self._teacher_problems()
        problems += self._autoencoder_problems()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _budget_problems(self) -> list[str]:
        spec, budget = self.backbone.sketch, self.budget
        largest = budget.max_level or spec.levels[-1]
        problems = []
        if largest > spec.levels[-1]:
            problems.append(f"budget.max_level {largest} exceeds {spec.levels[-1]} latents per group")
        if budget.min_level > largest:
            problems.append(f"budget.min_level {budget.min_level} exceeds the largest level, {largest}")
        if budget.drawing == "random-drop" and not spec.droppable_latents:
            problems.append(f"budget.drawing random-drop needs learned latents; a {spec.kind} has no latents to drop")
        if budget.distilled and not budget.has_halves:
            problems.append("budget.distilled needs batches of two levels, so a budget.full_share above 0")
        return problems

    def _teacher_problems(self) -> list[str]:
        if self.distillation is None:
            return []
        problems = []
        if self.teacher is None:
            problems.append("distillation.model must name a model, where there is no [upcycle]")
        if self.budget.distilled:
            problems.append("budget.distilled learns from the model's own full level: it goes without [distillation]")
        return problems

    @property
    def teacher(self) -> str | None:
        """The model that is learned from, if there is one."""
        if self.distillation is None:
            return None
        return self.distillation.model or (self.upcycle.model if self.upcycle else None)

    @property
    def text_model(self) -> str | None:
        """The model whose text encoder this one has, too, where an encoder has files."""
        has_files = self.text is not None and KINDS[self.text.encoder.kind].has_files
        return self._trained_model if has_files else None

    @property
    def _trained_model(self) -> str | None:
        """The one with which it begins, or else its teacher."""
        return self.upcycle.model if self.upcycle else self.teacher

    def conditions(self, classes: Sequence[str]) -> ConditionsConfig:
        """What its pictures are of. classes: of the data, where it has them."""
        return self.text or ClassesConfig(names=tuple(classes))

    def _text_problems(self) -> list[str]:
        kind, text = self.backbone.kind, self.text
        is_told_texts = set(preset_conditions(kind)) == set(TextConfig.told_backbones)
        if text is None:
            return [f"backbone.kind {kind} is told texts, so that [text] must name an encoder"] if is_told_texts else []
        problems = _encoder_problems(text.encoder, has_model=self._trained_model is not None)
        if not is_told_texts:
            problems.append(f"backbone.kind {kind} is told classes, so that there can be no [text]")
        return problems

    def _size_problems(self) -> list[str]:
        problems = []
        for text in self.data.sizes:
            try:
                self._shape(text)
            except InvalidInput as error:
                problems.append(f"data.sizes: {text}: {error}")
        staged = {size for stage in self.data.stages for size in stage.sizes}
        if unknown := sorted(staged - set(self.data.sizes)):
            problems.append(f"data.stages: {', '.join(unknown)}: a stage is of some of data.sizes")
        return problems or self._stage_problems()

    def _stage_problems(self) -> list[str]:
        done = sum(stage.steps for stage in self.data.stages)
        _, shapes_left = self.stages[-1]
        if shapes_left or done >= self.training.steps:
            return []
        return [f"data.stages: they have all sizes and end after {done} of {self.training.steps} steps: none is left"]

    def _shape(self, size: str) -> Shape:
        width, height = Size.read(size)
        return self.backbone.sketch.at_size(height, width).shape

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the samples that it trains, that of the backbone first."""
        return tuple(dict.fromkeys([self.backbone.sketch.shape, *map(self._shape, self.data.sizes)]))

    @property
    def stages(self) -> tuple[tuple[float, frozenset[Shape]], ...]:
        """Where each stage ends, in steps, and the shapes of its samples; the last has no end."""
        ends = accumulate(stage.steps for stage in self.data.stages)
        shapes = [frozenset(map(self._shape, stage.sizes)) for stage in self.data.stages]
        rest = frozenset(self.shapes).difference(*shapes)
        return (*zip(ends, shapes, strict=True), (math.inf, rest))

    def _autoencoder_problems(self) -> list[str]:
        try:
            wanted = kind_of(self.autoencoder).channels
        except InvalidInput as error:
            return [str(error)]
        channels = self.backbone.sketch.sample_shape[0]
        if wanted in (None, channels):
            return []
        return [f"pictures have {wanted} channels; a model of {channels} needs an autoencoder"]

    def _guidance_problems(self) -> list[str]:
        guidance = self.sampling.guidance
        if guidance.method not in ("ag", "ccfg"):
            return []
        if guidance.weak_level not in self.levels:
            return [f"sampling.guidance.weak_level {guidance.weak_level} is not a level that the recipe trains"]
        if guidance.method == "ag" and guidance.weak_level == self.levels[-1]:
            return [f"sampling.guidance.weak_level {guidance.weak_level} must lie below the largest level for ag"]
        return []

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels that this recipe trains."""
        largest = self.budget.max_level or self.backbone.sketch.levels[-1]
        return (largest,) if self.budget.drawing == "fixed" else tuple(range(self.budget.min_level, largest + 1))

    def learning_rate(self, step: int) -> float:
        """Of a step counted from 0: linear warm-up, then constant, then linear to zero over the last `decay_steps`."""
        options, steps = self.optimizer, self.training.steps
        factor = min(1.0, (step + 1) / max(1, options.warmup_steps))
        if options.decay_steps:
            factor = min(factor, (steps - step) / options.decay_steps)
        return options.learning_rate * factor


def find_recipe(name: str) -> Path:
    """A TOML file by its path, or a recipe that travels with the package by its name, wherever one is."""
    path = Path(name)
    bundled = bundled_models() / "recipes"
    known = sorted(file.stem for file in bundled.glob("*.toml"))
    if path.is_file() or path.name != name or path.suffix == ".toml":
        return path
    if name in known:
        return bundled / f"{name}.toml"
    raise InvalidInput("recipe", name, f"a TOML file, or a bundled recipe ({', '.join(known)})")


def read_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """A recipe from a TOML file, with some of its values changed; raises `RecipeError` with everything that is wrong.

    changes: as `training.steps=100`: a key and a TOML value.
    """
    try:
        content = read_toml(path)
        for change in changes:
            _merge(content, _parse_change(change))
        return Recipe.model_validate(content)
    except OSError as error:
        raise RecipeError(path, [f"it cannot be read: {error.strerror}"]) from None
    except ValidationError as error:
        raise RecipeError(path, problems_in(error, "recipe")) from None
    except ValueError as error:
        raise RecipeError(path, [f"not TOML: {error}"]) from None


def _parse_change(text: str) -> dict[str, Any]:
    """`a.b=1` as {"a": {"b": 1}}."""
    try:
        return parse_toml(text)
    except ValueError:
        raise InvalidInput("--set", text, "a key and a TOML value, as training.steps=100 or name='mine'") from None


def _merge(content: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Puts changes into nested tables; whatever else is in them stays."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            _merge(content[key], value)
        else:
            content[key] = value

"""What samples are measured against: features of reference and of held-out photographs, made once, kept in a file.

Letters: m reference photographs, n held-out ones, F features, K logits.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import Described, FeatureExtractor, photograph_features
from elit_serve.evaluation.metrics import NEIGHBOURS, Scorer, nearest
from elit_serve.evaluation.runs.sets import Subjects
from elit_serve.files.opening import regular
from elit_serve.files.validation import problems_in
from elit_serve.photographs import Photograph
from elit_serve.plans.plan import Plan

MIN_PHOTOGRAPHS = 2 * (NEIGHBOURS + 1)  # so that each half has as many as precision and recall need
SPLIT = 10  # without held-out photographs, every tenth of a class is held out
SAME = 1e-6  # of the length of features: a distance that rounding alone may leave
MAX_ROUNDING = 1e-3  # of the features' size; float16 is kept where it loses less


class ReferenceHeader(BaseModel):
    """What the file of a reference says beside its tensors, as JSON in its metadata; see `Reference`."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True, allow_inf_nan=False)

    format_version: Literal[1] = 1
    metric: str
    fingerprint: str
    height: int
    width: int
    classes: tuple[str, ...]
    held_out_classes: tuple[int, ...]
    prompts: tuple[str, ...] = ()
    held_out_source: str

    @property
    def as_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"))


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Reference photographs [m, F] and held-out ones [n, F], on the CPU, float16 where that loses next to nothing.

    Everything is computed from these rounded features, so a reference read from a file gives the very same figures.

    classes: the model's, by index. held_out_classes: the class of each held-out photograph; samples repeat this mix.
    prompts: in place of classes, what each sample is of: the captions of the held-out photographs.
    held_out_logits: [n, K], or None. photographs: the m reference photographs; empty when read from a file.
    full_plan: where there are no photographs, the plan of the model whose pictures stand for them.
    """

    metric: str
    fingerprint: str
    height: int
    width: int
    classes: tuple[str, ...]
    features: Tensor
    held_out: Tensor
    held_out_classes: tuple[int, ...]
    held_out_logits: Tensor | None
    held_out_source: str
    prompts: tuple[str, ...] = ()
    photographs: tuple[Photograph, ...] = ()
    full_plan: Plan | None = None

    @property
    def subjects(self) -> Subjects:
        """What the samples are of."""
        return Subjects(classes=self.held_out_classes, prompts=self.prompts)

    @property
    def num_samples(self) -> int:
        """n: of the held-out photographs, and so of every set of samples."""
        return len(self.subjects)

    @property
    def class_distribution(self) -> dict[str, int]:
        """Samples of each class, by name; empty where they are of prompts."""
        if self.prompts:
            return {}
        counts = Counter(self.held_out_classes)
        return {name: counts[index] for index, name in enumerate(self.classes)}

    def scorer(self, device: torch.device) -> Scorer:
        """What measures pictures against these photographs."""
        return Scorer(self.features, Described(features=self.held_out, logits=self.held_out_logits), device)

    def save(self, file: Path) -> None:
        """Writes safetensors with the facts as JSON in their header."""
        tensors = {"features": self.features, "held_out": self.held_out}
        if self.held_out_logits is not None:
            tensors["held_out_logits"] = self.held_out_logits
        header = ReferenceHeader.model_validate(self)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata={"reference": header.as_json})
            file.chmod(0o644)  # safetensors makes it private
        except (OSError, SafetensorError) as error:
            raise InvalidInput("save_reference", str(file), f"it cannot be written: {error}") from None

    @classmethod
    def load(cls, file: Path) -> Reference:
        """A file that `save` wrote."""
        try:
            with safe_open(regular(file), framework="pt") as content:
                header = ReferenceHeader.model_validate_json((content.metadata() or {})["reference"])
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (no mapping)
            reference = cls(
                **header.model_dump(exclude={"format_version"}),
                features=tensors["features"],
                held_out=tensors["held_out"],
                held_out_logits=tensors.get("held_out_logits"),
            )
        except ValidationError as error:
            problems = "; ".join(problems_in(error))
            raise InvalidInput("reference", str(file), f"a file from --save-reference: {problems}") from None
        except (OSError, SafetensorError, KeyError) as error:
            raise InvalidInput("reference", str(file), f"a file from --save-reference: {error}") from None
        reference._check_shapes(file)
        return reference

    def _check_shapes(self, file: Path) -> None:
        if self.held_out_classes and self.prompts:
            raise InvalidInput("reference", str(file), "samples of classes or of prompts, not both")
        shapes = list(self.features.shape), list(self.held_out.shape)
        fit = len(shapes[0]) == len(shapes[1]) == 2 and shapes[0][1] == shapes[1][1]
        if not fit or shapes[1][0] != self.num_samples or min(shapes[0][0], shapes[1][0]) < MIN_PHOTOGRAPHS:
            allowed = f"features [m, F] and held_out [{self.num_samples}, F] of at least {MIN_PHOTOGRAPHS} photographs"
            raise InvalidInput("reference", f"{file}: {shapes[0]} and {shapes[1]}", allowed)
        strange = [index for index in self.held_out_classes if index not in range(len(self.classes))]
        if strange:
            allowed = f"a class from 0 to {len(self.classes) - 1}"
            raise InvalidInput(f"held_out_classes in {file}", strange[0], allowed)
        for name, tensor in (("features", self.features), ("held_out", self.held_out)):
            if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
                raise InvalidInput(f"{name} in {file}", "nan or inf", "numbers are finite")

    def check(self, pipeline: Pipeline, extractor: FeatureExtractor) -> None:
        """Raises what keeps this reference from measuring this model with this extractor."""
        if self.fingerprint != extractor.fingerprint:
            given = f"{self.metric} of {self.fingerprint[:12]}"
            raise InvalidInput(
                "reference", given, f"--features gives {extractor.metric} of {extractor.fingerprint[:12]}"
            )
        if self.classes != pipeline.config.classes:
            raise InvalidInput("reference", f"{len(self.classes)} classes", f"the classes of {pipeline.config.name}")
        if (self.height, self.width) != picture_size(pipeline):
            height, width = picture_size(pipeline)
            raise InvalidInput("reference", f"{self.width} x {self.height} pixels", f"the model's {width} x {height}")


def make_reference(
    pipeline: Pipeline,
    extractor: FeatureExtractor,
    photographs: Sequence[Photograph],
    held_out: Sequence[Photograph] | None = None,
    *,
    batch_size: int = 128,
    on_batch: Callable[[int], None] | None = None,
) -> Reference:
    """Reads photographs at the model's picture size. Without `held_out`, every tenth of each class is held out, or of
    all where they have captions."""
    source = "photographs of their own"
    if held_out is None:
        source = f"every {SPLIT}th reference photograph" + (" of each class" if pipeline.config.classes else "")
        photographs, held_out = split(photographs)
    sets = {"reference": photographs, "held_out": held_out}
    subjects = {field: check_photographs(pipeline, chosen, field) for field, chosen in sets.items()}
    height, width = picture_size(pipeline)
    found = {
        field: photograph_features(
            extractor, chosen, height=height, width=width, batch_size=batch_size, field=field, on_batch=on_batch
        )
        for field, chosen in sets.items()
    }
    _check_unseen(found["held_out"].features, found["reference"].features)
    logits = found["held_out"].logits
    return Reference(
        metric=extractor.metric,
        fingerprint=extractor.fingerprint,
        height=height,
        width=width,
        classes=tuple(pipeline.config.classes),
        features=compact(found["reference"].features),
        held_out=compact(found["held_out"].features),
        held_out_classes=subjects["held_out"].classes,
        prompts=subjects["held_out"].prompts,
        held_out_logits=None if logits is None else compact(logits),
        held_out_source=source,
        photographs=tuple(photographs),
    )


def _check_unseen(held_out: Tensor, features: Tensor) -> None:
    """Against photographs that most held-out ones are among, there is no floor."""
    distance = nearest(held_out, features).median_distance
    if distance <= SAME * float(held_out.double().norm(dim=1).mean()):
        raise InvalidInput("held_out", f"{len(held_out)} photographs", "others than the reference's, as most are not")


def check_photographs(pipeline: Pipeline, photographs: Sequence[Photograph], field: str) -> Subjects:
    """The class of each photograph, or its caption where the model has no classes; too few, a strange class or a
    missing one are refused."""
    if len(photographs) < MIN_PHOTOGRAPHS:
        raise InvalidInput(field, len(photographs), f"at least {MIN_PHOTOGRAPHS} photographs")
    if not pipeline.config.classes:
        return Subjects(prompts=tuple(photograph.caption for photograph in photographs))
    known = pipeline.conditions
    index_of = {known[index].words: index for index in range(len(known))}
    found = [known.named(photograph.label, field=field).words for photograph in photographs]
    missing = [name for name in index_of if name not in set(found)]
    if missing:
        shown = ", ".join(missing[:5])
        raise InvalidInput(field, f"no photograph of {shown}", f"every class of {pipeline.config.name}")
    return Subjects(classes=tuple(index_of[name] for name in found))


def split(photographs: Sequence[Photograph]) -> tuple[list[Photograph], list[Photograph]]:
    """(rest, held out): every tenth photograph of each class is held out, and at least one."""
    by_class: dict[str, list[Photograph]] = {}
    for photograph in photographs:
        by_class.setdefault(photograph.label, []).append(photograph)
    rest, held_out = [], []
    for label, members in by_class.items():
        if len(members) < 2:
            of = f" of {label}" if label else ""
            raise InvalidInput("reference", f"one photograph{of}", "two of each class, to hold one out")
        chosen = set(range(SPLIT - 1, len(members), SPLIT)) or {len(members) - 1}
        rest += [photograph for i, photograph in enumerate(members) if i not in chosen]
        held_out += [members[i] for i in sorted(chosen)]
    return rest, held_out


def compact(features: Tensor) -> Tensor:
    """float16 on the CPU where that loses less than a thousandth of the features' size, else float32."""
    features = features.float().cpu()
    half = features.half()
    lost = (half.float() - features).norm() / features.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return half if bool(lost < MAX_ROUNDING) else features


def picture_size(pipeline: Pipeline) -> tuple[int, int]:
    """(H, W) of the model's pictures."""
    if pipeline.is_latent:
        raise InvalidInput("model", pipeline.config.name, "a model with an autoencoder: this one makes no pictures")
    return pipeline.picture_size

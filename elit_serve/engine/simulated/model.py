"""A model without its weights, on a device that exists on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from elit_serve.catalogue import ModelQuality, bundled_models, cost_table, measured_quality, resolve_model
from elit_serve.engine.autoencoders import choose_autoencoders, picture_sizes_of
from elit_serve.engine.autoencoders.folder import read_folder
from elit_serve.engine.checkpoint import read_spec
from elit_serve.engine.profile.profiler import device_slug
from elit_serve.engine.random_weights import random_config
from elit_serve.engine.served_model import ServedModel, quality_size
from elit_serve.engine.simulated.placeholder import placeholder_latent, placeholder_picture
from elit_serve.engine.sizes import Sizes
from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.files.config import ModelConfig
from elit_serve.files.latency import Latency, read_latency
from elit_serve.nn import BackboneSpec
from elit_serve.plans.shape import Shape
from elit_serve.scheduler.costs import CostTable

NO_DEVICE = torch.device("meta")


@dataclass(frozen=True, kw_only=True)
class Described:
    """A model as its files describe it, or a preset. path: where an autoencoder of its own would lie."""

    path: Path
    config: ModelConfig
    spec: BackboneSpec
    quality: ModelQuality | None = None


def described_model(model: str | None) -> Described:
    """A model directory, whose weights need not be there, or a bundled model by name. Raises `CheckpointError`."""
    path = resolve_model(model)
    config, spec = read_spec(path)
    quality, problems = measured_quality(path, config)
    if problems:
        raise CheckpointError(path, problems)
    return Described(path=path, config=config, spec=spec, quality=quality)


def described_preset(
    preset_name: str, resolution: int, *, sizes: Sequence[str] = (), autoencoder: Path | None = None
) -> Described:
    """A preset of the paper, see `Pipeline.random`. Draws nothing."""
    factor = 1 if autoencoder is None else read_folder(autoencoder, "autoencoder").factor
    config, spec = random_config(preset_name, resolution, sizes=sizes, factor=factor)
    return Described(path=Path(config.name), config=config, spec=spec)


def read_costs(said: str, model: Described) -> Latency:
    """A latency file by its path, or by the name of a device: one that lies in the model's directory, or is bundled
    for its backbone. Raises `InvalidInput` for `simulate`."""
    if Path(said).suffix == ".json":
        return read_latency(Path(said))
    known = _known_costs(model)
    if said not in known:
        devices = ", ".join(sorted(known)) or "none is known of this model"
        raise InvalidInput("simulate", said, f"a latency/<device>.json, or the name of a device: {devices}")
    return known[said]


def _known_costs(model: Described) -> dict[str, Latency]:
    """By the names of devices."""
    bundled = [read_latency(file) for file in sorted(bundled_models().glob("recipes/*/latency/*.json"))]
    own = [read_latency(file, model=model.path) for file in sorted(model.path.glob("latency/*.json"))]
    fitting = [latency for latency in bundled if latency.backbone_hash == model.config.backbone_hash]
    return {device_slug(latency.device): latency for latency in (*fitting, *own)}


class SimulatedModel(ServedModel):
    """Whose pictures are placeholders, and say so. No weight is read, of an autoencoder neither.

    latency: of the device whose time is taken.
    """

    def __init__(
        self, model: Described, latency: Latency, *, autoencoder: Path | None = None, sizes: Sequence[str] = ()
    ) -> None:
        chosen = choose_autoencoders(model.config, model.path, autoencoder)
        picture_sizes = picture_sizes_of(chosen.config, chosen.folder)
        measured, can_skip = model.quality, model.spec.skips_at_any_level
        super().__init__(
            config=model.config.model_copy(update={"autoencoder": chosen.config}),
            device=NO_DEVICE,
            precision=latency.dtype,
            quality=None if measured is None else replace(measured, precision=latency.dtype, can_skip=can_skip),
            quality_size=quality_size(measured, model.config, picture_sizes),
            sizes=Sizes.of(model.config.shapes, picture_sizes).only(sizes),
            is_latent=not picture_sizes.makes_pictures,
            simulated=latency.device,
        )

    def noise(self, seeds: Sequence[int], shape: Shape) -> Tensor:
        """Nothing is drawn, as placeholders do not depend on it. -> [B, *shape], all of it one zero"""
        return torch.zeros(()).expand(len(seeds), *shape.size)

    def placeholders(self) -> dict[str, Tensor]:
        """By the name of a shape, see `SimulatedExecutor`."""
        if self.is_latent:
            return {shape.name: placeholder_latent(shape.size) for shape in self.shapes}
        return {shape.name: placeholder_picture(size.height, size.width) for size, shape in self.sizes.shapes.items()}

    def costs(self, latency: Latency, said: str) -> CostTable:
        """What the steps of this model take by a latency file, see `read_costs`.

        Raises `InvalidInput` for `simulate` if that is of other shapes or levels.
        """
        table = cost_table(latency, self.config.default_shape.name)
        if unknown := [name for name in self.shape_names if name not in table.shapes]:
            raise InvalidInput("simulate", said, f"a file that knows samples of {', '.join(unknown)}")
        if untrained := [str(level) for level in table.levels if level not in self.config.levels]:
            levels = ", ".join(map(str, self.config.levels))
            raise InvalidInput("simulate", said, f"levels of the model ({levels}), not {', '.join(untrained)}")
        return table.of_shapes(self.shape_names)

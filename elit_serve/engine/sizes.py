"""The sizes of pictures that a model is asked for, each a shape of its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elit_serve.engine.autoencoders import PictureSizes
from elit_serve.errors import InvalidInput
from elit_serve.plans.shape import Shape
from elit_serve.plans.size import AUTO, Size, listed


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """shapes: of samples, by the size of the picture that such a sample becomes; the first is the default.

    Where there is no way from a sample to a picture, its size is that of the sample.
    """

    shapes: Mapping[Size, Shape]

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], picture_sizes: PictureSizes) -> Sizes:
        """Of a model with these shapes, by name and channels first."""
        by_size = {}
        for name, sides in shapes.items():
            height, width = picture_sizes.picture_size(sides)
            by_size[Size(width, height)] = Shape(name, sides)
        return cls(shapes=by_size)

    @property
    def names(self) -> list[str]:
        """As callers write them, the default first."""
        return [str(size) for size in self.shapes]

    @property
    def default(self) -> Shape:
        """Of whoever names no size."""
        return next(iter(self.shapes.values()))

    def shape_of(self, size: str | None) -> Shape:
        """The shape of what a caller asks for; None and `auto` are the default. Raises `InvalidInput`."""
        if size is None or size == AUTO:
            return self.default
        return self._shape(Size.read(size), "size", f"{AUTO}, or a size that is served: {listed(list(self.shapes))}")

    def size_of(self, shape: str) -> Size:
        """What a caller calls the shape of this name."""
        return next(size for size, known in self.shapes.items() if known.name == shape)

    def only(self, names: Sequence[str]) -> Sizes:
        """These in this order, or all if there are none. Raises `InvalidInput`."""
        if not names:
            return self
        allowed = f"the model has {listed(list(self.shapes))}"
        wanted = [Size.read(name, field="sizes") for name in names]
        return Sizes(shapes={size: self._shape(size, "sizes", allowed) for size in wanted})

    def _shape(self, size: Size, field: str, allowed: str) -> Shape:
        if size not in self.shapes:
            raise InvalidInput(field, str(size), allowed)
        return self.shapes[size]

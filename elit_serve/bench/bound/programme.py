"""A linear programme whose maximum is bounded by its duals, whatever the tolerance of the solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from elit_serve.errors import MissingPackage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

OPTIMALITY = 1e-5  # relative gap at which the interior-point method stops


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Consecutive variables; each lies between 0 and its entry in `upper`."""

    start: int
    upper: Floats

    @property
    def all(self) -> Integers:
        return self.start + np.arange(len(self.upper))


class Programme:
    """Maximise gain·x subject to rows·x ≤ limits and 0 ≤ x ≤ upper; built block by block."""

    def __init__(self) -> None:
        self._num_columns = self._num_rows = 0
        self._upper: list[Floats] = []
        self._gain: list[Floats] = []
        self._limits: list[Floats] = []
        self._entries: list[tuple[Integers, Integers, Floats]] = []  # (rows, columns, values)

    def columns(self, upper: Floats, *, gain: float = 0.0) -> Columns:
        added = Columns(start=self._num_columns, upper=upper)
        self._num_columns += len(upper)
        self._upper.append(upper)
        self._gain.append(np.full(len(upper), gain))
        return added

    def rows(self, limits: Floats, *terms: tuple[Integers, Integers, Any]) -> None:
        """A row per limit. A term is (row of this block, column, coefficient), each an array or one coefficient."""
        for rows, columns, coefficients in terms:
            values = np.broadcast_to(np.asarray(coefficients, dtype=float), rows.shape)
            self._entries.append((self._num_rows + rows, columns, values))
        self._num_rows += len(limits)
        self._limits.append(limits)

    def bound(self) -> float:
        """An upper bound of the maximum, at most a solver's tolerance above it."""
        return self.certified(_duals(self._matrix(), *self._vectors()))

    def certified(self, duals: Floats) -> float:
        """An upper bound of the maximum from any duals ≥ 0, however they were found.

        gain·x ≤ duals·limits + (gain − duals·rows)·x ≤ duals·limits + Σ max(0, gain − duals·rows)·upper.
        """
        gain, upper, limits = self._vectors()
        reduced = np.maximum(0.0, gain - self._matrix().T @ duals)
        return float(limits @ duals + reduced @ upper)

    def _matrix(self) -> Any:
        rows, columns, values = (np.concatenate(parts) for parts in zip(*self._entries, strict=True))
        shape = self._num_rows, self._num_columns
        return package("scipy.sparse").csc_matrix((values, (rows, columns)), shape=shape)

    def _vectors(self) -> tuple[Floats, Floats, Floats]:
        """gain, upper, limits."""
        return np.concatenate(self._gain), np.concatenate(self._upper), np.concatenate(self._limits)


def _duals(matrix: Any, gain: Floats, upper: Floats, limits: Floats) -> Floats:
    """Nonnegative duals of the rows, from HiGHS' interior-point method."""
    highspy = package("highspy")
    problem = highspy.HighsLp()
    problem.num_row_, problem.num_col_ = matrix.shape
    problem.col_cost_ = -gain
    problem.col_lower_, problem.col_upper_ = np.zeros_like(upper), upper
    problem.row_lower_, problem.row_upper_ = np.full_like(limits, -highspy.kHighsInf), limits
    problem.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    problem.a_matrix_.start_, problem.a_matrix_.index_, problem.a_matrix_.value_ = (
        matrix.indptr,
        matrix.indices,
        matrix.data,
    )
    solver = highspy._Highs()  # `Highs` of version 1.16 prints a banner as it is made, in the midst of our JSON
    options = {"output_flag": False, "solver": "ipm", "run_crossover": "off", "ipm_optimality_tolerance": OPTIMALITY}
    for name, value in options.items():
        solver.setOptionValue(name, value)
    solver.passModel(problem)
    solver.run()
    duals: Floats = np.maximum(0.0, -np.asarray(solver.getSolution().row_dual))
    return duals


def package(name: str) -> Any:
    """An optional package, imported when it is needed."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise MissingPackage(name.partition(".")[0], "bench") from None

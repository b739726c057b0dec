"""What of a run may be changed when it goes on: whatever leaves the steps that are done as they would have been.

So a resumed run is one that could have been started with the recipe it goes on with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

from elit_serve.errors import RunError
from elit_serve.trainer.distributed import World
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory, RunFacts, Snapshot
from elit_serve.trainer.run_lock import locked

# Keys, or whole tables, that no weight depends on (accumulation: but for rounding).
FREE = (
    "name",
    "text.examples",
    "provenance",
    "sampling",
    "every",
    "training.accumulation",
    "training.compile",
    "training.graphs",
    "training.sharded",
    "training.recompute",
    "data.workers",
    "data.memory_gb",
    "data.max_corrupt",
    "upcycle.model",  # and that below: their hashes are compared instead
    "distillation.model",
)
# Keys that weights depend on through the learning rate alone.
SCHEDULE = ("training.steps", "optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.decay_steps")


@contextmanager
def opened(run: RunDirectory, facts: RunFacts | None, *, resume: bool, world: World) -> Iterator[Snapshot | None]:
    """Starts a run or goes on with it, and holds its folder while open; gives where it stands, None at the beginning.

    facts: what would be trained now; the main rank's, which alone writes. Raises `RunError` if that is another run.
    """
    with _held(run.path, resume=resume) if world.is_main else nullcontext():
        if facts is not None and not resume:
            run.create(facts)
        snapshot = run.load() if resume and run.steps() else None
        if facts is not None and resume:
            _go_on(run, facts, snapshot.state.step if snapshot else 0)
        world.barrier()
        yield snapshot


@contextmanager
def _held(folder: Path, *, resume: bool) -> Iterator[None]:
    if resume:
        RunDirectory(folder).facts()  # says so if there is no run
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder} cannot be written: {error.strerror}") from None
    with locked(folder):
        yield


def _go_on(run: RunDirectory, facts: RunFacts, done: int) -> None:
    before = run.facts()
    problems = changes_refused(before, facts, done)
    if problems:
        raise RunError(f"{run.path} holds another run, and --resume goes on with the same one: {'; '.join(problems)}")
    run.forget_after(done)
    run.go_on_with(before.model_copy(update={"recipe": facts.recipe, "data": facts.data}))


def changes_refused(before: RunFacts, now: RunFacts, done: int) -> list[str]:
    """What keeps a run of which `done` steps are done from going on with other facts, each with both values."""
    return [
        *_data_changes(before, now),
        *_coder_changes("autoencoder", before.autoencoder_sha256, now.autoencoder_sha256),
        *_coder_changes("encoder of texts", before.encoder_sha256, now.encoder_sha256),
        *_model_changes(before, now),
        *_recipe_changes(before.recipe, now.recipe, done),
    ]


def _data_changes(before: RunFacts, now: RunFacts) -> list[str]:
    if before.classes != now.classes:
        gone = sorted(set(before.classes) - set(now.classes))
        new = sorted(set(now.classes) - set(before.classes))
        named = [f"{word} {', '.join(names[:5])}" for word, names in (("without", gone), ("with", new)) if names]
        return [f"the classes are {len(now.classes)} here ({'; '.join(named)}) and {len(before.classes)} in the run"]
    if before.data.sha256 != now.data.sha256:
        ours, theirs = (f"{facts.data.training_pictures} ({facts.data.sha256[:12]})" for facts in (now, before))
        return [f"the photographs are others: {ours} here and {theirs} in the run"]
    held_out, known = now.data.held_out_sha256, before.data.held_out_sha256
    if known is not None and held_out != known:
        return ["the held-out photographs are others, so that losses before and after could not be compared"]
    return []


def _coder_changes(name: str, before: str | None, now: str | None) -> list[str]:
    if None in (before, now) or before == now:
        return []
    return [f"the {name} is another: {str(now)[:12]} here and {str(before)[:12]} in the run"]


def _model_changes(before: RunFacts, now: RunFacts) -> list[str]:
    pairs = {"upcycle.model": (now.upcycled, before.upcycled), "the teacher": (now.teacher, before.teacher)}
    return [
        f"{name} is another model: {_told(ours)} here and {_told(theirs)} in the run"
        for name, (ours, theirs) in pairs.items()
        if ours != theirs
    ]


def _recipe_changes(before: Recipe, now: Recipe, done: int) -> list[str]:
    ours, theirs = _leaves(now.model_dump(mode="json")), _leaves(before.model_dump(mode="json"))
    changed = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    refused = [key for key in changed if not _is_free(key) and key not in SCHEDULE]
    if _schedules_differ(before, now, done):
        refused += [key for key in changed if key in SCHEDULE]
    problems = [f"{key} is {_told(ours.get(key))} here and {_told(theirs.get(key))} in the run" for key in refused]
    if now.training.steps < done:
        problems.append(f"training.steps is {now.training.steps} here, and {done} steps are done")
    return problems


def _schedules_differ(before: Recipe, now: Recipe, done: int) -> bool:
    """Whether a step that is done would have had another learning rate."""
    steps = range(min(done, now.training.steps))
    return any(before.learning_rate(step) != now.learning_rate(step) for step in steps)


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _leaves(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value that is no table, by its dotted key."""
    parts = (
        _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        for key, value in table.items()
    )
    return dict(chain.from_iterable(part.items() for part in parts))


def _told(value: object) -> str:
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

"""Weights that are spread over ranks learn what they learn on one, and are saved, resumed and exported as whole."""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from elit_serve.engine.checkpoint import load_checkpoint
from elit_serve.errors import RunError
from elit_serve.nn.backbones.dense.dense import DenseSpec
from elit_serve.nn.backbones.table import KINDS, build
from elit_serve.nn.backbones.texts import TextSpec
from elit_serve.trainer.distributed import World
from elit_serve.trainer.export import export
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory
from elit_serve.trainer.sharding import own_rows, recompute_inside, spread

MakeRecipe = Callable[..., Recipe]
Start = Callable[..., "subprocess.Popen[str]"]
Train = Callable[..., RunDirectory]
Losses = Callable[[RunDirectory], dict[int, float]]

SECTIONS: dict[str, Any] = {
    "training": {"steps": 8, "sharded": True, "recompute": True},
    "every": {"log": 1, "validation": 4, "samples": 8, "checkpoint": 4},
}


def finished(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def assert_same(run: RunDirectory, other: RunDirectory, losses: Losses) -> None:
    assert losses(run) == pytest.approx(losses(other), rel=1e-4)
    ours, theirs = run.load(), other.load()
    for part in ("model", "ema"):
        assert set(getattr(ours, part)) == set(getattr(theirs, part))
        for name, expected in getattr(theirs, part).items():
            torch.testing.assert_close(getattr(ours, part)[name], expected, atol=2e-4, rtol=0, msg=name)


def test_two_ranks_with_half_of_the_weights_each_equal_one_and_go_on_alone(
    make_recipe: MakeRecipe, start_training: Start, train_here: Train, read_losses: Losses, tmp_path: Path
) -> None:
    """The last steps are of one rank, which has all weights."""
    one = train_here(make_recipe(**SECTIONS), "one")
    two = RunDirectory(tmp_path / "two")
    halfway = make_recipe(**{**SECTIONS, "training": {**SECTIONS["training"], "steps": 6}})
    finished(start_training(halfway, two.path, ranks=2))

    folder = two.path / "checkpoints" / "step-00000006"
    sizes = {file.name: file.stat().st_size for file in folder.glob("model*")}
    assert set(sizes) == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    whole = (one.path / "checkpoints" / "step-00000004" / "model.safetensors").stat().st_size
    assert max(sizes.values()) < 0.6 * whole

    train_here(make_recipe(**SECTIONS), "two", resume=True)
    assert_same(two, one, read_losses)
    export(two.path, tmp_path / "exported", step=6, dtype="float32")
    exported = load_checkpoint(tmp_path / "exported").model.state_dict()
    for name, tensor in two.load(6).ema.items():
        assert torch.equal(exported[name], tensor), name
    assert_damage_is_told(two, folder / "ema-00002-of-00002.safetensors")


def assert_damage_is_told(run: RunDirectory, shard: Path) -> None:
    step, content = int(shard.parent.name[-8:]), shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RunError, match=re.escape(f"{shard.name} is cut off or altered")):
        run.load(step)
    shard.unlink()
    with pytest.raises(RunError, match=re.escape(f"{shard.name}: No such file")):
        run.load(step)


@pytest.fixture
def world_of_one(tmp_path: Path) -> Iterator[World]:
    """Weights are spread and gathered as among many, in this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield World(device=torch.device("cpu"))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_its_weights_gathered_where_it_uses_them(kind: str, world_of_one: World) -> None:
    spec = KINDS[kind].tiny
    torch.manual_seed(0)
    model = build(spec)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    whole, x, t = copy.deepcopy(model), torch.randn(2, *spec.sample_shape), torch.rand(2)
    condition = (
        torch.randn(2, spec.max_tokens, spec.text_dim + 1).abs()
        if isinstance(spec, TextSpec | DenseSpec)
        else torch.arange(2)
    )
    recompute_inside(model.compilable())
    spread(model, world_of_one)
    level = spec.levels[-1]
    for each in (whole, model):
        each(x, t, condition, level).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for name, parameter in model.named_parameters():
        expected = gradients[name]
        if expected is not None:
            assert parameter.grad is not None, name
            torch.testing.assert_close(own_rows(parameter.grad), expected, atol=1e-4, rtol=1e-3, msg=name)


RANK_WITH_SLOW_THREADS = """
import os
from pathlib import Path
import torch
from elit_serve.nn.backbones.table import KINDS, build
from elit_serve.trainer.distributed import end_rank, join_world
from elit_serve.trainer.sharding import spread

def starve_gloo():
    for thread in Path("/proc/self/task").iterdir():
        if "gloo_runloop" in (thread / "comm").read_text():
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))

def work():
    with join_world(torch.device("cpu")) as world:
        model = build(KINDS["dit"].tiny)
        spread(model, world)
        model(torch.randn(2, *model.spec.sample_shape), torch.rand(2), torch.arange(2), model.spec.levels[-1])
        starve_gloo()
        world.any(True)

work()
print("worked")
end_rank()
"""


def test_a_rank_ends_well_while_a_thread_of_its_process_group_still_holds_a_tensor(tmp_path: Path) -> None:
    """Such a thread, which gets no time while others work on the one processor, would abort the end of Python."""
    script = tmp_path / "rank.py"
    script.write_text(RANK_WITH_SLOW_THREADS, encoding="utf-8")
    processor = str(min(os.sched_getaffinity(0)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        ["taskset", "-c", processor, *launcher, str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("worked") == 2  # each by itself, so one may come between another and its end of line


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["elit-dit", "elit-uvit", "elit-hdit", "elit-sit", "dit"])
def test_every_kind_is_spread(
    kind: str, make_recipe: MakeRecipe, start_training: Start, train_here: Train, read_losses: Losses, tmp_path: Path
) -> None:
    fields = KINDS[kind].tiny.config_fields()["backbone"]
    backbone = {name: value for name, value in fields.items() if name != "num_classes"}
    content = make_recipe(**SECTIONS, sampling={"guidance": {"method": "none"}}).model_dump(exclude={"backbone"})
    recipe = Recipe.model_validate(content | {"backbone": backbone})
    one, two = train_here(recipe, "one"), RunDirectory(tmp_path / "two")
    finished(start_training(recipe, two.path, ranks=2))
    assert_same(two, one, read_losses)


@pytest.mark.slow
def test_a_run_on_two_ranks_that_was_killed_goes_on_to_the_same_losses(
    make_recipe: MakeRecipe, start_training: Start, read_losses: Losses, tmp_path: Path
) -> None:
    """It would not have ended by itself, so that it is killed on its way however fast it is."""

    def of(steps: int) -> Recipe:
        return make_recipe(**{**SECTIONS, "training": {**SECTIONS["training"], "steps": steps}})

    whole, killed = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "killed")
    process = start_training(of(100_000), killed.path, ranks=2, start_new_session=True)
    deadline_s = time.monotonic() + 300
    while len(killed.steps()) < 2 and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    kill_all_of(process)
    done = killed.steps()[-1]
    assert done >= 8
    recipe = of(done + 6)
    finished(start_training(recipe, killed.path, "--resume", ranks=2))
    finished(start_training(recipe, whole.path, ranks=2))
    assert read_losses(killed) == read_losses(whole)
    ours, theirs = killed.load(), whole.load()
    for name, expected in theirs.ema.items():
        assert torch.equal(ours.ema[name], expected), name


def kill_all_of(process: subprocess.Popen[str]) -> None:
    """torchrun and the ranks that it started, which are in sessions of their own."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    for identity in (process.pid, *map(int, children)):
        subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(identity)], check=True)
    process.wait()
    process.communicate()

"""Model directories: what is written is what is read, and what is wrong is said at once."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from elit_serve.catalogue import read_config, resolve_model
from elit_serve.engine.checkpoint import load_checkpoint, spec_of, write_checkpoint
from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.files.config import ModelConfig, WeightsConfig
from elit_serve.nn import build


@pytest.fixture
def weights(tiny_config: ModelConfig) -> dict[str, Tensor]:
    return build(spec_of(tiny_config)).state_dict()


def edit_config(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))


def set_weights(path: Path, content: bytes | dict[str, Tensor]) -> None:
    """Replaces the weight file and its digest in the config, so that only its content is wrong."""
    file = path / "model.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        save_file(content, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    edit_config(path, lambda config: config["weights"].update(files={"model.safetensors": digest}))


def problems_of(path: Path) -> tuple[str, ...]:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value.problems


def test_weights_survive_the_round_trip(tiny_config: ModelConfig, weights: dict[str, Tensor], tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path / "model", tiny_config, weights)
    checkpoint = load_checkpoint(tmp_path / "model")
    assert checkpoint.config == written
    assert checkpoint.model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in checkpoint.model.state_dict().items())
    assert not checkpoint.model.training


def test_large_weights_are_sharded_with_an_index(
    tiny_config: ModelConfig, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "model"
    written = write_checkpoint(path, tiny_config, weights, max_shard_bytes=300_000)
    assert len(written.weights.files) > 2
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == weights.keys()
    assert set(index["weight_map"].values()) == set(written.weights.files)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights.values())
    loaded = load_checkpoint(path).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_on_disk_rounds_once(
    tiny_config: ModelConfig, weights: dict[str, Tensor], tmp_path: Path, dtype: Any
) -> None:
    config = tiny_config.model_copy(update={"weights": WeightsConfig(dtype=dtype, files=tiny_config.weights.files)})
    write_checkpoint(tmp_path / "model", config, weights)
    precision = getattr(torch, dtype)
    assert {t.dtype for t in load_file(tmp_path / "model" / "model.safetensors").values()} == {precision}
    loaded = load_checkpoint(tmp_path / "model").model.state_dict()
    assert all(torch.equal(loaded[name], tensor.to(precision).float()) for name, tensor in weights.items())


def test_the_hash_follows_the_weights_and_not_the_prose(
    tiny_config: ModelConfig, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "a", tiny_config, weights)
    write_checkpoint(tmp_path / "b", tiny_config.model_copy(update={"provenance": {"steps": 1}}), weights)
    write_checkpoint(tmp_path / "c", tiny_config, {name: tensor + 1 for name, tensor in weights.items()})
    a, b, c = (load_checkpoint(tmp_path / name).model_hash for name in "abc")
    assert a == b != c


def test_replacing_keeps_what_was_measured_and_leaves_nothing_behind(
    tiny_config: ModelConfig, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "model"
    write_checkpoint(path, tiny_config, weights, max_shard_bytes=300_000)
    (path / "README.md").write_text("card")
    with pytest.raises(InvalidInput, match="exists already"):
        write_checkpoint(path, tiny_config, weights)
    write_checkpoint(path, tiny_config, weights, replace=True)
    assert sorted(file.name for file in path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    load_checkpoint(path)


def test_replacing_keeps_the_files_of_folders_inside(
    tiny_config: ModelConfig, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "model"
    write_checkpoint(path, tiny_config, weights)
    (path / "autoencoder").mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (path / "autoencoder" / name).write_text("kept")
    write_checkpoint(path, tiny_config, weights, replace=True)
    assert len(list((path / "autoencoder").iterdir())) == 2


def test_a_replacement_that_fails_leaves_the_model_as_it_was(
    tiny_config: ModelConfig, weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    write_checkpoint(path, tiny_config, weights)
    before = load_checkpoint(path).model_hash

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    renames = iter([Path.rename, fail, Path.rename])  # the old one away, the new one in, the old one back
    monkeypatch.setattr(Path, "rename", lambda self, target: next(renames)(self, target))
    with pytest.raises(CheckpointError, match="No space left"):
        write_checkpoint(path, tiny_config, {name: tensor + 1 for name, tensor in weights.items()}, replace=True)
    assert load_checkpoint(path).model_hash == before
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_weights_of_another_backbone_are_not_written(
    tiny_config: ModelConfig, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="not those of the backbone"):
        write_checkpoint(tmp_path / "model", tiny_config, {**weights, "extra": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_file_is_named(tiny_model_dir: Path) -> None:
    file = tiny_model_dir / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    problems = problems_of(tiny_model_dir)
    assert "model.safetensors is truncated or altered" in problems[0]
    assert any("not a safetensors file" in problem for problem in problems)


def test_one_flipped_bit_is_noticed(tiny_model_dir: Path) -> None:
    file = tiny_model_dir / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert len(problems_of(tiny_model_dir)) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(tiny_model_dir: Path, name: str) -> None:
    (tiny_model_dir / name).unlink()
    (problem,) = problems_of(tiny_model_dir)
    assert name in problem


def test_a_directory_in_place_of_the_weights_is_named(tiny_model_dir: Path) -> None:
    (tiny_model_dir / "model.safetensors").unlink()
    (tiny_model_dir / "model.safetensors").mkdir()
    assert problems_of(tiny_model_dir) == ("model.safetensors cannot be read: Is a directory",)


def test_a_weight_file_that_cannot_be_read_is_named(tiny_model_dir: Path) -> None:
    file = tiny_model_dir / "model.safetensors"
    file.unlink()
    file.symlink_to("/proc/self/mem")  # a regular file by its looks, and every read of its start fails
    assert problems_of(tiny_model_dir) == ("model.safetensors cannot be read: Input/output error",)


class Trap:
    """Leaves a file behind if anybody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


@pytest.mark.parametrize("torch_format", [True, False])
def test_a_pickle_under_the_right_name_and_digest_is_never_loaded(
    tiny_model_dir: Path, tmp_path: Path, torch_format: bool
) -> None:
    file = tiny_model_dir / "model.safetensors"
    if torch_format:
        torch.save(Trap(tmp_path / "sprung"), file)
    else:
        file.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    set_weights(tiny_model_dir, file.read_bytes())
    (problem, *_) = problems_of(tiny_model_dir)
    assert "model.safetensors is not a safetensors file" in problem
    assert not (tmp_path / "sprung").exists()


def test_everything_wrong_with_the_tensors_is_listed_at_once(tiny_model_dir: Path) -> None:
    tensors = load_file(tiny_model_dir / "model.safetensors")
    tensors["latents"] = tensors["latents"][:2].clone()
    tensors["final.linear.bias"] = tensors["final.linear.bias"].half()
    tensors["foreign"] = torch.zeros(3)
    set_weights(tiny_model_dir, tensors)
    assert set(problems_of(tiny_model_dir)) == {
        "tensor latents has shape (2, 64), expected (4, 64)",
        "tensor final.linear.bias is F16, expected F32",
        "tensor foreign does not belong to this backbone",
    }


def test_missing_tensors_are_named(tiny_model_dir: Path) -> None:
    tensors = load_file(tiny_model_dir / "model.safetensors")
    del tensors["latents"]
    set_weights(tiny_model_dir, tensors)
    assert problems_of(tiny_model_dir) == ("tensor latents is missing",)


def test_a_foreign_checkpoint_gives_a_short_error(tiny_model_dir: Path) -> None:
    set_weights(tiny_model_dir, {f"unet.{i}.weight": torch.zeros(2) for i in range(50)})
    problems = problems_of(tiny_model_dir)
    assert len(problems) == 13
    assert problems[-1] == "and 38 more"


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", ".hidden.safetensors", "model.bin", "",
     "model.safetensors\n", "..\\model.safetensors", "model.safetensors/../../x.safetensors"],
)  # fmt: skip
def test_file_names_cannot_leave_the_directory(tiny_model_dir: Path, name: str) -> None:
    edit_config(tiny_model_dir, lambda config: config["weights"].update(files={name: "0" * 64}))
    (problem,) = problems_of(tiny_model_dir)
    assert problem.startswith("config.json: weights.files")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(colour="red"), "colour"),
        (lambda c: c["backbone"].update(window=4), "backbone.window"),
        (lambda c: c["sampling"]["guidance"].update(weight=4), "sampling.guidance.weight"),
        (lambda c: c.update(format_version=3), "format_version"),
        (lambda c: c.pop("conditions"), "conditions"),
        (lambda c: c.update(levels=[1, 2, 9]), "levels must lie in 1..4"),
        (lambda c: c.update(levels=[2, 1]), "levels must rise"),
        (lambda c: c.update(levels=[]), "levels"),
        (lambda c: c["conditions"].update(names=["daisy", "rose"]), "2 classes are named"),
        (lambda c: c["conditions"].update(names=["daisy", "rose", "rose"]), "class names must differ"),
        (lambda c: c["backbone"].update(height=33), "multiple of 8"),
        (lambda c: c["backbone"].update(dim=10**9), "backbone.dim"),
        (lambda c: c["backbone"]["interface"].update(core=7), "add up to depth"),
        (lambda c: c["backbone"].update(kind="mamba"), "backbone.kind: 'mamba' is not allowed; one of dit, elit-dit"),
        (lambda c: c["backbone"].pop("interface"), "backbone.interface: Field required"),
        (lambda c: c["backbone"]["interface"].update(window=[2, "2"]), "backbone.interface.window"),
        (lambda c: c.update(latents_per_group=9), "latents_per_group is 9, and the backbone has 4"),
        (lambda c: c.update(shapes={"32x33": [3, 32, 33]}), "shapes.32x33: width: 33 is not allowed"),
        (lambda c: c.update(shapes={"32x32": [4, 32, 32]}), "shapes.32x32: the backbone's samples have"),
        (lambda c: c.update(shapes={}), "shapes"),
        (lambda c: c.update(shapes={"a": [3, 32, 32], "b": [3, 32, 32]}), "shapes must differ in their sides"),
        (
            lambda c: (c["backbone"].update(positions="learned"), c.update(shapes={"wide": [3, 32, 64]})),
            "shapes.wide: height, width: [32, 64] is not allowed; positions are learned for (32, 32) alone",
        ),
        (lambda c: c["conditions"].update(kind="smell"), "conditions: its kind must be 'class' or 'text'"),
        (lambda c: c["autoencoder"].update(kind="wavelets"), "autoencoder.kind: 'wavelets' is not allowed; one of"),
        (lambda c: c["weights"].update(dtype="int8"), "weights.dtype"),
        (lambda c: c["weights"].update(files={}), "weights.files"),
        (lambda c: c["sampling"]["guidance"].update(scale=0.2), "guidance.scale"),
        (lambda c: c["sampling"]["guidance"].update(weak_level=7), "weak_level 7 is not a trained level"),
        (lambda c: c.update(name="../tiny"), "name"),
    ],
)
def test_what_is_wrong_in_the_config_is_named(
    tiny_model_dir: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    edit_config(tiny_model_dir, change)
    problems = problems_of(tiny_model_dir)
    assert all(problem.startswith("config.json") for problem in problems)
    assert words in "; ".join(problems)


def test_several_config_problems_come_in_one_error(tiny_model_dir: Path) -> None:
    edit_config(tiny_model_dir, lambda c: (c.update(colour="red"), c.update(name=""), c["backbone"].pop("patch")))
    assert len(problems_of(tiny_model_dir)) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_config_that_is_no_json_object_is_refused(tiny_model_dir: Path, content: bytes) -> None:
    (tiny_model_dir / "config.json").write_bytes(content)
    (problem,) = problems_of(tiny_model_dir)
    assert problem.startswith("config.json")


def test_a_huge_config_is_not_even_read(tiny_model_dir: Path) -> None:
    with (tiny_model_dir / "config.json").open("r+b") as file:
        file.truncate(100 << 20)
    assert "larger than" in problems_of(tiny_model_dir)[0]


def test_a_tensor_in_two_shards_is_refused(
    tiny_config: ModelConfig, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "model"
    write_checkpoint(path, tiny_config, weights)
    copy = path / "copy.safetensors"
    copy.write_bytes((path / "model.safetensors").read_bytes())
    digest = read_config(path).weights.files["model.safetensors"]
    edit_config(path, lambda config: config["weights"]["files"].update({copy.name: digest}))
    assert "is in two files" in problems_of(path)[0]


def test_the_default_model_is_the_bundled_one_in_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "garden64").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_config(resolve_model(None)).name == "garden64"


def test_a_model_is_found_by_path_or_refused_by_name(tiny_model_dir: Path) -> None:
    assert resolve_model(tiny_model_dir) == tiny_model_dir
    for name in ("no-such-model", "../no-such-model", "models/../no-such-model"):
        with pytest.raises(InvalidInput, match="a model directory, or a bundled model"):
            resolve_model(name)

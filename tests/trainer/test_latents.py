"""A data set that is encoded once: its latents, going on with them, and training from them."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from autoencoders import save_kl
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from elit_serve.cli import main
from elit_serve.engine.autoencoders.diffusers import DiffusersAutoencoder
from elit_serve.errors import DataError, InvalidInput, RunError
from elit_serve.files.latent_index import LatentIndex, read_latent_index
from elit_serve.trainer.data import DamageReport, PictureSet, RunOrder
from elit_serve.trainer.draws import to_unit
from elit_serve.trainer.encode import EncodeOptions, encode_data
from elit_serve.trainer.export import export
from elit_serve.trainer.latents import LatentSet
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory

CPU = torch.device("cpu")
SHAPE = (4, 8, 8)
OPTIONS = {"height": 32, "width": 32, "batch": 3, "per_shard": 10}

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_kl(tmp_path_factory.mktemp("autoencoder") / "vae", scaling_factor=0.5, shift_factor=0.1)


def encoded(data: Path, out: Path, autoencoder: Path, **changes: Any) -> LatentIndex:
    return encode_data(data, out, autoencoder, EncodeOptions(**{**OPTIONS, **changes}), device=CPU)


def opened(folder: Path) -> LatentSet:
    return LatentSet.open(folder, SHAPE, read_latent_index(folder).encoding.autoencoder_sha256)


@pytest.fixture
def latents(photographs: Path, autoencoder: Path, tmp_path: Path) -> Path:
    """24 photographs in shards of 10, 10 and 4."""
    encoded(photographs, tmp_path / "latents", autoencoder)
    return tmp_path / "latents"


@pytest.fixture
def latent_recipe(make_recipe: Callable[..., Recipe]) -> Recipe:
    return make_recipe(
        backbone={"channels": 4, "height": 8, "width": 8, "patch": 2},
        autoencoder={"kind": "diffusers"},
        data={"shift": 0},
        training={"steps": 4},
    )


def test_every_photograph_is_there_as_it_is_and_mirrored(latents: Path, photographs: Path, autoencoder: Path) -> None:
    index = read_latent_index(latents)
    assert [shard.count for shard in index.shards] == [10, 10, 4]
    assert index.classes == ("daisy", "rose", "tulip")
    assert (index.encoding.height, index.encoding.width, index.encoding.sample_shape) == (32, 32, SHAPE)
    stored, pictures = opened(latents), PictureSet.open(photographs, 32, 32)
    coder = DiffusersAutoencoder(autoencoder, CPU)
    assert [index.classes[label] for label in stored.labels.tolist()] == [p.label for p in pictures.photographs]
    samples = stored.samples(torch.arange(24))
    images = to_unit(torch.stack([pictures.picture(place) for place in range(24)]))
    assert torch.allclose(samples[:, 0].float(), coder.encode(images), atol=2e-3)
    assert torch.allclose(samples[:, 1].float(), coder.encode(images.flip(3)), atol=2e-3)


def test_memory_and_files_give_the_same_batches(latents: Path) -> None:
    stored = opened(latents)
    held = stored.in_memory(DamageReport(total=24, max_fraction=0), CPU)
    mapped = stored.streamed(0, pin_memory=False)
    order = RunOrder(batch=8, seed=3, rank=1, world=2)
    for ours, theirs, _ in zip(held.batches(order, 2), mapped.batches(order, 2), range(4), strict=False):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.condition, theirs.condition)
    rest, held_out = stored.split(0.25)
    assert (len(rest), len(held_out)) == (18, 6)
    assert torch.equal(held_out.samples(torch.tensor([0, 5])), stored.samples(torch.tensor([3, 23])))


def test_a_run_that_was_interrupted_goes_on_and_the_whole_is_the_same(
    latents: Path, photographs: Path, autoencoder: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    encoded(photographs, again, autoencoder)
    whole = (again / "index.json").read_text()
    (again / "index.json").unlink()  # as if it had been killed in the last shard
    (again / "shard-00002.safetensors").unlink()
    damaged = again / "shard-00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    kept = (again / "shard-00000.safetensors").stat().st_mtime_ns
    encoded(photographs, again, autoencoder)
    assert (again / "index.json").read_text() == whole
    assert (again / "shard-00000.safetensors").stat().st_mtime_ns == kept
    for shard in latents.glob("*.safetensors"):
        assert shard.read_bytes() == (again / shard.name).read_bytes()


def test_a_folder_of_another_encoding_is_not_written_over(latents: Path, photographs: Path, autoencoder: Path) -> None:
    before = sorted((file.name, file.stat().st_mtime_ns) for file in latents.iterdir())
    with pytest.raises(InvalidInput, match=r"out: .* latents of another encoding: height, width, sample_shape differ"):
        encoded(photographs, latents, autoencoder, height=16, width=16)
    assert sorted((file.name, file.stat().st_mtime_ns) for file in latents.iterdir()) == before


def test_what_cannot_be_encoded_is_refused_before_anything_is_written(
    photographs: Path, autoencoder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InvalidInput, match=r"--size: '30x32' is not allowed; sides that are multiples of 4"):
        encoded(photographs, out, autoencoder, width=30)
    with pytest.raises(InvalidInput, match=r"--autoencoder: .* no autoencoder in diffusers' format"):
        encoded(photographs, out, tmp_path / "none")
    with pytest.raises(DataError, match="does not exist"):
        encoded(tmp_path / "none", out, autoencoder)
    assert not out.exists()


def test_latents_of_classes_are_written_and_known_as_before_there_were_captions(latents: Path) -> None:
    told = json.loads((latents / "index.json").read_text(encoding="utf-8"))
    assert "captioned" not in told["encoding"]
    with safe_open(latents / "shard-00000.safetensors", framework="pt") as shard:
        assert json.loads(shard.metadata()["elit-serve"])["encoding"] == told["encoding"]
    known = json.dumps({name: told[name] for name in ("encoding", "classes", "shards")}, separators=(",", ":"))
    places = torch.arange(24).numpy().tobytes()
    assert opened(latents).digest == hashlib.sha256(known.encode() + places).hexdigest()


def test_damaged_pictures_are_left_out_and_named(
    make_photographs: Callable[..., Path], autoencoder: Path, tmp_path: Path
) -> None:
    folder = make_photographs(tmp_path / "damaged")
    (folder / "rose" / "002.png").write_text("not a picture")
    index = encoded(folder, tmp_path / "latents", autoencoder, max_corrupt=0.1)
    assert [name.split(":")[0] for name in index.damaged] == ["rose/002.png"]
    assert len(opened(tmp_path / "latents")) == 23
    with pytest.raises(DataError, match="1 of 24 pictures are damaged"):
        encoded(folder, tmp_path / "strict", autoencoder, max_corrupt=0.0)


def test_names_of_more_bytes_than_an_index_holds_are_refused(
    make_photographs: Callable[..., Path], autoencoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A letter that is not ASCII counts as its two bytes."""
    folder = make_photographs(tmp_path / "photographs", 2, ("\u00e4" * 20, "rose", "tulip"))
    monkeypatch.setattr("elit_serve.trainer.encode.MAX_JSON_BYTES", 2 * 60)
    with pytest.raises(DataError, match="has captions of 61 bytes in all, and an index names at most 60 of them"):
        encoded(folder, tmp_path / "latents", autoencoder)
    monkeypatch.setattr("elit_serve.trainer.encode.MAX_JSON_BYTES", 2 * 61)
    assert len(encoded(folder, tmp_path / "latents", autoencoder).classes) == 3


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_a_model_trains_from_latents_as_from_photographs(
    memory_gb: float,
    latents: Path,
    latent_recipe: Recipe,
    autoencoder: Path,
    train_here: Callable[..., RunDirectory],
    tmp_path: Path,
) -> None:
    """Up to what float16 keeps of a latent; the order, the draws and the mirroring are the same."""
    recipe = latent_recipe.model_copy(update={"data": latent_recipe.data.model_copy(update={"memory_gb": memory_gb})})
    stored = train_here(recipe, "stored", data=latents, autoencoder=autoencoder)
    seen = train_here(latent_recipe, "seen", autoencoder=autoencoder)
    ours, theirs = (
        [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()] for run in (stored, seen)
    )
    losses = [(mine["loss"], other["loss"]) for mine, other in zip(ours, theirs, strict=True) if "loss" in mine]
    assert len(losses) == 4
    assert all(mine == pytest.approx(other, rel=2e-3) for mine, other in losses)
    assert stored.facts().data.training_pictures == 18
    export(stored.path, tmp_path / "model", autoencoder=autoencoder)


def test_latents_of_two_sizes_lie_in_one_folder_and_are_trained_on_in_stages(
    latents: Path,
    photographs: Path,
    latent_recipe: Recipe,
    autoencoder: Path,
    train_here: Callable[..., RunDirectory],
    read_losses: Callable[[RunDirectory], dict[int, float]],
    tmp_path: Path,
) -> None:
    """Half as large at first: each step is as from photographs, and a run goes on."""
    table = latent_recipe.model_dump()
    table["data"] |= {"sizes": ["4x4"], "stages": [{"sizes": ["4x4"], "steps": 2}]}
    recipe, both = Recipe.model_validate(table), tmp_path / "both"
    shutil.copytree(latents, both / "32")
    with pytest.raises(DataError, match=r"other latents: they are 4 x 8 x 8, .* model is of 4 x 4 x 4"):
        train_here(recipe, data=both, autoencoder=autoencoder)
    encoded(photographs, both / "16", autoencoder, height=16, width=16)
    stored = train_here(recipe, "stored", data=both, autoencoder=autoencoder)
    seen = train_here(recipe, "seen", autoencoder=autoencoder)
    assert read_losses(stored) == pytest.approx(read_losses(seen), rel=2e-3)
    train_here(recipe, "stored", data=both, autoencoder=autoencoder, resume=True)

    shutil.copytree(both / "16", both / "again")
    with pytest.raises(DataError, match=r"one folder with latents of 4 x 4 x 4; 2 are: 16: 4 x 4 x 4; 32: 4 x 8 x 8"):
        train_here(recipe, "twice", data=both, autoencoder=autoencoder)
    shutil.rmtree(both / "again")
    shutil.rmtree(both / "16")
    fewer = shutil.copytree(photographs, tmp_path / "fewer")
    next(fewer.glob("*/*.png")).unlink()
    encoded(fewer, both / "16", autoencoder, height=16, width=16)
    with pytest.raises(DataError, match="32 and 16 are of other photographs"):
        train_here(recipe, "fewer", data=both, autoencoder=autoencoder)


def test_latents_of_another_autoencoder_or_size_are_refused_by_name(
    latents: Path,
    latent_recipe: Recipe,
    make_recipe: Callable[..., Recipe],
    autoencoder: Path,
    train_here: Callable[..., RunDirectory],
    tmp_path: Path,
) -> None:
    other = save_kl(tmp_path / "other", seed=7, scaling_factor=0.5, shift_factor=0.1)
    with pytest.raises(DataError, match=r"they were made by the autoencoder vae .*, and this one is"):
        train_here(latent_recipe, data=latents, autoencoder=other)
    larger = make_recipe(
        backbone={"channels": 4, "height": 16, "width": 16, "patch": 2},
        autoencoder={"kind": "diffusers"},
        data={"shift": 0},
    )
    with pytest.raises(
        DataError, match="they are 4 x 8 x 8, of pictures of 32x32, and the recipe's model is of 4 x 16"
    ):
        train_here(larger, data=latents, autoencoder=autoencoder)
    shifted = latent_recipe.model_copy(update={"data": make_recipe().data})
    with pytest.raises(InvalidInput, match=r"data\.shift: 2 is not allowed; 0 with latents"):
        train_here(shifted, data=latents, autoencoder=autoencoder)
    with pytest.raises(InvalidInput, match=r"--data: .* photographs: this recipe's autoencoder is pixels"):
        train_here(make_recipe(), data=latents)
    assert not (tmp_path / "run").exists()


def test_latents_without_mirrored_ones_are_for_recipes_that_mirror_none(
    photographs: Path,
    latent_recipe: Recipe,
    autoencoder: Path,
    train_here: Callable[..., RunDirectory],
    tmp_path: Path,
) -> None:
    encoded(photographs, tmp_path / "plain", autoencoder, mirrored=False)
    with pytest.raises(InvalidInput, match=r"data\.flip: .* encoded without mirrored ones"):
        train_here(latent_recipe, data=tmp_path / "plain", autoencoder=autoencoder)
    unmirrored = latent_recipe.model_copy(update={"data": latent_recipe.data.model_copy(update={"flip": False})})
    train_here(unmirrored, data=tmp_path / "plain", autoencoder=autoencoder)


def test_a_run_goes_on_and_is_exported_with_the_autoencoder_that_it_began_with(
    latents: Path,
    photographs: Path,
    latent_recipe: Recipe,
    autoencoder: Path,
    train_here: Callable[..., RunDirectory],
    tmp_path: Path,
) -> None:
    run = train_here(latent_recipe, data=latents, autoencoder=autoencoder)
    other = save_kl(tmp_path / "other", seed=7)
    with pytest.raises(RunError, match=r"the photographs are others.*the autoencoder is another"):
        train_here(latent_recipe, data=photographs, autoencoder=other, resume=True)
    with pytest.raises(InvalidInput, match=r"--autoencoder: .* the one that was trained behind"):
        export(run.path, tmp_path / "model", autoencoder=other)


def damage_shard(folder: Path) -> str:
    (folder / "shard-00001.safetensors").write_bytes(b"no tensors")
    return "shard-00001.safetensors cannot be read"


def cut_shard(folder: Path) -> str:
    file = folder / "shard-00000.safetensors"
    save_file({name: tensor[:5].contiguous() for name, tensor in load_file(file).items()}, file)
    return "shard-00000.safetensors is not what"


def damage_index(folder: Path) -> str:
    (folder / "index.json").write_text("{}")
    return "index.json: "


@pytest.mark.parametrize("damage", [damage_shard, cut_shard, damage_index])
def test_damaged_latents_are_one_clear_error(damage: Callable[[Path], str], latents: Path, tmp_path: Path) -> None:
    digest = read_latent_index(latents).encoding.autoencoder_sha256
    copied = Path(shutil.copytree(latents, tmp_path / "copied"))
    problem = damage(copied)
    with pytest.raises(DataError) as caught:
        LatentSet.open(copied, SHAPE, digest)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_encodes_and_says_how_many(
    photographs: Path,
    autoencoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [
        "encode",
        photographs,
        tmp_path / "out",
        "--autoencoder",
        autoencoder,
        "--size",
        "32x24",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr(sys, "argv", ["elit-serve", *map(str, command)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    assert capsys.readouterr().out.endswith("24 latents of 3 classes\n")
    assert read_latent_index(tmp_path / "out").encoding.sample_shape == (4, 6, 8)

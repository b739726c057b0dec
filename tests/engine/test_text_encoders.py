"""Encoders of prompts: what they make, what they remember, and what is wrong with their files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from text_encoders import save_clip, save_t5, save_tokenizer
from text_models import DIM, MAX_TOKENS, Letters, text_config

from elit_serve.engine.text_encoders import CachedEncoder, encoder_problems, open_encoder
from elit_serve.errors import CheckpointError
from elit_serve.files.config import TextConfig, TextEncoderConfig
from elit_serve.nn.text import TextTokens

CPU = torch.device("cpu")
STRANGE = ["", " ", "x" * 10_000, "牡丹 и роза", "rose\0\x07\n\u202e", "👩‍🌾"]


def of_transformers(**fields: object) -> TextConfig:
    return text_config(encoder=TextEncoderConfig(kind="transformers", **fields))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model with a T5 as its encoder; no test may change it."""
    model = tmp_path_factory.mktemp("encoders")
    save_t5(model)
    save_tokenizer(model)
    return model


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_an_encoder_of_transformers_tells_what_its_model_does(folder: Path) -> None:
    from transformers import T5EncoderModel

    encoder = open_encoder(of_transformers(), folder, CPU)
    tokens = TextTokens.of(encoder.encode(["ab", "abcdefghij"]))
    assert tokens.mask.sum(dim=1).tolist() == [3, MAX_TOKENS]
    with torch.inference_mode():
        expected = T5EncoderModel.from_pretrained(folder / "text_encoder")(torch.tensor([[3, 4, 1]])).last_hidden_state
    torch.testing.assert_close(tokens.states[0, :3], expected[0])


def test_any_encoder_of_transformers_will_do(damaged: Path) -> None:
    shutil.rmtree(damaged / "text_encoder")
    save_clip(damaged)
    encoded = open_encoder(of_transformers(), damaged, CPU).encode(["ab"])
    assert encoded.shape == (1, MAX_TOKENS, DIM + 1)
    earlier = open_encoder(of_transformers(layer=-2), damaged, CPU).encode(["ab"])
    assert not torch.allclose(encoded, earlier)


@pytest.mark.parametrize("kind", ["transformers", "wordllama"])
def test_any_text_is_encoded_alone_as_beside_others(folder: Path, kind: str) -> None:
    dim = DIM if kind == "transformers" else 256
    config = text_config(encoder=TextEncoderConfig(kind=kind)).model_copy(update={"dim": dim, "max_tokens": 12})
    encoded = open_encoder(config, folder, CPU).encode(STRANGE)
    assert bool(encoded.isfinite().all())
    for text, tokens in zip(STRANGE, encoded, strict=True):
        (alone,) = open_encoder(config, folder, CPU).encode([text])
        torch.testing.assert_close(alone, tokens, atol=1e-5, rtol=1e-5)


def test_words_that_a_package_carries_are_told_apart_and_come_again(folder: Path) -> None:
    config = text_config(encoder=TextEncoderConfig(kind="wordllama")).model_copy(update={"dim": 256})
    encoder = open_encoder(config, folder, CPU)
    rose, tulip, again = encoder.encode(["a rose", "a tulip", "a rose"])
    assert torch.equal(rose, again)
    assert not torch.equal(rose, tulip)
    assert not encoder.encode([""]).any()


def test_a_prompt_is_encoded_once_as_long_as_there_is_room() -> None:
    letters = Letters()
    of_one = MAX_TOKENS * (DIM + 1) * 4
    encoder = CachedEncoder(letters, max_bytes=2 * of_one)
    encoder.encode(["a", "b", "a"])
    encoder.encode(["b", "c"])
    assert letters.calls == [["a", "b"], ["c"]]
    assert [encoder.knows(prompt) for prompt in "abc"] == [False, True, True]


def test_a_thousand_prompts_at_once_take_a_few_at_a_time_and_leave_what_is_allowed() -> None:
    letters = Letters()
    encoder = CachedEncoder(letters, max_bytes=10 * MAX_TOKENS * (DIM + 1) * 4)
    prompts = [f"rose {number}" for number in range(1000)]
    encoded = encoder.encode(prompts)
    assert torch.equal(encoded, torch.cat([Letters().encode([prompt]) for prompt in prompts]))
    assert max(map(len, letters.calls)) <= 32
    assert sum(map(encoder.knows, prompts)) == 10


class RoomForThree(Letters):
    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        encoded = super().encode(prompts)
        if len(prompts) > 3 or "x" in prompts:
            raise torch.OutOfMemoryError("no room")
        return encoded


def test_where_memory_does_not_suffice_fewer_prompts_are_encoded_at_a_time() -> None:
    letters = RoomForThree()
    encoder = CachedEncoder(letters)
    prompts = list("abcdefghij")
    assert torch.equal(encoder.encode(prompts), Letters().encode(prompts))
    assert sorted(map(len, letters.calls)) == [2, 2, 3, 3, 5, 5, 10]
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode(["k", "x"])


def test_a_cache_without_room_still_encodes() -> None:
    encoder = CachedEncoder(Letters(), max_bytes=0)
    assert torch.equal(*encoder.encode(["a", "a"]))
    assert not encoder.knows("a")


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        (
            {"kind": "oracle"},
            "conditions.encoder.kind: 'oracle' is not allowed; one of diffusers, transformers, wordllama",
        ),
        ({"kind": "wordllama", "size": 3}, "conditions.encoder.size"),
        ({"kind": "transformers", "layer": "last"}, "conditions.encoder.layer: 'last' is not allowed"),
    ],
)
def test_what_a_configuration_says_of_an_encoder_is_checked(encoder: dict[str, object], words: str) -> None:
    (problem,) = encoder_problems(TextEncoderConfig.model_validate(encoder))
    assert words in problem


def _with_architecture(model: Path, name: object) -> None:
    file = model / "text_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "architectures": name}))


def _foreign_weights(model: Path) -> None:
    (model / "text_encoder" / "model.safetensors").write_bytes(
        (save_clip(model.parent / "x") / "model.safetensors").read_bytes()
    )


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda model: (model / "text_encoder" / "model.safetensors").unlink(), "text_encoder/"),
    (lambda model: (model / "text_encoder" / "model.safetensors").write_bytes(b"\x80\x04."), "text_encoder/"),
    (lambda model: (model / "text_encoder" / "model.safetensors").rename(model / "text_encoder" / "pytorch_model.bin"),
     "text_encoder/"),
    (_foreign_weights, "text_encoder/: its weights lack"),
    (lambda model: (model / "text_encoder" / "config.json").write_text("{"), "text_encoder/"),
    (lambda model: (model / "text_encoder" / "config.json").unlink(), "text_encoder/"),
    (lambda model: shutil.rmtree(model / "text_encoder"), "text_encoder/"),
    (lambda model: shutil.rmtree(model / "tokenizer"), "tokenizer/"),
    (lambda model: (model / "tokenizer" / "tokenizer.json").write_text("[]"), "tokenizer/"),
    (lambda model: _with_architecture(model, ["T5ForConditionalGeneration"]), "architectures: ['T5ForConditionalGen"),
    (lambda model: _with_architecture(model, ["os.system"]), "architectures: ['os.system'] is not allowed"),
    (lambda model: _with_architecture(model, 3), "architectures: 3 is not allowed"),
    (lambda model: _with_architecture(model, None), "architectures: None is not allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_what_is_wrong_with_an_encoder_is_told_in_one_error(
    damaged: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(damaged)
    with pytest.raises(CheckpointError) as wrong:
        open_encoder(of_transformers(), damaged, CPU)
    (problem,) = wrong.value.problems
    assert words in problem


def test_an_encoder_of_another_width_is_refused(folder: Path) -> None:
    config = of_transformers().model_copy(update={"dim": 9})
    with pytest.raises(CheckpointError, match=r"dim is 9, and tokens of text_encoder/ are 8 wide"):
        open_encoder(config, folder, CPU)
    config = text_config(encoder=TextEncoderConfig(kind="wordllama"))
    with pytest.raises(CheckpointError, match=r"dim is 8, and tokens of wordllama are 256 wide"):
        open_encoder(config, folder, CPU)

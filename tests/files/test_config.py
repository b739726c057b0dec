"""`config.json`: version 1 is read as version 2, hashes stay, and all of it is known without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from elit_serve.catalogue import cost_table, read_config, read_offer, resolve_model
from elit_serve.engine.checkpoint import spec_problems
from elit_serve.files.config import BackboneConfig, ModelConfig, TextConfig
from elit_serve.files.latency import read_latency
from elit_serve.files.quality import read_quality
from elit_serve.files.validation import problems_in

VERSION_1 = Path(__file__).parent / "garden64_version_1.json"
GARDEN = resolve_model("garden64")


def version_1(**changes: Any) -> bytes:
    return json.dumps({**json.loads(VERSION_1.read_text(encoding="utf-8")), **changes}).encode()


def test_version_1_is_read_as_the_present_one() -> None:
    before, now = ModelConfig.read(VERSION_1.read_bytes()), read_config(GARDEN)
    own = {"backbone", "sampling", "provenance", "weights"}  # other weights are shipped since
    assert before.model_dump(exclude=own) == now.model_dump(exclude=own)
    assert before.model_hash == "83077bdd3c98"
    assert json.loads((GARDEN / "config.json").read_text(encoding="utf-8"))["format_version"] == 2


def test_hashes_are_those_that_measured_files_carry() -> None:
    config = read_config(GARDEN)
    assert config.model_hash == read_quality(GARDEN / "quality.json").model_hash == "d3e21ab07405"
    assert config.backbone_hash == read_latency(GARDEN / "latency" / "nvidia-h200.json").backbone_hash


def test_a_default_that_is_spelled_out_changes_no_hash() -> None:
    config = read_config(GARDEN)
    fields = {**config.backbone.fields, "positions": "rope", "zeros_between": 0}
    spelled = config.model_copy(update={"backbone": BackboneConfig(kind="elit-dit", **fields)})
    assert (spelled.model_hash, spelled.backbone_hash) == (config.model_hash, config.backbone_hash)


def test_kinds_that_version_1_had_not_are_part_of_the_hash() -> None:
    config = read_config(GARDEN)
    one, other = (
        config.model_copy(update={"backbone": BackboneConfig(kind=kind, **config.backbone.fields)})
        for kind in ("mamba", "u-net")
    )
    assert len({config.backbone_hash, one.backbone_hash, other.backbone_hash}) == 3


def test_version_1_may_say_that_it_pads_nothing_and_no_more() -> None:
    backbone = json.loads(VERSION_1.read_text(encoding="utf-8"))["backbone"]
    assert "padding" not in ModelConfig.read(version_1(backbone={**backbone, "padding": 0})).backbone.fields
    with pytest.raises(ValidationError, match="padding"):
        ModelConfig.read(version_1(backbone={**backbone, "padding": 8}), spec_problems)


def test_version_1_without_an_interface_is_a_plain_dit() -> None:
    old = json.loads(VERSION_1.read_text(encoding="utf-8"))
    backbone = {**old["backbone"], "interface": None}
    sampling = {**old["sampling"], "guidance": {"method": "cfg", "scale": 2.0}}
    config = ModelConfig.read(version_1(backbone=backbone, levels=[1], sampling=sampling))
    assert (config.backbone.kind, config.latents_per_group) == ("dit", 1)
    assert "interface" not in config.backbone.fields


@pytest.mark.parametrize(
    "content", ["[]", "7", '{"backbone": 7, "classes": {"a": 1}}', '{"backbone": {"height": "x"}}']
)
def test_what_is_no_version_1_is_refused_and_not_stumbled_over(content: str) -> None:
    with pytest.raises(ValidationError):
        ModelConfig.read(content.encode())


def test_what_a_model_offers_is_read_without_torch() -> None:
    program = """
import sys
from elit_serve.catalogue import cost_table, read_offer, resolve_model
from elit_serve.files.latency import read_latency

offer = read_offer(resolve_model("garden64"))
assert offer.quality.table.plans
cost_table(read_latency(offer.path / "latency" / "nvidia-h200.json"))
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_an_offer_has_names_sizes_levels_plans_and_costs() -> None:
    offer = read_offer(GARDEN)
    assert offer.config.default_shape == ("64x64", (3, 64, 64))
    assert offer.config.budgets.level_of(0.25) == 4
    assert offer.quality is not None
    assert len(offer.config.classes) == 40
    table = cost_table(read_latency(GARDEN / "latency" / "nvidia-h200.json"), "64x64")
    assert table.shapes == ("64x64",)


TEXT = {
    "kind": "text",
    "encoder": {"kind": "transformers"},
    "dim": 8,
    "max_tokens": 6,
    "examples": ["a red tulip"],
}


def with_conditions(conditions: object, **backbone: object) -> bytes:
    config = json.loads((GARDEN / "config.json").read_text(encoding="utf-8"))
    return json.dumps({**config, "conditions": conditions, "backbone": {"kind": "toy", **backbone}}).encode()


def test_conditions_without_a_kind_are_classes() -> None:
    assert ModelConfig.read(with_conditions({"names": ["rose"]}, num_classes=1)).classes == ("rose",)


def test_a_model_may_be_of_prompts() -> None:
    config = ModelConfig.read(with_conditions({**TEXT, "encoder": {"kind": "x", "depth": 3}}, text_dim=8, max_tokens=6))
    assert isinstance(config.conditions, TextConfig)
    assert (config.classes, config.conditions.negative) == ((), False)
    assert config.conditions.encoder.fields == {"depth": 3}
    assert ModelConfig.read(config.model_dump_json().encode()) == config


def test_steps_cost_what_the_length_of_prompts_makes_of_them() -> None:
    one, other = (
        ModelConfig.read(with_conditions({**TEXT, "max_tokens": tokens}, text_dim=8, max_tokens=tokens))
        for tokens in (6, 60)
    )
    assert one.backbone_hash != other.backbone_hash


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"kind": "smell"}, "its kind must be 'class' or 'text'"),
        ([], "its kind must be 'class' or 'text'"),
        ({**TEXT, "dim": 9}, "conditions.dim is 9, and the backbone's text_dim 8"),
        ({**TEXT, "max_tokens": 7}, "conditions.max_tokens is 7, and the backbone's max_tokens 6"),
        ({**TEXT, "max_tokens": 0}, "conditions.text.max_tokens"),
        ({**TEXT, "examples": []}, "conditions.text.examples"),
        ({**TEXT, "examples": ["x" * 10_001]}, "conditions.text.examples"),
        ({**TEXT, "encoder": {"kind": "../x"}}, "conditions.text.encoder.kind"),
        ({**TEXT, "encoder": {}}, "conditions.text.encoder.kind"),
        ({**TEXT, "names": ["rose"]}, "conditions.text.names"),
        ({"kind": "text"}, "conditions.text.encoder"),
        ({"kind": "class", "names": ["rose"]}, "1 classes are named, the backbone has None"),
    ],
)
def test_what_is_wrong_with_conditions_is_named(conditions: object, words: str) -> None:
    with pytest.raises(ValidationError) as wrong:
        ModelConfig.read(with_conditions(conditions, text_dim=8, max_tokens=6))
    assert words in "; ".join(problems_in(wrong.value))

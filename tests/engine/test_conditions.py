"""Which condition a text means, and where the device keeps it."""

from __future__ import annotations

from unicodedata import normalize

import pytest
import torch

from elit_serve.engine.checkpoint import spec_of
from elit_serve.engine.conditions import ClassCondition, ClassConditions
from elit_serve.errors import InvalidInput
from elit_serve.files.config import ModelConfig
from elit_serve.nn import build

NAMES = ClassConditions(["daisy", "Löwenzahn", "bell-pepper", "Straße", "7", "IT", "it"], model="meadow")


@pytest.mark.parametrize(
    ("label", "class_id"),
    [
        ("daisy", 0),
        (" Daisy\n", 0),
        ("löwenzahn", 1),
        (normalize("NFD", "LÖWENZAHN"), 1),
        ("Bell pepper", 2),
        ("bell\N{NO-BREAK SPACE}pepper", 2),
        ("STRASSE", 3),
        ("7", 4),  # a name comes before a number
        ("3", 3),
        (3, 3),
        ("IT", 5),
        ("it", 6),
    ],
)
def test_a_class_is_found_by_its_name_however_spelled_or_by_its_number(label: str | int, class_id: int) -> None:
    assert NAMES.named(label) is NAMES[class_id]


NO_CLASSES = ["", "rose", "It", "8", "9" * 19, "9" * 5000, "-1", "+1", "1_0", "٣", "²", 7, -1, 10**5000]


def test_what_names_no_class_is_refused() -> None:
    """`It` might be either of two."""
    for label in NO_CLASSES:
        with pytest.raises(InvalidInput) as refused:
            NAMES.named(label, field="prompt")
        assert refused.value.field == "prompt"
        assert len(str(refused.value)) < 300


def test_the_nearest_names_are_told() -> None:
    with pytest.raises(InvalidInput, match="the nearest is daisy"):
        NAMES.named("dasiy", field="label")
    with pytest.raises(InvalidInput, match="from 0 to 6"):
        NAMES.named("8", field="label")


@pytest.mark.parametrize(
    ("label", "class_id"),
    [
        ("tench, Tinca tinca", 0),
        ("Tinca tinca", 0),
        ("TENCH", 0),
        ("maillot", 1),  # a whole name comes before a synonym
        ("Maillot", 1),
        ("tank suit", 2),
    ],
)
def test_commas_separate_the_synonyms_of_a_class(label: str, class_id: int) -> None:
    names = ClassConditions(["tench, Tinca tinca", "maillot", "maillot, tank suit", "crane, heron", "crane"], model="m")
    assert names.named(label).class_id == class_id


def test_a_synonym_of_two_classes_names_none() -> None:
    names = ClassConditions(["garden, yard", "court, yard"], model="m")
    with pytest.raises(InvalidInput, match=r"nearest (is|are) .*yard"):
        names.named("yard")


def test_a_prompt_is_a_name_and_no_number() -> None:
    assert NAMES.prompted("bell pepper") is NAMES[2]
    assert NAMES.prompted("7") is NAMES[4]
    with pytest.raises(InvalidInput, match="a class id goes into label"):
        NAMES.prompted(" 3 ")


def test_a_class_names_itself_again() -> None:
    assert NAMES[3].facts() == {"label": "Straße", "class_id": 3}
    assert all(NAMES.named(each.words) == each == ClassCondition(**_fields(each)) for each in NAMES)


def _fields(condition: ClassCondition) -> dict[str, object]:
    facts = condition.facts()
    return {"class_id": facts["class_id"], "name": facts["label"]}


def test_slots_tell_the_model_the_class_of_each_picture_and_of_none(tiny_config: ModelConfig) -> None:
    slots = NAMES.slots(3, build(spec_of(tiny_config)))
    slots.put([0, 2], [NAMES[6], NAMES[1]])
    assert slots.at(torch.tensor([2, slots.without(2), 0])).tolist() == [1, 7, 6]
    slots.put([2], [NAMES[5]])
    assert slots.at(torch.tensor([2, slots.without(0)])).tolist() == [5, 7]

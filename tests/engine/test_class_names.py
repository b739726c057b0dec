"""Which class a text means."""

from __future__ import annotations

from unicodedata import normalize

import pytest

from elit_serve.engine.class_names import ClassNames
from elit_serve.errors import InvalidInput

NAMES = ClassNames(["daisy", "Löwenzahn", "bell-pepper", "Straße", "7", "IT", "it"], model="meadow")


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
    assert NAMES.id_of(label, field="label") == class_id


NO_CLASSES = ["", "rose", "It", "8", "9" * 19, "9" * 5000, "-1", "+1", "1_0", "٣", "²", 7, -1, 10**5000]


def test_what_names_no_class_is_refused() -> None:
    """`It` might be either of two."""
    for label in NO_CLASSES:
        with pytest.raises(InvalidInput) as refused:
            NAMES.id_of(label, field="prompt")
        assert refused.value.field == "prompt"
        assert len(str(refused.value)) < 300


def test_the_nearest_names_are_told() -> None:
    with pytest.raises(InvalidInput, match="the nearest is daisy"):
        NAMES.id_of("dasiy", field="label")
    with pytest.raises(InvalidInput, match="from 0 to 6"):
        NAMES.id_of("8", field="label")

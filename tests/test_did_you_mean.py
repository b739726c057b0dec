"""Names that were meant are named; names that were not are not."""

from __future__ import annotations

import pytest

from elit_serve.catalogue import read_config, resolve_model
from elit_serve.server.settings import Settings
from elit_serve.text.spelling import Names


@pytest.mark.parametrize(
    ("written", "meant"),
    [("prot", "port"), ("batch", "max_batch"), ("drain_second", "drain_seconds"), ("apikey", "api_key")],
)
def test_a_setting_that_is_near_is_named(written: str, meant: str) -> None:
    assert Names(Settings.model_fields).like(written) == [meant]


@pytest.mark.parametrize("written", ["quality", "workers", "gpu", "verbose", "cache", "x", ""])
def test_none_is_named_where_none_is_near(written: str) -> None:
    assert Names(Settings.model_fields).like(written) == []


def test_classes_are_named_by_the_same_measure() -> None:
    classes = Names(read_config(resolve_model("garden64")).classes)
    assert classes.like("tuplip", at_most=3) == ["tulip"]
    for strange in ("dog", "house", "xyz", "spaceship"):
        assert classes.like(strange, at_most=3) == []

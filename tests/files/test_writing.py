"""A file is there whole or not at all, and what cannot be written is one clear error."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
import torch

from elit_serve.errors import InvalidInput, RunError
from elit_serve.evaluation.features.cache import FeatureCache, Sampled
from elit_serve.evaluation.features.extractor import Described
from elit_serve.files.writing import check_file, write_whole
from elit_serve.trainer.run_lock import locked


@contextmanager
def no_room() -> Iterator[None]:
    """No file takes a byte, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_without_room_what_was_there_stays_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    write_whole(file, "before\n")
    with no_room(), pytest.raises(InvalidInput, match=r"out: .*it cannot be written: File too large"):
        write_whole(file, "after\n")
    assert file.read_text() == "before\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_leads_to_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    check_file(pipe)
    write_whole(pipe, "text")
    reader.join()
    assert read == ["text"]
    assert pipe.is_fifo()


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"records: .*a file; this is a folder"):
        check_file(tmp_path, field="records")


def test_a_run_whose_lock_has_no_room_is_told_so(tmp_path: Path) -> None:
    with no_room(), pytest.raises(RunError, match=r"lock cannot be written: File too large"), locked(tmp_path):
        pass


def test_features_that_have_no_room_leave_no_part_of_a_file(tmp_path: Path) -> None:
    sampled = Sampled(described=Described(features=torch.zeros(4, 2)), sampling_seconds=1.0)
    with no_room(), pytest.raises(InvalidInput, match=r"out: .*cannot be written"):
        FeatureCache(tmp_path).write({"set": 1}, sampled)
    assert not list(tmp_path.iterdir())

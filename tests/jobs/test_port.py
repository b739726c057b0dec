"""Jobs where somebody else than the server makes their pictures: all that they need of them is a port."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from elit_serve.engine.picture import StepRun
from elit_serve.errors import EngineStopped, GenerationFailed
from elit_serve.http.schemas import GeneratedImage, GenerateRequest, GenerateResponse
from elit_serve.jobs.desk import JobDesk
from elit_serve.jobs.schemas import JobInfo, JobRequest


def drawn(request: GenerateRequest) -> GenerateResponse:
    milliseconds: dict[str, Any] = {"queue_ms": 1, "compute_ms": 2, "encode_ms": 3, "gflops": 4, "device_ms": 5}
    facts: dict[str, Any] = {"level": 1, "budget": 1, "levels": [1], "quality": None, **milliseconds}
    images = [GeneratedImage(b64_json=b"drawn", seed=(request.seed or 0) + i, **facts) for i in range(request.n)]
    return GenerateResponse(
        model="painter",
        model_hash="0",
        dtype="oil",
        label=str(request.label),
        class_id=0,
        output_format="png",
        steps=1,
        guidance={"method": "none", "scale": 1, "weak_budget": None, "interval": [0, 1]},
        priority=request.priority,
        latency_ms=None,
        promised=False,
        deadline_met=None,
        finished_early=False,
        total_ms=6,
        quality=None,
        expected_quality=None,
        images=images,
        **milliseconds,
    )


class Painter:
    """Draws at once, or says why not."""

    is_open = is_ready = True
    has_died = False
    max_batch = 2

    def __init__(self) -> None:
        self.owners: list[str | None] = []
        self.trouble: Exception | None = None

    def output_format(self, _: GenerateRequest) -> str:
        return "png"

    def check(self, _: GenerateRequest) -> None:
        pass

    def picture_s(self, _: GenerateRequest) -> float:
        return 1.0

    def refused(self, request: GenerateRequest, error: Exception) -> None:
        pass

    def submit(
        self, request: GenerateRequest, *, owner: str | None, on_step: Callable[[StepRun], None], **_: object
    ) -> SimpleNamespace:
        future: Future[None] = Future()
        self.owners.append(owner)
        on_step(StepRun(seed=request.seed or 0, number=1, num_steps=1, level=1))
        future.set_result(None)

        def answer() -> GenerateResponse:
            if self.trouble is not None:
                raise self.trouble
            return drawn(request)

        return SimpleNamespace(future=future, answer=answer)


@contextmanager
def open_desk(painter: Painter, folder: Path) -> Iterator[JobDesk]:
    settings = SimpleNamespace(
        results=str(folder),
        results_bytes=1 << 20,
        results_seconds=60.0,
        database=None,
        max_jobs=10,
        webhook_host=(),
        webhook_secret_file=None,
    )
    desk = JobDesk(painter, settings, CollectorRegistry())
    desk.start()
    try:
        yield desk
    finally:
        desk.stop()
        desk.close()


def ended(desk: JobDesk, job: JobInfo) -> JobInfo:
    deadline_s = time.monotonic() + 30
    while (now := desk.get(job.id, "ada")).ended_at is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    return now


def test_a_job_is_stored_handed_on_and_kept(tmp_path: Path) -> None:
    painter = Painter()
    with open_desk(painter, tmp_path) as desk:
        job = desk.accept(JobRequest(label="tulip", n=2, seed=4), "ada", None)
        done = ended(desk, job)
        assert (done.state, done.files, painter.owners) == ("done", "kept", ["ada"])
        assert done.result is not None
        assert [image.seed for image in done.result.images] == [4, 5]
        assert desk.picture(job.id, "ada", 1) == (b"drawn", "image/png")


def test_what_goes_wrong_is_told_as_a_problem(tmp_path: Path) -> None:
    painter = Painter()
    painter.trouble = GenerationFailed("the brush broke")
    with open_desk(painter, tmp_path) as desk:
        failed = ended(desk, desk.accept(JobRequest(label="tulip"), "ada", None))
    assert failed.state == "failed"
    assert failed.error is not None
    assert (failed.error.status, failed.error.detail) == (500, "the brush broke")


def test_who_takes_no_work_is_sent_none(tmp_path: Path) -> None:
    painter = Painter()
    painter.is_open = False
    with open_desk(painter, tmp_path) as desk, pytest.raises(EngineStopped):
        desk.accept(JobRequest(label="tulip"), "ada", None)


def test_jobs_bring_nothing_of_the_server_with_them() -> None:
    program = (
        "import sys, elit_serve.jobs.routes; sys.exit(any(n.startswith('elit_serve.server') for n in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

"""What several processes of one server have counted, told by whichever of them is asked.

Each writes what it has counted into a folder of all, once a second. Whoever is asked adds what the others have written
to its own, every sample with a label that says whose it is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
STALE_S = 5.0  # what is older was written by a process that has ended
LABEL = "ingress"


class SharedMetrics:
    """render: gives what this process has counted. name: of this process, the value of its label."""

    def __init__(self, folder: Path, name: str, render: Callable[[], bytes]) -> None:
        self._folder = folder
        self._name = name
        self._render_own = render

    def render(self) -> bytes:
        """The text that Prometheus scrapes, of all."""
        texts = {self._name: self._render_own().decode()}
        for file in self._folder.glob("*.metrics"):
            if file.stem != self._name and time.time() - file.stat().st_mtime < STALE_S:
                texts[file.stem] = file.read_text(encoding="utf-8")
        registry = CollectorRegistry()
        registry.register(_Merged(texts))
        return generate_latest(registry)

    @contextmanager
    def written(self) -> Iterator[None]:
        """Within it the others are told what this process counts."""
        is_over = threading.Event()
        thread = threading.Thread(target=self._write_until, args=(is_over,), name="elit-shared-metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            self._file.unlink(missing_ok=True)

    @property
    def _file(self) -> Path:
        return self._folder / f"{self._name}.metrics"

    def _write_until(self, is_over: threading.Event) -> None:
        beside = self._file.with_suffix(".writing")
        while not is_over.wait(PERIOD_S):
            try:
                beside.write_bytes(self._render_own())
                beside.replace(self._file)
            except OSError as error:
                logger.warning("others are not told what was counted here: %s", error)


class _Merged(Collector):
    """Families of several processes, each once."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for name, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.add_sample(sample.name, {**sample.labels, LABEL: name}, sample.value)
        return families.values()

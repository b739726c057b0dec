"""Steps and decoding as CUDA graphs: captured once for a named set of levels and batches, then replayed without launch
costs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from elit_serve.engine.executor.slots import Drawing, Executor, Inputs, RunningStep, Transfer, are_finite, split_samples
from elit_serve.engine.picture import Picture
from elit_serve.errors import GenerationFailed
from elit_serve.nn.compiling import compile_blocks, why_not
from elit_serve.plans.step_kind import StepKind

logger = logging.getLogger(__name__)

# cuDNN's attention is half as fast again as FlashAttention-2 at head size 72 on Hopper; the next takes what it refuses
ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
IDLE: Inputs = np.array([[0.0], [0.0], [0.0], [1.0], [0.5], [0.0], [1.0], [0.0]], np.float32)  # nothing, at level 1
PAGES = 8  # more than the launches of a server that may be on their way, so that it never waits for one


class GraphExecutor(Executor):
    """An executor whose launches return at once: captured steps are replayed, others are enqueued kernel by kernel.

    All runs on one stream: what a decoder takes is taken from steps in either way, so it is known when each begins and
    ends, and the graphs of both share their memory.
    """

    is_asynchronous = True

    def __init__(self, drawing: Drawing, *, num_slots: int, keeps: bool = False) -> None:
        super().__init__(drawing, num_slots=num_slots, keeps=keeps)
        self._steps = _stream(self._device)
        self._graphs: dict[tuple[StepKind, int], torch.cuda.CUDAGraph] = {}
        self._inputs_of: dict[int, _GraphInputs] = {}  # by the batch of the graphs that read them
        self._batches: list[int] = []
        self._decodings: dict[tuple[torch.Size, int], _Decoding] = {}  # by the size of a sample and the batch
        self._pool = torch.cuda.graph_pool_handle()  # one for all: graphs run one after another, so they share memory
        self._model.side_stream = _stream(self._device)
        self._steps.wait_stream(torch.cuda.current_stream(self._device))

    @torch.inference_mode()
    def capture(
        self, wanted: Sequence[tuple[StepKind, int]], on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Captures graphs; `on_progress` is told how many of how many are done."""
        self._compile()
        self._batches = sorted({*self._batches, *(batch for _, batch in wanted)})
        for count, (kind, batch) in enumerate(wanted):
            self._capture(self._as_run(kind), batch)
            if on_progress is not None:
                on_progress(count + 1, len(wanted))
        torch.cuda.synchronize(self._device)

    def _compile(self) -> None:
        """Once for each model, what it has no kernels of its own for: where a step runs first, in this thread."""
        blocks = [block for block in self._model.unfused() if block._compiled_call_impl is None]
        if not blocks:
            return
        if problem := why_not(self._device):
            logger.warning("nothing can be compiled here, so steps are slower than they could be: %s", problem)
            return
        logger.warning("compiling blocks of %s while their first steps run", self._model.spec.kind)
        compile_blocks(blocks)

    def _capture(self, kind: StepKind, batch: int) -> None:
        if batch not in self._inputs_of:
            self._inputs_of[batch] = _GraphInputs(batch, self._device)
        inputs = self._inputs_of[batch].on_device
        with torch.cuda.stream(self._steps), _attention():
            self._step(inputs, kind)  # compiles, plans
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=self._pool)
            try:
                with _only_what_is_compiled():
                    self._step(inputs, kind)
            finally:
                graph.capture_end()
        self._graphs[kind, batch] = graph

    @torch.inference_mode()
    def capture_decoding(self, batches: Sequence[int]) -> None:
        sizes = [torch.Size((batch, *shape.size)) for batch in batches for shape in self._drawing.shapes]
        for size in sorted(sizes, key=torch.Size.numel, reverse=True):  # so that all others fit into its memory
            samples = torch.zeros(size, device=self._device)
            if (captured := self._captured_decoding(samples)) is not None:
                self._decodings[size[1:], size[0]] = captured
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()  # of what was tried out before the captures, gigabytes of large pictures

    def _captured_decoding(self, samples: Tensor) -> _Decoding | None:
        """Convolutions are tried out before: the graph has the fastest of each. None where samples are the answer."""
        with torch.cuda.stream(self._steps), _attention(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
            if self._drawing.decode(samples) is samples:
                return None
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=self._pool)
            try:
                pictures = self._drawing.decode(samples)
            finally:
                graph.capture_end()
        return _Decoding(samples, pictures, graph)

    def add(self, *pictures: Picture) -> None:
        with torch.cuda.stream(self._steps):
            super().add(*pictures)

    def _run(self, inputs: Inputs, kind: StepKind) -> RunningStep:
        started, ended = _event(), _event()
        batch = inputs.shape[1]
        bucket = next((size for size in self._batches if size >= batch), batch)
        graph = self._graphs.get((kind, bucket))
        with torch.cuda.stream(self._steps):
            if graph is None:
                on_device = self._on_device(torch.from_numpy(inputs))
                started.record(self._steps)
                with _attention(), _only_what_is_compiled():
                    self._step(on_device, kind)
            else:
                self._inputs_of[bucket].put(inputs, copied=started)
                graph.replay()
            ended.record(self._steps)
        return _EnqueuedStep(started, ended)

    def samples(self, pictures: Sequence[Picture]) -> Tensor:
        """As `Executor.samples`, whichever stream asks: after the steps that are on their way, before later ones."""
        asking = torch.cuda.current_stream(self._device)
        if asking == self._steps:
            return super().samples(pictures)
        asking.wait_stream(self._steps)
        copies = super().samples(pictures)
        self._steps.wait_stream(asking)
        return copies

    def watch(self, pictures: Sequence[Picture]) -> None:
        with torch.cuda.stream(self._steps):
            super().watch(pictures)

    def preview(self, pictures: Sequence[Picture]) -> Transfer:
        with torch.cuda.stream(self._steps):
            return super().preview(pictures)

    @torch.inference_mode()
    def collect(self, pictures: Sequence[Picture]) -> Transfer:
        with torch.cuda.stream(self._steps):
            return super().collect(pictures)

    def _on_device(self, small: Tensor) -> Tensor:
        """Copied from pinned memory: from any other, the host would wait for all steps that are on their way."""
        return small.pin_memory().to(self._device, non_blocking=True)

    def _decoded(self, samples: Tensor) -> Tensor:
        """By the graph of the next captured batch, whose pictures stand until its next replay."""
        size, batch = samples.shape[1:], len(samples)
        bucket = min((of for known, of in self._decodings if known == size and of >= batch), default=None)
        if bucket is None:
            with _attention():
                return super()._decoded(samples)
        captured = self._decodings[size, bucket]
        captured.samples[:batch].copy_(samples)
        captured.graph.replay()
        return captured.pictures[:batch]

    def _transfer(self, decode: Callable[[Tensor], Tensor], samples: Tensor) -> Transfer:
        started, decoded, done = _event(), _event(), _event()
        started.record()
        pictures = decode(samples)
        decoded.record()
        on_host, finite = _to_host(pictures), _to_host(are_finite(samples))
        done.record()
        return _EnqueuedTransfer(on_host, finite, started, decoded, done)


def open_executor(drawing: Drawing, *, num_slots: int, keeps: bool = False) -> Executor:
    """The executor for this device. On a GPU nothing is captured yet."""
    kind = GraphExecutor if drawing.device.type == "cuda" else Executor
    return kind(drawing, num_slots=num_slots, keeps=keeps)


class _GraphInputs:
    """The inputs [8, B] that the graphs of a batch read.

    Each call into torch may cost the worker's thread its turn in Python, for half a millisecond where HTTP is busy. So
    numbers are written into pinned memory by numpy, which keeps the turn, and one call copies them. The pinned pages
    are used in rotation, as the device may not have read the last ones yet.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.on_device = torch.from_numpy(_padding(batch)).to(device)
        self._pages = cycle([_Page(_pinned((8, batch))) for _ in range(PAGES)])

    def put(self, inputs: Inputs, *, copied: Any) -> None:
        """Enqueues the copy of these [8, up to B] on the present stream, padded to the batch, and the event `copied`
        behind it. Who enqueues steps that nobody waits for, as a sweep, waits here once all pages are on their way."""
        page = next(self._pages)
        page.wait_until_copied()
        count = inputs.shape[1]
        page.numbers[:, :count] = inputs
        page.numbers[:, count:] = IDLE
        self.on_device.copy_(page.pinned, non_blocking=True)
        copied.record()
        page.copied = copied


class _Page:
    """Pinned memory [8, B]; copied: the event behind its last copy, None before the first."""

    def __init__(self, pinned: Tensor) -> None:
        self.pinned, self.numbers = pinned, pinned.numpy()
        self.copied: Any = None

    def wait_until_copied(self) -> None:
        if self.copied is not None and not self.copied.query():  # which keeps the turn
            self.copied.synchronize()


@dataclass(frozen=True)
class _Decoding:
    """A captured graph, the samples that it reads and the pictures that it writes."""

    samples: Tensor
    pictures: Tensor
    graph: torch.cuda.CUDAGraph


@dataclass(frozen=True)
class _EnqueuedStep:
    started: Any  # torch.cuda.Event, which has no types
    ended: Any

    def is_done(self) -> bool:
        return bool(self.ended.query())

    def wait(self) -> float:
        self.ended.synchronize()
        return float(self.started.elapsed_time(self.ended))


@dataclass(frozen=True)
class _EnqueuedTransfer:
    samples: Tensor
    finite: Tensor
    started: Any
    decoded: Any
    done: Any

    def result(self) -> list[Tensor | GenerationFailed]:
        self.done.synchronize()
        return split_samples(self.samples, self.finite)

    def took_ms(self) -> float:
        return float(self.started.elapsed_time(self.decoded))


def _to_host(tensor: Tensor) -> Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


def _pinned(size: tuple[int, ...]) -> Tensor:
    return torch.empty(size, pin_memory=True)


def _padding(count: int) -> Inputs:
    """Inputs [8, count] of nobody."""
    return np.repeat(IDLE, count, axis=1)


@contextmanager
def _attention() -> Iterator[None]:
    with sdpa_kernel(ATTENTION, set_priority=True):
        yield


def _only_what_is_compiled() -> AbstractContextManager[None]:
    """Inside, compiled code runs where there is some for inputs like these, and else what it was compiled from: the
    compiler would take seconds, in which all pictures wait, and cannot run while a graph is captured."""
    return torch.compiler.set_stance("eager_on_recompile")  # type: ignore[no-any-return]


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

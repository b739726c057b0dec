"""A small typed client for an elit-serve server, sync and async; knows HTTP and nothing of models or scheduling.

    >>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
    ...     generation = client.generate(label="tulip", latency_ms=300)
    ...     pathlib.Path("tulip.png").write_bytes(generation.images[0].data)

An answer that is an error raises `ServerProblem`, no usable answer raises `ServerUnreachable`. Fields that a newer
server adds to its answers are ignored.
"""

from elit_serve.client.answers import (
    Alternative,
    Course,
    Generation,
    GuidanceInfo,
    Health,
    Image,
    LevelInfo,
    Model,
    PartialImage,
    Plan,
    Refusal,
    SamplingInfo,
)
from elit_serve.client.async_client import AsyncClient
from elit_serve.client.client import Client
from elit_serve.client.job_answers import Job, JobError, JobEvent, JobImage, JobPreview, JobResult, JobStarted, JobStep
from elit_serve.client.job_pages import AsyncJobList, AsyncJobPages, JobPages
from elit_serve.client.options import GenerateOptions, GuidanceOptions, JobOptions, PlanOptions, StreamOptions
from elit_serve.client.retries import NO_RETRIES, Retries

__all__ = [
    "NO_RETRIES",
    "Alternative",
    "AsyncClient",
    "AsyncJobList",
    "AsyncJobPages",
    "Client",
    "Course",
    "GenerateOptions",
    "Generation",
    "GuidanceInfo",
    "GuidanceOptions",
    "Health",
    "Image",
    "Job",
    "JobError",
    "JobEvent",
    "JobImage",
    "JobOptions",
    "JobPages",
    "JobPreview",
    "JobResult",
    "JobStarted",
    "JobStep",
    "LevelInfo",
    "Model",
    "PartialImage",
    "Plan",
    "PlanOptions",
    "Refusal",
    "Retries",
    "SamplingInfo",
    "StreamOptions",
]

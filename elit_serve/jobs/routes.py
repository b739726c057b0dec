"""The routes of jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response

from elit_serve.http.access import access
from elit_serve.http.bodies import BodyRoute
from elit_serve.http.callers import owner_of
from elit_serve.http.events import enter_stream, stream_content
from elit_serve.http.groups import Group
from elit_serve.http.negotiation import media_type_of
from elit_serve.http.problems import documented
from elit_serve.jobs.desk import JobDesk
from elit_serve.jobs.event_stream import END, JobEventStream
from elit_serve.jobs.schemas import PREFIX, JobInfo, JobList, JobPreview, JobRequest, JobStarted, JobStep
from elit_serve.jobs.states import ENDED, ID_LENGTH, JobState
from elit_serve.plans.formats import ANSWER_FORMATS

router = APIRouter(prefix=PREFIX, route_class=BodyRoute, tags=[Group.JOBS])

MAX_PAGE = 100
IDENTIFIER = f"^[0-9a-f]{{{ID_LENGTH}}}$"


INVALID = documented("A field is not valid.")
NOT_FOUND = documented("There is no such job, or not any more.")
UNAVAILABLE = documented("The database does not answer; see `Retry-After`.")
FULL = documented("There is no room on disk.")


@router.post(
    "",
    summary="Have pictures made later: a job",
    status_code=202,
    response_model=JobInfo,
    responses={
        202: {
            "description": "It is stored, or was with the same `Idempotency-Key`.",
            "headers": {"Location": {"schema": {"type": "string"}}},
        },
        400: documented("The body is not JSON."),
        404: documented("Other models are served."),
        409: documented("The first request with this `Idempotency-Key` has no answer yet."),
        413: documented("The body is too large."),
        422: documented(
            "A field is not valid, the target cannot be met, or the `Idempotency-Key` is another request's."
        ),
        503: documented("Too many jobs wait, the target is in the way of others', or the engine or database is down."),
        507: FULL,
    },
)
@access(needs="generate", work="jobs")
async def accept(
    request: Request,
    body: JobRequest,
    idempotency_key: Annotated[
        str | None, Header(description="Of your choice: the same request with the same key gives the same job.")
    ] = None,
) -> Response:
    desk = _desk(request)
    prefix = _prefix(request)
    job = (await desk.run(desk.accept, body, _owner(request), idempotency_key)).below(prefix)
    request.state.job_id = job.id
    headers = {"Location": f"{_prefix(request)}{PREFIX}/{job.id}"}
    return Response(
        job.below(_prefix(request)).model_dump_json(), status_code=202, headers=headers, media_type="application/json"
    )


@router.get("", summary="Jobs, the newest first", response_model=JobList, responses={422: INVALID, 503: UNAVAILABLE})
@access(needs="generate", work="jobs")
async def page(
    request: Request,
    state: Annotated[JobState | None, Query(description="Only those in this state.")] = None,
    cursor: Annotated[str | None, Query(pattern=IDENTIFIER, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
) -> Response:
    desk = _desk(request)
    found = await desk.run(desk.page, _owner(request), state, cursor, limit)
    found.data = [job.below(_prefix(request)) for job in found.data]
    return Response(await desk.run(found.model_dump_json), media_type="application/json")  # a hundred take a while


@router.get("/{job_id}", summary="A job", responses={404: NOT_FOUND, 422: INVALID, 503: UNAVAILABLE})
@access(needs="generate", work="jobs")
async def get(request: Request, job_id: str) -> JobInfo:
    desk = _desk(request)
    return (await desk.run(desk.get, job_id, _owner(request))).below(_prefix(request))


@router.delete(
    "/{job_id}",
    summary="Cancel a job, unless it has ended",
    responses={404: NOT_FOUND, 422: INVALID, 503: UNAVAILABLE, 507: FULL},
)
@access(needs="generate", work="jobs")
async def cancel(request: Request, job_id: str) -> JobInfo:
    desk = _desk(request)
    return (await desk.run(desk.cancel, job_id, _owner(request))).below(_prefix(request))


@router.post(
    "/{job_id}/finish",
    summary="Stop now and keep what there is: end a job with the fewest steps that its pictures allow",
    status_code=202,
    response_model=JobInfo,
    responses={
        202: {"description": "It will be `done` soon."},
        404: NOT_FOUND,
        409: documented("The job has ended, or nothing of it is there yet."),
        422: INVALID,
        503: UNAVAILABLE,
    },
)
@access(needs="generate", work="jobs", is_free=True)
async def finish(request: Request, job_id: str) -> JobInfo:
    desk = _desk(request)
    return await desk.run(desk.finish, job_id, _owner(request))


@router.get(
    "/{job_id}/images/{index}",
    summary="A picture of a job that is done",
    response_class=Response,
    responses={
        200: {
            "description": "The file.",
            "content": {
                media_type_of(name): {"schema": {"type": "string", "format": "binary"}} for name in ANSWER_FORMATS
            },
        },
        404: documented("There is no such job, or it has fewer pictures."),
        409: documented("The job is not done."),
        410: documented("The pictures have been removed."),
        422: INVALID,
        503: UNAVAILABLE,
    },
)
@access(needs="generate", work="jobs")
async def picture(request: Request, job_id: str, index: Annotated[int, Path(ge=0)]) -> Response:
    desk = _desk(request)
    file, media_type = await desk.run(desk.picture, job_id, _owner(request), index)
    return Response(file, media_type=media_type)


@router.get(
    "/{job_id}/events",
    summary="What happens to a job, as server-sent events",
    response_class=Response,
    responses={
        200: {
            "description": "`queued`, `started`, `step`, `preview`, and at the end `done`, `failed`, `expired` or "
            "`cancelled`.",
            "content": stream_content(
                {
                    "queued": JobInfo,
                    "started": JobStarted,
                    "step": JobStep,
                    "preview": JobPreview,
                    **dict.fromkeys(ENDED, JobInfo),
                }
            ),
        },
        204: {"description": "`Last-Event-ID` is that of the last event."},
        404: NOT_FOUND,
        422: INVALID,
        503: UNAVAILABLE,
    },
)
@access(needs="generate", work="jobs")
async def events(
    request: Request, job_id: str, last_event_id: Annotated[str | None, Header(description="Go on after it.")] = None
) -> Response:
    desk, owner = _desk(request), _owner(request)
    enter_stream(request)
    job = await desk.run(desk.get, job_id, owner)
    if last_event_id is not None and last_event_id.endswith(f"-{END}"):
        return Response(status_code=204)  # tells browsers not to come back
    return JobEventStream(desk, job, owner, last_event_id, prefix=_prefix(request))


def _desk(request: Request) -> JobDesk:
    desk: JobDesk = request.app.state.jobs
    return desk


def _owner(request: Request) -> str:
    """Who may see a job: who has the key that it was sent with, or everybody where there are no keys."""
    return owner_of(request) or ""


def _prefix(request: Request) -> str:
    """The path under which a proxy shows this server."""
    prefix: str = request.scope["root_path"]
    return prefix

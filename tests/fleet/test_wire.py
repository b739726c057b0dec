"""What goes between an ingress and a replica arrives as it was sent, and nothing else is taken for a message."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elit_serve.engine.conditions import ClassCondition, TextCondition
from elit_serve.engine.cost import Cost
from elit_serve.engine.open_plans import PlanLimits
from elit_serve.engine.order import Order
from elit_serve.engine.picture import MadePicture, Outcome, Preview, StepRun
from elit_serve.errors import DeadlineExceeded, ElitError, EngineStopped, GenerationFailed, Infeasible, Overloaded
from elit_serve.fleet.messages import (
    Failed,
    HowAreYou,
    ImagesDecoded,
    ImagesFailed,
    Published,
    Refused,
    SentOrder,
    Spent,
    StepFinished,
    Taken,
)
from elit_serve.fleet.wire import HEADER, KINDS, MAX_FRAME, BadFrame, GivenUp, Message, frame, read_frame
from elit_serve.plans.coarsening import Coarsening
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.progress import Progress
from elit_serve.plans.skips import Skips
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.core import Counters
from elit_serve.scheduler.requests import Launch, Priority
from elit_serve.scheduler.routing import Digest
from elit_serve.scheduler.routing.digest import Due

ORDER = Order(
    condition=ClassCondition(3, "rose"),
    shape="64x64",
    seeds=(5, 6),
    guidance=Guidance(method="ccfg", scale=3.5, interval=(0.2, 1.0)),
    time_shift=1.5,
    weak_caps=(None, 1, 1, 1),
    arrived_s=12.0,
    latency_ms=900.0,
    is_hard=True,
    min_level=1,
    max_level=4,
    pinned=None,
    strides=(1, 1, 1, 1),
    priority=Priority.BATCH,
    output_format="webp",
    num_previews=2,
    ceilings=(4, 4, 2, 2),
    skips=Skips(core=(2,)),
    coarsening=Coarsening(weights=(0.25,) * 4, losses={4: (0.0, 0.0, 0.1)}, end_losses={4: (0.0, 0.0, 0.2)}),
    owner="somebody",
    expected_quality=0.8,
)
DIGEST = Digest(
    number=7,
    device="Paper 4",
    busy_s=0.1,
    correction=1.1,
    max_batch=4,
    num_waiting=1,
    num_running=2,
    dues=(Due(0.5, 0.1), Due(1.5, 0.3)),
    granted_levels=40,
    granted_steps=12,
)
MADE = MadePicture(
    seed=5,
    progress=Progress([4, 2], [1, 3], 4),
    file=bytes(range(256)),
    queue_ms=1.0,
    compute_ms=2.0,
    encode_ms=3.0,
    cost=Cost(flops=1e9, device_ms=2.0),
)
LAUNCH = Launch(
    launch_id=4,
    request_ids=(1, 2),
    kind=StepKind("64x64", 4, weak_level=1),
    predicted_ms=3.0,
    levels=(4, 4),
    strides=(1, 2),
)
SENT = SentOrder(
    order_id="ab",
    order=ORDER,
    limits=PlanLimits(min_quality=0.5),
    age_s=0.25,
    wants_previews=True,
    wants_steps=False,
    is_last=True,
)
MESSAGES: list[Message] = [
    SENT,
    replace(SENT, order=replace(ORDER, condition=TextCondition("a rose", negative="rain"))),
    GivenUp(),
    HowAreYou(keeps_account=True),
    Published(
        replica="first",
        digest=DIGEST,
        is_ready=True,
        correction=1.1,
        counters=Counters(promised=3, kept=2),
        waiting=Counter({"somebody": 2}),
        events=(
            StepFinished(LAUNCH, 4.5, 0.2),
            StepFinished(LAUNCH, None, None),
            ImagesDecoded(2.5),
            Spent((None, "somebody"), (Cost(), Cost(flops=1.0, device_ms=2.0))),
            ImagesFailed("nan", 3),
        ),
    ),
    Taken(replica="first", digest=DIGEST),
    StepRun(seed=5, number=2, num_steps=4, level=3),
    Preview(file=b"\x00\xff", seed=5, index=1, num_steps=2),
    Outcome(order=ORDER, pictures=(MADE, MADE), is_hurried=True),
]
ERRORS: list[ElitError] = [
    Overloaded("queue_full", 1.5),
    Infeasible(10, 20, 1.5),
    DeadlineExceeded(900.0),
    EngineStopped("over"),
    GenerationFailed("it failed"),
]


def arrived(data: bytes) -> tuple[int, Any]:
    async def read() -> tuple[int, Any]:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await read_frame(reader)

    return asyncio.run(read())


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_arrive_as_they_were_sent(message: Message) -> None:
    exchange, told = arrived(frame(2**40, message))
    assert exchange == 2**40
    assert type(told) is type(message)
    assert repr(told) == repr(message)


@pytest.mark.parametrize("error", ERRORS)
def test_errors_arrive_as_they_were_sent(error: ElitError) -> None:
    for message in (Failed(error=error), Refused(replica="first", digest=DIGEST, error=error)):
        _, told = arrived(frame(1, message))
        assert (type(told.error), str(told.error), vars(told.error)) == (type(error), str(error), vars(error))


@given(number=st.integers(0, 255), body=st.binary(max_size=64))
def test_what_is_no_message_is_told_from_one(number: int, body: bytes) -> None:
    try:
        _, message = arrived(HEADER.pack(len(body), 1, number) + body)
    except BadFrame:
        return
    assert frame(1, message)[HEADER.size - 1] == number


@pytest.mark.parametrize("kind", ["SystemExit", "os", "shown", "ElitErrors"])
def test_an_error_is_one_of_ours(kind: str) -> None:
    data = frame(1, Failed(error=EngineStopped("over")))
    body = data[HEADER.size :].replace(b"\xadEngineStopped", bytes([0xA0 + len(kind)]) + kind.encode())
    with pytest.raises(BadFrame, match="error: no_error_of_ours"):
        arrived(HEADER.pack(len(body), 1, list(KINDS).index(Failed)) + body)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seeds", "a secret rose"),
        ("condition", {"prompt": ["a secret rose"]}),
        ("guidance", {"method": "a secret rose"}),
    ],
)
def test_what_is_wrong_with_a_message_is_told_without_what_was_given(field: str, value: object) -> None:
    plain = KINDS[SentOrder].dump_python(SENT)
    plain["order"][field] = value
    body = msgpack.packb(plain)
    with pytest.raises(BadFrame) as refused:
        arrived(HEADER.pack(len(body), 1, list(KINDS).index(SentOrder)) + body)
    assert "secret" not in str(refused.value)
    assert f"order.{field}" in str(refused.value)


def test_a_frame_of_any_length_is_not_waited_for() -> None:
    with pytest.raises(BadFrame, match=str(MAX_FRAME + 1)):
        arrived(HEADER.pack(MAX_FRAME + 1, 1, 0))

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image

from elit_serve.pictures import encode, read_facts
from elit_serve.server.settings import Settings

pytestmark = pytest.mark.made_by("worker", "fleet")


def files_of(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(image["b64_json"]) for image in answer.json()["images"]]


def test_a_class_name_gives_a_picture_and_says_how_it_was_made(server: Any) -> None:
    answer = server.generate({"label": "tulip", "seed": 7}).json()
    (image,) = answer.pop("images")
    for name in ("queue_ms", "compute_ms", "encode_ms"):
        assert image.pop(name) == answer.pop(name) >= 0
    assert image.pop("device_ms") == answer.pop("device_ms") > 0
    assert image.pop("gflops") == answer.pop("gflops") > 0
    assert answer.pop("total_ms") > 0
    assert answer == {
        "model": "tiny",
        "model_hash": server.pipeline.model_hash,
        "dtype": "float32",
        "simulated": None,
        "label": "tulip",
        "class_id": 2,
        "output_format": "png",
        "size": "32x32",
        "steps": 4,
        "guidance": {
            "method": "ccfg",
            "scale": 2.0,
            "weak_budget": 0.25,
            "interval": [0.0, 1.0],
        },
        "prompt": None,
        "negative_prompt": None,
        "skips": None,
        "priority": "interactive",
        "latency_ms": None,
        "promised": False,
        "deadline_met": None,
        "finished_early": False,
        "expected_quality": None,
        "quality": None,
        "quality_size": None,
    }
    file = base64.b64decode(image.pop("b64_json"))
    assert image == {
        "seed": 7,
        "level": 4,
        "budget": 1.0,
        "levels": [4, 4, 4, 4],
        "strides": [1, 1, 1, 1],
        "quality": None,
    }
    assert Image.open(io.BytesIO(file)).size == (32, 32)


def test_the_picture_is_the_one_that_the_pipeline_makes_offline(server: Any) -> None:
    (file,) = files_of(server.generate({"label": "rose", "budget": 0.5, "seed": 3}))
    assert file == server.pipeline.generate("rose", budget=0.5, seed=3).encode()


@pytest.mark.parametrize(("budget", "level"), [(0.01, 1), (0.25, 1), (0.5, 2), (0.6, 2), (0.75, 3), (1, 4)])
def test_a_budget_picks_its_level(server: Any, budget: float, level: int) -> None:
    (image,) = server.generate({"label": "rose", "budget": budget}).json()["images"]
    assert image["level"] == level
    assert image["budget"] == level / 4


def test_a_latency_target_buys_what_fits(start_server: Any) -> None:
    """A picture of 4 steps costs 1.5 s at level 1 and 3 s at level 4, and some more for what is not predicted."""
    answers = [start_server().generate({"label": "rose", "latency_ms": ms}).json() for ms in (2700, 3200, 60_000)]
    levels = [answer["images"][0]["level"] for answer in answers]
    assert 1 <= levels[0] < levels[1] < levels[2] == 4
    for answer in answers:
        assert answer["promised"] is True
        assert answer["deadline_met"] is True
        assert answer["total_ms"] <= answer["latency_ms"]


def test_more_pictures_and_more_steps_leave_less_for_the_level(start_server: Any) -> None:
    def level(**body: object) -> float:
        answer = start_server().generate({"label": "rose", "latency_ms": 5000, **body})
        return float(answer.json()["images"][0]["level"])

    alone = level()
    assert level(n=2) < alone
    assert level(steps=8) < alone


def test_bounds_hold_whatever_the_target(start_server: Any) -> None:
    roomy = {"label": "rose", "latency_ms": 60_000, "max_budget": 0.5}
    assert start_server().generate(roomy).json()["images"][0]["levels"] == [2, 2, 2, 2]
    tight = {"label": "rose", "latency_ms": 2700, "min_budget": 0.5}
    assert min(start_server().generate(tight).json()["images"][0]["levels"]) == 2
    impossible = {"label": "rose", "latency_ms": 3000, "min_budget": 1}
    assert start_server().generate(impossible).status_code == 422


def test_bounds_between_levels_are_kept_too(start_server: Any) -> None:
    """The levels of this model are a quarter of all latents apart."""
    most = {"label": "rose", "latency_ms": 60_000, "max_budget": 0.7}
    assert start_server().generate(most).json()["images"][0]["levels"] == [2, 2, 2, 2]
    least = {"label": "rose", "latency_ms": 2700, "min_budget": 0.3}
    assert min(start_server().generate(least).json()["images"][0]["levels"]) == 2


def test_a_target_that_no_level_meets_is_refused_with_the_smallest_that_works(server: Any) -> None:
    refusal = server.generate({"label": "rose", "latency_ms": 100})
    assert refusal.status_code == 422
    assert refusal.headers["Content-Type"] == "application/problem+json"
    problem = refusal.json()
    assert problem["type"] == "urn:elit-serve:infeasible"
    assert 1500 < problem["min_latency_ms"] < 3000
    assert problem["errors"][0]["field"] == "latency_ms"
    assert problem["errors"][0]["value"] == 100
    accepted = server.generate({"label": "rose", "latency_ms": problem["min_latency_ms"]}).json()
    assert accepted["deadline_met"] is True
    assert accepted["images"][0]["level"] < 4


def test_a_wish_is_never_refused(server: Any) -> None:
    answer = server.generate({"label": "rose", "latency_ms": 0.001, "best_effort": True}).json()
    assert answer["promised"] is False
    assert answer["deadline_met"] is False
    assert answer["images"][0]["level"] == 1


def test_a_pinned_budget_is_kept_and_refused_only_when_it_cannot_be_met(server: Any) -> None:
    kept = server.generate({"label": "rose", "budget": 0.5, "latency_ms": 30_000}).json()
    assert kept["images"][0]["level"] == 2
    assert kept["deadline_met"] is True
    refusal = server.generate({"label": "rose", "budget": 1, "latency_ms": 1700})
    assert refusal.status_code == 422
    assert refusal.json()["min_latency_ms"] > 3000


def test_autoguidance_stays_above_its_weak_level(server: Any) -> None:
    body = {"label": "rose", "guidance": {"method": "ag", "weak_budget": 0.5}}
    tightest = server.generate({**body, "latency_ms": 1}).json()["min_latency_ms"]
    answer = server.generate({**body, "latency_ms": tightest + 100}).json()
    assert min(answer["images"][0]["levels"]) == 3


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_accept_gives_a_bare_picture_with_the_facts_in_headers(server: Any, output_format: str) -> None:
    body = {"label": "tulip", "seed": 7, "budget": 0.5, "latency_ms": 30_000}
    answer = server.generate(body, accept=f"image/{output_format}")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == f"image/{output_format}"
    assert Image.open(io.BytesIO(answer.content)).format == output_format.upper()
    headers = {name[7:]: value for name, value in answer.headers.items() if name.startswith("x-elit-")}
    assert headers["label"] == "tulip"
    assert headers["seed"] == "7"
    assert headers["level"] == "2"
    assert headers["budget"] == "0.5"
    assert headers["levels"] == "2,2,2,2"
    assert headers["steps"] == "4"
    assert headers["model-hash"] == server.pipeline.model_hash
    assert headers["dtype"] == "float32"
    assert headers["promised"] == "true"
    assert headers["deadline-met"] == "true"
    assert float(headers["total-ms"]) >= float(headers["compute-ms"]) > 0
    assert float(headers["device-ms"]) > 0
    facts = read_facts(answer.content)
    assert facts is not None
    assert float(headers["gflops"]) == facts["gflops"] > 0


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_the_bare_picture_is_the_one_inside_the_json_answer(server: Any, output_format: str) -> None:
    body = {"label": "tulip", "seed": 7, "budget": 0.5}
    (inside,) = files_of(server.generate({**body, "output_format": output_format}))
    assert server.generate(body, accept=f"image/{output_format}").content == inside


def test_compression_is_that_of_every_file_however_it_is_asked_for(server: Any) -> None:
    body = {"label": "tulip", "seed": 7, "output_compression": 10}
    (inside,) = files_of(server.generate({**body, "output_format": "jpeg"}))
    assert server.generate(body, accept="image/jpeg").content == inside
    (usual,) = files_of(server.generate({"label": "tulip", "seed": 7, "output_format": "jpeg"}))
    assert len(inside) < len(usual)


def test_a_server_may_write_small_pngs(start_server: Any) -> None:
    server = start_server(settings=Settings(png_compression="small", encoder_threads=1))
    files = files_of(server.generate({"label": "rose", "budget": 0.5, "seed": 3, "n": 2}))
    made = server.pipeline.generate("rose", budget=0.5, seed=3)
    assert files[0] == encode(made.image, "png", made.facts, compression="small")
    assert files[0] != made.encode()


def test_accept_decides_by_quality(server: Any) -> None:
    body = {"label": "tulip", "output_format": "webp"}
    assert server.generate(body, "image/*").headers["Content-Type"] == "image/webp"
    assert server.generate(body, "image/png;q=0.1, */*").headers["Content-Type"] == "application/json"
    assert server.generate(body, "text/html").status_code == 406


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("application/json;q=0, */*", "image/png"),
        ("image/*, image/png;q=0", "image/jpeg"),
        ("image/*;q=0.9, image/png;q=0.1", "image/jpeg"),
        ("image/avif,image/webp,image/apng,image/*,*/*;q=0.8", "image/webp"),
        ("*/*;q=0.1, image/*;q=0.2", "image/png"),
        ("image/png;q=0, */*", "application/json"),
        ("application/*;q=0, image/*;q=0", "application/problem+json"),
        ("*/*;q=0", "application/problem+json"),
    ],
)
def test_what_names_a_type_most_closely_decides_how_much_it_is_wanted(
    server: Any, accept: str, media_type: str
) -> None:
    body = {"label": "tulip", "steps": 1, "budget": 0.25}
    assert server.generate(body, accept).headers["Content-Type"] == media_type


def test_several_pictures_have_rising_seeds_and_are_the_same_as_alone(server: Any, assert_same_picture: Any) -> None:
    answer = server.generate({"label": "daisy", "seed": 5, "n": 3, "budget": 1})
    assert [image["seed"] for image in answer.json()["images"]] == [5, 6, 7]
    assert_same_picture(files_of(answer)[2], server.pipeline.generate("daisy", seed=7).image)


def test_a_seed_left_out_is_drawn_and_reported(server: Any) -> None:
    asked = {"label": "daisy", "budget": 1}
    first, second = (server.generate(asked) for _ in range(2))
    seed = first.json()["images"][0]["seed"]
    assert seed != second.json()["images"][0]["seed"]
    assert files_of(server.generate({**asked, "seed": seed})) == files_of(first)


def test_the_same_request_gives_the_same_bytes(server: Any) -> None:
    body = {"label": "daisy", "seed": 11, "budget": 0.75, "n": 2, "guidance": {"interval": [0.2, 0.8]}}
    assert files_of(server.generate(body)) == files_of(server.generate(body))


def test_levels_make_the_same_picture_again(start_server: Any) -> None:
    server = start_server()
    first = server.generate({"label": "daisy", "seed": 11, "latency_ms": 3000})
    levels = first.json()["images"][0]["levels"]
    assert len(set(levels)) > 1
    again = server.generate({"label": "daisy", "seed": 11, "levels": levels})
    assert files_of(again) == files_of(first)


def test_levels_may_differ_from_step_to_step(server: Any) -> None:
    answer = server.generate({"label": "daisy", "seed": 11, "levels": [1, 2, 4]})
    image = answer.json()["images"][0]
    assert answer.json()["steps"] == 3
    assert image["levels"] == [1, 2, 4]
    assert image["level"] == pytest.approx(7 / 3)
    assert image["budget"] == pytest.approx(7 / 12)
    facts = read_facts(files_of(answer)[0])
    assert facts is not None
    assert facts["levels"] == [1, 2, 4]


@pytest.mark.parametrize("body", [{"label": "Tulip"}, {"label": 2}, {"label": "2"}, {"prompt": "tulip"}])
def test_a_class_may_be_given_by_name_or_id(server: Any, body: dict[str, object]) -> None:
    assert server.generate(body).json()["label"] == "tulip"


def test_requests_that_come_together_all_get_their_own_picture(server: Any, assert_same_picture: Any) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda seed: server.generate({"label": "rose", "seed": seed, "budget": 1}), range(6)))
    for seed, answer in enumerate(answers):
        assert answer.json()["images"][0]["seed"] == seed
        (file,) = files_of(answer)
        assert_same_picture(file, server.pipeline.generate("rose", seed=seed).image)

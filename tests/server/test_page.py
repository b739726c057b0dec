"""The page at / in a real browser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from elit_serve.catalogue import read_config
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.pipeline import Pipeline
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable
from elit_serve.server.keys import digest_of, make_key
from elit_serve.server.middleware import turns
from elit_serve.server.settings import Settings
from tests.serving import COST

FLAGS = ("no-sandbox", "disable-gpu", "disable-quic", "disable-background-networking", "disable-component-update")
DESK = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}
SKIPPING_COST = CostTable(
    steps_ms={**COST.steps_ms}
    | {(StepKind("32x32", 1, weak, is_skipped=True), batch): 50.0 * batch for weak in (None, 1) for batch in (1, 4)},
    overhead_ms=1000.0,
)
PATIENCE_MS = 30_000.0  # with a busy machine
SHAPES = ("32x32", "16x48")  # names have the height first


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium. It ends with this file: while Playwright runs, no other test on its thread may use asyncio."""
    chromium = shutil.which("chromium")
    assert chromium, "the package chromium is not installed"
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=[f"--{flag}" for flag in FLAGS])


@pytest.fixture(scope="module")
def measured(
    shared_tiny_model_dir: Path, make_quality: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Pipeline:
    """The tiny model with measured quality."""
    folder = Path(shutil.copytree(shared_tiny_model_dir, tmp_path_factory.mktemp("page") / "tiny"))
    content = make_quality(model_hash=read_config(folder).model_hash)
    (folder / "quality.json").write_text(json.dumps(content))
    return Pipeline.load(folder, device="cpu")


@pytest.fixture
def changed(tiny_model_dir: Path) -> Callable[[Callable[[Any], object]], Pipeline]:
    """The tiny model after a change to its `config.json`."""

    def load(change: Callable[[Any], object]) -> Pipeline:
        config = json.loads((tiny_model_dir / "config.json").read_text())
        change(config)
        (tiny_model_dir / "config.json").write_text(json.dumps(config))
        return Pipeline.load(tiny_model_dir, device="cpu")

    return load


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenPage]:
    """Opens the page of a server; at the end it must have asked no other host, and have logged no error.

    thumbnails: whether classes have them; where tests count the steps of the engine, they would be among these.

    failure: how Chromium logs that of a request which the test makes fail; a page can do nothing about it.
    """
    monkeypatch.setattr(turns, "PATIENCE_S", PATIENCE_MS / 1000)  # a busy machine turns no forecast away either
    problems: list[str] = []
    with ExitStack() as stack:

        def open_(
            server: Any, view: str = "", *, failure: str | None = None, thumbnails: bool = False, **context: Any
        ) -> Page:
            page = stack.enter_context(browser.new_context(**{"viewport": DESK, **context})).new_page()
            page.set_default_timeout(PATIENCE_MS)

            def heard(text: str) -> None:
                if failure is None or failure not in text:
                    problems.append(text)

            page.on("console", lambda message: heard(message.text) if message.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: heard(str(error)))
            page.on("request", lambda request: heard(request.url) if is_outside(request.url, server.url) else None)
            if not thumbnails:
                page.route("**/thumbnail?*", lambda route: route.fulfill(status=204))
            page.goto(f"{server.url}/{view}")
            return page

        yield open_
        assert not problems


def is_outside(url: str, server_url: str) -> bool:
    return urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).netloc != urlsplit(server_url).netloc


def choose(page: Page, *, label: str = "tulip", seed: int = 7, by: str | None = None) -> None:
    """Fills the form in."""
    expect(page.locator("#forecast-text")).to_contain_text("Should take")  # everything is there
    page.get_by_role("combobox", name="Class").fill(label[:3])
    page.get_by_role("option", name=label).click()
    page.get_by_label("Seed", exact=True).fill(str(seed))
    if by is not None:
        page.get_by_label(by).check()


def generate(page: Page) -> None:
    page.get_by_role("button", name="Generate").click()


def compare(page: Page) -> None:
    page.get_by_role("link", name="Compare").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#status")).to_have_text("The comparison is complete.")


def shown(page: Page) -> bytes:
    """The file of the picture on the stage, or of the first one there."""
    return file_of(page.locator("#pictures img").first)


def file_of(image: Locator) -> bytes:
    source = image.get_attribute("src")
    assert source is not None
    return base64.b64decode(source.partition("base64,")[2])


def text(page: Page, selector: str) -> str:
    """As it is read, with plain spaces."""
    return " ".join(page.locator(selector).inner_text().split())


def test_a_picture_refines_while_it_is_made(
    start_server: Any, stepwise: Any, open_page: OpenPage, measured: Pipeline
) -> None:
    server = start_server(measured, executor=stepwise)
    page = open_page(server)
    choose(page, by="By budget")
    page.get_by_label("Share of the latents").fill("3")
    generate(page)
    pictures = []
    for number in (1, 2, 3):
        server.executor.may_run.release()
        expect(page.get_by_alt_text(f"tulip, seed 7, preview {number}")).to_be_visible()
        expect(page.locator("#status")).to_have_text(f"Preview {number} of 3")
        pictures.append(shown(page))
    server.executor.may_run.release()
    expect(page.get_by_role("img", name="tulip, seed 7", exact=True)).to_be_visible()
    assert len({*pictures, shown(page)}) == 4
    facts = text(page, "#facts")
    assert "Budget 100 % mean level 4 of 4" in facts
    assert "Quality 0.80" in facts
    assert "Deadline None" in facts
    expect(page.get_by_role("img", name="4 steps at level 4")).to_be_visible()


def test_who_has_seen_enough_keeps_what_there_is(
    start_server: Any, stepwise: Any, open_page: OpenPage, measured: Pipeline, eventually: Any
) -> None:
    """It says so where nothing is there yet, because another is being made."""
    server = start_server(measured, settings=Settings(response_ms=0, max_batch=1), executor=stepwise)
    with ThreadPoolExecutor(1) as callers:
        page = open_page(server, failure="409")
        choose(page)
        other = callers.submit(server.generate, {"label": "rose", "latency_ms": 600_000})
        eventually(lambda: server.executor.num_launched == 1)
        generate(page)
        finish = page.get_by_role("button", name="Finish")
        finish.click()
        expect(page.locator("#status")).to_have_text("Nothing of it is there yet: it waits for its turn.")
        server.executor.may_run.release(3)  # one of them is the other picture's
        expect(page.get_by_alt_text("tulip, seed 7, preview 1")).to_be_visible()
        finish.click()
        expect(page.locator("#status")).to_have_text("Finishing it …")
        server.executor.may_run.release(20)
        assert other.result().json()["finished_early"] is False
    expect(page.locator("#status")).to_have_text("Done: tulip, seed 7, finished early.")
    expect(finish).to_be_hidden()
    assert re.search(r"Cost .* of the device, [\d.]+ MFLOP", text(page, "#facts"))
    expect(page.locator("#facts").get_by_role("img")).to_have_attribute("aria-label", re.compile("at levels 1 to 4"))


class Keeping(Executor):
    """For plans that use again what earlier steps computed."""

    def __init__(self, pipeline: Pipeline, *, num_slots: int) -> None:
        super().__init__(pipeline, num_slots=num_slots, keeps=True)


def test_what_is_skipped_is_told_before_and_after(
    start_server: Any, open_page: OpenPage, tiny_model_dir: Path, make_quality: Callable[..., dict[str, Any]]
) -> None:
    """The best plan of seven steps has two without a core, of which one has no weak pass either."""
    content = make_quality(model_hash=read_config(tiny_model_dir).model_hash)
    best = {"quality": {"value": 0.95, "half_width": 0.01}, "skips": {"core": [2, 5], "weak": [5]}, "gflops": 9.0}
    usual = next(plan for plan in content["plans"] if plan["name"] == "usual")
    plans = [*content["plans"], {**usual, **best, "name": "skipping", "levels": [[4, 7]]}]
    (tiny_model_dir / "quality.json").write_text(json.dumps({**content, "plans": plans}))
    pipeline = Pipeline.load(tiny_model_dir, device="cpu")
    page = open_page(start_server(pipeline, executor=Keeping, cost=SKIPPING_COST))
    choose(page)
    expect(page.locator("#forecast-text")).to_contain_text("7 steps, 2 cores and 1 weak pass skipped, at level 4 of 4")
    generate(page)
    expect(page.locator("#facts")).to_contain_text("Level, of 4, in 7 steps, 2 cores and 1 weak pass skipped")
    pale = page.locator("#facts .pale").get_attribute("d")
    assert pale is not None
    assert [part.partition(" ")[0] for part in pale.split("M")[1:]] == ["2.09", "5.09"]


@pytest.mark.parametrize(("full_plan", "words"), [(None, "photographs"), ("usual", "the model's full plan")])
def test_quality_is_told_relative_to_what_it_was_measured_against(
    start_server: Any,
    open_page: OpenPage,
    tiny_model_dir: Path,
    make_quality: Callable[..., dict[str, Any]],
    full_plan: str | None,
    words: str,
) -> None:
    content = make_quality(model_hash=read_config(tiny_model_dir).model_hash, full_plan=full_plan)
    (tiny_model_dir / "quality.json").write_text(json.dumps(content))
    page = open_page(start_server(Pipeline.load(tiny_model_dir, device="cpu")))
    choose(page)
    generate(page)
    expect(page.locator("#facts")).to_contain_text(f"1 is as good as {words}")


def test_a_picture_can_be_kept_and_made_again(start_server: Any, open_page: OpenPage, measured: Pipeline) -> None:
    page = open_page(start_server(measured))
    choose(page, by="By time")
    generate(page)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "tulip-7.png"
    assert download.value.path().read_bytes().startswith(b"\x89PNG")
    page.get_by_role("button", name="Make again").click()
    expect(page.locator("#status")).to_have_text("Done: tulip, seed 7. It is the same file, byte for byte.")


def test_a_slider_says_what_its_position_means(start_server: Any, open_page: OpenPage, measured: Pipeline) -> None:
    page = open_page(start_server(measured))
    choose(page, by="By budget")
    budget = page.get_by_label("Share of the latents")
    for position, share in enumerate(("25", "50", "75", "100")):
        budget.fill(str(position))
        expect(page.locator("#forecast-text")).to_contain_text(f"4 steps at level {position + 1} of 4")
        assert text(page, "#budget-value").startswith(share)
    expect(budget).to_have_attribute("aria-valuetext", re.compile("100.%, level 4 of 4"))
    assert re.search(r"Should take 3\.0\d s: .* expected quality 0\.80\.", text(page, "#forecast-text"))
    page.get_by_label("By time").check()
    page.get_by_label("Ready within").fill("1000")
    expect(page.locator("#forecast-text")).to_contain_text("8 steps at level 4 of 4")
    expect(page.locator("#tradeoff")).to_contain_text("the line is your target")


def aim(page: Page, position: int) -> dict[str, Any]:
    """Moves the slider of the target, from 0 to 1000. Returns what is foretold."""
    with page.expect_response("**/v1/plan") as answer:
        page.get_by_label("Ready within").fill(str(position))
    return dict(answer.value.json())


def test_the_quality_that_is_shown_is_that_of_the_levels_that_were_run(
    start_server: Any, open_page: OpenPage, measured: Pipeline
) -> None:
    """A plan that is chosen for a low level runs at a higher one, because its request has the device for itself."""
    server = start_server(measured)
    page = open_page(server)
    choose(page, by="By time")
    aim(page, 250)
    answers: list[str] = []

    def keep(route: Route) -> None:
        answer = route.fetch()
        answers.append(answer.text())
        route.fulfill(response=answer)

    page.route("**/v1/images/generations", keep)
    generate(page)
    expect(page.locator("#facts")).to_be_visible()
    done = json.loads(answers[0].rpartition("data: ")[2])
    again = {"label": "tulip", "levels": done["levels"], "guidance": done["elit"]["guidance"]}
    quality = server.client.post("/v1/plan", json=again).json()["course"]["quality"]
    assert quality > done["elit"]["expected_quality"] + 0.01
    assert f"Quality {quality:.2f}" in text(page, "#facts")


def test_the_curve_begins_at_the_soonest_target(start_server: Any, open_page: OpenPage, measured: Pipeline) -> None:
    page = open_page(start_server(measured))
    choose(page, by="By time")
    aim(page, 0)
    expect(page.locator("#forecast-text")).to_contain_text("Too soon.")
    soonest = re.search(r"The soonest that works is about ([\d.]+ m?s)\.", text(page, "#forecast-text"))
    assert soonest is not None
    labels = page.locator("#tradeoff text").all_text_contents()
    assert soonest[1] in [" ".join(label.split()) for label in labels]
    page.get_by_role("button", name=re.compile("^Use ")).click()
    expect(page.locator("#forecast-text")).to_contain_text("Should take")


def test_what_fits_lies_left_of_the_target(start_server: Any, open_page: OpenPage, measured: Pipeline) -> None:
    page = open_page(start_server(measured))
    choose(page, by="By time")
    for position in (200, 350, 500, 650, 800):
        aim(page, position)
        expect(page.locator("#tradeoff .chosen")).to_have_count(1)
        target_x, fitting, late, chosen_x = page.locator("#tradeoff svg").evaluate(
            """(chart) => {
                const at = (name) => [...chart.querySelectorAll(name)].map((mark) => Number(mark.getAttribute("cx")));
                const target = Number(chart.querySelector(".target").getAttribute("x1"));
                return [target, at(".option"), at(".late"), at(".chosen")];
            }"""
        )
        assert fitting
        assert max(fitting) <= target_x + 2 < min([*late, 999]) + 2
        assert chosen_x == [target_x]


def test_classes_have_thumbnails_which_wait_while_a_picture_is_made(
    start_server: Any, stepwise: Any, open_page: OpenPage, measured: Pipeline
) -> None:
    server = start_server(measured, executor=stepwise)
    page = open_page(server, thumbnails=True)
    expect(page.locator("#forecast-text")).to_contain_text("Should take")
    page.get_by_label("By budget").check()  # which is four steps
    generate(page)
    page.get_by_role("combobox", name="Class").click()
    expect(page.locator("#class-list [role=option]")).to_have_count(3)
    server.executor.may_run.release(4)
    expect(page.locator("#facts")).to_be_visible()
    expect(page.locator(".thumbnail img")).to_have_count(0)
    server.executor.may_run.release(100)
    expect(page.locator(".thumbnail img")).to_have_count(3)
    page.get_by_role("combobox", name="Class").fill("tul")
    expect(page.locator(".thumbnail img")).to_have_count(1)
    thumbnail = page.locator(".thumbnail img")
    assert thumbnail.evaluate("async (image) => { await image.decode(); return image.naturalWidth }") == 32
    assert server.executor.num_launched == 16


def test_only_where_a_slider_comes_to_rest_is_asked_for(
    start_server: Any, open_page: OpenPage, measured: Pipeline
) -> None:
    page = open_page(start_server(measured))
    choose(page, by="By time")
    asked: list[Any] = []
    with page.expect_response("**/v1/plan"):
        page.on("request", lambda request: asked.append(request.post_data_json))
        page.evaluate(
            """() => {
                const slider = document.getElementById("latency");
                for (let position = 500; position <= 1000; position += 10) {
                    slider.value = position;
                    slider.dispatchEvent(new Event("input"));
                }
            }"""
        )
    assert len(asked) == 1
    assert asked[0]["latency_ms"] > 5000


def test_a_forecast_that_a_busy_server_refuses_is_asked_for_again(
    start_server: Any, open_page: OpenPage, measured: Pipeline
) -> None:
    page = open_page(start_server(measured), failure="status of 503")
    choose(page, by="By budget")
    busy = {"code": "too_many_requests", "message": "it answers as many requests as it may"}
    page.route(
        "**/v1/plan",
        lambda route: route.fulfill(status=503, headers={"Retry-After": "1"}, json={"error": busy}),
        times=1,
    )
    page.get_by_label("Share of the latents").fill("1")
    expect(page.locator("#forecast-text")).to_contain_text("The server is busy.")
    expect(page.locator("#forecast-text")).to_contain_text("4 steps at level 2 of 4")


def test_a_target_that_is_too_soon_is_refused_with_one_that_works(
    start_server: Any, open_page: OpenPage, measured: Pipeline
) -> None:
    page = open_page(start_server(measured), failure="status of 400")
    choose(page, by="By time")
    page.get_by_label("Ready within").fill("0")
    expect(page.locator("#forecast-text")).to_contain_text("Too soon.")
    generate(page)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Nothing is that fast here.")
    alert.get_by_role("button", name=re.compile("^Use ")).click()
    expect(alert).to_be_hidden()
    expect(page.get_by_role("button", name="Generate")).to_be_focused()
    expect(page.locator("#forecast-text")).to_contain_text("Should take")
    page.keyboard.press("Enter")
    expect(page.locator("#facts")).to_contain_text("Kept")


def test_a_full_queue_says_when_to_come_again(
    start_server: Any, open_page: OpenPage, measured: Pipeline, held: Any, eventually: Any
) -> None:
    server = start_server(measured, Settings(response_ms=0, max_queue=1), executor=held)
    page = open_page(server, failure="status of 503")
    choose(page)
    with ThreadPoolExecutor(2) as callers:
        for state in ("running", "queue_length"):
            callers.submit(httpx.post, f"{server.url}/v1/generate", json={"label": "rose"}, timeout=60)
            eventually(lambda state=state: server.health()[state] == 1)
        generate(page)
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("The queue is full")
        expect(alert).to_contain_text(re.compile(r"should be taken in about \d+ second"))
        expect(alert.get_by_role("button")).to_have_text(re.compile(r"Try again( \(in \d+ seconds?\))?"))
        server.executor.may_run.set()
    alert.get_by_role("button").click()
    expect(page.locator("#status")).to_have_text("Done: tulip, seed 7.")


def test_a_server_that_is_gone_is_said_to_be(start_server: Any, open_page: OpenPage, measured: Pipeline) -> None:
    page = open_page(start_server(measured), failure="ERR_CONNECTION_REFUSED")
    choose(page)
    page.route("**/v1/images/generations", lambda route: route.abort("connectionrefused"))
    generate(page)
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer.")


def test_a_model_of_prompts_is_asked_in_words(start_server: Any, open_page: OpenPage, painter: Pipeline) -> None:
    server = start_server(painter)
    page = open_page(server)
    expect(page.locator("#forecast-text")).to_contain_text("Should take")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(re.compile("a red tulip|two daisies"))
    expect(page.get_by_role("combobox", name="Class")).to_be_hidden()
    page.get_by_label("Prompt", exact=True).fill("a 'rose'\nin \"rain\"")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Negative prompt").fill("thorns")
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_label("By budget").check()
    generate(page)
    expect(page.locator("#status")).to_contain_text("Done: a 'rose' in \"rain\", seed 7.")
    asked = {"prompt": "a 'rose'\nin \"rain\"", "negative_prompt": "thorns", "seed": 7, "budget": 0.5}
    assert shown(page) == base64.b64decode(server.generate(asked).json()["images"][0]["b64_json"])
    page.locator("#share summary").click()
    other = open_page(server, copied(page, "Copy the link").removeprefix(f"{server.url}/"))
    expect(other.locator("#status")).to_contain_text("Done: a 'rose'")
    expect(other.get_by_label("Prompt", exact=True)).to_have_value("a 'rose'\nin \"rain\"")
    assert shown(other) == shown(page)
    page.get_by_label("Prompt", exact=True).fill("")
    generate(page)
    expect(page.locator("#status")).to_contain_text("Done: an empty prompt, seed 7.")


def test_stopping_frees_the_server(
    start_server: Any, stepwise: Any, open_page: OpenPage, measured: Pipeline, eventually: Any
) -> None:
    server = start_server(measured, executor=stepwise)
    page = open_page(server)
    choose(page)
    generate(page)
    eventually(lambda: server.health()["running"] == 1)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_have_text("Stopped.")
    server.executor.may_run.release()
    eventually(lambda: server.health()["running"] == 0)


def test_several_pictures_refine_in_a_grid_of_which_one_is_chosen(
    start_server: Any, stepwise: Any, open_page: OpenPage, measured: Pipeline
) -> None:
    server = start_server(measured, executor=stepwise)
    page = open_page(server)
    choose(page, by="By budget")
    page.get_by_role("radio", name="4").check()
    generate(page)
    server.executor.may_run.release()
    for seed in (7, 8, 9, 10):
        expect(page.get_by_alt_text(re.compile(f"tulip, seed {seed}, preview"))).to_be_visible()
    server.executor.may_run.release(100)
    expect(page.locator("#status")).to_have_text("Done: tulip, 4 pictures from seed 7.")
    page.get_by_role("button", name="tulip, seed 9", exact=True).click()
    expect(page.get_by_role("button", name="tulip, seed 9", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("link", name="Download")).to_have_attribute("download", "tulip-9.png")
    assert len({file_of(image) for image in page.locator("#pictures img").all()}) == 4
    expect(page.locator("#film button")).to_have_count(4)


def test_a_model_of_several_sizes_offers_them(
    start_server: Any, open_page: OpenPage, changed: Callable[..., Pipeline]
) -> None:
    model = changed(lambda config: config["shapes"].update({"16x48": [3, 16, 48]}))
    costs = {(kind._replace(shape=name), n): ms for (kind, n), ms in COST.steps_ms.items() for name in SHAPES}
    page = open_page(start_server(model, cost=replace(COST, steps_ms=costs)))
    choose(page)
    page.get_by_label("Size").select_option("48x16")
    generate(page)
    expect(page.locator("#facts")).to_be_visible()
    with Image.open(io.BytesIO(shown(page))) as picture:
        assert picture.size == (48, 16)
    frame = page.locator("#frame").bounding_box()
    assert frame is not None
    assert abs(frame["width"] / frame["height"] - 3) < 0.1
    page.get_by_text("Make it elsewhere").click()
    assert "size=48x16" in copied(page, "Copy the link")


def test_steps_and_guidance_are_the_models_unless_they_are_given(
    start_server: Any, open_page: OpenPage, measured: Pipeline
) -> None:
    page = open_page(start_server(measured))
    choose(page, by="By budget")
    page.get_by_text("More", exact=True).click()
    expect(page.get_by_label("Steps")).to_have_attribute("placeholder", "4")
    page.get_by_label("Steps").fill("6")
    page.get_by_label("Guidance", exact=True).select_option("cfg")
    page.get_by_label("Scale of the guidance").fill("1.5")
    expect(page.locator("#forecast-text")).to_contain_text("6 steps")
    with page.expect_request("**/v1/images/generations") as asked:
        generate(page)
    body = asked.value.post_data_json
    assert (body["steps"], body["guidance"]) == (6, {"method": "cfg", "scale": 1.5})
    expect(page.locator("#facts")).to_contain_text("in 6 steps")


def test_what_was_made_survives_a_reload_until_it_is_cleared(
    start_server: Any, open_page: OpenPage, measured: Pipeline
) -> None:
    server = start_server(measured)
    page = open_page(server)
    choose(page)
    generate(page)
    expect(page.locator("#film button")).to_have_count(1)
    file, facts = shown(page), text(page, "#facts")
    page.reload()
    page.get_by_role("button", name="tulip, seed 7").click()
    expect(page.locator("#status")).to_have_text("Made before: tulip, seed 7.")
    assert (shown(page), text(page, "#facts")) == (file, facts)
    assert server.metric('elit_generations_total{outcome="done"}') == 1
    page.get_by_role("button", name="Make again").click()
    expect(page.locator("#status")).to_contain_text("the same file, byte for byte")
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Remove all 2?").click()
    page.reload()
    expect(page.locator("#forecast-text")).to_contain_text("Should take")
    expect(page.locator("#history")).to_be_hidden()


def copied(page: Page, what: str, *, of: str = "This picture") -> str:
    page.get_by_label(of).check()
    page.get_by_role("button", name=what).click()
    expect(page.locator("#share-status")).to_contain_text(re.compile("is copied|copy it from there"))
    return page.get_by_label("What was copied").input_value()


def test_a_link_makes_the_same_picture(start_server: Any, open_page: OpenPage, measured: Pipeline) -> None:
    server = start_server(measured)
    page = open_page(server)
    choose(page, by="By time")
    generate(page)
    page.get_by_text("Make it elsewhere").click()
    link = copied(page, "Copy the link")
    assert "label=tulip&seed=7" in link
    assert f"model={measured.model_hash}" in link
    other = open_page(server, link.removeprefix(f"{server.url}/"))
    expect(other.locator("#status")).to_have_text("Done: tulip, seed 7.")
    assert shown(other) == shown(page)
    expect(other.get_by_role("combobox", name="Class")).to_have_value("tulip")
    generate(other)
    assert other.url == f"{server.url}/#make"


WISHES_AND_BACK = """async ([result, model]) => {
  const { repeated, asLink, fromLink } = await import("./static/requests.js");
  const wishes = repeated(result, 4);
  const link = asLink(wishes, { view: "make", modelHash: "of-these" });
  return [wishes, link, fromLink(link.split("?")[1], model).wishes];
}"""


def test_a_link_says_what_steps_skip(start_server: Any, open_page: OpenPage, measured: Pipeline) -> None:
    page = open_page(start_server(measured))
    guidance = {"method": "cfg", "scale": 2, "weak_budget": None, "interval": [0, 1]}
    result = {"seed": 7, "levels": [4, 2, 2, 4], "strides": [1, 1, 1, 1], "request": {}}
    model = {"id": "tiny", "classes": ["tulip"]}
    for skips, said in (
        ({"core": [2], "weak": [1, 3]}, "&core=2&weak=1.3&"),
        ({"core": [], "weak": [1]}, "&weak=1&"),
        (None, "&interval=0-1&model"),
    ):
        facts = {"label": "tulip", "guidance": guidance, "skips": skips}
        wishes, link, again = page.evaluate(WISHES_AND_BACK, [{**result, "facts": facts}, model])
        assert wishes.get("skips") == skips
        assert said in link
        assert again.get("skips") == (skips and {name: steps for name, steps in skips.items() if steps})


def test_a_link_says_how_long_steps_are(start_server: Any, open_page: OpenPage, measured: Pipeline) -> None:
    page = open_page(start_server(measured))
    guidance = {"method": "cfg", "scale": 2, "weak_budget": None, "interval": [0, 1]}
    facts = {"label": "tulip", "guidance": guidance, "skips": None}
    result = {"seed": 7, "levels": [4, 4, 1], "strides": [1, 1, 2], "request": {}, "facts": facts}
    wishes, link, again = page.evaluate(WISHES_AND_BACK, [result, {"id": "tiny", "classes": ["tulip"]}])
    assert "&levels=4x2.1x1&strides=1x2.2x1&" in link
    assert (wishes["levels"], wishes["strides"]) == (again["levels"], again["strides"]) == ([4, 4, 1], [1, 1, 2])


LINKS = [
    ("label=tulip&core=2,3", "Its core is “2,3”, and should be numbers of steps, as 1.3.4"),
    ("label=tulpe&seed=7", "Its class is “tulpe”, which tiny does not know."),
    ("label=tulip&seed=seven", "Its seed is “seven”, and should be a number."),
    ("label=tulip&levels=4x2000", "Its levels is “4x2000”, and should be numbers with how often each"),
    ("label=tulip&seeds=7", "It says seeds, and may say label, prompt,"),
]


def test_a_link_that_cannot_be_followed_says_why(start_server: Any, open_page: OpenPage, measured: Pipeline) -> None:
    page = open_page(start_server(measured))
    choose(page)
    for query, why in LINKS:
        page.goto(f"{page.url.partition('#')[0]}#make?{query}")
        expect(page.get_by_role("alert")).to_contain_text("This link does not fit")
        expect(page.get_by_role("alert")).to_contain_text(why)
    page.goto(f"{page.url.partition('#')[0]}#make?label=tulip&seed=7&budget=1&model=another")
    expect(page.locator("#status")).to_contain_text("Its link is of another model, so it looks different.")


def test_what_is_copied_runs_and_makes_the_same_picture(
    start_server: Any, open_page: OpenPage, measured: Pipeline, tmp_path: Path
) -> None:
    page = open_page(start_server(measured))
    choose(page, by="By time")
    generate(page)
    page.get_by_text("Make it elsewhere").click()
    for what, run in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])):
        written = tmp_path / "tulip-7.png"
        subprocess.run([*run, copied(page, f"Copy as {what}")], cwd=tmp_path, check=True, timeout=60)
        assert written.read_bytes() == shown(page)
        written.unlink()
        assert '"latency_ms": ' in copied(page, "Copy as curl", of="My request")


def test_what_is_copied_is_quoted_and_tells_no_key(
    start_server: Any, open_page: OpenPage, changed: Callable[..., Pipeline], tmp_path: Path
) -> None:
    name = 'lady\'s "slipper" $HOME'
    model = changed(lambda config: config["conditions"].update(names=["daisy", "rose", name]))
    page = open_page(start_server(model, Settings(response_ms=0, api_key=("a-secret",))), failure="of 401")
    page.get_by_label("API key").fill("a-secret")
    page.get_by_role("button", name="Use key").click()
    choose(page, label=name)
    generate(page)
    page.get_by_text("Make it elsewhere").click()
    environment = {**os.environ, "ELIT_SERVE_API_KEY": "a-secret"}
    for what, run in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])):
        command = copied(page, f"Copy as {what}")
        assert "a-secret" not in command
        subprocess.run([*run, command], cwd=tmp_path, check=True, timeout=60, env=environment)
        written = tmp_path / "lady-s-slipper-HOME-7.png"
        assert written.read_bytes() == shown(page)
        written.unlink()


def test_one_seed_at_every_budget(start_server: Any, open_page: OpenPage, measured: Pipeline) -> None:
    server = start_server(measured)
    page = open_page(server)
    choose(page)
    compare(page)
    figures = page.locator("#strip figure")
    captions = [" ".join(caption.split()) for caption in figures.all_inner_texts()]
    (model,) = server.client.get("/v1/models").json()["data"]
    assert [re.sub(r"[\d.]+ m?s", "TIME", caption) for caption in captions] == [
        f"{100 * level['budget']:.0f} % level {level['level']} of 4 Time alone TIME Quality {level['quality']:.2f} "
        "ready after TIME, beside the others"
        for level in model["levels"]
    ]
    assert len({file_of(image) for image in figures.locator("img").all()}) == 4
    expect(page.get_by_alt_text(re.compile("^tulip, seed 7 at"))).to_have_count(4)
    done = file_of(figures.locator("img").first)
    page.get_by_label("All at").fill("1")
    expect(page.get_by_alt_text(re.compile("^preview 1 at"))).to_have_count(4)
    assert file_of(figures.locator("img").first) != done
    page.get_by_label("All at").fill("4")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as a picture").click()
    with Image.open(download.value.path()) as sheet:
        assert sheet.width > 4 * 320
    page.get_by_role("button", name="Copy the link").click()
    link = page.get_by_role("textbox", name="The link").input_value()
    other = open_page(server, link.removeprefix(f"{server.url}/"))
    expect(other.locator("#comparison-title")).to_have_text("tulip, seed 7")
    expect(other.locator("#status")).to_have_text("The comparison is complete.")
    assert file_of(other.locator("#strip img").first) == file_of(figures.locator("img").first)
    page.get_by_role("link", name="Make").click()
    expect(page.locator("#film button")).to_have_count(4)


def test_budgets_are_shown_while_they_refine(
    start_server: Any, stepwise: Any, open_page: OpenPage, measured: Pipeline
) -> None:
    server = start_server(measured, executor=stepwise)
    page = open_page(server, "#compare")
    choose(page)
    page.get_by_role("button", name="Compare", exact=True).click()
    server.executor.may_run.release(2)
    expect(page.get_by_alt_text(re.compile("^preview [12] at"))).to_be_visible()
    expect(page.locator("#strip")).to_contain_text(re.compile("preview [12] of 3"))
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.locator("#strip")).to_contain_text("not made")
    server.executor.may_run.release(100)


def test_the_live_view_shows_what_is_in_flight(
    start_server: Any, stepwise: Any, open_page: OpenPage, measured: Pipeline, eventually: Any
) -> None:
    server = start_server(measured, executor=stepwise)
    page = open_page(server, "#live")
    expect(page.locator("#flights-hint")).to_have_text("Nothing is being made.")
    with ThreadPoolExecutor(2) as callers:
        for state, body in (
            ("running", {"label": "tulip", "budget": 0.5, "latency_ms": 60_000}),
            ("queue_length", {"label": "rose", "budget": 0.5}),
        ):
            callers.submit(httpx.post, f"{server.url}/v1/generate", json=body, timeout=60)
            eventually(lambda state=state: server.health()[state] == 1)
        flights = page.get_by_role("listitem")
        expect(flights).to_have_count(2)
        expect(flights.nth(0)).to_contain_text("tulip")
        expect(flights.nth(0)).to_contain_text("promised in")
        expect(flights.nth(1)).to_contain_text("waits")
        server.executor.may_run.release(2)
        # the one on the device counts: it is the third that waits for leave
        expect(flights.nth(0)).to_contain_text("step 3 of 4")
        expect(flights.nth(0).get_by_role("img")).to_have_attribute("aria-label", "3 of 4 steps at level 2")
        server.executor.may_run.release(100)
    expect(flights).to_have_count(0)
    expect(page.locator("#tiles")).to_contain_text("2 so far")
    assert re.search(r"Deadlines kept 100 % 1 kept, 0 missed", text(page, "#tiles"))


def test_a_view_that_is_not_seen_watches_nothing(
    start_server: Any, open_page: OpenPage, measured: Pipeline, eventually: Any
) -> None:
    server = start_server(measured)
    page = open_page(server, "#live")
    expect(page.locator("#tiles")).to_contain_text("In flight")
    page.get_by_role("link", name="Make").click()
    eventually(lambda: server.metric('elit_requests_total{outcome="ok",route="/v1/live"}') == 1)


def test_a_paused_view_stands_still(start_server: Any, open_page: OpenPage, measured: Pipeline) -> None:
    server = start_server(measured)
    page = open_page(server, "#live")
    expect(page.locator("#tiles")).to_contain_text("0 so far")
    page.get_by_role("button", name="Pause").click()
    server.generate({"label": "rose"})
    with httpx.stream("GET", f"{server.url}/v1/live") as answer:
        next(answer.iter_lines())  # a snapshot later
    expect(page.locator("#tiles")).to_contain_text("0 so far")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#tiles")).to_contain_text("1 so far")


def test_skipping_the_header_keeps_the_view(start_server: Any, open_page: OpenPage, measured: Pipeline) -> None:
    page = open_page(start_server(measured), "#live")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Pause")).to_be_focused()


def test_everything_can_be_done_by_keyboard(start_server: Any, open_page: OpenPage, measured: Pipeline) -> None:
    page = open_page(start_server(measured))
    expect(page.locator("#forecast-text")).to_contain_text("Should take")
    visited = []
    for _ in range(20):
        page.keyboard.press("Tab")
        visited.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        if visited[-1] == "class":
            page.keyboard.type("ro")
            page.keyboard.press("Enter")
        if visited[-1] == "seed":
            page.keyboard.press("ControlOrMeta+a")
            page.keyboard.type("12")
        if visited[-1] == "Automatic":
            page.keyboard.press("ArrowLeft")
        if visited[-1] == "generate":
            break
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none" or visited[-1] == ""
    assert visited[:7] == ["Skip to content", "to-make", "to-compare", "to-live", "docs", "class", "seed"]
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Done: rose, seed 12.")


def test_nothing_is_wider_than_a_phone(start_server: Any, open_page: OpenPage, measured: Pipeline) -> None:
    page = open_page(start_server(measured), viewport=PHONE, has_touch=True)
    choose(page, by="By time")
    generate(page)
    expect(page.locator("#facts")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.get_by_text("More", exact=True).click()
    page.get_by_text("Make it elsewhere").click()
    copied(page, "Copy as curl")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    compare(page)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.get_by_role("link", name="Live").click()
    expect(page.locator("#tiles")).to_contain_text("5 so far")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_complain_of(
    start_server: Any, open_page: OpenPage, measured: Pipeline, held: Any, scheme: str
) -> None:
    server = start_server(measured, executor=held)
    page = open_page(server, failure="status of 400", color_scheme=scheme, reduced_motion="reduce")
    choose(page, by="By time")
    page.get_by_label("Ready within").fill("0")
    generate(page)
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_role("combobox", name="Class").click()
    assert_accessible(page)
    page.keyboard.press("Escape")
    server.executor.may_run.set()
    page.get_by_label("By budget").check()
    page.get_by_role("radio", name="4").check()
    page.get_by_text("More", exact=True).click()
    generate(page)
    expect(page.locator("#film button")).to_have_count(4)
    page.get_by_text("Make it elsewhere").click()
    copied(page, "Copy as Python")
    assert_accessible(page)
    compare(page)
    assert_accessible(page)
    server.executor.may_run.clear()
    with ThreadPoolExecutor(2) as callers:
        for _ in range(2):
            callers.submit(httpx.post, f"{server.url}/v1/generate", json={"label": "rose"}, timeout=60)
        page.get_by_role("link", name="Live").click()
        expect(page.get_by_role("listitem")).to_have_count(2)
        assert_accessible(page)
        server.executor.may_run.set()


def assert_accessible(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_a_key_is_asked_for_once_and_sent_with_everything(
    start_server: Any, open_page: OpenPage, measured: Pipeline
) -> None:
    server = start_server(measured, Settings(response_ms=0, api_key=("a-secret",)))
    page = open_page(server, "#live", failure="status of 401")
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Use key").click()
    expect(page.locator("#key-panel")).to_contain_text("This server does not know that key")
    page.get_by_label("API key").fill("a-secret")
    page.get_by_role("button", name="Use key").click()
    expect(page.locator("#key-panel")).to_be_hidden()
    expect(page.locator("#tiles")).to_contain_text("0 so far")
    page.get_by_role("link", name="Make").click()
    choose(page)
    generate(page)
    expect(page.locator("#status")).to_have_text("Done: tulip, seed 7.")
    assert page.evaluate("localStorage.length") == 0


def test_a_key_that_may_not_look_on_is_told_what_it_lacks(
    start_server: Any, open_page: OpenPage, measured: Pipeline, tmp_path: Path
) -> None:
    line = make_key("studio", {"sha256": digest_of("secret"), "scopes": ["generate"]}).line()
    (tmp_path / "keys.toml").write_text(line)
    server = start_server(measured, Settings(response_ms=0, keys_file=str(tmp_path / "keys.toml")))
    page = open_page(server, "#live", failure="status of 40")
    page.get_by_label("API key").fill("secret")
    page.get_by_role("button", name="Use key").click()
    expect(page.locator("#live-status")).to_have_text("This needs an API key with the scope metrics.")


def test_files_are_asked_for_again_and_sent_once(server: Any) -> None:
    page = server.client.get("/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    names = re.findall(r'(?:src|href)="static/([\w.]+)"', page.text)
    assert "main.js" in names
    for name in names:
        first = server.client.get(f"/static/{name}")
        assert first.status_code == 200
        assert first.headers["Cache-Control"] == "no-cache"
        again = server.client.get(f"/static/{name}", headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert server.client.head("/").status_code == 200


def test_no_path_leads_out_of_the_folder(server: Any) -> None:
    for path in ("/static/../page.py", "/static/%2e%2e/page.py", "/static/..%2fpage.py", "/static/", "/static/no.js"):
        assert server.client.get(path).status_code == 404, path


def test_the_page_works_where_a_proxy_shows_it(
    start_server: Any, start_nginx: Callable[[str], str], open_page: OpenPage, measured: Pipeline
) -> None:
    server = start_server(measured)
    proxy = start_nginx(f"location /elit/ {{ proxy_pass {server.url}/; proxy_set_header X-Forwarded-Prefix /elit; }}")
    page = open_page(replace(server, url=f"{proxy}/elit"))
    choose(page, by="By time")
    generate(page)
    expect(page.get_by_role("img", name="tulip, seed 7", exact=True)).to_be_visible()
    page.get_by_role("link", name="Live").click()
    expect(page.locator("#live-status")).to_have_text("Running")
    page.get_by_role("link", name="API").click()
    expect(page.get_by_text("/v1/generate", exact=True)).to_be_visible()
    expect(page.get_by_role("combobox").first).to_have_value("/elit")

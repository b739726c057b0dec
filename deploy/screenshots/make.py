"""Renews the README's pictures of the page: garden64 on the CPU, a few callers, and Debian's Chromium.

pip install '.[test]' && python deploy/screenshots/make.py

With a model of prompts, as `python deploy/screenshots/make.py models/garden64-text`, it renews the picture of that one.
"""

from __future__ import annotations

import io
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

FOLDER = Path(__file__).parent
WIDTH = 1160
COLOURS = 256
NUM_CALLERS = 16
WATCHED_MS = 45_000  # until the lines of the live view have a shape
PROMPT = "a close-up of a red tulip"


def main() -> None:
    model = sys.argv[1:2]
    with served(*model) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        if model:
            take_pictures_of_prompts(browser, url)
        else:
            take_pictures(browser, url)


def take_pictures_of_prompts(browser: Browser, url: str) -> None:
    page = opened(browser, url, height=860, scheme="light")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    compare_budgets(page)
    save(page, "prompt", height=790)


def take_pictures(browser: Browser, url: str) -> None:
    page = opened(browser, url, height=860, scheme="light")
    make_picture(page)
    save(page, "make")
    compare_budgets(page)
    save(page, "compare", height=790)
    page.close()
    with callers(url):
        page = opened(browser, f"{url}/#live", height=800, scheme="dark")
        page.wait_for_timeout(WATCHED_MS)
        save(page, "live")
        page.close()


@contextmanager
def served(*model: str) -> Iterator[str]:
    command = ["elit-serve", "serve", *model, "--host", "127.0.0.1", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            announced = re.search(r"http://[\d.]+:\d+", process.stdout.readline())
            assert announced, "the server did not start"
            yield announced[0]
        finally:
            process.terminate()


def opened(browser: Browser, url: str, *, height: int, scheme: str) -> Page:
    page = browser.new_page(viewport={"width": WIDTH, "height": height}, color_scheme=scheme)
    page.set_default_timeout(60_000)
    page.goto(url)
    return page


def make_picture(page: Page) -> None:
    """One, in time."""
    expect(page.locator("#forecast-text")).to_contain_text("Should take")
    page.get_by_label("Class").first.fill("tulip")
    page.keyboard.press("Enter")
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_label("By time").check()
    slider = page.get_by_role("slider").first
    for _ in range(3):  # there is time for more than the cheapest plans
        slider.press("PageUp")
    page.wait_for_timeout(1000)  # until the forecast has followed
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#facts")).to_be_visible(timeout=60_000)
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)


def compare_budgets(page: Page) -> None:
    """Of the same class and seed."""
    page.get_by_role("link", name="Compare").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#status")).to_have_text("The comparison is complete.", timeout=60_000)
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)


@contextmanager
def callers(url: str) -> Iterator[None]:
    """Load with mixed targets, until the block ends."""
    left = threading.Event()
    threads = [threading.Thread(target=call, args=(url, random.Random(seed), left)) for seed in range(NUM_CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        left.set()
        for thread in threads:
            thread.join()


def call(url: str, draw: random.Random, left: threading.Event) -> None:
    while not left.wait(draw.uniform(0, 9)):
        wish = draw.choice(
            [{"latency_ms": 5000}, {"latency_ms": 10_000}, {"latency_ms": 20_000}, {"max_budget": 0.5}, {}]
        )
        httpx.post(f"{url}/v1/generate", json={"label": draw.randrange(40), **wish}, timeout=120)


def save(page: Page, name: str, *, height: int | None = None) -> None:
    """With few colours, because a page has few. height: of what is kept, from the top; all if left out."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture = picture.crop((0, 0, picture.width, height or picture.height))
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()

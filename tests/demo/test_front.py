"""The demo before people's eyes: one browser, one `gateway demo`, and what they see and press."""

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from gateway.demo.upstream import answer
from tests.clients import node_modules
from tests.support import Process, missing, process
from tests.test_browser import FLAGS, PROMPT, browser_path

pytestmark = pytest.mark.timeout(170)  # Of four processes and a browser, on a machine that is busy.

TOP = ("h1", "#prompt", "#ask", "#answer", "#notice", "#cut", "#kill", "#second", "#stop")
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
PATIENCE = 45_000  # Milliseconds.
WHOLE = "".join(answer([{"role": "user", "content": PROMPT}], script="prompt"))

# Whatever is around a border: the page's own colours, as the browser has worked them out.
CONTRAST = """(selector) => {
  const channels = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((each) => {
    const part = each / 255;
    return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  const light = (color) => {
    const [r, g, b] = channels(color);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll(selector)].map((each) => {
    const border = light(getComputedStyle(each).borderTopColor);
    const around = light(getComputedStyle(each.closest(".card")).backgroundColor);
    return (Math.max(border, around) + 0.05) / (Math.min(border, around) + 0.05);
  });
}"""


@pytest.fixture(scope="module")
def demo() -> Iterator[Process]:
    """The demo as people start it, its answers a little quicker."""
    with process("demo", "--port", "0", "--interval", "0.04") as demo:
        yield demo


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all."""
    path = browser_path()
    if path is None:
        missing("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def opened(browser: Browser, demo: Process, **given: Any) -> Page:
    """Open the page as somebody new."""
    page = browser.new_page(viewport={"width": 1280, "height": 800}, **given)
    page.set_default_timeout(PATIENCE)
    page.goto(demo.url)
    return page


def asked(page: Page, least: int = 80) -> None:
    """Ask, and wait for a part of both answers."""
    page.click("#ask")
    long_enough = re.compile(rf"^[\s\S]{{{least},}}")
    for where in ("#answer", "#plain"):
        expect(page.locator(where)).to_have_text(long_enough, timeout=PATIENCE)


def shows(page: Page, where: str, words: str) -> None:
    expect(page.locator(where)).to_contain_text(words, timeout=PATIENCE)


def is_state(page: Page, state: str, where: str = "#state") -> None:
    expect(page.locator(where)).to_have_attribute("data-state", state, timeout=PATIENCE)


def test_headline_prompt_answer_and_buttons_are_above_the_fold(
    browser: Browser, demo: Process
) -> None:
    page = opened(browser, demo)
    asked(page)
    for name, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        for where in TOP:
            box = page.locator(where).bounding_box()
            assert box is not None, where
            assert 0 <= box["y"] < box["y"] + box["height"] <= height, (name, where)
            assert 0 <= box["x"] < box["x"] + box["width"] <= width, (name, where)
        assert page.evaluate("scrollY") == 0
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.close()


def test_a_plain_loop_dies_where_the_gateway_goes_on_and_is_paid_again(
    browser: Browser, demo: Process
) -> None:
    page = opened(browser, demo)
    asked(page)
    assert page.evaluate("document.activeElement.id") == "stop"
    page.click("#cut")
    is_state(page, "died", "#plain-state")
    shows(page, "#plain-notice", "were paid for; the rest cannot be had")
    page.click("#again")
    assert page.evaluate("document.activeElement.id") == "again"
    shows(page, "#verdict", "Paid: 2 against 1.")
    story = page.locator("#story")
    lost, resumed = (
        r"Connection lost\. \d+ words are safe\.",
        r"Resumed after [\d.]+ s: 0 lost, 0 twice",
    )
    for told in (lost, resumed):
        expect(story).to_contain_text(re.compile(told), timeout=PATIENCE)
    page.reload()
    shows(page, "#story", "Picked up after a reload")
    expect(story).to_contain_text(re.compile(r"Connection lost\. [\s\S]*Resumed after"))
    shows(page, "#verdict", "Paid: 2 against 1.")
    assert page.input_value("#prompt") == PROMPT
    page.close()


def test_a_reload_loses_the_plain_loops_answer_and_not_the_gateways(
    browser: Browser, demo: Process
) -> None:
    page = opened(browser, demo)
    asked(page)
    page.reload()
    is_state(page, "died", "#plain-state")
    shows(page, "#plain-notice", "Reloaded:")
    page.click("#stop")
    is_state(page, "cancelled")
    assert page.evaluate("document.activeElement.id") == "stop"
    assert page.text_content("#state") == "stopped by you"
    shows(page, "#usage", "about ")
    page.close()


def test_an_answer_goes_on_when_its_replica_is_killed(browser: Browser, demo: Process) -> None:
    page = opened(browser, demo)
    shows(page, "#replicas", "stands by")
    (victim, spare) = map(int, re.findall(r"process (\d+)", page.text_content("#replicas") or ""))
    asked(page)
    page.click("#kill")
    shows(page, "#story", f"(process {victim}) was killed: kill -9.")
    is_state(page, "died", "#plain-state")
    is_state(page, "done")
    shows(page, "#notice", "0 lost, 0 twice.")
    assert page.text_content("#answer") == WHOLE
    assert page.text_content("#spoken") == f"The whole answer: {WHOLE}"
    assert page.text_content("#paid") == "1"
    assert page.text_content("#attempts") == "1"
    with pytest.raises(ProcessLookupError):
        os.kill(victim, 0)
    shows(page, "#replicas", f"(process {spare});")
    shows(page, "#replicas", "stands by")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_for_everybody(browser: Browser, demo: Process, scheme: str) -> None:
    axe = (node_modules() / "axe-core" / "axe.min.js").read_text("utf-8")
    page = opened(browser, demo, color_scheme=scheme, reduced_motion="reduce")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "prompt"
    asked(page)
    spoken = page.locator("#spoken p").first
    expect(spoken).to_contain_text(re.compile(r"[.?”]$"), timeout=PATIENCE)
    assert page.get_attribute("#spoken", "aria-live") == "polite"
    assert (
        page.evaluate(
            "getComputedStyle(document.getElementById('answer'), '::after').animationName"
        )
        == "none"
    )
    page.check("#ids")
    page.click("#second")
    contrasts = page.evaluate(CONTRAST, "textarea, select, button:not([aria-disabled='true'])")
    assert min(contrasts) >= 3
    page.evaluate(axe)
    found = page.evaluate("axe.run().then(({violations}) => violations)")
    assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in found] == []
    page.close()


def test_an_answer_comes_in_the_script_of_its_prompt(browser: Browser, demo: Process) -> None:
    page = opened(browser, demo)
    page.select_option("#language", label="العربية")
    asked(page, 20)
    expect(page.locator("#answer")).to_contain_text(re.compile("[\u0600-\u06ff]{4}"))
    assert page.evaluate("getComputedStyle(document.getElementById('answer')).unicodeBidi") == (
        "plaintext"
    )
    page.close()

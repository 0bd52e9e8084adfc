"""The report in a browser, run by `make test-browser`: needs Chromium, playwright and axe."""

from __future__ import annotations

import os

import pytest
from recorded import metrics, response, save_tokenizer, write_run

from vicur.reporting.report import Report

pytestmark = pytest.mark.browser
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
]
EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'
SIZES = ((1280, 900), (390, 844))


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """Two runs with two held-out problems each, a right and a wrong response, and markup in an answer."""
    folder, runs = tmp_path_factory.mktemp("runs"), []
    for name, right in (("base", False), ("student", True)):
        observed = {
            0: [
                response(0, "a", correct=False, gap=-1.0, vds=0.1),
                response(0, "b", text=EVIL, gap=-0.5, vds=1.0),
            ],
            12: [
                response(12, "a", correct=right, gap=0.5, vds=2.0),
                response(12, "b", text=EVIL, gap=0.0, vds=0.0),
            ],
        }
        lines = [metrics(step, hint_samples=1.0) for step in range(1, 13)]
        evaluations = {0: {"a": False, "b": True}, 12: {"a": right, "b": True}}
        rollouts = [response(12, "t", gap=0.1)]
        run = write_run(folder / name, lines, rollouts, observed, evaluations)
        save_tokenizer(run.folder, ["It is 4.", EVIL])
        runs.append(run)
    path = folder / "report.html"
    Report(runs).write(path)
    return path


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        chromium = running.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(params=["light", "dark"])
def opened(browser, page_file, request):
    """The page, and everything that it said or asked for."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=request.param)
    page.events = []
    page.on("console", lambda message: page.events.append(message.text))
    page.on("pageerror", lambda error: page.events.append(str(error)))
    page.on("dialog", lambda dialog: page.events.append("a dialog"))
    page.on(
        "request", lambda asked: page.events.append(asked.url) if not asked.url.startswith("data:") else None
    )
    page.goto(f"file://{page_file}")
    assert page.events == [f"file://{page_file}"]
    page.events.clear()
    yield page
    assert page.events == []
    page.close()


def test_the_switch_colours_the_tokens_and_hovering_reads_the_numbers(opened):
    token = opened.locator(".tokens span").first
    before = token.evaluate("node => getComputedStyle(node).backgroundColor")
    opened.get_by_label("Visual dependency (VDS)").check()
    first = opened.locator(".tokens span").first
    assert first.evaluate("node => getComputedStyle(node).backgroundColor") != before
    first.hover()
    reading = opened.locator(".reading").first.text_content()
    assert reading == '"I": Gap (teacher - student) -1, Visual dependency (VDS) 0.1'
    assert "VDS" in opened.locator("#scale").text_content()


def test_the_keyboard_reads_token_by_token(opened):
    box = opened.locator(".tokens").nth(1)
    box.focus()
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("End")
    assert opened.locator("#announcer").text_content().startswith('"."')
    opened.keyboard.press("Home")
    assert opened.locator("#announcer").text_content().startswith('"I"')


def test_the_responses_of_both_runs_are_side_by_side(opened):
    titles = opened.locator(".card h3").all_text_contents()
    assert titles == [
        "base, step 0: wrong",
        "base, step 12: wrong",
        "student, step 0: wrong",
        "student, step 12: right",
    ]
    tops = [box["y"] for box in (card.bounding_box() for card in opened.locator(".card").all()[:2])]
    assert tops[0] == tops[1]
    opened.get_by_label("Verdict").select_option("differ")
    assert opened.locator("#problem option").count() == 1
    opened.locator("#split").select_option("training")
    assert (
        opened.locator(".card").count() == 0
        and "No problem matches" in opened.locator("#question").text_content()
    )


def test_markup_in_an_answer_stays_text(opened):
    opened.get_by_role("button", name="Next").click()
    assert "".join(opened.locator(".tokens").first.locator("span").all_text_contents()) == EVIL
    assert opened.locator("main img").count() == 0


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_window_and_axe_has_no_complaint(opened, size):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    opened.set_viewport_size({"width": size[0], "height": size[1]})
    assert opened.evaluate("document.documentElement.scrollWidth") <= size[0]
    violations = axe.Axe().run(opened).response["violations"]
    serious = [(each["id"], each["nodes"][0]["html"]) for each in violations]
    assert serious == []

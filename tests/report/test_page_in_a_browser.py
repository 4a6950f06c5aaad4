"""The page as a person meets it in Chromium: pointer, keyboard, dark, phone, paper, and the rules of axe-core.

Needs Playwright from PyPI (`pip install playwright`), a Chromium (CHROMIUM, or one of the usual names on the path) and,
for the rules, axe-core from npm (AXE names its axe.min.js). What is missing skips the tests.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flopsfit_ds.base.storage import write_json
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.report import write_report
from helpers.cli_in_process import invoke
from helpers.report.report_records import isoflop_sweep
from helpers.report.report_writer import fit_of

pytestmark = [pytest.mark.browser, pytest.mark.slow]
STEPS = 200
KINDS = ("sweep", "table", "compare", "audit")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with curves, alone in an empty folder, as one that was mailed."""
    folder = SweepFolder(tmp_path_factory.mktemp("sweep"))
    folder.prepare()
    records = [replace(record, run_id=f"{k:012x}") for k, record in enumerate(isoflop_sweep())]
    for record in records:
        run = folder.run(record.run_id)
        run.path.mkdir()
        plan = {
            "label": record.label,
            "compute_budget_flops": record.compute_budget_flops,
            "global_batch_sequences": record.planned.num_tokens / STEPS / 64,
            "context_length": 64,
            "flops": record.planned.flops,
            "num_steps": STEPS,
        }
        write_json(run.plan, plan)
        assert record.loss is not None
        for step in range(1, STEPS + 1, 4):
            run.metrics.append({"step": step, "loss": record.loss * (1 + 1 / step**0.5), "learning_rate": 1e-3})
    written = write_report(folder, records, fit_of(records))
    return Path(shutil.copy(written, tmp_path_factory.mktemp("mailed") / "page.html"))


@pytest.fixture(scope="module")
def pages(page_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each kind of page by its command."""
    folder = tmp_path_factory.mktemp("pages")
    tables = {name: folder / f"{name}.csv" for name in ("a", "b")}
    for scale, table in zip((1.0, 0.97), tables.values(), strict=True):
        rows = [
            f"{record.planned.num_params_total},{record.planned.num_tokens},{scale * (record.loss or 0.0)}"
            for record in isoflop_sweep()
        ]
        table.write_text("\n".join(["num_params,num_tokens,loss", *rows]))
    found = {name: folder / f"{name}.html" for name in ("table", "compare", "audit")}
    assert invoke("report", tables["a"], "-o", found["table"])[0] == 0
    assert invoke("compare", tables["a"], tables["b"], "--html", found["compare"])[0] == 0
    invoke("audit", tables["a"], "--html", found["audit"])
    return {"sweep": page_file, **found}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("there is no Chromium here")
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=flags)
        yield started
        started.close()


def opened(browser: Any, page_file: Path, **options: Any) -> Any:
    """The page in a window of its own, which fails at the first message of the console."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(60_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(page_file.as_uri())
    assert said == []
    return page


def test_a_curve_tells_its_numbers_to_pointer_and_keyboard(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file, viewport={"width": 1200, "height": 900})
    plot, told = page.locator("#figure-curves .plot"), page.locator("#curve-told")
    plot.scroll_into_view_if_needed()
    end = page.evaluate(
        "() => { const path = document.querySelector('#figure-curves .mark path'); const svg = path.ownerSVGElement;"
        "const spot = path.getPointAtLength(path.getTotalLength()).matrixTransform(svg.getScreenCTM());"
        "return [spot.x, spot.y]; }"
    )
    page.mouse.move(*end)
    assert "loss" in told.inner_text()
    assert page.locator("#figure-curves .chosen").count() == 1
    page.mouse.click(*end)
    assert "learning rate" in page.locator("#curve-facts").inner_text()
    page.mouse.move(0, 0)
    kept = told.inner_text()
    assert kept.partition(":")[0] == page.locator("#curve-choice option:checked").inner_text()
    plot.focus()
    page.keyboard.press("ArrowLeft")
    assert told.inner_text() != kept
    assert told.inner_text().partition(":")[0] == kept.partition(":")[0], "along the same run"
    page.keyboard.press("ArrowDown")
    assert told.inner_text().partition(":")[0] != kept.partition(":")[0]
    page.keyboard.press("Escape")
    assert page.locator("#figure-curves .chosen").count() == 0


def test_figures_are_saved_as_they_are_on_paper(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file, color_scheme="dark")
    with page.expect_download() as download:
        page.locator("button[data-figure=isoflop][data-kind=svg]").click()
    text = Path(download.value.path()).read_text()
    assert "var(--" not in text
    assert text.startswith("<svg")
    with page.expect_download() as download:
        page.locator("button[data-figure=isoflop][data-kind=png]").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_a_phone_shows_the_prediction_first(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file, viewport={"width": 390, "height": 844})
    loss = page.locator(".cards dd").last.bounding_box()
    assert loss["y"] + loss["height"] < 844


@pytest.mark.parametrize("name", KINDS)
def test_a_phone_scrolls_no_way_but_down(browser: Any, pages: dict[str, Path], name: str) -> None:
    page = opened(browser, pages[name], viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("name", KINDS)
def test_no_table_is_wider_than_its_paper(browser: Any, pages: dict[str, Path], name: str) -> None:
    page = opened(browser, pages[name], viewport={"width": 688, "height": 1000})  # 182 mm, what margins leave of A4
    page.emulate_media(media="print")
    for width, room in page.evaluate(
        "[...document.querySelectorAll('table')].map(t => [t.scrollWidth, t.parentElement.clientWidth])"
    ):
        assert width <= room


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, pages: dict[str, Path], name: str, scheme: str) -> None:
    axe = os.environ.get("AXE")
    if axe is None:
        pytest.skip("AXE names no axe.min.js of axe-core (npm pack axe-core)")
    page = opened(browser, pages[name], color_scheme=scheme, bypass_csp=True)
    page.add_script_tag(path=axe)
    found = page.evaluate("axe.run()")["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []

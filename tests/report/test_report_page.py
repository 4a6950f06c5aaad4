"""The page says what a reader looks for, escapes what it is given, and stays one whole file."""

from __future__ import annotations

import base64
import hashlib
import html
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from flopsfit_ds.base.errors import FitError, SweepFolderError
from flopsfit_ds.base.units import format_count
from flopsfit_ds.fit import ScalingFit, fit_scaling_law, points_from_records
from flopsfit_ds.records import RunRecord, SweepFolder
from flopsfit_ds.report import write_report
from flopsfit_ds.report.page.formula import in_numbers, typeset
from flopsfit_ds.report.values import log_error_text
from helpers.report import report_writer
from helpers.report.report_records import NO_CUDA, diverged, isoflop_sweep, ladder_sweep, of_plan, record
from helpers.report.report_writer import fit_of, versions
from helpers.sweeps import MICRO, plan_of, with_values

VOID = {"meta", "br", "link", "img", "hr", "input"}
WRITER = str(report_writer.__file__)
EMBEDDED = 3
"""Scripts of a page without curves: colours, files, and the code."""
HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """A page taken apart: its text, its tags, its addresses, its hints."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html, self.tags, self.addresses, self.hints = html, list[str](), list[str](), list[str]()
        self.attributes: set[str] = set()
        self._open: list[str] = []
        self._words: list[str] = []
        self.feed(html)
        assert self._open == []
        self.text = " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        self._note(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._note(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] not in (["style"], ["script"]):
            self._words.append(data)

    def _note(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            self.attributes.add(name)
            if name in ("href", "src", "action", "data"):
                self.addresses.append(value or "")
            if name == "title":
                self.hints.append(value or "")


def report(folder: Path, records: Sequence[RunRecord]) -> Page:
    return Page(write_report(folder, records, fit_of(records)).read_text(encoding="utf-8"))


def test_page_says_what_to_train_next(tmp_path: Path) -> None:
    records = isoflop_sweep()
    fit = fit_of(records)
    assert isinstance(fit, ScalingFit)
    page = Page(write_report(tmp_path, records, fit).read_text(encoding="utf-8"))
    target, prediction = fit.optima[-1], fit.predict(fit.optima[-1].compute)
    lede = (
        f"At 3e14 FLOPs, train {format_count(target.num_params)} parameters on {format_count(target.num_tokens)} tokens"
    )
    assert lede in page.text
    assert f"{prediction.loss:.4f} {prediction.interval.low:.4f} to {prediction.interval.high:.4f}" in page.text
    interval = target.intervals["num_params"]
    assert f"{format_count(interval.low)} to {format_count(interval.high)}" in page.text
    for budget in fit.isoflop.budgets:
        assert budget.num_params is not None
        assert format_count(budget.num_params) in page.text
    for name, value in (("loss floor", fit.law.loss_floor), ("exponent of the size term", fit.law.alpha)):
        assert f"{name} {value:.4g} " in page.text
    assert f"{fit.certificate.starts} starts" in page.text
    assert fit.audit.points_sha256 in page.text


def test_planned_stands_beside_observed(tmp_path: Path) -> None:
    made = record(1e6, 2e7, None)
    assert made.observed is not None
    seen = replace(made.observed, zero_stage=3, peak_memory_bytes=100 * 2**20, num_tokens=19_900_000)
    made = replace(made, planned=replace(made.planned, peak_memory_bytes=90 * 2**20), observed=seen)
    page = report(tmp_path, [made])
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page.html[page.html.index('id="runs"') :], flags=re.DOTALL)
    text = [re.sub(r"<[^>]+>", "", cell).strip() for cell in cells]
    assert text[text.index("20M") + 1] == "19.9M"
    assert text[text.index("90.0 MiB") : text.index("90.0 MiB") + 3] == ["90.0 MiB", "100.0 MiB", "-10.0%"]
    assert "not as planned" in page.hints


@pytest.mark.parametrize(
    ("planned_mib", "shown", "alarms"), [(90, "-10.0%", True), (97, "-3.0%", False), (120, "+20.0%", False)]
)
def test_a_memory_that_was_planned_too_small_is_told_by_its_colour(tmp_path: Path, planned_mib, shown, alarms) -> None:
    """A run that is planned too small runs out of memory; one that is planned too large only waits for room."""
    made = record(1e6, 2e7, None)
    assert made.observed is not None
    planned = replace(made.planned, peak_memory_bytes=planned_mib * 2**20)
    made = replace(made, planned=planned, observed=replace(made.observed, peak_memory_bytes=100 * 2**20))
    failed = replace(made, run_id="0" * 12, status="failed", loss=None, reason="it broke")
    cells = re.findall(r'<td class="([^"]*)">(.*?)</td>', report(tmp_path, [made, failed]).html, flags=re.DOTALL)
    tones = [(re.sub(r"<[^>]+>", "", cell).strip(), "bad" in classes.split()) for classes, cell in cells]
    assert {tone for text, tone in tones if text == shown} == {alarms}
    assert ("failed", True) in tones
    assert ("completed", True) not in tones


def test_missing_measurement_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    page = report(tmp_path, isoflop_sweep((1e12, 3e12), 5, cpu=True))
    assert NO_CUDA in page.hints
    assert NO_CUDA in page.text, "on paper, where nothing can be pointed at"
    dashes = re.findall(rf'<abbr class="missing" title="{NO_CUDA}"[^>]*>(.*?)</abbr>', page.html)
    assert set(dashes) == {"\N{EN DASH}"}
    assert len(dashes) == 2 * 10, "observed memory and its relative error, of each of ten runs"


def test_every_excluded_run_is_listed_with_its_reason(tmp_path: Path) -> None:
    size = 2e5
    tuned = [record(size, 8e6, 1e13, learning_rate=rate, noise=noise) for rate, noise in ((4e-3, 0.0), (1e-2, 0.05))]
    records = [*isoflop_sweep(), *tuned, diverged(record(3e4, 1e7, 3e12), "loss is nan at step 312")]
    page = report(tmp_path, records)
    section = page.text[page.text.index("Left out of the fit") :]
    assert "status diverged: loss is nan at step 312" in section
    assert "under-tuned: learning rate 0.01" in section
    assert "Runs that took more than one attempt" in page.text
    assert "signal 9" in page.text


def test_what_is_shown_is_escaped(tmp_path: Path) -> None:
    first, *rest = isoflop_sweep()
    attack = '"><img src=x onerror=alert(2)>'
    records = [
        replace(first, label=HOSTILE, host=attack, device=HOSTILE, versions={"torch": HOSTILE}, model={"a": attack}),
        diverged(replace(rest[0], label=attack, run_id="../../etc"), f"{HOSTILE}{attack}"),
        *rest[1:],
    ]
    folder = SweepFolder(tmp_path)
    folder.spec.write_text(f"name: {HOSTILE}\n")
    page = report(tmp_path, records)
    assert HOSTILE in page.text
    assert HOSTILE in "".join(page.hints) + page.text
    assert page.html.count("<script") == EMBEDDED
    assert "img" not in page.tags
    assert not {name for name in page.attributes if name.startswith("on")}
    assert not any("/etc" in address for address in page.addresses)
    assert 'content="default-src &#39;none&#39;' in page.html or "default-src 'none'" in page.html
    for path in folder.report.glob("*.svg"):
        ElementTree.parse(path)


def test_page_is_whole_when_it_is_alone(tmp_path: Path) -> None:
    page = report(tmp_path, isoflop_sweep())
    assert "://" not in page.html
    assert "@import" not in page.html
    for address in page.addresses:
        assert address.startswith("#"), "a link that would be dead elsewhere"
    code = page.html.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.unescape(page.html), "the only script that a browser may run"
    identifiers = re.findall(r' id="([^"]+)"', page.html)
    assert len(identifiers) == len(set(identifiers)), "figures share the page"
    for reference in re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", page.html):
        assert "".join(reference) in identifiers


@pytest.mark.parametrize(
    ("records", "figures", "words"),
    [
        (isoflop_sweep(), {"isoflop", "frontier", "residuals", "optimum"}, "isoFLOP minima alone"),
        (isoflop_sweep((1e12,), 6), {"isoflop", "frontier", "optimum"}, "No scaling law could be fitted: all 6 points"),
        (isoflop_sweep(shift=9.0), {"isoflop", "frontier", "residuals", "optimum"}, "minimum at an edge: the smallest"),
        (ladder_sweep(), {"tokens", "frontier", "residuals", "optimum"}, "At 7.97e14 FLOPs, train"),
        (ladder_sweep()[:4], {"tokens", "frontier"}, "No scaling law could be fitted: 4 distinct points"),
        ([diverged(run) for run in ladder_sweep()], set(), "0 of 16 runs completed"),
        ([], set(), "No run has ended"),
    ],
    ids=["isoflop", "one budget", "edges", "ladder", "refused", "all diverged", "nothing"],
)
def test_every_kind_of_sweep_has_a_page(
    tmp_path: Path, records: list[RunRecord], figures: set[str], words: str
) -> None:
    report(tmp_path, isoflop_sweep((1e12,), 6))  # whose figures must not stay
    page = report(tmp_path, records)
    assert words in page.text
    assert {path.stem for path in (tmp_path / "report").glob("*.svg")} == figures
    assert {name for name in figures if f'id="figure-{name}"' in page.html} == figures


def test_figures_show_the_points_and_say_what_they_are(tmp_path: Path) -> None:
    records = isoflop_sweep()
    report(tmp_path, records)
    tree = ElementTree.parse(tmp_path / "report" / "isoflop.svg")
    hints = [title.text or "" for title in tree.iter("{http://www.w3.org/2000/svg}title")]
    for made in records:
        assert sum(hint.startswith(f"{made.label}\nloss {made.loss:.4f}") for hint in hints) == 1
    assert sum("isoFLOP minimum" in hint for hint in hints) == 4
    words = {text.text for text in tree.iter("{http://www.w3.org/2000/svg}text")}
    assert {"1e12", "3e12", "1e13", "3e13"} <= words, "each curve is labelled"


def test_refused_minimum_is_marked_with_its_reason(tmp_path: Path) -> None:
    report(tmp_path, isoflop_sweep((1e12, 3e12), shift=9.0))
    tree = ElementTree.parse(tmp_path / "report" / "isoflop.svg")
    hints = [title.text or "" for title in tree.iter("{http://www.w3.org/2000/svg}title")]
    assert sum("minimum at an edge" in hint for hint in hints) == 2
    assert not any("isoFLOP minimum of" in hint for hint in hints)


def test_notes_tell_of_runs_that_are_not_there(tmp_path: Path, corpus_folder: Path) -> None:
    points = [{"num_params": 6e3, "num_tokens": tokens} for tokens in (12800, 25600)]
    plan = plan_of(with_values(MICRO, design__points=points), corpus_folder)
    folder = SweepFolder(tmp_path)
    folder.prepare()
    foreign = folder.run("0123456789ab")
    foreign.path.mkdir()
    foreign.write_record(record(1e4, 1e5, None))
    records = of_plan(plan)[:1]
    page = Page(write_report(folder, records, fit_of(records), plan).read_text(encoding="utf-8"))
    assert f"1 of 2 planned runs have not ended: {plan.runs[1].label}" in page.text
    assert "1 finished runs of this folder are not part of this report: 0123456789ab" in page.text
    assert plan.corpus.fingerprint in page.text


def test_runs_that_waited_for_samples_are_named(tmp_path: Path) -> None:
    for share, expected in ((0.04, False), (0.3, True)):
        records = isoflop_sweep((1e12, 3e12))
        seen = records[0].observed
        assert seen is not None
        records[0] = replace(records[0], observed=replace(seen, waited_share=share))
        report(tmp_path, records)
        text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
        assert ("1 runs waited for samples" in text) is expected
        assert (f"{records[0].label} for 30%" in text) is expected


def test_same_input_same_bytes_whatever_the_process(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "sweep", tmp_path / "b" / "sweep"]
    style = tmp_path / "matplotlibrc"
    style.write_text("lines.linewidth: 9\naxes.facecolor: red\nfont.size: 30\n")
    folders[0].mkdir(parents=True)
    folders[1].mkdir(parents=True)
    records = versions()[0]
    write_report(folders[0], records, fit_of(records))
    environment = {**os.environ, "PYTHONHASHSEED": "5", "MATPLOTLIBRC": str(style)}
    subprocess.run([sys.executable, WRITER, str(folders[1])], check=True, env=environment, timeout=300)
    first, second = ({path.name: path.read_bytes() for path in (f / "report").iterdir()} for f in folders)
    assert first == second
    assert len(first) == 5


def test_kill_between_any_two_files_leaves_a_whole_page(tmp_path: Path) -> None:
    old, new = ((records, fit_of(records)) for records in (isoflop_sweep((1e12,), 5), isoflop_sweep((1e12,), 6)))
    whole = []
    for records, fit in (new, old):
        write_report(tmp_path, records, fit)
        whole.append({path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()})
    after, before = whole
    assert after["index.html"] != before["index.html"]
    for kill_at in range(len(before)):
        writer = multiprocessing.get_context("fork").Process(target=write_until_killed, args=(tmp_path, new, kill_at))
        writer.start()
        writer.join(60)
        assert writer.exitcode == -signal.SIGKILL
        assert (tmp_path / "report" / "index.html").read_bytes() == before["index.html"], "the page comes last"
        for name in before:
            assert (tmp_path / "report" / name).read_bytes() in (before[name], after[name])
    write_report(tmp_path, *new)
    assert {name: (tmp_path / "report" / name).read_bytes() for name in after} == after


def write_until_killed(folder: Path, made: tuple[list[RunRecord], ScalingFit | FitError], kill_at: int) -> None:
    renames = 0

    def hook(event: str, _: object) -> None:
        nonlocal renames
        if event == "os.rename":
            if renames == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            renames += 1

    sys.addaudithook(hook)
    write_report(folder, *made)


def test_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SweepFolderError, match="is this a sweep folder"):
        write_report(tmp_path / "nowhere", [], FitError("no points"))


@pytest.mark.parametrize(
    ("error", "text"), [(0.01, "1.0%"), (0.3, "35.0%"), (1.0, "a factor of 2.7"), (1e4, "no bound")]
)
def test_standard_error_of_a_minimum_is_readable_however_large(error: float, text: str) -> None:
    assert log_error_text(error) == text


def test_checks_say_how_well_the_law_foretold_its_largest_budgets(tmp_path: Path) -> None:
    records = isoflop_sweep((1e12, 3e12, 1e13, 3e13, 1e14))
    chosen = points_from_records(records)
    fit = fit_scaling_law(chosen.points, bootstrap_samples=50)
    page = Page(write_report(tmp_path, records, fit).read_text(encoding="utf-8"))
    assert fit.diagnostics is not None
    assert fit.diagnostics.backtest is not None
    assert f"to within {fit.diagnostics.backtest.rms:.2%} (root mean square)" in page.text
    for bias in fit.diagnostics.backtest.bias:
        assert f"{bias:+.2%}" in page.text
    for form in fit.diagnostics.forms:
        assert form.law in page.text
    assert "Checks" not in report(tmp_path, records).text, "where no diagnostics were asked for"


def test_formula_is_typeset_with_its_values() -> None:
    fit = fit_of(isoflop_sweep())
    assert isinstance(fit, ScalingFit)
    law = replace(fit.law, loss_floor=0.9, A=1.5e10, B=60.0, alpha=0.42, beta=0.38)
    assert typeset(law.formula) == "L = E + A/N<sup>\u03b1</sup> + B/D<sup>\u03b2</sup>"
    numbers = in_numbers(law)
    assert numbers is not None
    assert typeset(numbers) == "L = 0.9 + 1.5e10/N<sup>0.42</sup> + 60/D<sup>0.38</sup>"
    assert in_numbers(replace(law, formula="L = (Nc/N)^alpha")) is None, "Nc is not among the values"
    assert typeset("E < <b>") == "E &lt; &lt;b&gt;"

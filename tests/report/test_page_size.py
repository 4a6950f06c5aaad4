"""A page can be mailed: below a megabyte with the curves of 100 runs, below five with those of 1,000."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flopsfit_ds.base.storage import write_json
from flopsfit_ds.engine.disk.results import records_csv
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.report import write_report
from helpers.report.report_records import record
from helpers.report.report_writer import fit_of


def page_of(root: Path, num_runs: int, num_steps: int) -> Path:
    folder = SweepFolder(root)
    folder.prepare()
    generator = np.random.default_rng(0)
    records = []
    for budget in np.geomspace(1e16, 1e19, 10):
        for factor in np.geomspace(0.1, 10, num_runs // 10):
            size = factor * (budget / 120) ** 0.5
            noise = 0.003 * generator.standard_normal()
            made = record(size, budget / 6 / size, float(budget), noise=noise)
            records.append(replace(made, run_id=f"{len(records):012x}"))
    for made in records:
        run = folder.run(made.run_id)
        run.path.mkdir()
        plan = {
            "label": made.label, "compute_budget_flops": made.compute_budget_flops, "context_length": 64,
            "global_batch_sequences": made.planned.num_tokens / num_steps / 64, "flops": made.planned.flops,
            "num_steps": num_steps,
        }  # fmt: skip
        write_json(run.plan, plan, durable=False)
        losses = made.loss * (1 + np.arange(1, num_steps + 1) ** -0.5) + 0.01 * generator.standard_normal(num_steps)
        run.metrics.extend(
            [{"step": k + 1, "loss": float(loss), "learning_rate": 1e-3} for k, loss in enumerate(losses)]
        )
    folder.results.write_text(records_csv(records))
    return write_report(folder, records, fit_of(records))


@pytest.mark.slow
def test_a_page_of_a_hundred_runs_is_below_a_megabyte(tmp_path):
    page = page_of(tmp_path, 100, 400)
    assert page.stat().st_size < 1e6
    assert page.read_text().count('id="curves-tip-') == 100, "no curve is left out"
    assert '<main class="many">' not in page.read_text(), "a picture of the whole page shows all of it"


@pytest.mark.slow
@pytest.mark.long
def test_a_page_of_a_thousand_runs_is_below_five_megabytes(tmp_path):
    page = page_of(tmp_path, 1000, 200)
    assert page.stat().st_size < 5e6
    assert page.read_text().count('id="curves-tip-') == 1000
    assert '<main class="many">' in page.read_text(), "it opens without laying all of it out"

"""Change one deciding line at a time, and see whether the tests nearest to it notice.

    python scripts/mutants.py                     # all changes of scripts/mutants.tsv, two at a time
    python scripts/mutants.py --only plan/        # those whose file holds this text
    python scripts/mutants.py --kept verdicts.jsonl --page docs/mutants.md

Each change is made in a copy of the project and the tests named beside it are run there, without the slow ones. A
change that no test notices is a survivor: it needs a test, or a reason in the table's last column. Not a part of CI.
With a file of kept verdicts it may be interrupted and goes on: what a test has noticed is not tried again, survivors
are. The page tells of each change which test noticed it.

The table has five columns, separated by tabs: file, text that stands once in it, what it becomes, tests, and why the
change cannot be noticed, where that is so.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from threading import Lock

PROJECT = Path(__file__).resolve().parents[1]
TABLE = PROJECT / "scripts" / "mutants.tsv"
ASKED_SHARE = 0.95
LEAST_PATIENCE_SECONDS = 400.0
PATIENCE_FACTOR = 4.0
"""Of the time that the tests take without a change: a change that takes so much longer does not end."""
FAST = "not slow and not long and not slurm"
PASSED, FAILED = 0, 1


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        file: Below `flopsfit_ds`.
        before: Text that stands once in the file.
        after: What it becomes.
        tests: Arguments to pytest.
        excuse: Why no test can notice; empty where one must.
    """

    file: str
    before: str
    after: str
    tests: tuple[str, ...]
    excuse: str

    @property
    def package(self) -> str:
        """The step it belongs to."""
        return self.file.split("/")[0].removesuffix(".py")


@dataclass(frozen=True)
class Verdict:
    """What became of a change.

    Attributes:
        mutant: The change.
        outcome: `killed`, `survived`, or `timeout`, which counts as killed: the tests did not pass.
        seconds: How long the tests took.
        noticed_by: The test that failed; empty where none did, or where the time was over.
    """

    mutant: Mutant
    outcome: str
    seconds: float
    noticed_by: str


def read_table(path: Path) -> list[Mutant]:
    """The changes, each checked against the code as it is.

    Raises:
        SystemExit: A text stands not once in its file, or a line has another shape.
    """
    mutants, wrong = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        file, before, after, tests, excuse = [*line.split("\t"), ""][:5]
        count = (PROJECT / "flopsfit_ds" / file).read_text(encoding="utf-8").count(before)
        if count != 1:
            wrong.append(f"{path.name}:{number}: {before!r} stands {count} times in {file}")
        mutants.append(Mutant(file, before, after, tuple(tests.split()), excuse))
    if wrong:
        sys.exit("\n".join(wrong))
    return mutants


@contextmanager
def copies(count: int) -> Iterator[Queue[Path]]:
    """Copies of what git knows of the project, one for each process."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=True).stdout
    names = [name for name in listed.decode().split("\0") if name and (PROJECT / name).is_file()]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        queue: Queue[Path] = Queue()
        for number in range(count):
            copy = Path(folder) / str(number)
            for name in names:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(PROJECT / name, copy / name)
            queue.put(copy)
        yield queue


def run_tests(copy: Path, tests: tuple[str, ...], timeout_seconds: float | None) -> tuple[int | None, float, str]:
    """Exit code (None where the time was over), seconds, and the end of what was printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(copy), str(copy / "tests"))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(copy / "cache"),
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", FAST, *tests]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return None, time.monotonic() - began, ""
    return done.returncode, time.monotonic() - began, (done.stdout + done.stderr)[-20000:]


def judge(mutant: Mutant, queue: Queue[Path], patience_seconds: float) -> Verdict:
    """Make the change in a copy, run its tests, and take it back."""
    copy = queue.get()
    path = copy / "flopsfit_ds" / mutant.file
    original = path.read_text(encoding="utf-8")
    try:
        path.write_text(original.replace(mutant.before, mutant.after), encoding="utf-8")
        code, seconds, said = run_tests(copy, mutant.tests, patience_seconds)
    finally:
        path.write_text(original, encoding="utf-8")
        queue.put(copy)
    if code not in (PASSED, FAILED, None):
        raise RuntimeError(
            f"{mutant.file}: {mutant.after!r}: pytest ended with {code}, which says nothing\n{said[-2000:]}"
        )
    outcome = {PASSED: "survived", FAILED: "killed", None: "timeout"}[code]
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    print(
        f"{outcome:9}{seconds:6.0f} s  {mutant.file}: {mutant.before.strip()}  ->  {mutant.after.strip()}", flush=True
    )
    return Verdict(mutant, outcome, seconds, failed.group(1) if failed else "")


def check_unchanged(tests: tuple[str, ...], queue: Queue[Path]) -> float:
    """See that these tests pass on the project as it is, else a failure would prove nothing; how long they may take.

    Raises:
        RuntimeError: They do not.
    """
    copy = queue.get()
    try:
        code, seconds, said = run_tests(copy, tests, None)
    finally:
        queue.put(copy)
    if code != PASSED:
        raise RuntimeError(f"{' '.join(tests)} ends with {code} without any change:\n{said[-2000:]}")
    return max(LEAST_PATIENCE_SECONDS, PATIENCE_FACTOR * seconds)


def judge_all(mutants: list[Mutant], queue: Queue[Path], pool: ThreadPoolExecutor, kept: Kept) -> list[str]:
    """Judge changes, each after its tests have passed without it; what kept some from it."""
    checks: dict[tuple[str, ...], Future[float]] = {}

    def judge_checked(mutant: Mutant) -> None:
        kept.add(judge(mutant, queue, checks[mutant.tests].result()))

    judged = []
    for tests in dict.fromkeys(mutant.tests for mutant in mutants):
        checks[tests] = pool.submit(check_unchanged, tests, queue)
        judged += [pool.submit(judge_checked, mutant) for mutant in mutants if mutant.tests == tests]
    return list(dict.fromkeys(str(error) for job in judged if (error := job.exception()) is not None))


def by_package(verdicts: list[Verdict]) -> list[tuple[str, int, int]]:
    """Package, changes and those noticed, of each package and of all."""
    rows = []
    for package in sorted({verdict.mutant.package for verdict in verdicts}):
        here = [verdict for verdict in verdicts if verdict.mutant.package == package]
        rows.append((package, len(here), sum(verdict.outcome != "survived" for verdict in here)))
    return [*rows, ("all", len(verdicts), sum(killed for _, _, killed in rows))]


def show(verdicts: list[Verdict]) -> bool:
    """Print the table by package and the survivors; whether it is good enough."""
    rows = by_package(verdicts)
    print(f"\n{'package':12}{'changes':>8}{'killed':>8}")
    for package, count, killed in rows:
        print(f"{package:12}{count:8}{killed:8}")
    if not verdicts:
        print("no change was judged")
        return False
    share = rows[-1][2] / rows[-1][1]
    print(f"{share:.1%} killed")
    survivors = [verdict for verdict in verdicts if verdict.outcome == "survived"]
    for verdict in survivors:
        mutant = verdict.mutant
        print(f"survived: {mutant.file}: {mutant.before}  ->  {mutant.after}: {mutant.excuse or 'NO REASON GIVEN'}")
    return share >= ASKED_SHARE and all(verdict.mutant.excuse for verdict in survivors)


def as_page(verdicts: list[Verdict], untried: list[Mutant]) -> str:
    """The same as a page of the documentation, with the test that noticed each change."""

    def code(text: str) -> str:
        return f"<code>{html.escape(text.strip()).replace('|', '&#124;')}</code>"

    lines = [
        "# Changes that a test must notice",
        "",
        "Written by `python scripts/mutants.py --page docs/mutants.md` from `scripts/mutants.tsv`. Each change was",
        "made alone; then the fast tests nearest to it were run. After a change of tests run it for the part that you",
        "touched: `python scripts/mutants.py --only plan/`.",
        "",
        "| package | changes | noticed |",
        "|---|---|---|",
        *(f"| {package} | {count} | {killed} |" for package, count, killed in by_package(verdicts)),
        "",
        "| file | line | changed to | noticed by |",
        "|---|---|---|---|",
    ]
    for verdict in verdicts:
        mutant = verdict.mutant
        noticed = (
            f"not noticed: {mutant.excuse or 'a test is missing'}"
            if verdict.outcome == "survived"
            else verdict.noticed_by.split("[")[0]
        )
        noticed = noticed or "its tests did not end in time"
        lines.append(f"| {mutant.file} | {code(mutant.before)} | {code(mutant.after)} | {noticed} |")
    for mutant in untried:
        lines.append(f"| {mutant.file} | {code(mutant.before)} | {code(mutant.after)} | not tried yet |")
    return "\n".join(lines) + "\n"


class Kept:
    """Verdicts in a file of JSON lines, one appended for each change that was tried."""

    def __init__(self, path: Path | None, mutants: list[Mutant]) -> None:
        self._path, self._lock = path, Lock()
        self.verdicts: dict[Mutant, Verdict] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path and path.exists() else ():
            values = json.loads(line)
            told = values.pop("mutant")
            same = [each for each in mutants if (each.file, each.before, each.after) == tuple(told.values())[:3]]
            self.verdicts.update({mutant: Verdict(mutant, **values) for mutant in same})

    def pending(self, mutants: list[Mutant]) -> list[Mutant]:
        """Changes that no test has noticed yet."""
        return [each for each in mutants if each not in self.verdicts or self.verdicts[each].outcome == "survived"]

    def add(self, verdict: Verdict) -> None:
        """One more."""
        with self._lock:
            self.verdicts[verdict.mutant] = verdict
            if self._path:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(verdict)) + "\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="changes whose file holds this text")
    parser.add_argument("--jobs", type=int, default=2, help="copies that are tried side by side")
    parser.add_argument("--kept", type=Path, help="a file of verdicts to go on from, as JSON lines")
    parser.add_argument("--page", type=Path, help="write the table as a page of the documentation")
    parser.add_argument("--try-none", action="store_true", help="only show, or write, what is kept")
    options = parser.parse_args()
    mutants = [mutant for mutant in read_table(TABLE) if options.only in mutant.file]
    kept = Kept(options.kept, mutants)
    pending = [] if options.try_none else kept.pending(mutants)
    if pending:
        with copies(options.jobs) as queue, ThreadPoolExecutor(options.jobs) as pool:
            wrong = judge_all(pending, queue, pool, kept)
        print(*wrong, sep="\n\n", file=sys.stderr)
    verdicts = [kept.verdicts[mutant] for mutant in mutants if mutant in kept.verdicts]
    untried = [mutant for mutant in mutants if mutant not in kept.verdicts]
    if options.page:
        options.page.write_text(as_page(verdicts, untried), encoding="utf-8")
    is_good = show(verdicts)
    print(f"{len(untried)} not tried")
    sys.exit(0 if is_good and not untried else 1)


if __name__ == "__main__":
    main()

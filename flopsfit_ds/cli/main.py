"""Entry point of `flopsfit-ds`: the commands, and one clean line for every error a user can meet."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flopsfit_ds import __version__
from flopsfit_ds.base.errors import FlopsfitError
from flopsfit_ds.base.text import shown
from flopsfit_ds.cli.prose import NARROW, narrow_help
from flopsfit_ds.cli.streams import guarded, see_to_descriptors

if TYPE_CHECKING:  # below it is imported where Ctrl-C is met
    import typer

_HOMES = {
    "init": "planning.init",
    "sweep": "sweeping.sweep",
    "retry": "sweeping.sweep",
    "plan": "planning.plan",
    "estimate-memory": "planning.estimate",
    "fit": "fitting.fit",
    "predict": "fitting.fit",
    "check-mup": "planning.mup",
    "preview": "fitting.preview",
    "laws": "fitting.laws",
    "report": "fitting.report",
    "register": "deciding.register",
    "score": "deciding.score",
    "status": "sweeping.status",
    "logs": "sweeping.logs",
    "curves": "sweeping.curves",
    "audit": "deciding.audit",
    "compare": "deciding.compare",
    "next": "deciding.next",
    "timeline": "sweeping.timeline",
    "data": "planning.data",
    "schema": "planning.spec",
    "validate": "planning.spec",
    "specs": "planning.spec",
    "hardware": "planning.hardware",
    "completion": "completion",
}
"""Command -> the module that adds it, in the order in which they are listed."""
_OF_A_NAME = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EROFS)
"""What is wrong with a path that a user named: no mistake of the program's."""
_OF_A_DISK = (errno.EIO, errno.ENOSPC, errno.EDQUOT)
"""What is wrong with the place where a file lies."""


_INTERRUPTED = 130
"""128 and the number of SIGINT, as shells say it."""


def _show_version(wanted: bool) -> None:
    import typer

    if wanted:
        print(__version__)
        raise typer.Exit


def build_app(command: str | None = None) -> typer.Typer:
    """The application with all its commands.

    Args:
        command: The one that is asked for: where it is known, no other's module is imported.
    """
    import typer

    app = typer.Typer(
        name="flopsfit-ds",
        help="Plan, train under DeepSpeed and fit scaling-law sweeps of large models.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich" if shutil.get_terminal_size().columns >= NARROW else None,
    )

    @app.callback()
    def options(  # pyright: ignore[reportUnusedFunction]
        version: bool = typer.Option(
            False, "--version", callback=_show_version, is_eager=True, help="Show the version."
        ),
    ) -> None:
        pass

    homes = [_HOMES[command]] if command in _HOMES else list(dict.fromkeys(_HOMES.values()))
    for home in homes:
        importlib.import_module(f"flopsfit_ds.cli.{home}").register(app)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Returns:
        0 where all is well, 1 where runs failed, 2 for a mistake of the user's, 130 after Ctrl-C, 141 where nobody
        reads the output any more.
    """
    try:
        with guarded():
            return _run(arguments)
    except KeyboardInterrupt:
        return _interrupted()


def _run(arguments: Sequence[str]) -> int:
    import typer

    try:
        app = build_app(next(iter(arguments), None))
        command = narrow_help(app) if shutil.get_terminal_size().columns < NARROW else app
        code = command(list(arguments), prog_name="flopsfit-ds", standalone_mode=False)
        sys.stdout.flush()
    except FlopsfitError as error:
        local_rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
        # of a node's launched ranks, one tells; each node may fail in its own way
        if not local_rank.isdigit() or int(local_rank) == 0:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except typer.Exit as leave:
        return leave.exit_code
    except typer.Abort:  # at a question; elsewhere typer itself makes this code of Ctrl-C
        return _interrupted()
    except SystemExit as leave:
        if not isinstance(leave.__context__, BrokenPipeError):
            raise
        return _reader_left()
    except OSError as error:
        if error.errno == errno.EIO and error.filename is None:
            print(
                "error: a file cannot be read or written: its disk fails; copy it, and name the copy", file=sys.stderr
            )
            return 2
        if error.filename is not None and error.errno in (*_OF_A_NAME, *_OF_A_DISK):
            print(f"error: {shown(os.fspath(error.filename))}: {error.strerror}", file=sys.stderr)
            return 2
        if error.errno not in (errno.EPIPE, errno.ENOSPC) or error.filename is not None:
            raise
        if error.errno == errno.EPIPE:
            return _reader_left()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's own errors, shown as click does
            error.show()  # pyright: ignore[reportAttributeAccessIssue]
            return int(error.exit_code)  # pyright: ignore[reportAttributeAccessIssue]
        raise
    if code == _INTERRUPTED:
        return _interrupted()
    return code if isinstance(code, int) else 0


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return _INTERRUPTED


def _reader_left() -> int:
    """What a shell reports of a program that writes into a closed pipe; what is buffered still goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def main() -> None:
    """The console command."""
    try:
        see_to_descriptors()
        code = run(sys.argv[1:])
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to stop but Python's own end
    except KeyboardInterrupt:
        code = _INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()

"""A process that has torch and DeepSpeed loaded and forks a fresh child for every simulation.

The patches of a simulation change PyTorch and DeepSpeed for good, so each job has a process of its own; loading the
libraries takes seconds, so that is done once. As many jobs run side by side as this process may use cores.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import io
import itertools
import multiprocessing
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing import spawn
from types import TracebackType
from typing import IO, Any

from flopsfit_ds.base.errors import FlopsfitError
from flopsfit_ds.base.usercode import CANNOT_BE_PICKLED, main_script, pickled

_LENGTH = struct.Struct("<Q")
_TIMEOUT_SECONDS = 900.0
"""Those of `scripts/bench_memory.py` took 2 to 7 s each; a hundred times that is a simulation that hangs."""
_BY_VALUE = {
    "DataDependentOutputException": "a way that depends on values, which it has none of",
    "DynamicOutputShapeException": "a shape that depends on values, which it has none of",
}
"""What a model asks of tensors without memory that they do not know, by PyTorch's name for it."""
_ENDED = "the simulation's process ended without an answer"


class SimulationError(FlopsfitError):
    """A model did not run on fake tensors; the message's last line says what stopped it."""


class SimulationServer:
    """Runs jobs, each in a child of a preloaded process; a context manager, which any thread may use."""

    def __init__(self) -> None:
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise SimulationError(
                'the script starts a study when it is imported; put the call under `if __name__ == "__main__":`'
            )
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "SLURM_"))}
        # the simulation needs no device, and must leave the ones of a training run alone
        environment.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
        environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
        # descriptors of their own: whatever a start-up hook or a library prints or reads meets none of them
        jobs_end, jobs = os.pipe()
        answers, answers_end = os.pipe()
        self._jobs, self._answers = os.fdopen(jobs, "wb"), os.fdopen(answers, "rb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flopsfit_ds.simulate.server", str(jobs_end), str(answers_end)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(jobs_end, answers_end),
            env=environment,
        )
        os.close(jobs_end)
        os.close(answers_end)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._ended: str | None = None
        self._pending: dict[int, Future[Any]] = {}
        self._reader = threading.Thread(target=self._read_answers, name="simulation answers", daemon=True)
        self._reader.start()

    def __enter__(self) -> SimulationServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, function: str, argument: Any) -> Future[Any]:
        """Have `module:function` called with a picklable argument in a fresh child; the future has what it returns.

        A call that raises or ends without a result makes the future raise SimulationError, whose message says what
        stopped it.

        Raises:
            SimulationError: The argument cannot be handed over.
        """
        future: Future[Any] = Future()
        with self._lock:
            number = next(self._numbers)
            try:
                payload = pickle.dumps((number, pickle.dumps((main_script(), pickled((function, argument))))))
            except CANNOT_BE_PICKLED as error:
                raise SimulationError(f"the model cannot be handed to the simulation: {error}") from None
            if self._ended is not None:
                future.set_exception(SimulationError(self._ended))
                return future
            future.set_running_or_notify_cancel()  # from here on nobody can cancel it under the reader's hands
            self._pending[number] = future
            with contextlib.suppress(OSError):  # then the reader finds the end too, and fails all that is pending
                _write(self._jobs, payload)
        return future

    def _read_answers(self) -> None:
        """Hand out answers until there are no more; whatever ends that fails all that waits."""
        reason = _ENDED
        try:
            while True:
                number, answer = pickle.loads(_read(self._answers))
                ok, result = pickle.loads(answer)
                if number is None:
                    reason = f"the simulation's process did not start: {result}"
                    break
                future = self._pending.pop(number)
                if ok:
                    future.set_result(result)
                else:
                    future.set_exception(SimulationError(result))
        except (OSError, EOFError):
            pass  # the process is gone
        except Exception as error:  # an answer from which nothing can be read, and none after it
            reason = f"an answer of the simulation's process cannot be read: {type(error).__name__}: {error}"
        with self._lock:
            self._ended = reason
            for future in self._pending.values():
                future.set_exception(SimulationError(reason))
            self._pending.clear()

    def close(self) -> None:
        """End the process and what it runs; a second time is fine."""
        with contextlib.suppress(BrokenPipeError):
            self._jobs.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=5)
        if not self._reader.is_alive():
            self._answers.close()


def _write(stream: IO[bytes], payload: bytes) -> None:
    stream.write(_LENGTH.pack(len(payload)) + payload)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    (length,) = _LENGTH.unpack(_read_exactly(stream, _LENGTH.size))
    return _read_exactly(stream, length)


def _read_exactly(stream: IO[bytes], length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = stream.read(length - len(parts))
        if not part:
            raise EOFError("no answer")
        parts += part
    return bytes(parts)


@dataclass
class _Child:
    """A process at work on a job.

    Attributes:
        number: Of the job.
        process_id: Of the process.
        pipe: Where its answer comes from.
        deadline: `time.monotonic()` after which it is ended.
        answer: What has come so far.
    """

    number: int
    process_id: int
    pipe: int
    deadline: float
    answer: io.BytesIO = field(default_factory=io.BytesIO)


class _Forker:
    """The loaded process: reads jobs from one descriptor until it closes, and writes answers to another."""

    def __init__(self, jobs: int, answers: int) -> None:
        for descriptor in (jobs, answers):
            os.set_inheritable(descriptor, False)  # what a job starts may not keep the pipes open
        self._jobs, self._answers = os.fdopen(jobs, "rb", buffering=0), os.fdopen(answers, "wb")
        self._waiting: collections.deque[tuple[int, bytes]] = collections.deque()
        self._children: dict[int, _Child] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._jobs, selectors.EVENT_READ)

    def serve(self) -> None:
        """Load the libraries, or say why they cannot be; then work until there is nobody to work for."""
        try:
            _preload()
        except BaseException as error:  # an exit of a library's own is an answer too
            _write(self._answers, pickle.dumps((None, pickle.dumps((False, _told(error))))))
            raise
        limit = len(os.sched_getaffinity(0))
        while True:
            for key, _ in self._selector.select(timeout=1.0 if self._children else None):
                if key.fileobj is not self._jobs:
                    self._collect(self._children[key.fd])
                elif not self._take_job():
                    return
            now = time.monotonic()
            for child in self._children.values():
                if now > child.deadline:
                    os.kill(child.process_id, signal.SIGKILL)
            while self._waiting and len(self._children) < limit:
                self._fork(*self._waiting.popleft())

    def _take_job(self) -> bool:
        try:
            self._waiting.append(pickle.loads(_read(self._jobs)))
        except EOFError:
            for child in self._children.values():
                os.kill(child.process_id, signal.SIGKILL)
                os.waitpid(child.process_id, 0)
            return False
        return True

    def _fork(self, number: int, payload: bytes) -> None:
        reading, writing = os.pipe()
        process_id = os.fork()
        if process_id == 0:
            os.close(self._answers.fileno())  # so that nobody waits for answers of a server that is gone
            os.close(self._jobs.fileno())
            os.close(reading)
            with os.fdopen(writing, "wb") as stream:
                stream.write(_answer(payload))
            os._exit(0)
        os.close(writing)
        self._children[reading] = _Child(number, process_id, reading, time.monotonic() + _TIMEOUT_SECONDS)
        self._selector.register(reading, selectors.EVENT_READ)

    def _collect(self, child: _Child) -> None:
        part = os.read(child.pipe, 1 << 16)
        if part:
            child.answer.write(part)
            return
        self._selector.unregister(child.pipe)
        os.close(child.pipe)
        del self._children[child.pipe]
        _, status = os.waitpid(child.process_id, 0)
        code, answer = os.waitstatus_to_exitcode(status), child.answer.getvalue()
        if code != 0:  # also a child that ended within its answer
            answer = pickle.dumps((False, f"its process ended with status {code}"))
        _write(self._answers, pickle.dumps((child.number, answer)))


def _preload() -> None:
    """Load what a simulation needs: PyTorch and DeepSpeed import their compilers at first use, which takes seconds."""
    import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    import torch._dynamo

    import flopsfit_ds.simulate.rank
    import flopsfit_ds.train.model.decoder
    import flopsfit_ds.train.session  # noqa: F401

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # children share these objects, and need not look through them


def _answer(payload: bytes) -> bytes:
    try:
        main_path, call = pickle.loads(payload)
        try:
            name, argument = pickle.loads(call)
        except AttributeError:  # what the user's script defines
            if main_path is None:
                raise
            _import_main(main_path)
            name, argument = pickle.loads(call)
        module, _, function = name.partition(":")
        __import__(module)
        return pickle.dumps((True, getattr(sys.modules[module], function)(argument)))
    except BaseException as error:  # whatever stops a model is reported, also an exit of its own
        return pickle.dumps((False, _told(error)))


def _import_main(path: str) -> None:
    """Import the caller's script, as multiprocessing would in a child, so that a study that it starts is refused."""
    current = multiprocessing.current_process()
    current._inheriting = True  # pyright: ignore[reportAttributeAccessIssue]
    try:
        spawn.import_main_path(path)
    finally:
        del current._inheriting  # pyright: ignore[reportAttributeAccessIssue]


def _told(error: BaseException) -> str:
    """An error in one line: its type, where the model or the engine raised it, and the first line of what it says."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = f"{os.sep}torch{os.sep}", os.path.dirname(__file__)  # noqa: PTH120
    of_user = [frame for frame in frames if not any(folder in frame.filename for folder in ours)]
    last = (of_user or frames)[-1]
    kind = type(error).__name__
    text = (str(error).strip().splitlines() or [""])[0]
    where = f"{os.path.basename(last.filename)}:{last.lineno}: {text[:300]}"  # noqa: PTH119
    return f"{_BY_VALUE[kind]}, at {where}" if kind in _BY_VALUE else f"{kind} at {where}"


if __name__ == "__main__":
    _Forker(int(sys.argv[1]), int(sys.argv[2])).serve()

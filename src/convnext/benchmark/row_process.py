"""A row's process, seen from the one that measures: started, prepared, run turn by turn, closed.

A process for each row keeps rows apart: memory is a row's own, a compiler or a library that fails or runs out of memory
takes no other row with it, and kernels can be off in one of them.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from convnext.benchmark.case import Case
from convnext.benchmark.settings import SETTINGS

PACKAGE = Path(__file__).parents[2]  # where this package is imported from


@dataclass
class Row:
    """A row and what was measured of it.

    Attributes:
        case: which it is.
        work: images of one call; FLOP for the ceiling.
        seconds: of a call, in each turn.
        peak_memory: bytes, see :class:`convnext.benchmark.peak_memory.PeakMemory`.
        error: why there is nothing, or nothing more.
        ended: why it was given no further turn, see :mod:`convnext.benchmark.race`.
    """

    case: Case
    work: float = 0
    seconds: list[float] = field(default_factory=list)
    peak_memory: int | None = None
    error: str | None = None
    ended: str | None = None

    @property
    def runs(self) -> bool:
        """Whether it was measured and has further turns to come."""
        return bool(self.seconds) and not (self.error or self.ended)

    @property
    def rates(self) -> list[float]:
        """Images, or FLOP, a second in each turn."""
        return [self.work / seconds for seconds in self.seconds]


class RowProcess:
    """The process of a row.

    Args:
        row: what it measures, and takes what comes of it.
        threads: that it computes with.
        cpus: that it may run on; none for any.
    """

    def __init__(self, row: Row, threads: int, cpus: set[int]) -> None:
        self.row = row
        words = {
            "OMP_NUM_THREADS": str(threads),
            "CONVNEXT_KERNELS": os.environ.get("CONVNEXT_KERNELS", "on")
            if SETTINGS[row.case.setting].kernels
            else "off",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH")))),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "convnext.benchmark.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | words,
            start_new_session=True,  # Ctrl-C is for the one that measures, which then ends this one
        )
        if cpus:
            os.sched_setaffinity(self.process.pid, cpus)
        self.ask({"case": asdict(row.case), "threads": threads})

    def ask(self, words: Any) -> None:
        """Send a request; a process that is no more says so when it is to answer."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            print(json.dumps(words), file=self.process.stdin, flush=True)

    def answer(self) -> dict[str, Any] | None:
        """The answer to a request; None, and the row's error, where it failed or the process ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = json.loads(line) if line else {"error": self.ended()}
        self.row.error = found.get("error")
        if self.row.error:
            self.close()  # what it holds is for the others
            return None
        return found

    def ended(self) -> str:
        """Why the process is no more, in words."""
        status = self.process.wait()
        if status == -signal.SIGKILL:
            return f"its process was killed, most likely since memory ran out at batch {self.row.case.batch}"
        return f"its process ended with status {status}"

    def prepare(self) -> list[str]:
        """Wait until the network stands and has run; returns what should be said of it."""
        if (found := self.answer()) is None:
            return []
        self.row.work = found["work"]
        return found["notes"]

    def turn(self) -> None:
        """Run once; a row that fails now keeps what it has."""
        if self.row.error:
            return
        self.ask("turn")
        if found := self.answer():
            self.row.seconds.append(found["seconds"])
            self.row.peak_memory = found["peak_memory"]

    def close(self) -> None:
        """End the process, whatever it is doing; once more does nothing."""
        self.process.kill()
        with self.process:
            pass

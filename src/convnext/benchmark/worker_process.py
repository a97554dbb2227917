"""The process of one configuration, seen from the process that measures, and what it measured.

With a process each, configurations do not share memory; a compiler or library that fails or runs out of memory ends no
other configuration; and kernels can be disabled in one of them.
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

from convnext.benchmark.configurations import SETTINGS, Configuration

PACKAGE = Path(__file__).parents[2]  # where this package is imported from


@dataclass
class Measurement:
    """What was measured of a configuration.

    Attributes:
        configuration: see :class:`Configuration`.
        work: images per call; FLOP for the ceiling.
        seconds: per call, in each round.
        peak_memory: bytes, see :class:`convnext.benchmark.machine.PeakMemory`.
        error: why there is nothing, or nothing more.
        ended: why it takes part in no further round, see :func:`convnext.benchmark.ratios.beaten`.
    """

    configuration: Configuration
    work: float = 0
    seconds: list[float] = field(default_factory=list)
    peak_memory: int | None = None
    error: str | None = None
    ended: str | None = None

    @property
    def is_running(self) -> bool:
        """True if it was measured and takes part in the next round."""
        return bool(self.seconds) and not (self.error or self.ended)

    @property
    def rates(self) -> list[float]:
        """Images/s, or FLOP/s, in each round."""
        return [self.work / seconds for seconds in self.seconds]


class WorkerProcess:
    """Starts the process of a configuration and sends it requests.

    Args:
        measurement: takes the results.
        threads: number of threads to compute with.
        cpus: the CPUs to run on; none for any.
    """

    def __init__(self, measurement: Measurement, threads: int, cpus: set[int]) -> None:
        self.measurement = measurement
        has_kernels = SETTINGS[measurement.configuration.setting].kernels
        variables = {
            "OMP_NUM_THREADS": str(threads),
            "CONVNEXT_KERNELS": os.environ.get("CONVNEXT_KERNELS", "on") if has_kernels else "off",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH")))),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "convnext.benchmark.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | variables,
            start_new_session=True,  # Ctrl-C goes to the parent alone, which then ends this process
        )
        if cpus:
            os.sched_setaffinity(self.process.pid, cpus)
        self.send({"configuration": asdict(measurement.configuration), "threads": threads})

    def send(self, request: Any) -> None:
        """Send a request; that a process has ended is reported by :meth:`receive`."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            print(json.dumps(request), file=self.process.stdin, flush=True)

    def receive(self) -> dict[str, Any] | None:
        """The response to a request; None, and the measurement's error, if it failed or the process ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        response = json.loads(line) if line else {"error": self.exit_reason()}
        self.measurement.error = response.get("error")
        if self.measurement.error:
            self.close()  # frees its memory for the others
            return None
        return response

    def exit_reason(self) -> str:
        """Why the process has ended."""
        status = self.process.wait()
        if status == -signal.SIGKILL:
            batch = self.measurement.configuration.batch
            return f"its process was killed, most likely since memory ran out at batch {batch}"
        return f"its process ended with status {status}"

    def prepare(self) -> list[str]:
        """Wait until the model is built and warmed up; returns remarks for the user."""
        if (response := self.receive()) is None:
            return []
        self.measurement.work = response["work"]
        return response["notes"]

    def run_round(self) -> None:
        """Measure one round; a configuration that fails now keeps its earlier rounds."""
        if self.measurement.error:
            return
        self.send("run")
        if response := self.receive():
            self.measurement.seconds.append(response["seconds"])
            self.measurement.peak_memory = response["peak_memory"]

    def close(self) -> None:
        """Kill the process; calling this again does nothing."""
        self.process.kill()
        with self.process:
            pass

"""The run and the files that it is exported as, which the tests of exporting make."""

from tests.exporting.conftest import cache, onnx, program, run

__all__ = ["cache", "onnx", "program", "run"]

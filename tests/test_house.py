"""The shape of the code: who may import whom, and how large things may become."""

import ast
import graphlib
import re
from collections import Counter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "convnext"
GROUND = {"console", "device", "environment", "errors", "files", "plotting", "quantities", "randomness"}
ROOMS = [  # from the bottom to the top; those in one tuple do not import each other
    tuple(GROUND),
    ("data",),
    ("models",),
    ("acceleration",),
    ("weights",),
    ("training",),
    ("inference",),
    ("evaluation", "explanation", "exporting"),
    ("benchmark", "serve"),
    ("study",),
    ("cli",),
    ("__init__", "__main__"),
]
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
# The aims are 19,500 lines of source and 14,000 of tests: lower these bounds whenever the code has become shorter.
MAX_SOURCE_LINES, MAX_TEST_LINES, MAX_FILE_LINES, MAX_FUNCTION_LINES = 24_000, 17_800, 400, 60


def lines_in(files: list[Path]) -> int:
    return sum(len(file.read_text().splitlines()) for file in files)


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """The modules that each module imports, anywhere in it."""
    graph = grimp.build_graph("convnext", cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def test_no_import_leads_up(imports: dict[str, set[str]]) -> None:
    upward = {
        f"{module} -> {imported}"
        for module, targets in imports.items()
        for imported in targets
        if (
            (one := room_of(module)) != (other := room_of(imported))
            and FLOORS[one] <= FLOORS[other]
            and one not in GROUND
        )
        or (one in GROUND and other not in GROUND)
    }
    assert not upward


def test_no_imports_in_a_circle(imports: dict[str, set[str]]) -> None:
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_networks_need_torch_alone() -> None:
    for file in python_files(SOURCE / "models"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                if name.partition(".")[0] in ("numpy", "PIL", "timm", "torchvision", "matplotlib", "safetensors"):
                    assert file.name == "references.py", f"{file.name} imports {name}"


def test_each_file_name_stands_once() -> None:
    names = Counter(file.name for file in python_files(SOURCE) if file.stem not in ("__init__", "__main__"))
    assert [name for name, count in names.items() if count > 1] == []


def test_the_source_is_no_longer_than_planned() -> None:
    assert lines_in(python_files(SOURCE)) <= MAX_SOURCE_LINES
    assert lines_in(python_files(ROOT / "tests")) <= MAX_TEST_LINES
    assert {file.name: n for file in python_files(SOURCE) if (n := lines_in([file])) > MAX_FILE_LINES} == {}


def test_functions_are_read_at_once() -> None:
    """Kernels in Triton's language are excepted."""
    long = {}
    for file in python_files(SOURCE):
        if file.stem.endswith("_triton"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
                if lines > MAX_FUNCTION_LINES:
                    long[f"{file.name}:{node.name}"] = lines
    assert long == {}


def test_no_test_pins_a_sentence() -> None:
    """A message may be reworded: a test names the object in it, in a few words."""
    sentences = [
        f"{file.name}: {text}"
        for file in python_files(ROOT / "tests")
        for text in re.findall(r"match=r?f?\"([^\"]*)\"", file.read_text())
        if len(text.split()) > 5
    ]
    assert sentences == []

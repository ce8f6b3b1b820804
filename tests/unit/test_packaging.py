"""The house's own rules: one importable name, which way imports run, no circles, how long files are, what stays light."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("cli", "stages", "pipeline", "schemas")
BELOW = {
    "process": "",
    "storage": "process",
    "samples": "process storage benchmarks",
    "benchmarks": "storage samples",
    "views": "process storage samples",
    "encoders": "storage views",
    "cache": "process storage samples views",
    "extraction": "process storage samples views encoders cache",
    "students": "storage views encoders",
    "loggers": "storage workspace",
    "workspace": "process storage samples benchmarks encoders cache students",
}
"""The rooms of `pipeline`, and what each may import of the others; a benchmark's own lists are a source of samples."""
MODULES = {
    ".".join(("unic_pipe", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for layer in LAYERS
    for path in (ROOT / layer).rglob("*.py")
}
LONGEST = 400
LIGHT = (
    "unic_pipe",
    "unic_pipe.cli.main",
    "unic_pipe.cli.show.status",
    "unic_pipe.pipeline.workspace.status",
    "unic_pipe.pipeline.workspace.run_log",
    "unic_pipe.stages.run",
    "unic_pipe.stages.indexing",
)
"""What `--help`, `status` and `index` import."""
HEAVY = ("torch", "torchvision", "timm", "zarr", "sklearn", "distributed", "webdataset", "scipy")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions; relative imports are against the house's rules."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            # `from unic_pipe.stages import distill` imports a module, too.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_files(path: Path) -> set[str]:
    """The modules of ours that a file imports: the longest name that is one."""
    found = set()
    for name in imports(path):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        if name:
            found.add(name)
    return found


def test_the_importable_name_belongs_to_this_distribution_alone() -> None:
    assert set(importlib.metadata.packages_distributions()["unic_pipe"]) == {"unic-pipe"}


def test_the_version_is_the_same_everywhere() -> None:
    """It is written in pyproject.toml; no module has a copy, and the files beside it speak of it."""
    from unic_pipe.schemas.base import PROGRAM_VERSION

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == PROGRAM_VERSION == importlib.metadata.version("unic-pipe")
    released = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert [path for path in MODULES.values() if f'"{version}"' in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_run_one_way(layer: str) -> None:
    below = LAYERS[LAYERS.index(layer) :]
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        if module.split(".")[1] == layer
        for name in imports(path)
        if name.split(".")[0] in (*LAYERS, "tests")
        or (name.startswith("unic_pipe") and name.split(".")[1] not in below)
    ]
    assert wrong == []


def test_stages_never_import_each_other() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        if module.startswith("unic_pipe.stages.")
        for name in imports(path)
        if name.startswith("unic_pipe.stages") and name.split(".")[2:3] != module.split(".")[2:3]
    ]
    assert wrong == []


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Lazy imports count: a circle that is hidden in functions is still one to a reader."""
    graph = {module: imported_files(path) - {module} for module, path in MODULES.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_rooms_of_pipeline() -> None:
    """The plan of the house, as ARCHITECTURE.md draws it. What is planned (workspace) imports nothing that executes."""
    here = {path.name for path in (ROOT / "pipeline").iterdir() if path.name != "__pycache__"}
    assert here == {*BELOW, "__init__.py"}
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        if module.startswith("unic_pipe.pipeline.")
        for name in imported_files(path)
        if name.startswith("unic_pipe.pipeline.")
        and name.split(".")[2] not in (module.split(".")[2], *BELOW[module.split(".")[2]].split())
    ]
    assert wrong == []


def test_files_are_short_and_say_what_they_are_for() -> None:
    for path in [*MODULES.values(), *(ROOT / "src/unic_pipe").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= LONGEST, path
        assert ast.get_docstring(ast.parse(text)), path


def test_files_of_tests_are_short_too() -> None:
    long = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert [path for path, lines in long.items() if lines > LONGEST] == []


def test_tests_are_no_packages_and_have_names_of_their_own() -> None:
    """Equal base names confuse test runners."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


def test_looking_imports_nothing_heavy() -> None:
    code = f"import sys, {', '.join(LIGHT)}\nprint([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_floors_that_are_tested_are_those_that_are_promised() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [re.fullmatch(r"([\w.-]+)(?:\[.*\])?>=([\d.]+)", each) for each in project["dependencies"]]
    promised = {match[1]: match[2] for match in found if match is not None}
    assert len(promised) == len(found)
    lines = [line for line in (ROOT / "tests" / "floors.txt").read_text().splitlines() if not line.startswith("#")]
    tested = dict(line.split("==") for line in lines)
    assert promised.keys() - tested.keys() == {"torch", "torchvision", "timm"}
    for name, version in tested.items():
        assert f"{version}.".startswith(f"{promised[name]}."), name


@pytest.mark.slow
def test_names_of_a_user_beside_the_script_are_no_matter(tmp_path: Path) -> None:
    """A user's own `pipeline/`, `schemas.py`, `cli.py` and `stages/` next to a script that uses unic_pipe."""
    for name in ("pipeline/__init__.py", "stages/__init__.py", "schemas.py", "cli.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine = True\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import cli, pipeline, schemas, stages\n"
        "from unic_pipe import FeatureCache, load_encoder, open_dataset\n"
        "print(cli.mine and pipeline.mine and schemas.mine and stages.mine, FeatureCache.__name__)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True FeatureCache\n"), done.stderr


@pytest.mark.parametrize("layer", LAYERS)
def test_a_folder_is_not_imported_under_its_bare_name(layer: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {layer}"], cwd=ROOT, capture_output=True, text=True)
    assert f"import it as unic_pipe.{layer}" in done.stderr


def test_the_console_script_is_installed() -> None:
    [script] = importlib.metadata.distribution("unic-pipe").entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("unic-pipe", "unic_pipe.cli.main:main")
    assert callable(script.load())


WHOLE = r"(?:cli|stages|pipeline|schemas|tests|src|docs)/[\w/.-]+"


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_the_map_names_files_that_exist(document: str) -> None:
    """A file without a folder is beside the one before it; names in parentheses are made in the file before them."""
    text, file = (ROOT / document).read_text(), ROOT
    missing = []
    found = re.findall(rf"`({WHOLE}|[a-z_/]+\.py)`(?: \((`\w+`(?:, `\w+`)*)\))?", text)
    for path, names in found:
        beside = file if file.is_dir() else file.parent
        file = (ROOT if re.match(WHOLE, path) else beside) / path
        missing += [] if file.exists() else [path]
        for name in re.findall(r"\w+", names):
            made = rf"(?m)^ *(?:def|class) {name}\b|^{name}\b.* = "
            missing += [] if file.is_file() and re.search(made, file.read_text()) else [f"{path}: {name}"]
    for name, path in re.findall(rf"`(\w+)` in `({WHOLE})`", text):
        missing += [] if re.search(rf"(?m)^(?:class )?{name}\b", (ROOT / path).read_text()) else [f"{path}: {name}"]
    assert len(found) > 5
    assert missing == []

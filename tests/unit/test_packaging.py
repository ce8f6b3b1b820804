"""The house's own rules: whose the packages are, which way imports run, how long files are, what stays light."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("cli", "stages", "pipeline", "schemas")
MODULES = {
    path: path.relative_to(ROOT).with_suffix("").parts for layer in LAYERS for path in (ROOT / layer).rglob("*.py")
}
LONGEST = 400
LIGHT = (
    "unic_pipe.cli.main",
    "unic_pipe.cli.show",
    "unic_pipe.pipeline.workspace.status",
    "unic_pipe.pipeline.workspace.run_log",
    "unic_pipe.stages.run",
    "unic_pipe.stages.indexing",
)
"""What `--help`, `status` and `index` import."""
HEAVY = ("torch", "torchvision", "timm", "zarr", "sklearn", "distributed", "webdataset", "scipy")


def imports(path):
    """Every module that a file imports, also inside functions; relative imports are against the house's rules."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from unic_pipe.stages import distill` imports a module, too.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_four_packages_belong_to_this_distribution_alone():
    owners = importlib.metadata.packages_distributions()
    for name in (*LAYERS, "unic_pipe"):
        assert set(owners[name]) == {"unic-pipe"}, name


def test_the_version_is_the_same_everywhere():
    """It is written in pyproject.toml; no module has a copy, and the files beside it speak of it."""
    from unic_pipe.schemas.base import PROGRAM_VERSION

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == PROGRAM_VERSION == importlib.metadata.version("unic-pipe")
    released = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert [path for path in MODULES if f'"{version}"' in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_run_one_way(layer):
    above = LAYERS[: LAYERS.index(layer)]
    wrong = [
        f"{'.'.join(module)} imports {name}"
        for path, module in MODULES.items()
        if module[0] == layer
        for name in imports(path)
        if name.split(".")[0] in (*above, "unic_pipe", "tests")
    ]
    assert wrong == []


def test_stages_never_import_each_other():
    wrong = [
        f"{'.'.join(module)} imports {name}"
        for path, module in MODULES.items()
        if module[0] == "stages"
        for name in imports(path)
        if name.split(".")[0] == "stages" and (len(module) < 3 or name.split(".")[1] != module[1])
    ]
    assert wrong == []


def test_files_are_short_and_say_what_they_are_for():
    for path in [*MODULES, ROOT / "unic_pipe.py"]:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= LONGEST, path
        assert ast.get_docstring(ast.parse(text)), path


def test_tests_are_no_packages_and_have_names_of_their_own():
    """A tests/stages/__init__.py would shadow stages; equal base names confuse test runners."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


def test_looking_imports_nothing_heavy():
    code = f"import sys, {', '.join(LIGHT)}\nprint([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_floors_that_are_tested_are_those_that_are_promised():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = dict(re.fullmatch(r"([\w.-]+)(?:\[.*\])?>=([\d.]+)", each).groups() for each in project["dependencies"])
    lines = [line for line in (ROOT / "tests" / "floors.txt").read_text().splitlines() if not line.startswith("#")]
    tested = dict(line.split("==") for line in lines)
    assert promised.keys() - tested.keys() == {"torch", "torchvision", "timm"}
    for name, version in tested.items():
        assert f"{version}.".startswith(f"{promised[name]}."), name


def test_the_console_script_is_installed():
    [script] = importlib.metadata.distribution("unic-pipe").entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("unic-pipe", "unic_pipe.cli.main:main")
    assert callable(script.load())

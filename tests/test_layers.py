"""Imports point one way, and the files of `modeling/` stay fit to be loaded as remote code."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers.dynamic_module_utils import get_relative_imports

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "llama_vid"

# From the top down: a module may import from its own layer and from the layers below it.
LAYERS = [
    ["llama_vid", "llama_vid.cli"],
    [
        "llama_vid.training",
        "llama_vid.hub",
        "llama_vid.hub_callback",
        "llama_vid.hub_card",
        "llama_vid.hub_check",
        "llama_vid.hub_completion",
        "llama_vid.hub_files",
        "llama_vid.hub_repository",
        "llama_vid.chat",
    ],
    ["llama_vid.session"],
    ["llama_vid.conversion"],
    ["llama_vid.composition"],
    ["llama_vid.composition_assembly", "llama_vid.composition_language", "llama_vid.composition_parts"],
    ["llama_vid.conversion_files", "llama_vid.conversion_keys", "llama_vid.conversion_tokenizers"],
    ["llama_vid.data", "llama_vid.hub_provenance"],
    ["llama_vid.checkpoint_check", "llama_vid.features", "llama_vid.transcription", "llama_vid.whole_files"],
    ["llama_vid.modeling"],
]
LAYER_OF = {unit: depth for depth, units in enumerate(LAYERS) for unit in units}

# Installed with an extra: imported where they are used.
LATE_IMPORTS = ["datasets", "peft", "torchcodec", "trl"]

PACKAGE_FILES = sorted(PACKAGE.rglob("*.py"))
MODELING_FILES = sorted((ROOT / "modeling").glob("*.py"))
REMOTE_CODE = [path for path in MODELING_FILES if path.name != "__init__.py"]
ALL_FILES = [
    path
    for folder in ("src", "modeling", "tests", "benchmarks", "recipes")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


class Import(NamedTuple):
    """One imported name: `from ..module import name` has level 2, `import module` has no name."""

    level: int
    module: str
    name: str

    def __str__(self) -> str:
        origin = "." * self.level + self.module
        return f"from {origin} import {self.name}" if self.name else f"import {origin}"

    def absolute(self, package: str) -> str:
        """The dotted path of what is imported, seen from a module of `package`."""
        origin = importlib.util.resolve_name("." * self.level + self.module, package)
        return f"{origin}.{self.name}" if self.name else origin


def imports_of(path: Path) -> list[Import]:
    imports = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imports += [Import(0, alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports += [Import(node.level, node.module or "", alias.name) for alias in node.names]
    return imports


def is_part_of(dotted: str, package: str) -> bool:
    return dotted == package or dotted.startswith(f"{package}.")


def unit_of(dotted: str) -> str:
    """Where a name belongs: `llama_vid.data.collator` to `llama_vid.data`, `llama_vid.LlamaVidModel` to `llama_vid`."""
    unit = ".".join(dotted.split(".")[:2])
    return unit if unit in LAYER_OF else "llama_vid"


def file_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=file_id)
def test_imports_of_the_package_point_one_way(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    package = ".".join(parts[:-1])
    module = package if parts[-1] == "__init__" else ".".join(parts)
    unit = ".".join(module.split(".")[:2])
    assert unit in LAYER_OF, f"`{unit}` has no place in LAYERS yet"

    inside = [item.absolute(package) for item in imports_of(path)]
    upwards = [name for name in inside if is_part_of(name, "llama_vid") and LAYER_OF[unit_of(name)] < LAYER_OF[unit]]
    assert upwards == []


@pytest.mark.parametrize("path", ALL_FILES, ids=file_id)
def test_nothing_imports_a_top_level_modeling(path):
    assert [str(item) for item in imports_of(path) if item.level == 0 and is_part_of(item.module, "modeling")] == []


@pytest.mark.parametrize("path", MODELING_FILES, ids=file_id)
def test_modeling_imports_nothing_of_the_package(path):
    assert [str(item) for item in imports_of(path) if item.level == 0 and is_part_of(item.module, "llama_vid")] == []


@pytest.mark.parametrize("path", REMOTE_CODE, ids=file_id)
def test_remote_code_imports_its_sibling_files_by_name(path):
    siblings = [sibling.stem for sibling in REMOTE_CODE if sibling != path]
    relative = [item for item in imports_of(path) if item.level > 0]

    assert [str(item) for item in relative if item.level > 1 or item.module not in siblings] == []
    # transformers finds the files to copy by a regular expression, which reads docstrings and comments too.
    assert [name for name in get_relative_imports(path) if name not in siblings] == []


@pytest.mark.parametrize("path", [path for path in REMOTE_CODE if path.stem.startswith("configuration_")], ids=file_id)
def test_configuration_imports_no_other_file(path):
    assert [str(item) for item in imports_of(path) if item.level > 0] == []
    assert get_relative_imports(path) == []


@pytest.mark.parametrize("path", [path for path in REMOTE_CODE if not path.stem.startswith("modeling_")], ids=file_id)
def test_only_model_code_imports_model_code(path):
    model_code = re.compile(r"(^|\.)(modeling_\w+|PreTrainedModel|AutoModel\w*)")
    assert [str(item) for item in imports_of(path) if model_code.search(f"{item.module}.{item.name}")] == []


def test_importing_the_package_leaves_optional_libraries_alone():
    command = f"import sys, llama_vid; print([name for name in {LATE_IMPORTS} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1] == "[]"


def test_the_demo_and_publishing_need_no_extra():
    """As where only what the package depends on is installed."""
    command = f"""
import sys
from importlib.machinery import PathFinder
find, missing = PathFinder.find_spec, {[*LATE_IMPORTS, "accelerate", "matplotlib"]}
@staticmethod
def find_spec(name, *args):
    return None if name.partition(".")[0] in missing else find(name, *args)
PathFinder.find_spec = find_spec
sys.path.append({str(ROOT / "recipes" / "tiny")!r})
import demo, llama_vid.cli, llama_vid.hub
"""
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

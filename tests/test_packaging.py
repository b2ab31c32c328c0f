"""The wheel and the sdist hold the package, the remote code and the embedded checkpoint, and nothing else."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Folders of the repository, and where their files lie in the wheel.
PACKAGE_FOLDERS = {"src/llama_vid": "llama_vid", "modeling": "llama_vid/modeling"}


def source_files(folder: str, pattern: str = "*") -> list[str]:
    """Paths of a folder's files, relative to it."""
    files = [path for path in (ROOT / folder).rglob(pattern) if path.is_file() and "__pycache__" not in path.parts]
    return sorted(path.relative_to(ROOT / folder).as_posix() for path in files)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    work = tmp_path_factory.mktemp("packaging")
    # A copy, because a build leaves files behind; without egg-info, whose stale list of sources a build would follow.
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, work)
    for folder in ("src", "modeling", "tests"):
        shutil.copytree(ROOT / folder, work / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))

    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(work / "dist"), str(work)]
    build = subprocess.run(command, capture_output=True, text=True, cwd=work.parent)
    assert build.returncode == 0, build.stdout + build.stderr
    return work / "dist"


def test_packages_are_the_folders_with_python_files():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]

    folders = set()
    for source, target in PACKAGE_FOLDERS.items():
        folders |= {(Path(target) / file).parent for file in source_files(source, "*.py")}

    assert sorted(listed) == sorted(".".join(folder.parts) for folder in folders)


def test_wheel_holds_the_package_and_nothing_else(distributions):
    [wheel] = distributions.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}

    expected = set()
    for source, target in PACKAGE_FOLDERS.items():
        expected |= {f"{target}/{file}" for file in source_files(source)}

    assert names - metadata == expected
    assert any(name.endswith("/licenses/LICENSE") for name in metadata)


def test_sdist_holds_the_sources(distributions):
    [sdist] = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    expected = {"pyproject.toml", "README.md", "LICENSE"}
    for source in PACKAGE_FOLDERS:
        expected |= {f"{source}/{file}" for file in source_files(source)}

    assert expected <= names

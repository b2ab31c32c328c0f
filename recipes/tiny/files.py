"""Files and folders that are there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write under another name first."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


@contextmanager
def replaced(output: Path) -> Iterator[Path]:
    """The path of a folder to be made, which takes the place of `output`, with whatever that held, if nothing fails."""
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        partial = Path(folder) / output.name
        yield partial
        if output.exists():
            shutil.rmtree(output)
        os.replace(partial, output)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{output.name}: {size / 1e6:.2f} MB")

"""Folders that are there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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

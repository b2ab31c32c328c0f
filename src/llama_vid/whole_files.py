"""Files that are there whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    Where to write a file: a name beside `path`, which it takes the place of when the block ends. If that fails, `path`
    is what it was.
    """
    path = Path(path)
    partial = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text as a [`whole_file`]."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def link_or_copy(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """A second name of a file, which costs no space, or a copy where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

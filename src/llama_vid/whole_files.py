"""Files that are there whole or not at all, and JSON of others that may not be."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What is not whole yet has such a name, hidden beside its place: a process that is killed leaves it there.
LEFTOVERS = ".*.partial*"


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    Where to write a file: a name beside `path`, which it takes the place of when the block ends. If that fails, `path`
    is what it was.
    """
    path = Path(path)
    partial = path.with_name(f".{uuid.uuid4().hex}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text as a [`whole_file`]."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json_object(path: str | os.PathLike, *keys: str) -> dict[str, Any]:
    """
    The object in a JSON file.

    Args:
        path (`str` or `os.PathLike`): The file.
        keys (`str`): What the object has at least.

    Raises:
        ValueError: if it holds anything else.
    """
    expected = f"a JSON object with {', '.join(keys)}" if keys else "a JSON object"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{path}` must be {expected}, but is no JSON ({error}): mend it or get it again.") from error
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        raise ValueError(f"`{path}` must be {expected}: mend it or get it again.")
    return content


def link_or_copy(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """A second name of a file, which costs no space, or a copy where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

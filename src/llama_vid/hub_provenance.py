"""
`provenance.json`: what a checkpoint was made of and how, a list of steps that is kept beside the weights, continued by
the next step and read by the model card.
"""

import importlib.metadata
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from .whole_files import write_text

FILE = "provenance.json"

# Where huggingface_hub keeps what it has downloaded: `owner--name`.
CACHED = re.compile(r"/models--([^/]+)/(?:snapshots|blobs)/")

# Released by the paper's authors under this name on the Hub, and under this licence (paper, released checkpoints).
RELEASED_BY, RELEASED_LICENSE = "YanweiLi", "cc-by-nc-4.0"
RELEASED = re.compile(r"llama-vid-(7b|13b)-(full|pretrain)-(224|336)(-video-fps-1|-long-video)?")

# What steps say at least, besides their kind.
NEEDED = {"composition": {"parts"}, "conversion": {"source"}}


def read_provenance(folder: Path) -> list[dict[str, Any]]:
    """
    The steps that led to the checkpoint in a folder, the first one first; none where there is no `provenance.json`.

    Raises:
        ValueError: if the file is no list of steps.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        steps = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{path}` is no JSON: {error}.") from error
    if not isinstance(steps, list) or not all(map(_is_step, steps)):
        raise ValueError(
            f"`{path}` must be a list of steps, each with the key `step`, `parts` for a composition, `source` for a "
            "conversion: mend or delete it."
        )
    return steps


def _is_step(step: Any) -> bool:
    kind = step.get("step") if isinstance(step, dict) else None
    return isinstance(kind, str) and step.keys() >= NEEDED.get(kind, set())


def provenance_of(model: str, revision: str | None = None, token: str | None = None) -> list[dict[str, Any]]:
    """
    The same for a folder or a Hub id.

    Raises:
        LocalEntryNotFoundError: the Hub cannot be reached, so that nobody knows.
        ValueError: if the file is no list of steps.
    """
    if Path(model).is_dir():
        return read_provenance(Path(model))
    try:
        path = hf_hub_download(model, FILE, revision=revision, token=token)
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return []
    return read_provenance(Path(path).parent)


def write_provenance(folder: Path, steps: Sequence[dict[str, Any]]) -> None:
    """Write `provenance.json`; what was there is replaced when the new one is complete."""
    write_text(folder / FILE, json.dumps(steps, indent=1, ensure_ascii=False) + "\n")


def conversion_step(source: str | Path, *, base_model: str | Path | None = None) -> dict[str, Any]:
    """
    The step of `convert_checkpoint`. Released checkpoints are known by their names, and bring their licence.

    Args:
        source (`str` or `Path`): Folder or Hub id of the original.
        base_model (`str` or `Path`, *optional*): The language model under a stage-1 checkpoint.
    """
    name = public_name(source).rpartition("/")[2]
    step = {"step": "conversion", "source": public_name(source)}
    if RELEASED.fullmatch(name):
        step |= {"source": f"{RELEASED_BY}/{name}", "license": RELEASED_LICENSE}
    if base_model is not None:
        step["base_model"] = public_name(base_model)
    return {**step, "versions": versions("llama-vid", "transformers", "torch")}


def composition_step(**parts: str | Path | None) -> dict[str, Any]:
    """The step of `create_model`: its parts by name (`vision_tower`, `language_model`, `qformer`)."""
    named = {part: public_name(source) for part, source in parts.items() if source is not None}
    return {"step": "composition", "parts": named, "versions": versions("llama-vid", "transformers", "torch")}


def public_name(source: str | Path) -> str:
    """
    A Hub id as it is, also where the source is the Hub's cache, and of another local path only the last part: the rest
    is nobody else's business.
    """
    if is_hub_id(source):
        return str(source)
    path = Path(source).resolve()
    downloaded = CACHED.search(path.as_posix())
    return downloaded[1].replace("--", "/") if downloaded else path.name


def is_hub_id(source: str | Path) -> bool:
    """Whether this names a repository (`owner/name`) and nothing on this machine."""
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source))) and not Path(source).exists()


def versions(*packages: str) -> dict[str, str]:
    """Installed versions by package name."""
    return {package: importlib.metadata.version(package).partition("+")[0] for package in packages}

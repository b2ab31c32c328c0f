"""From a folder to the files of a repository: completed, checked, with a card, and tried out."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from .hub_card import MARKER, is_written_by_hand, license_of, render_card
from .hub_files import CARD, DRAFT, check_contents, code_files, collect, find_foreign_code, find_private
from .hub_provenance import is_hub_id, provenance_of, read_provenance
from .training.trained_modules import DESCRIPTION, WEIGHTS, read_trained_modules
from .whole_files import link_or_copy, read_json_object, write_text

ADAPTER = "adapter_config.json"


@dataclass
class Repository:
    """
    What goes to the Hub.

    Args:
        files (`dict[str, Path]`): Files by their path in the repository.
        left_out (`list[str]`): What of the folder does not belong there.
    """

    files: dict[str, Path]
    left_out: list[str]


@contextmanager
def repository(
    folder: Path,
    repo_id: str,
    *,
    merge: bool = False,
    license: str | None = None,
    datasets: Sequence[str] | None = None,
    token: str | None = None,
) -> Iterator[Repository]:
    """
    The files of a repository, with the card written to the folder. Arguments and errors are those of
    [`~llama_vid.publish`]; models that are merged or completed are beside the folder while the context lasts.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"`{folder}` is no folder: pass that of a checkpoint or an adapter.")
    files, left_out = collect(folder)
    base, revision = _base(folder, files)
    if merge and ADAPTER not in files:
        raise ValueError(f"`merge` is for adapters, and `{folder}` has no {ADAPTER}: leave it out.")
    if ADAPTER in files and not merge and not is_hub_id(base):
        raise ValueError(
            f"{ADAPTER} names the base model by the local path `{base}`: publish that, write its repo id there as "
            "base_model_name_or_path, or merge the two."
        )
    with ExitStack() as stack:
        if merge or DESCRIPTION in files:
            place = folder.resolve()  # beside it is room for a model
            work = stack.enter_context(
                TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.", suffix=".partial")
            )
            files = _completed(folder, files, Path(work), token)
        _check_kinds(folder, files)
        # The package's own code is what the folder's was compared with.
        files = {**files, **code_files()}
        card = folder / CARD
        is_kept = card.is_file() and is_written_by_hand(card.read_text(encoding="utf-8", errors="replace"))
        if is_kept:
            if license or datasets:
                raise ValueError(
                    f"`license` and `datasets` are for the card that is written, and {card} was written by hand: say "
                    "them there."
                )
            license_of(read_provenance(folder), _license_on(card))
        else:
            files.pop(CARD, None)
        check_contents({name: path for name, path in files.items() if path.suffix != ".py"}, token)
        if not is_kept:
            known = base if base is not None and is_hub_id(base) else None
            steps = read_provenance(folder)
            if steps and "unasked_revision" in steps[0]:  # the Hub was out of reach
                base_of_training = steps[0]["base_model"], steps[0]["unasked_revision"]
                steps = [*provenance_of(*base_of_training, token), *steps]
            if not steps and known is not None:
                # How it was trained is not known here; where the weights come from is.
                steps = [step for step in provenance_of(known, revision, token) if step["step"] == "conversion"]
            text = render_card(files, repo_id, steps=steps, base_model=known, license=license, datasets=datasets)
            if found := find_private(CARD, text, token):
                raise ValueError(f"The card would tell what must not go to the Hub: {'; '.join(found)}.")
            _write_card(card, text)
        files[CARD] = card
        yield Repository(dict(sorted(files.items())), left_out)


def ask_as_a_stranger(files: Mapping[str, Path], token: str | None = None) -> str:
    """
    Load the files in a process of its own, with transformers and this package's remote code alone, and ask something.
    Of an adapter's base the weights are downloaded, and never code, which nobody here has looked at.

    Args:
        files (`Mapping[str, Path]`): Files by their path in the repository.
        token (`str`, *optional*): For the base of an adapter, if that is private.

    Returns:
        `str`: The answer.

    Raises:
        ValueError: if that fails, with the reason.
    """
    with TemporaryDirectory() as work:
        folders = {"the folder": Path(work, "repository")}
        _link(files, folders["the folder"])
        if ADAPTER in files:
            folders["the base"] = Path(work, "base")
            _link({**_base_files(files[ADAPTER], token), **code_files()}, folders["the base"])
        # Everything must be there, and nothing is in the cache.
        places = {"HF_MODULES_CACHE": str(Path(work, "modules")), "HF_HUB_CACHE": str(Path(work, "hub"))}
        environment = {**os.environ, **places, "HF_HUB_OFFLINE": "1"}
        report = _run("hub_check.py", [*folders.values()], environment)
        if "error" in report:
            reason = report["error"]
            for name, folder in folders.items():
                reason = reason.replace(str(folder), name)
            raise ValueError(f"What was to be published does not load and answer on its own: {reason}")
        return report["answer"]


def _link(files: Mapping[str, Path], folder: Path) -> None:
    """A folder of links to files, by their names in it."""
    for name, path in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.symlink_to(path.resolve())
        except OSError:  # on Windows only administrators and developers may
            link_or_copy(path.resolve(), place)


def _base_files(adapter: Path, token: str | None) -> dict[str, Path]:
    """Weights and configuration of the model on the Hub that an adapter is for, by name."""
    config = read_json_object(adapter, "base_model_name_or_path")
    base, kinds = config["base_model_name_or_path"], ("*.safetensors", "*.json")
    options = {"allow_patterns": [*kinds], "ignore_patterns": ["*/*"], "token": token}
    try:
        snapshot = Path(snapshot_download(base, revision=config.get("revision"), **options))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"The base `{base}` that {ADAPTER} names cannot be had from the Hub ({type(error).__name__}): check the "
            "name, the revision and that the token may read it."
        ) from error
    # There may be more of it, from another download.
    files = {path.name: path for kind in kinds for path in snapshot.glob(kind)}
    if "config.json" in files and find_foreign_code("", read_json_object(files["config.json"])):
        raise ValueError(f"The config.json of `{base}` names code of another repository, which is not run here.")
    return files


def _base(folder: Path, files: Mapping[str, Path]) -> tuple[str | None, str | None]:
    """Model and revision that an adapter or trained modules are for."""
    if ADAPTER in files:
        config = read_json_object(files[ADAPTER], "base_model_name_or_path")
        return config["base_model_name_or_path"], config.get("revision")
    trained = read_trained_modules(folder)
    return (None, None) if trained is None else (trained.base_model_name_or_path, trained.base_model_revision)


def _completed(folder: Path, files: Mapping[str, Path], work: Path, token: str | None) -> dict[str, Path]:
    """The same files with a whole model, saved to `work`, in place of an adapter or of some modules."""
    environment = dict(os.environ) if token is None else {**os.environ, "HF_TOKEN": token}
    model = work / "model"
    model.mkdir()
    report = _run("hub_completion.py", [folder, model], environment)
    if "error" in report:
        raise ValueError(f"`{folder}` and its base cannot be made one model: {report['error']}")
    others = {name: path for name, path in files.items() if not name.startswith("adapter_")}
    others = {name: path for name, path in others.items() if name not in (WEIGHTS, DESCRIPTION)}
    return {**others, **{path.name: path for path in model.iterdir()}}


def _run(script: str, arguments: Sequence[Path], environment: Mapping[str, str]) -> dict:
    """Run a file of this package in a process of its own, and read the report that it writes."""
    with TemporaryDirectory() as work:
        report = Path(work, "report.json")
        # -P: the package's folder would be searched first, for names such as `data`.
        command = [sys.executable, "-P", Path(__file__).with_name(script), *arguments, report]
        result = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
        if report.is_file():
            return json.loads(report.read_text(encoding="utf-8"))
        return {"error": f"the process ended with {result.returncode}"}


def _check_kinds(folder: Path, files: Mapping[str, Path]) -> None:
    needed = ["processor_config.json"] + ([] if ADAPTER in files else ["config.json"])
    missing = [name for name in needed if name not in files]
    if not any(name.endswith(".safetensors") for name in files):
        missing.append("safetensors")
    if missing:
        raise ValueError(
            f"`{folder}` is no checkpoint of a LLaMA-VID, {' and '.join(missing)} is missing: save model "
            "(or adapter) and processor into it with save_pretrained."
        )
    if "config.json" in files:
        model_type = read_json_object(files["config.json"]).get("model_type")
        if model_type != "llama_vid":
            raise ValueError(f"`{folder}` is no checkpoint of a LLaMA-VID: its model_type is {model_type!r}.")


def _license_on(card: Path) -> str | None:
    """What a card that somebody wrote says of it."""
    try:
        return ModelCard.load(card).data.license
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"`{card}` must be UTF-8 with metadata in YAML: mend or delete it ({error}).") from error


def _write_card(path: Path, text: str) -> None:
    try:
        if path.is_file() and MARKER not in path.read_text(encoding="utf-8", errors="replace"):
            os.replace(path, path.with_name(DRAFT))  # a trainer's, in which somebody may have written nevertheless
        write_text(path, text)
    except OSError as error:
        raise OSError(error.errno, f"The card cannot be written to `{path}`: {error.strerror}") from error

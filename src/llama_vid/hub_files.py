"""What of a folder goes to the Hub: which files, and that there is nothing private in them."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

import llama_vid.modeling

from .whole_files import LEFTOVERS

CARD = "README.md"
DRAFT = "README.md.orig"  # of a trainer, which the card took the place of

TEXTS = {".json", ".jinja", ".txt", ".md", ".yaml", ".yml"}
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
# Without a suffix.
TEXT_NAMES = {"LICENSE", "NOTICE"}

# What transformers' Trainer, accelerate, DeepSpeed, git and huggingface_hub leave beside a model. It is no part of the
# model, and some of it would give away more than that: training_args.bin holds the Hub token. Nor is what a killed
# process did not finish.
LEFT_OUT = (
    *("training_args.bin", "trainer_state.json", "optimizer*", "scheduler.*", "scaler.pt", "rng_state*.pth"),
    *("checkpoint-*", "runs", "global_step*", "pytorch_model_fsdp*", "latest", "zero_to_fp32.py"),
    *(".git", ".gitattributes", ".cache", DRAFT, LEFTOVERS),
)

# What configurations name code under: classes of the library's, anywhere in a file, and pipelines.
CODE = {"auto_map", "custom_pipelines"}

PARSERS = {".json": json.loads, ".yaml": yaml.safe_load, ".yml": yaml.safe_load}

# Fragments of other people's texts: looks like an address or a path now and then, and is neither.
VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"}

# What stands before a password or key: of tokens only those that let somebody in, as eos_token is none. The first
# letters are looked for first because that is quick.
NAMED = r"(?=[psha])(password|passwd|secret|(api|access|private|secret)[_-]?key|(hub|hf|access|auth|api)[_-]?token)"
# In quotation marks it is anything but a gap to be filled in, such as "<TOKEN>" or "${TOKEN}".
QUOTED = r"[\"']?\s*[:=]\s*[\"'](?![<{]|(?-i:\$\{?[A-Z]))[^\"'\s]{8,}[\"']"
# Without them it has letters and digits, and is no code or prose: it clings to an equals sign, as in a shell, or is all
# that is left of the line. They are looked for no further than keys are long, or unbroken text takes very long.
KEY = r"(?=[CHARS]{0,255}[a-z])(?=[CHARS]{0,255}\d)[CHARS]{8,}+".replace("CHARS", r"\w+/=~@!%^&*-")
UNQUOTED = rf"(={KEY}(?![.(\[])|[ \t]*[:=][ \t]*{KEY}[ \t]*(#.*)?$)"

SECRETS = {
    "a Hugging Face token": r"\b(hf|api_org)_([A-Za-z0-9]{30,}|(oauth|jwt)_[\w.-]{30,})",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}|\bAIza[\w-]{35}|\b(AKIA|ASIA)[0-9A-Z]{16}\b|\bxox[abprs]-[\w-]{10,}",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{22,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in a URL": r"\b\w+://[^/\s:@\"']+:[^/\s@\"']+@",
    "a password or key": rf"(?im){NAMED}({QUOTED}|{UNQUOTED})",
}
PERSONAL = {
    # From the beginning of a word on, or long ones take very long.
    "an e-mail address": r"(?<![\w.+-])[\w.+-]+@[\w-]+(\.[\w-]+)*\.[A-Za-z]{2,}",
    "a home directory": r"/(home|Users)/[^/\s\"'<>]+|(?<![\w.])/root/|[A-Za-z]:\\+Users\\+[^\\\s\"'<>]+",
}
LOCAL_PATH = re.compile(r"file:|~[/\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\|/[^/\s]+/")


def code_files() -> dict[str, Path]:
    """The remote code of this package by name: what every repository carries."""
    folder = Path(llama_vid.modeling.__file__).parent
    return {path.name: path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"}


def collect(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """
    The files of a folder that make up a repository.

    Args:
        folder (`Path`): A checkpoint.

    Returns:
        `tuple[dict[str, Path], list[str]]`: Files by their path in the repository, and what was left out.

    Raises:
        ValueError: for every file that must not go up, with the reason.
    """
    files, left_out, refused = {}, [], []
    root = folder.resolve()
    for place, folders, names in os.walk(folder):
        for name in sorted(folders + names):
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            if any(fnmatch(name, pattern) for pattern in LEFT_OUT):
                left_out.append(relative)
                if name in folders:
                    folders.remove(name)  # os.walk then does not enter it
            elif reason := _refusal(path, root):
                refused.append(f"{relative} ({reason})")
            elif not path.is_dir():
                files[relative] = path
    if refused:
        raise ValueError(
            f"`{folder}` holds what does not go to the Hub: {'; '.join(sorted(refused))}. "
            "Move it elsewhere, or save the checkpoint again into an empty folder."
        )
    return dict(sorted(files.items())), sorted(left_out)


def _refusal(path: Path, root: Path) -> str | None:
    """Why a file must not go up."""
    if path.name.startswith("."):
        return "hidden"
    if path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(root)):
        return "a link to a folder, or out of this one"
    if path.is_dir():
        return None
    if not path.is_file():
        return "no regular file"
    if path.suffix == ".py":
        ours = code_files().get(path.name)
        if ours is None:
            return "code that is not this package's"
        if path.read_bytes() != ours.read_bytes():
            return "differs from this package's: delete it, and the installed one is published"
        return None
    if path.suffix in TEXTS | IMAGES | {".safetensors"} or path.name in TEXT_NAMES:
        return None
    return "neither safetensors, JSON, text, template nor image"


def check_contents(files: Mapping[str, Path], token: str | None = None) -> None:
    """
    Look for secrets, e-mail addresses and home directories in all texts (the package's own code apart), and for other
    paths of this machine and code of other repositories in JSON and YAML; in the metadata of safetensors, for all of
    them.

    Args:
        files (`Mapping[str, Path]`): Files by their path in the repository.
        token (`str`, *optional*): The token in use, which is in none of them either.

    Raises:
        ValueError: for everything found, with file and line; secrets themselves are not repeated.
    """
    found = []
    for name, path in files.items():
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt") as tensors:
                    metadata = tensors.metadata() or {}
            except SafetensorError as error:
                found.append(f"{name} is no readable safetensors file ({error})")
                continue
            found += find_private(name, json.dumps(metadata), token)
            found += find_local_paths(name, metadata)
        elif path.suffix in TEXTS or path.name in TEXT_NAMES:
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                found.append(f"{name} is no UTF-8 text")
                continue
            found += find_private(name, text, token)
            if path.suffix in PARSERS and path.name not in VOCABULARIES:
                try:
                    content = PARSERS[path.suffix](text)
                    found += find_local_paths(name, content) + find_foreign_code(name, content)
                except (ValueError, yaml.YAMLError) as error:
                    found.append(f"{name} is no {path.suffix[1:].upper()} ({error})")
    if found:
        raise ValueError(f"This must not go to the Hub: {'; '.join(found)}. Remove it and publish again.")


def find_private(name: str, text: str, token: str | None = None) -> list[str]:
    """Secrets and personal data in the text of a file, as sentences that do not repeat them."""
    kinds = {**SECRETS, **({} if Path(name).name in VOCABULARIES else PERSONAL)}
    if token:
        kinds = {"the token in use": re.escape(token), **kinds}
    home = str(Path.home())
    if home.count("/") > 1 and "a home directory" in kinds:
        kinds["a home directory"] += "|" + re.escape(home)
    matches = ((kind, re.search(pattern, text)) for kind, pattern in kinds.items())
    return [f"{name}, line {text.count(chr(10), 0, match.start()) + 1}: {kind}" for kind, match in matches if match]


def find_local_paths(name: str, content: Any) -> list[str]:
    """Values of what a file holds that name a place on this machine, as sentences."""
    strings = _strings(content)
    return [f"{name}: `{key}` is the local path {value!r}" for key, value in strings if _is_local_path(key, value)]


def find_foreign_code(name: str, content: Any) -> list[str]:
    """Code of other repositories (`owner/name--file.Class`) that loading a file's content would run, as sentences."""
    return [
        f"{name}: `{key}` names the code {value!r} of elsewhere"
        for key, value in _strings(content)
        if "--" in value and not CODE.isdisjoint(key.split("."))
    ]


def _is_local_path(key: str, value: str) -> bool:
    if LOCAL_PATH.match(value) and "\n" not in value:
        return True
    if re.fullmatch(r"/[\w.-]+", value) and Path(value).exists():
        return True
    # A relative path may look like a Hub id.
    return key.endswith("name_or_path") and bool(value) and Path(value).exists()


def _strings(value, key: str = "") -> Iterator[tuple[str, str]]:
    """All strings of a JSON value, names in objects too, with their keys."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield key, str(name)
            yield from _strings(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)

"""
Checkpoints that hold only the modules that were trained, some megabytes instead of the whole model, and name the
checkpoint that the others are in.

Such a folder has `trained_modules.safetensors`, with the names of the whole model, and `trained_modules.json`;
configuration, processor and code are those of any checkpoint.
"""

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import GENERATION_CONFIG_NAME

from llama_vid.modeling import LlamaVidForConditionalGeneration
from llama_vid.whole_files import whole_file, write_text

WEIGHTS = "trained_modules.safetensors"
DESCRIPTION = "trained_modules.json"


@dataclass(frozen=True)
class TrainedModules:
    """
    What a folder of trained modules says of itself.

    Args:
        modules (`list[str]`): Their names, as `train_modules` has them.
        base_model_name_or_path (`str`):
            Folder or Hub id of the checkpoint with the others, as it was given; it may be such a folder itself.
        base_model_revision (`str`, *optional*): Its revision on the Hub.
    """

    modules: list[str]
    base_model_name_or_path: str
    base_model_revision: str | None = None


def save_trained_modules(
    model: LlamaVidForConditionalGeneration,
    folder: str | os.PathLike,
    trained: TrainedModules,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """
    Write trained modules and their description into an existing folder.

    Args:
        model (`LlamaVidForConditionalGeneration`): The model.
        folder (`str` or `PathLike`): Where configuration and processor are, or will be.
        trained (`TrainedModules`): Which modules, and what they were trained on.
        state_dict (`Mapping[str, Tensor]`, *optional*): The model's, where its own one is spread over processes.
    """
    folder = Path(folder)
    tensors = _of_modules(model, model.state_dict() if state_dict is None else state_dict, trained.modules)
    with whole_file(folder / WEIGHTS) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata={"format": "pt"})
    write_text(folder / DESCRIPTION, json.dumps(asdict(trained), indent=2) + "\n")


def read_trained_modules(folder: str | os.PathLike) -> TrainedModules | None:
    """
    What a folder says of its modules; `None` for every other checkpoint, of the Hub too.

    Raises:
        ValueError: a description that makes no sense.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return TrainedModules(**values)
    except (ValueError, TypeError) as error:
        names = ", ".join(field.name for field in fields(TrainedModules))
        raise ValueError(f"{path} is not an object of {names} ({error}): copy or train it again.") from error


def trained_over(name: str | os.PathLike) -> list[TrainedModules]:
    """
    What a folder of trained modules says, and then its base, and so on; nothing for every other checkpoint.

    Raises:
        ValueError: a folder that stands on itself.
    """
    found: list[TrainedModules] = []
    while (trained := read_trained_modules(name)) is not None:
        if trained in found:
            raise ValueError(
                f"{name} stands on itself: correct `base_model_name_or_path` in {Path(name) / DESCRIPTION}, or train "
                "it again."
            )
        found.append(trained)
        name = trained.base_model_name_or_path
    return found


def is_among_bases(folder: Path, name: str | None) -> bool:
    """Whether a folder is the checkpoint of that name, or one of those that it stands on."""
    names = [] if name is None else [name, *(trained.base_model_name_or_path for trained in trained_over(name))]
    return any(Path(base).resolve() == folder.resolve() for base in names)


def modules_over_base(folder: str | os.PathLike) -> set[str]:
    """The trained modules of a folder, and of those that it stands on; none for every other checkpoint."""
    return {module for trained in trained_over(folder) for module in trained.modules}


def whole_base(name: str, revision: str | None) -> tuple[str, str | None]:
    """The last base under trained modules, which has no other, with its revision; of every other checkpoint, itself."""
    for trained in trained_over(name):
        name, revision = trained.base_model_name_or_path, trained.base_model_revision
    return name, revision


def load_trained_modules(folder: str | os.PathLike, **kwargs) -> LlamaVidForConditionalGeneration:
    """
    The whole model: the base, and the trained modules over it.

    Args:
        folder (`str` or `PathLike`): A folder for which [`read_trained_modules`] finds something.
        **kwargs:
            As for `from_pretrained`. The `revision` is that of the description, and `config`, by default, the folder's,
            whose context may be longer than the base's.

    Returns:
        `LlamaVidForConditionalGeneration`. Its `name_or_path` is the base, the last one where bases have bases.

    Raises:
        ValueError: no base where it was, or modules that do not fit it.
    """
    trained = trained_over(folder)[0]
    base = trained.base_model_name_or_path
    if kwargs.get("config") is None:
        kwargs["config"] = AutoConfig.from_pretrained(folder)
    if kwargs.get("dtype") in (None, "auto"):
        kwargs["dtype"] = kwargs["config"].dtype  # a base may be stored in another
    kwargs["revision"] = trained.base_model_revision or "main"
    if read_trained_modules(base) is not None:
        model = load_trained_modules(base, **kwargs)
    else:
        try:
            model = AutoModelForImageTextToText.from_pretrained(base, **kwargs)
        except OSError as error:
            raise ValueError(
                f"{folder} holds only {', '.join(trained.modules)}; the rest is in {base!r} (revision "
                f"{kwargs['revision']}), which cannot be loaded: put it there, or correct `base_model_name_or_path` in "
                f"{Path(folder) / DESCRIPTION}."
            ) from error
    put_trained_modules(model, folder)
    if (Path(folder) / GENERATION_CONFIG_NAME).is_file():  # another chat template has another end
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


@torch.no_grad()
def put_trained_modules(model: LlamaVidForConditionalGeneration, folder: str | os.PathLike) -> None:
    """
    Put the trained modules of a folder over a model's.

    Raises:
        ValueError: no readable file, or modules that are not the model's, by names or shapes of their tensors.
    """
    trained = read_trained_modules(folder)
    expected = _of_modules(model, model.state_dict(keep_vars=True), trained.modules)
    try:
        opened = safe_open(Path(folder) / WEIGHTS, framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"{Path(folder) / WEIGHTS} is no readable safetensors file ({error}): copy or train it again."
        ) from error
    with opened as file:
        names = set(file.keys())
        if wrong := sorted(names ^ expected.keys()):
            what = "has no" if wrong[0] in expected else "has the unknown"
            raise ValueError(
                f"{Path(folder) / WEIGHTS} {what} {wrong[0]} ({len(wrong)} tensors differ): "
                f"{trained.base_model_name_or_path!r} is not the base that {', '.join(trained.modules)} belong to."
            )
        for name, target in expected.items():
            tensor = file.get_tensor(name)
            with whole(target):
                if tensor.shape != target.shape:
                    raise ValueError(
                        f"{Path(folder) / WEIGHTS} has {name} of shape {tuple(tensor.shape)}, the model "
                        f"{tuple(target.shape)}: {trained.base_model_name_or_path!r} is another base, or is quantized."
                    )
                target.copy_(tensor)


def _of_modules(
    model: LlamaVidForConditionalGeneration, state: Mapping[str, torch.Tensor], modules: list[str]
) -> dict[str, torch.Tensor]:
    """The tensors of modules; what is tied, once."""
    prefixes = tuple("lm_head." if module == "lm_head" else f"model.{module}." for module in modules)
    is_twice = model.config.tie_word_embeddings and "language_model" in modules
    return {
        name: tensor
        for name, tensor in state.items()
        if name.startswith(prefixes) and not (is_twice and name == "lm_head.weight")
    }


def whole(parameter: torch.Tensor) -> AbstractContextManager:
    """A parameter as a whole, where ZeRO-3 keeps shares of it; what is written in it is the first process's."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)

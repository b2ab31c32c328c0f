"""What trains in each stage, fully or by LoRA, and at which learning rate."""

from collections.abc import Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from torch import nn

from llama_vid.modeling import LlamaVidForConditionalGeneration
from llama_vid.modeling.modeling_llama_vid_visual import freeze_what_is_not_read
from llama_vid.training.module_names import LANGUAGE_MODULES, STAGE_MODULES, VISUAL_MODULES
from llama_vid.training.muon import matrices

if TYPE_CHECKING:
    from peft import PeftModel
    from trl import ModelConfig


def modules_of(model: LlamaVidForConditionalGeneration) -> dict[str, nn.Module]:
    """The modules that may train, by the names that `train_modules` uses; those that the configuration has."""
    found = dict(model.model.named_children()) | {"lm_head": model.lm_head}
    return {name: found[name] for name in (*VISUAL_MODULES, *LANGUAGE_MODULES) if name in found}


def choose_modules(
    model: LlamaVidForConditionalGeneration, stage: int, train_modules: Iterable[str] | None = None
) -> list[str]:
    """
    The names of the modules that train.

    Args:
        model (`LlamaVidForConditionalGeneration`): The model.
        stage (`int`): 1, 2 or 3, for the paper's choice.
        train_modules (`Iterable[str]`, *optional*): One's own choice instead.

    Returns:
        `list[str]`, in the order of the forward pass.

    Raises:
        ValueError: an unknown stage or module, the visual encoder, or nothing.
    """
    available = modules_of(model)
    if train_modules is None:
        if stage not in STAGE_MODULES:
            raise ValueError(f"`stage` must be 1, 2 or 3, got {stage!r}.")
        return [name for name in available if name in STAGE_MODULES[stage]]
    wanted = list(train_modules)
    if "vision_tower" in wanted:
        raise ValueError("`train_modules` names vision_tower, which stays frozen in every stage: leave it out.")
    unknown = [name for name in wanted if name not in available]
    if unknown or not wanted:
        raise ValueError(
            f"`train_modules` {'names ' + ', '.join(unknown) if unknown else 'is empty'}: this model has "
            f"{', '.join(available)}."
        )
    return [name for name in available if name in wanted]


def set_trainable(model: LlamaVidForConditionalGeneration, train_modules: Iterable[str]) -> None:
    """Freeze everything but `train_modules` (and what can never matter, the unread half of a Q-Former's last layer)."""
    model.requires_grad_(False)
    available = modules_of(model)
    for name in train_modules:
        available[name].requires_grad_(True)
    freeze_what_is_not_read(model)


class LlamaVidLoraConfig(LoraConfig):
    """[`LoraConfig`] that is saved so that PEFT's `AutoPeftModel` finds the base, with or without this package."""

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        """As in PEFT, which would name a class of this package, and cannot import that of a checkpoint's code."""
        auto_class = {"base_model_class": "AutoModelForImageTextToText", "parent_library": "transformers"}
        super().save_pretrained(save_directory, **{**kwargs, "auto_mapping_dict": auto_class})


def lora_config(
    model: LlamaVidForConditionalGeneration, train_modules: Iterable[str], model_args: "ModelConfig"
) -> LlamaVidLoraConfig:
    """
    LoRA on the language model; the other modules that train are trained and saved whole (`modules_to_save`).

    Args:
        model (`LlamaVidForConditionalGeneration`): The model.
        train_modules (`Iterable[str]`): Names from `choose_modules`; the head stays as it is.
        model_args (`ModelConfig`): TRL's, with `lora_r`, `lora_alpha` … `lora_target_modules` are names of linear
            layers inside the language model, all of them by default.

    Raises:
        ValueError: the language model is not among `train_modules`, or no layer has such a name.
    """
    from trl import get_peft_config

    train_modules = list(train_modules)
    if "language_model" not in train_modules:
        raise ValueError(
            f"LoRA goes on the language model, and only {', '.join(train_modules)} train here: set use_peft to false."
        )
    modules = model.model.language_model.named_modules()
    layers = {name.rpartition(".")[2] for name, module in modules if isinstance(module, nn.Linear)}
    named = model_args.lora_target_modules or []
    # TRL makes a string of a single name.
    wanted = {named} if isinstance(named, str) else set(named)
    wanted = wanted - {"all-linear"} or layers
    if unknown := sorted(wanted - layers):
        raise ValueError(
            f"`lora_target_modules` names {', '.join(unknown)}, but the language model's linear layers are "
            f"{', '.join(sorted(layers))}."
        )
    if model_args.lora_modules_to_save:
        raise ValueError(
            f"`lora_modules_to_save` is {model_args.lora_modules_to_save}, but what trains whole beside the adapters "
            "follows from `train_modules`: name it there."
        )
    config = LlamaVidLoraConfig(**get_peft_config(model_args).to_dict())
    # With a task, PEFT loads the base as a model of text.
    config.task_type = None
    # The whole path: names such as q_proj are also the vision tower's.
    config.target_modules = rf"model\.language_model\..*\.({'|'.join(sorted(wanted))})"
    config.modules_to_save = [name for name in train_modules if name not in LANGUAGE_MODULES]
    return config


def parameter_groups(
    model: "nn.Module | PeftModel",
    learning_rates: Mapping[str, float],
    learning_rate: float,
    weight_decay: float,
    use_muon: bool = False,
) -> list[dict[str, Any]]:
    """
    Groups for an optimizer: each module of `learning_rates` at its own rate, the others at `learning_rate`; biases and
    normalisations without decay.

    Args:
        model (`nn.Module`): With what trains already chosen, wrapped by PEFT or not.
        learning_rates (`Mapping[str, float]`): By the module names of `train_modules`.
        use_muon (`bool`): Mark groups by `use_muon`, for [`MuonWithAdamW`].

    Raises:
        ValueError: a module that is not there, or has nothing that trains.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for_muon = matrices(model) if use_muon else set()
    unused = set(learning_rates)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        module = next((part for part in name.split(".") if part in learning_rates), None)
        unused.discard(module)
        rate = learning_rates.get(module, learning_rate)
        decay = weight_decay if len(_shape(parameter)) > 1 else 0.0
        groups.setdefault((rate, decay, name in for_muon), []).append(parameter)
    if unused:
        raise ValueError(f"`module_learning_rates` names {', '.join(sorted(unused))}, in which nothing trains.")
    marked = {True: {"use_muon": True}, False: {"use_muon": False} if use_muon else {}}
    return [
        {"params": group, "lr": rate, "weight_decay": decay, **marked[muon]}
        for (rate, decay, muon), group in groups.items()
    ]


def trainable_table(model: "nn.Module | PeftModel") -> str:
    """Parameters and trainable parameters of each module, as lines of text."""
    names = ("vision_tower", *VISUAL_MODULES, *LANGUAGE_MODULES)
    counts = dict.fromkeys(names, (0, 0))
    for path, parameter in model.named_parameters():
        module = next((part for part in path.split(".") if part in counts), None)
        # PEFT keeps the original of what it trains whole.
        if module is not None and ".original_module." not in path:
            (total, trains), size = counts[module], prod(_shape(parameter))
            counts[module] = total + size, trains + size * parameter.requires_grad
    rows = [(name, *count) for name, count in counts.items() if count[0]]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = [f"{'module':<24}{'parameters':>16}{'trainable':>16}{'share':>9}"]
    lines += [f"{name:<24}{total:>16,}{trains:>16,}{trains / total:>9.2%}" for name, total, trains in rows]
    return "\n".join(lines)


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Also of one that ZeRO-3 has spread over the processes, whose own is that of nothing."""
    return getattr(parameter, "ds_shape", parameter.shape)

"""What a training script is told beside TRL's `SFTConfig` and `ModelConfig`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_vid.data.mixture import DatasetConfig
from llama_vid.training.module_names import STAGE_MODULES
from llama_vid.training.trained_modules import DESCRIPTION, is_among_bases

if TYPE_CHECKING:
    from trl import ModelConfig, SFTConfig

# What a training leaves, and the files that a folder has of it.
RESULTS = {
    "a whole model": "model*.safetensors",
    "an adapter": "adapter_config.json",
    "trained modules alone": DESCRIPTION,
}


@dataclass
class LlamaVidScriptArguments:
    """
    Arguments of `llama-vid train` that TRL's classes do not have; `TrlParser` reads all of them from one YAML file.

    Args:
        stage (`int`):
            1, modality alignment; 2, instruction tuning; 3, long-video tuning (paper, training). It decides what trains
            and, in stage 1, that samples are a visual and its caption without a chat around them.
        train_datasets (`list[DatasetConfig]`): What to train on, see [`DatasetConfig`]; in YAML a list of mappings.
        eval_datasets (`list[DatasetConfig]`, *optional*): What to evaluate on.
        train_modules (`list[str]`, *optional*): What trains, instead of the stage's modules (see `STAGE_MODULES`).
        module_learning_rates (`dict[str, float]` or `str`, *optional*):
            Learning rates of single modules; on the command line as JSON.
        use_muon (`bool`, *optional*, defaults to `False`):
            Train the matrices of linear layers by Muon ([`~llama_vid.training.muon.Muon`]), by which small models learn
            faster than by AdamW; the rest by AdamW. For DDP or one process.
        context_length (`int`, *optional*):
            Tokens that a prompt may have from then on: the language model's rotary embedding is scaled, and the
            checkpoint is saved so. An adapter, which stores no configuration, needs a base that has it already.
        rope_scaling (`str`, *optional*, defaults to `"linear"`):
            How it is scaled: `"linear"`, as in the paper, or `"yarn"`, which leaves what tells near tokens apart as it
            was.
        chat_template (`str`, *optional*):
            A template or the name of one of ours, instead of the processor's. From stage 2 on it is saved with the
            checkpoint; stage 1, which has no chats, leaves the processor's as it is.
        on_bad_sample (`str`, *optional*, defaults to `"raise"`): `raise` or `skip`, see [`LlamaVidDataCollator`].
        max_skipped_share (`float`, *optional*, defaults to 0.05): The share of skipped samples that ends the training.
        streaming (`bool`, *optional*, defaults to `False`):
            Read the training data while training; needs `max_steps`. A resumed training gets the data that it would
            have got as long as the first pass over them has not ended.
        eval_answers (`int`, *optional*, defaults to 0):
            How many samples are answered in each evaluation; the share of right ones is `eval_exact_match` of its
            metrics, and `metric_for_best_model: exact_match` goes by it.
        save_only_trained (`bool`, *optional*, defaults to `False`):
            Save the weights of the modules that train, and the name of the checkpoint that has the others, instead of
            all weights. A next stage takes such a folder as its `model_name_or_path`.

    Raises:
        ValueError: no training data, or no list of them, rates that are no numbers, or another value that makes no
            sense.
    """

    stage: int = field(metadata={"help": "1, 2 or 3."})
    train_datasets: list[DatasetConfig] = field(default_factory=list, metadata={"help": "In YAML, a list of mappings."})
    eval_datasets: list[DatasetConfig] = field(default_factory=list, metadata={"help": "In YAML, a list of mappings."})
    train_modules: list[str] | None = field(default=None, metadata={"help": "What trains, instead of the stage's."})
    # Typed as `SFTConfig` types its mappings, so that the parser passes on what is written on the command line.
    module_learning_rates: dict[str, Any] | str | None = field(
        default_factory=dict, metadata={"help": "Learning rates of single modules; in YAML, a mapping, here JSON."}
    )
    use_muon: bool = field(default=False, metadata={"help": "Muon for the matrices, AdamW for the rest."})
    context_length: int | None = field(default=None, metadata={"help": "Stretch the context to so many tokens."})
    rope_scaling: str = field(default="linear", metadata={"help": "How it is stretched: linear or yarn."})
    chat_template: str | None = field(default=None, metadata={"help": "Instead of the processor's."})
    on_bad_sample: str = field(default="raise", metadata={"help": "raise or skip."})
    max_skipped_share: float = field(default=0.05, metadata={"help": "More skipped samples end the training."})
    streaming: bool = field(default=False, metadata={"help": "Read the training data while training."})
    eval_answers: int = field(default=0, metadata={"help": "Samples that are answered in each evaluation."})
    save_only_trained: bool = field(default=False, metadata={"help": "Save the weights of what trains, not all."})

    def __post_init__(self) -> None:
        if self.stage not in STAGE_MODULES:
            raise ValueError(f"`stage` must be 1, 2 or 3, got {self.stage!r}.")
        if not self.train_datasets:
            raise ValueError("`train_datasets` is empty: name at least one, with `path` and `format`.")
        if self.eval_answers < 0:
            raise ValueError(f"`eval_answers` must be at least 0, got {self.eval_answers}.")
        if self.on_bad_sample not in ("raise", "skip"):
            raise ValueError(f'`on_bad_sample` must be "raise" or "skip", got {self.on_bad_sample!r}.')
        if not 0 <= self.max_skipped_share <= 1:
            raise ValueError(f"`max_skipped_share` is a share, from 0 to 1, got {self.max_skipped_share}.")
        self.train_datasets = read_datasets("train_datasets", self.train_datasets)
        self.eval_datasets = read_datasets("eval_datasets", self.eval_datasets)
        self.module_learning_rates = read_learning_rates(self.module_learning_rates)
        if isinstance(self.train_modules, str):
            self.train_modules = [self.train_modules]


def read_datasets(name: str, given: Any) -> list[DatasetConfig]:
    """The data sets of a recipe; none under an empty key. Raises ValueError if they are no list of mappings."""
    given = [] if given is None else given
    is_list = isinstance(given, Sequence) and all(isinstance(one, DatasetConfig | Mapping) for one in given)
    if not is_list:
        raise ValueError(
            f"`{name}` must be a list with an entry `- path: …` for each data set, its other keys below that, got "
            f"{given!r}."
        )
    return [one if isinstance(one, DatasetConfig) else DatasetConfig.from_mapping(one) for one in given]


def read_learning_rates(given: Any) -> dict[str, float]:
    """A mapping, or one as JSON; none under an empty key. Raises ValueError if it is neither, or has no numbers."""
    try:
        rates = json.loads(given) if isinstance(given, str) else given
        # Also of text: to YAML, 1e-3 without a point is one.
        return {name: float(rate) for name, rate in dict(rates or {}).items()}
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`module_learning_rates` must be numbers by module, on the command line as JSON such as "
            f"'{{\"multi_modal_projector\": 1e-3}}', got {given!r}: {error}."
        ) from error


def check_arguments(
    script_args: LlamaVidScriptArguments, training_args: "SFTConfig", model_args: "ModelConfig"
) -> None:
    """Before anything is loaded. Raises ValueError for arguments that contradict each other, or what is in a folder."""
    output = Path(training_args.output_dir)
    check_devices(training_args)
    check_collation(training_args)
    evaluates = script_args.eval_datasets and training_args.eval_strategy != "no"
    if script_args.eval_answers and not evaluates:
        raise ValueError(
            f"`eval_answers` is {script_args.eval_answers}, but there are no evaluations: set `eval_datasets`, and "
            "`eval_strategy` to steps or epoch."
        )
    if training_args.eval_strategy != "no" and not script_args.eval_datasets:
        raise ValueError(
            f"`eval_strategy` is {training_args.eval_strategy.value}, but there is nothing to evaluate on: set "
            "`eval_datasets`, or leave `eval_strategy` out."
        )
    if script_args.rope_scaling != "linear" and script_args.context_length is None:
        raise ValueError(
            f"`rope_scaling` is {script_args.rope_scaling!r}, but the context is not stretched: set `context_length`, "
            "or leave `rope_scaling` out."
        )
    if script_args.streaming and training_args.max_steps <= 0:
        raise ValueError("`streaming` is true, and streams have no length: set `max_steps`.")
    if script_args.use_muon:
        check_muon(training_args)
    if script_args.save_only_trained and model_args.use_peft:
        raise ValueError(
            "`save_only_trained` and `use_peft` are both true, but an adapter holds nothing else than what was "
            "trained: set `save_only_trained` to false."
        )
    check_result(output, script_args, model_args)
    if script_args.save_only_trained and is_among_bases(output, model_args.model_name_or_path):
        raise ValueError(
            f"{output} is what is trained on, and would hold modules that stand on themselves: choose another "
            "`output_dir`, or set `save_only_trained` to false."
        )


def check_result(output: Path, script_args: LlamaVidScriptArguments, model_args: "ModelConfig") -> None:
    """Raises ValueError for a folder with a result of another kind: the two would be loaded as one model."""
    if script_args.save_only_trained:
        result = "trained modules alone"
    else:
        result = "an adapter" if model_args.use_peft else "a whole model"
    for other, files in RESULTS.items():
        if other != result and any(output.glob(files)):
            raise ValueError(
                f"{output} holds {other}, and would hold {result} besides, and both would be loaded as one: choose "
                "another `output_dir`, or set `use_peft` and `save_only_trained` as they were."
            )


def check_devices(training_args: "SFTConfig") -> None:
    """Raises ValueError for several GPUs in one process; those that are launched have one each."""
    if training_args.n_gpu > 1:
        raise ValueError(
            f"{training_args.n_gpu} GPUs are visible, and one process trains on one: put CUDA_VISIBLE_DEVICES=0 in "
            "front of the command, or start a process for each GPU with `accelerate launch` (recipes/README.md, GPUs)."
        )


def check_collation(training_args: "SFTConfig") -> None:
    """
    Raises ValueError for what TRL would do to chats, or read of them: [`LlamaVidDataCollator`] and [`load_mixture`] do
    it, in their own way.
    """
    told = {
        "chat_template_path": (training_args.chat_template_path, "use `chat_template`"),
        "packing": (training_args.packing, "samples with visuals stay whole; leave it out"),
        "padding_free": (training_args.padding_free, "leave it out"),
        "label_smoothing_factor": (
            training_args.label_smoothing_factor,
            "the model gives its placeholders no probability; leave it out",
        ),
        "assistant_only_loss": (training_args.assistant_only_loss, "the loss is so in any case; leave it out"),
        "completion_only_loss": (
            training_args.completion_only_loss is False,
            "the loss is on the assistant's words only; leave it out",
        ),
        "length_column_name": (
            training_args.length_column_name != "length",
            "records have theirs as `length`; leave it out",
        ),
    }
    for name, (is_set, remedy) in told.items():
        if is_set:
            raise ValueError(f"`{name}` is {getattr(training_args, name)!r}, which does not work here: {remedy}.")


def check_muon(training_args: "SFTConfig") -> None:
    """Raises ValueError where `use_muon` does not work."""
    if training_args.optim not in ("adamw_torch", "adamw_torch_fused"):
        raise ValueError(
            f"`use_muon` is true, and `optim` is {training_args.optim.value!r}, but Muon's partner is torch's AdamW: "
            "leave `optim` out."
        )

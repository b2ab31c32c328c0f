"""What a training script is told beside TRL's `SFTConfig` and `ModelConfig`."""

from dataclasses import dataclass, field
from typing import Any

from llama_vid.data.mixture import DatasetConfig


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
        module_learning_rates (`dict[str, float]`, *optional*): Learning rates of single modules.
        chat_template (`str`, *optional*): A template or the name of one of ours, instead of the processor's.
        on_bad_sample (`str`, *optional*, defaults to `"raise"`): `raise` or `skip`, see [`LlamaVidDataCollator`].
        max_skipped_share (`float`, *optional*, defaults to 0.05): The share of skipped samples that ends the training.
    """

    stage: int = field(metadata={"help": "1, 2 or 3."})
    train_datasets: list[DatasetConfig] = field(default_factory=list, metadata={"help": "In YAML, a list of mappings."})
    eval_datasets: list[DatasetConfig] = field(default_factory=list, metadata={"help": "In YAML, a list of mappings."})
    train_modules: list[str] | None = field(default=None, metadata={"help": "What trains, instead of the stage's."})
    module_learning_rates: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Learning rates of single modules; in YAML, a mapping."}
    )
    chat_template: str | None = field(default=None, metadata={"help": "Instead of the processor's."})
    on_bad_sample: str = field(default="raise", metadata={"help": "raise or skip."})
    max_skipped_share: float = field(default=0.05, metadata={"help": "More skipped samples end the training."})

    def __post_init__(self) -> None:
        if not self.train_datasets:
            raise ValueError("`train_datasets` is empty: name at least one, with `path` and `format`.")
        self.train_datasets, self.eval_datasets = (
            [given if isinstance(given, DatasetConfig) else DatasetConfig.from_mapping(given) for given in datasets]
            for datasets in (self.train_datasets, self.eval_datasets)
        )
        self.module_learning_rates = {name: float(rate) for name, rate in self.module_learning_rates.items()}

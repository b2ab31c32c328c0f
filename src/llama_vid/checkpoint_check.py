"""What a checkpoint must be, before anything that takes long."""

import os

from transformers import PreTrainedConfig

from llama_vid.modeling import LlamaVidConfig


def check_architecture(model: str | os.PathLike) -> None:
    """
    Make sure that a checkpoint is one of this model, by its configuration.

    Args:
        model (`str` or `PathLike`): Its folder or Hub id. One without a configuration (an adapter, or what the loaders
            will refuse) is let through.

    Raises:
        ValueError: It is of another architecture.
    """
    try:
        config, _ = PreTrainedConfig.get_config_dict(model)
    except OSError:
        return
    found = config.get("model_type")
    if found not in (None, LlamaVidConfig.model_type):
        raise ValueError(
            f"The checkpoint `{model}` is of the architecture {found!r}, not {LlamaVidConfig.model_type!r}: original "
            "LLaMA-VID checkpoints are converted by `llama-vid convert`, and new ones made by `llama-vid create`."
        )

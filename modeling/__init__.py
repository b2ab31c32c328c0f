# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""LLaMA-VID as transformers classes. Importing this registers them, so that the Auto classes use the installed ones."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoVideoProcessor,
)

from .configuration_llama_vid import LlamaVidConfig
from .modeling_llama_vid import LlamaVidForConditionalGeneration, LlamaVidModel
from .processing_llama_vid import LlamaVidProcessor
from .video_processing_llama_vid import LlamaVidVideoProcessor

# Saving any of them copies the code beside the checkpoint.
LlamaVidConfig.register_for_auto_class()
LlamaVidModel.register_for_auto_class("AutoModel")
LlamaVidForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
LlamaVidProcessor.register_for_auto_class()
LlamaVidVideoProcessor.register_for_auto_class("AutoVideoProcessor")

AutoConfig.register("llama_vid", LlamaVidConfig)
AutoModel.register(LlamaVidConfig, LlamaVidModel)
AutoModelForImageTextToText.register(LlamaVidConfig, LlamaVidForConditionalGeneration)
AutoModelForMultimodalLM.register(LlamaVidConfig, LlamaVidForConditionalGeneration)
AutoProcessor.register(LlamaVidConfig, LlamaVidProcessor)
AutoVideoProcessor.register(LlamaVidConfig, LlamaVidVideoProcessor)

__all__ = [
    "LlamaVidConfig",
    "LlamaVidForConditionalGeneration",
    "LlamaVidModel",
    "LlamaVidProcessor",
    "LlamaVidVideoProcessor",
]

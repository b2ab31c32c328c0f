# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""LLaMA-VID as transformers classes. Importing this registers them, so that the Auto classes use the installed ones."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM

from .configuration_llama_vid import LlamaVidConfig
from .modeling_llama_vid import LlamaVidForConditionalGeneration, LlamaVidModel


LlamaVidConfig.register_for_auto_class()
LlamaVidModel.register_for_auto_class("AutoModel")
LlamaVidForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

AutoConfig.register("llama_vid", LlamaVidConfig)
AutoModel.register(LlamaVidConfig, LlamaVidModel)
AutoModelForImageTextToText.register(LlamaVidConfig, LlamaVidForConditionalGeneration)
AutoModelForMultimodalLM.register(LlamaVidConfig, LlamaVidForConditionalGeneration)

__all__ = ["LlamaVidConfig", "LlamaVidForConditionalGeneration", "LlamaVidModel"]

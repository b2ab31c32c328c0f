"""LLaMA-VID for transformers: every video frame costs the language model two tokens."""

from importlib import import_module

# Imported at once, because it registers the classes: from then on the Auto classes use the installed ones.
from llama_vid.modeling import (
    LlamaVidConfig,
    LlamaVidForConditionalGeneration,
    LlamaVidModel,
    LlamaVidProcessor,
    LlamaVidVideoProcessor,
)

# Imported when asked for.
_LAZY = {
    "LlamaVidSession": "session",
    "ask": "session",
    "convert_checkpoint": "conversion",
    "create_model": "composition",
    "extract_features": "features",
    "publish": "hub",
    "transcribe": "transcription",
}

__all__ = [
    "LlamaVidConfig",
    "LlamaVidForConditionalGeneration",
    "LlamaVidModel",
    "LlamaVidProcessor",
    "LlamaVidVideoProcessor",
    *_LAZY,
]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

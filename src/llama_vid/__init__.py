"""LLaMA-VID for transformers: every video frame costs the language model two tokens."""

from importlib import import_module

# Exported lazily: importing the package neither loads what a program does not use nor needs optional libraries.
_EXPORTS = {
    "LlamaVidConfig": "modeling",
    "LlamaVidForConditionalGeneration": "modeling",
    "LlamaVidModel": "modeling",
    "LlamaVidProcessor": "modeling",
    "LlamaVidVideoProcessor": "modeling",
    "ask": "session",
    "convert_checkpoint": "conversion",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

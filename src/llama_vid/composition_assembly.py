# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""One model of several parts: its configuration, and its weights."""

import math
import re
from collections.abc import Mapping

import torch
from torch.nn.functional import interpolate
from transformers import AutoConfig

from .composition_parts import Part, Tensors
from .conversion_keys import check_names
from .modeling.configuration_llama_vid import LlamaVidConfig
from .modeling.modeling_llama_vid import LlamaVidForConditionalGeneration

# What no part brings, or need not bring.
NEW_MODULES = (
    "model.query_tokens.",
    "model.qformer_layernorm.",
    "model.qformer_vision_proj.",
    "model.context_attention.",
    "model.multi_modal_projector.",
)
POSITIONS = "model.vision_tower.embeddings.position_embedding"


def configure(tower: Part, decoder: Part, language: Part, settings: Mapping, values: Mapping) -> LlamaVidConfig:
    """The configuration of parts, with `settings` that win for each of them and `values` that win for the whole."""
    check_names("config_overrides", values, LlamaVidConfig().to_dict())
    parts = {"vision_config": tower.config, "qformer_config": decoder.config}
    for name, config in parts.items():
        known = AutoConfig.for_model(config["model_type"]).to_dict()
        check_names(f"config_overrides[{name!r}]", settings[name], known)
        parts[name] = {**config, **settings[name]}
    width = parts["vision_config"]["hidden_size"]
    return LlamaVidConfig(
        text_config=language.config,
        **parts,
        **{
            "qformer_vision_proj": parts["qformer_config"].get("encoder_hidden_size", width) != width,
            **tower.settings,
            **decoder.settings,
            **values,
        },
    )


def assemble(
    config: LlamaVidConfig, parts: list[Part], dtype: torch.dtype, seed: int
) -> tuple[LlamaVidForConditionalGeneration, dict[str, str]]:
    """
    A model with the tensors of its parts, which are not copied, and others drawn as for training.

    Returns:
        [`LlamaVidForConditionalGeneration`], and each of its modules with where its weights come from.

    Raises:
        ValueError: if a tensor is missing or does not fit.
    """
    with torch.device("meta"):
        expected = {name: value.shape for name, value in LlamaVidForConditionalGeneration(config).state_dict().items()}
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    state, origins = {}, dict.fromkeys(expected, f"drawn with seed {seed}")
    for part in parts:
        for name, tensor in part.read(config, dtype).items():
            if name in expected:  # not so layers behind the one that is read, final norms, poolers
                state[name], origins[name] = _fit(name, tensor, expected[name], part.origin), part.origin
    _check_complete(expected, state, parts)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = LlamaVidForConditionalGeneration.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    modules: dict[str, list[str]] = {}
    for name, origin in origins.items():
        modules.setdefault(re.match(r"(model\.)?\w+", name)[0], []).append(origin)
    return model, {module: ", ".join(dict.fromkeys(found)) for module, found in modules.items()}


def _fit(name: str, tensor: torch.Tensor, shape: torch.Size, origin: str) -> torch.Tensor:
    if name.startswith(POSITIONS) and tensor.shape != shape:
        tensor = resize_positions(tensor, shape)
    if tensor.shape != shape:
        raise ValueError(
            f"`{origin}` gives `{name}` the shape {tuple(tensor.shape)}, but the configuration says {tuple(shape)}: "
            "leave such sizes out of config_overrides."
        )
    return tensor


def _check_complete(expected: Mapping, state: Tensors, parts: list[Part]):
    drawn = [part.drawn for part in parts if part.drawn is not None]
    new = [name for name in expected if name not in state and not name.startswith(NEW_MODULES)]
    lacking = [name for name in new if not any(text in name for text in drawn)]
    if lacking:
        raise ValueError(
            f"The parts lack {len(lacking)} tensors of the model, such as `{lacking[0]}`: one of them is of another "
            "kind than its configuration says, or its download is incomplete."
        )


def resize_positions(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A position embedding (…, [1 +] side * side, C) for another side: CLS copied, the grid resized bicubically."""
    rows, width = tensor.shape[-2:]
    side, new_side = math.isqrt(rows), math.isqrt(shape[-2])
    cls, grid = tensor.reshape(-1, width).split([rows - side**2, side**2])
    grid = grid.float().T.reshape(1, width, side, side)
    grid = interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return torch.cat([cls, grid[0].flatten(1).T.to(cls.dtype)]).reshape(*tensor.shape[:-2], -1, width)

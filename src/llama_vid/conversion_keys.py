# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""What the tensors of original checkpoints are called here, and the configuration that follows from their shapes."""

import math
import re
from collections.abc import Iterable, Mapping

from transformers import AutoConfig

from .modeling.configuration_llama_vid import LlamaVidConfig

VISION = "model.vision_tower.vision_tower."

# Released models whose head counts the weights cannot tell: EVA-ViT-g and CLIP ViT-L/14 have 16, BERT-base has 12.
VISION_HEADS = 16
DECODER_HEADS = 12
# LAVIS publishes EVA-ViT-g with 40 blocks, and every model made of it takes the output of the 39th.
EVA_MAX_DEPTH = 39

# Each rule renames what its pattern matches in full; a reason instead of a name says why a tensor is left behind.
_LANGUAGE = [
    (r"model\.(embed_tokens\.weight|layers\.\d+\.(?!.*inv_freq).+|norm\.weight)", r"model.language_model.\1"),
    (r"lm_head\.weight", r"lm_head.weight"),
]
_ADAPTER = [
    (r"model\.vlm_att_query", r"model.query_tokens.weight"),
    (r"model\.vlm_att_projector\.(weight|bias)", r"model.context_attention.query_proj.\1"),
    (r"model\.vlm_att_key_projector\.weight", r"model.context_attention.key_proj.weight"),
    (r"model\.vlm_att_val_projector\.(weight|bias)", r"model.context_attention.value_proj.\1"),
    (r"model\.vlm_att_ln\.(weight|bias)", r"model.qformer_layernorm.\1"),
    (r"model\.vlm_att_bert_proj\.(weight|bias)", r"model.qformer_vision_proj.\1"),
    (r"model\.mm_projector\.(weight|bias)", r"model.multi_modal_projector.linear_1.\1"),
]
_BERT = [
    (r"model\.vlm_att_encoder\.bert\.((?:embeddings|encoder)\.(?!position_ids|token_type_ids).+)", r"model.qformer.\1")
]
_QFORMER = [
    (r"model\.vlm_att_encoder\.bert\.embeddings\.LayerNorm\.(weight|bias)", r"model.qformer.embeddings.layernorm.\1"),
    (
        r"model\.vlm_att_encoder\.bert\.(encoder\.layer\.\d+\.(?:attention|crossattention))\.self\.(.+)",
        r"model.qformer.\1.attention.\2",
    ),
    *_BERT,
]
_EVA = [
    (r"cls_token", r"embeddings.class_embedding"),
    (r"pos_embed", r"embeddings.position_embedding"),
    (r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embedding.\1"),
    (r"blocks\.(\d+)\.norm(\d)\.(weight|bias)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.weight", r"encoder.layers.\1.self_attn.qkv.weight"),
    (r"blocks\.(\d+)\.attn\.[qv]_bias", r"encoder.layers.\1.self_attn.qkv.bias"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"encoder.layers.\1.self_attn.projection.\2"),
    (r"blocks\.(\d+)\.mlp\.(fc\d)\.(weight|bias)", r"encoder.layers.\1.mlp.\2.\3"),
]
_TRANSFORMERS_VISION = [(r"((?:embeddings\.(?!position_ids)|pre_layrnorm\.|encoder\.layers\.).+)", r"\1")]

_LEFT_BEHIND = [
    (r"model\.layers\.\d+\..*inv_freq", "rotary frequencies are computed from the configuration"),
    (r"model\.vlm_att_key_projector\.bias", "the same number on every score of a query cancels in the softmax"),
    (r"model\.vlm_att_encoder\.bert\.embeddings\.(position|token_type)_ids", "counted anew"),
    (r"model\.vlm_att_encoder\.cls\..+", "the text decoder's word predictions are not used"),
    (r"model\.vlm_att_encoder\.bert\.pooler\..+", "the text decoder's pooler is not used"),
]
_VISION_LEFT_BEHIND = [
    (r"embeddings\.position_ids", "counted anew"),
    (r"(post_layernorm|norm|fc_norm)\.(weight|bias)", "the final norm comes after the layer that is read"),
    (r"(head|lm_head)\..+|mask_token", "the encoder's pre-training head is not used"),
]
_VISION_RULES = {"eva": _EVA, "instructblip": _TRANSFORMERS_VISION, "clip": _TRANSFORMERS_VISION}


def vision_kind(names: Iterable[str]) -> str | None:
    """`"eva"` (LAVIS' names), `"instructblip"` or `"clip"` (transformers' names); `None` for another encoder."""
    marks = {
        "eva": "patch_embed.proj.weight",
        "instructblip": "encoder.layers.0.self_attn.qkv.weight",
        "clip": "pre_layrnorm.weight",
    }
    names = set(names)
    return next((kind for kind, mark in marks.items() if mark in names), None)


def rename(names: Iterable[str], config: LlamaVidConfig) -> tuple[dict[str, list[str]], dict[str, str]]:
    """
    Find the place of every tensor of an original checkpoint.

    Args:
        names (`Iterable[str]`): The original's names; those of the vision encoder begin with `VISION`.
        config (`LlamaVidConfig`): Of the converted model.

    Returns:
        Target names with the names of what fills them (two, queries before values, where the original splits a bias),
        and names with the reason why they are left behind.

    Raises:
        ValueError: if a name is not known.
    """
    names = list(names)
    kind = vision_kind(name.removeprefix(VISION) for name in names if name.startswith(VISION))
    rules = [*_LANGUAGE, *_ADAPTER, *(_BERT if config.uses_bert_decoder else _QFORMER)]
    targets: dict[str, list[str]] = {}
    left_behind: dict[str, str] = {}
    unknown = []
    for name in names:
        if name.startswith(VISION):
            target, reason = _place_vision(name.removeprefix(VISION), _VISION_RULES[kind], config)
        elif name == "lm_head.weight" and config.tie_word_embeddings:
            target, reason = None, "tied to the input embedding"
        else:
            target, reason = _apply(rules, name) or _projector_layer(name), _apply(_LEFT_BEHIND, name)
        if target is not None:
            targets.setdefault(target, []).append(name)
        elif reason is not None:
            left_behind[name] = reason
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"The checkpoint holds tensors that are no part of LLaMA-VID: {', '.join(sorted(unknown))}.")
    return {target: sorted(sources) for target, sources in targets.items()}, left_behind


def _apply(rules: list[tuple[str, str]], name: str) -> str | None:
    for pattern, result in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(result)
    return None


def _projector_layer(name: str) -> str | None:
    """The original's projector counts activations too: 0, 2, 4 are linear layers 1, 2, 3."""
    match = re.fullmatch(r"model\.mm_projector\.(\d*[02468])\.(weight|bias)", name)
    if match is None:
        return None
    return f"model.multi_modal_projector.linear_{int(match[1]) // 2 + 1}.{match[2]}"


def _place_vision(name: str, rules: list[tuple[str, str]], config: LlamaVidConfig) -> tuple[str | None, str | None]:
    layer = re.match(r"(?:blocks|encoder\.layers)\.(\d+)\.", name)
    if layer and int(layer[1]) >= config.vision_num_layers:
        return None, f"layer {int(layer[1]) + 1} of an encoder that is read after layer {config.vision_num_layers}"
    target = _apply(rules, name)
    return (None, _apply(_VISION_LEFT_BEHIND, name)) if target is None else (f"model.vision_tower.{target}", None)


def check_complete(original: Mapping, shapes: Mapping[str, tuple[int, ...]]):
    """
    Check that the parts of a checkpoint are there, and of the kind that its config.json names.

    Args:
        original (`Mapping`): The original's config.json.
        shapes (`Mapping[str, tuple[int, ...]]`): Of the original's tensors.

    Raises:
        ValueError: naming what is missing or contradicts.
    """
    bert_type = original.get("bert_type") or ""
    parts = ["embed_tokens.weight", "layers.0."]
    parts += ["mm_projector.", "vlm_att_projector.", "vlm_att_key_projector.", "vlm_att_val_projector."]
    parts += ["vlm_att_encoder.bert.embeddings.", "vlm_att_encoder.bert.encoder.layer.0."]
    parts += ["vlm_att_bert_proj."] if "raw" in bert_type else ["vlm_att_query"]
    parts += ["vlm_att_ln."] if "pretrain" in bert_type else []
    missing = [f"model.{part}" for part in parts if not any(name.startswith(f"model.{part}") for name in shapes)]
    if missing:
        raise ValueError(
            f"The checkpoint (bert_type {bert_type!r}) lacks {', '.join(missing)}. Older stage-1 saves left out the "
            "text decoder and cannot be converted; otherwise its download is incomplete."
        )
    if bert_type and "pretrain" not in bert_type and "model.vlm_att_ln.weight" in shapes:
        raise ValueError(f"The configuration says bert_type {bert_type!r}, but the weights have a `model.vlm_att_ln`.")
    if bert_type and _is_qformer(shapes) == ("raw" in bert_type):
        kind = "a Q-Former" if _is_qformer(shapes) else "a plain BERT"
        raise ValueError(f"The configuration says bert_type {bert_type!r}, but the weights hold {kind}.")


def read_config(
    original: Mapping,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    placeholder_ids: tuple[int, int],
    vocab_size: int,
    image_size: int | None = None,
    vision_settings: Mapping | None = None,
    overrides: Mapping | None = None,
) -> LlamaVidConfig:
    """
    The configuration of the converted model: switches from the original's, sizes from its weights.

    Args:
        original (`Mapping`): The original's config.json. Keys that older ones lack: `compress_type` (every patch),
            `bert_type` (seen in the weights), `mm_vision_select_layer` (-2), rotary settings (none).
        shapes (`Mapping[str, tuple[int, ...]]`): Of all its tensors, as in [`rename`].
        placeholder_ids (`tuple[int, int]`): Ids of `<image>` and `<video>`.
        vocab_size (`int`): Rows of the embedding with the placeholders.
        image_size (`int`, *optional*): Pixels along a side; from the position embedding by default.
        vision_settings (`Mapping`, *optional*): The vision encoder's own config.json, for what shapes cannot tell.
        overrides (`Mapping`, *optional*): Values that win, nested like the configuration.

    Raises:
        ValueError: if a switch is unknown or contradicts the weights, head counts do not divide widths, or an override
            has an unknown name.
    """
    shapes = Shapes(shapes)
    overrides = dict(overrides or {})
    parts = {part: dict(overrides.pop(part, {})) for part in LlamaVidConfig.sub_configs}
    has = {
        part: any(name.startswith(f"model.{part}") for name in shapes)
        for part in ("vlm_att_query", "vlm_att_ln.", "vlm_att_bert_proj.")
    }
    qformer_config = read_text_decoder_config(shapes)
    kind, vision_config = read_vision_config(shapes, image_size, vision_settings or {})
    with_cls = kind != "clip" and qformer_config["model_type"] != "bert"
    feature = original.get("mm_vision_select_feature", "patch")
    if kind == "clip" and feature != "patch":
        raise ValueError(f"mm_vision_select_feature {feature!r} in config.json is not supported: expected 'patch'.")
    grid_size = _grid_size(original.get("compress_type"))
    values = {
        "vision_config": vision_config,
        "qformer_config": qformer_config,
        "text_config": _text_config(original, shapes, vocab_size),
        "image_token_id": placeholder_ids[0],
        "video_token_id": placeholder_ids[1],
        "image_grid_size": grid_size,
        "video_grid_size": grid_size,
        # EVA configurations say -2, which the original reads as the output of its last block.
        "vision_feature_layer": original.get("mm_vision_select_layer", -2) if kind == "clip" else -1,
        "qformer_layernorm": has["vlm_att_ln."],
        "qformer_vision_proj": has["vlm_att_bert_proj."],
        "image_qformer_uses_cls": with_cls,
        "video_qformer_uses_cls": with_cls,
        "projector_num_layers": _projector_num_layers(original, shapes),
        "tie_word_embeddings": bool(original.get("tie_word_embeddings", False)),
    }
    if has["vlm_att_query"]:
        values["num_query_tokens"] = shapes["model.vlm_att_query"][1]
    check_names("config_overrides", overrides, LlamaVidConfig().to_dict())
    for part, settings in parts.items():
        known = AutoConfig.for_model(values[part]["model_type"]).to_dict()
        check_names(f"config_overrides[{part!r}]", settings, known)
        values[part].update(settings)
        _check_heads(part, values[part])
    return LlamaVidConfig(**{**values, **overrides})


class Shapes(dict):
    """Shapes by name; asking for one that is not there says what the checkpoint lacks."""

    def __missing__(self, name: str):
        raise ValueError(f"The checkpoint lacks `{name}`, from which the configuration is read.")


def _is_qformer(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return "model.vlm_att_encoder.bert.encoder.layer.0.intermediate_query.dense.weight" in shapes


def _count(shapes: Iterable[str], pattern: str) -> int:
    """How many layers have a tensor at all: the pattern matches it in full, and its group is the layer's number."""
    return len({match[1] for match in (re.fullmatch(pattern, name) for name in shapes) if match})


def _text_config(original: Mapping, shapes: Mapping[str, tuple[int, ...]], vocab_size: int) -> dict:
    settings = (
        "hidden_act initializer_range max_position_embeddings num_attention_heads num_key_value_heads rms_norm_eps "
        "head_dim attention_bias attention_dropout mlp_bias bos_token_id eos_token_id pad_token_id tie_word_embeddings"
    )
    text_config = {key: original[key] for key in settings.split() if original.get(key) is not None}
    scaling = dict(original.get("rope_parameters") or original.get("rope_scaling") or {})
    rope_type = scaling.pop("type", "default")
    rope = {"rope_type": rope_type, "rope_theta": original.get("rope_theta", 10000.0), **scaling}
    return {
        "model_type": "llama",
        **text_config,
        "rope_parameters": rope,
        "vocab_size": vocab_size,
        "hidden_size": shapes["model.embed_tokens.weight"][1],
        "intermediate_size": shapes["model.layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": _count(shapes, r"model\.layers\.(\d+)\..+"),
    }


def read_text_decoder_config(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """The text decoder's configuration, as far as the shapes of the original's tensors tell it."""
    bert = "model.vlm_att_encoder.bert."
    layer = bert + "encoder.layer."
    vocab_size, width = shapes[f"{bert}embeddings.word_embeddings.weight"]
    config = {
        "model_type": "bert",
        "vocab_size": vocab_size,  # one more than BERT's: the original adds [DEC]
        "hidden_size": width,
        "num_hidden_layers": _count(shapes, re.escape(layer) + r"(\d+)\..+"),
        "num_attention_heads": DECODER_HEADS,
        "intermediate_size": shapes[f"{layer}0.intermediate.dense.weight"][0],
        "max_position_embeddings": shapes[f"{bert}embeddings.position_embeddings.weight"][0],
        "layer_norm_eps": 1e-12,
    }
    if not _is_qformer(shapes):
        types = shapes[f"{bert}embeddings.token_type_embeddings.weight"][0]
        return {**config, "type_vocab_size": types, "is_decoder": True, "add_cross_attention": True}
    encoder_hidden_size = shapes[f"{layer}0.crossattention.self.key.weight"][1]
    crossing = _count(shapes, re.escape(layer) + r"(\d+)\.crossattention\..+")
    return {
        **config,
        "model_type": "instructblip_qformer",
        "encoder_hidden_size": encoder_hidden_size,
        # Every second layer of BERT-base crosses: layers 0, 2, 4 …
        "cross_attention_frequency": -(-config["num_hidden_layers"] // crossing),
    }


def read_vision_config(
    shapes: Mapping[str, tuple[int, ...]], image_size: int | None, settings: Mapping
) -> tuple[str, dict]:
    """
    The kind of a vision tower (`eva`, `instructblip` or `clip`) and its configuration, as far as the shapes of its
    tensors tell them; `settings` win. Raises ValueError for towers of other kinds.
    """
    names = [name.removeprefix(VISION) for name in shapes if name.startswith(VISION)]
    kind = vision_kind(names)
    if kind is None:
        raise ValueError(
            "The vision encoder's tensors are neither EVA-ViT-g's (LAVIS' or InstructBLIP's names) nor CLIP's, got "
            f"{sorted(names)[:3]} …"
        )
    patch, positions, layer, bias = {
        "eva": ("patch_embed.proj", "pos_embed", "blocks.0", "attn.q_bias"),
        "instructblip": (
            "embeddings.patch_embedding",
            "embeddings.position_embedding",
            "encoder.layers.0",
            "self_attn.qkv.bias",
        ),
        "clip": ("embeddings.patch_embedding", "embeddings.position_embedding.weight", "encoder.layers.0", None),
    }[kind]
    width, _, _, patch_size = shapes[f"{VISION}{patch}.weight"]
    depth = _count(names, r"(?:blocks|encoder\.layers)\.(\d+)\..+")
    config = {
        "model_type": "clip_vision_model" if kind == "clip" else "instructblip_vision_model",
        "hidden_size": width,
        "num_attention_heads": VISION_HEADS,
        "hidden_act": "quick_gelu" if kind == "clip" else "gelu",
        "layer_norm_eps": 1e-5 if kind == "clip" else 1e-6,
        **{key: settings[key] for key in ("num_attention_heads", "hidden_act", "layer_norm_eps") if key in settings},
        "num_hidden_layers": depth if kind == "clip" else min(depth, EVA_MAX_DEPTH),
        "intermediate_size": shapes[f"{VISION}{layer}.mlp.fc1.weight"][0],
        "patch_size": patch_size,
        "image_size": image_size or math.isqrt(shapes[VISION + positions][-2] - 1) * patch_size,
    }
    if kind != "clip":
        config["qkv_bias"] = f"{VISION}{layer}.{bias}" in shapes
    return kind, config


def _grid_size(compress_type: str | None) -> int | None:
    if compress_type is None:
        return None
    if compress_type == "mean":
        return 1
    match = re.fullmatch(r"grid:(\d+)", compress_type)
    if match is None:
        raise ValueError(f"compress_type {compress_type!r} in config.json is unknown: expected null, mean or grid:<k>.")
    return int(match[1])


def _projector_num_layers(original: Mapping, shapes: Mapping[str, tuple[int, ...]]) -> int:
    layers = sum(bool(re.fullmatch(r"model\.mm_projector(\.\d+)?\.weight", name)) for name in shapes)
    names = [f"mlp{layers}x_gelu"] + ["linear"] * (layers == 1)
    kind = original.get("mm_projector_type", names[0])
    if kind not in names:
        raise ValueError(f"mm_projector_type {kind!r} in config.json does not fit the weights' {layers} linear layers.")
    return layers


def check_names(where: str, given: Mapping, known: Mapping):
    """Raise ValueError for names in `given` that are not in `known`; `where` is the argument that has them."""
    known = set(known) - {"model_type"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"`{where}` has unknown names: {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")


def _check_heads(part: str, config: Mapping):
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % heads and "head_dim" not in config:
        raise ValueError(
            f"{heads} attention heads do not divide the width {width} of the weights: pass the original's number as "
            f"config_overrides={{{part!r}: {{'num_attention_heads': …}}}}."
        )

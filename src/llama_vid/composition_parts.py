# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Vision towers and text decoders, in whichever files they come, as parts of a new LLaMA-VID."""

import re
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    BertModel,
    InstructBlipConfig,
    InstructBlipPreTrainedModel,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    InstructBlipVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from .conversion_files import SUFFIXES, TensorFiles
from .conversion_keys import VISION, Shapes, read_text_decoder_config, read_vision_config, rename
from .modeling.configuration_llama_vid import LlamaVidConfig

TOWER, DECODER = "model.vision_tower.", "model.qformer."
EVA = "instructblip_vision_model"
QFORMER = "instructblip_qformer"

# What LAVIS calls the parts of a Q-Former, and what the original LLaMA-VID does.
_LAVIS = {
    r"query_tokens": "model.vlm_att_query",
    r"ln_vision\.(weight|bias)": r"model.vlm_att_ln.\1",
    r"Qformer\.(bert\..+)": r"model.vlm_att_encoder.\1",
}

Tensors = dict[str, torch.Tensor]


@dataclass
class Part:
    """
    What the files of a part say about it, before its weights are read.

    Args:
        origin (`str`): Where it comes from, for people.
        config (`dict`): Its own configuration.
        settings (`dict`, *optional*): What goes with it in [`LlamaVidConfig`].
        read (`Callable`): Gives its tensors, of a dtype and by their names in the model of a configuration.
        drawn (`str`, *optional*): What stands in the names of tensors that the files need not hold.
        tokenizer (`str` or `Path`, *optional*): Where it has a tokenizer.
        pixels (`dict`, *optional*): How it wants the values of pixels, as arguments of image processors.
        notes (`list[str]`, *optional*): What a person should know.
    """

    origin: str
    config: dict
    settings: dict = field(default_factory=dict)
    read: Callable[[LlamaVidConfig, torch.dtype], Tensors] = field(default=lambda config, dtype: {})
    drawn: str | None = None
    tokenizer: str | Path | None = None
    pixels: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def load_config(argument: str, source: str | Path) -> PreTrainedConfig:
    """
    The configuration in a folder or Hub repository, which `argument` named; its code is never run.

    Raises:
        FileNotFoundError: if there is no such thing.
        ValueError: if transformers does not know the model.
    """
    if str(source).endswith(SUFFIXES):  # and no name of a repository
        raise FileNotFoundError(f"`{argument}`: the file `{source}` does not exist.")
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        raise FileNotFoundError(f"`{argument}`: no model's folder or Hub id is `{source}`. {error}") from error
    except ValueError as error:
        raise ValueError(f"`{argument}`: `{source}` is no model that transformers knows by itself. {error}") from error


def describe(config: PreTrainedConfig) -> dict:
    """A configuration's values, without those about the files that it was read from."""
    about_files = ("_name_or_path", "architectures", "auto_map", "dtype", "quantization_config", "transformers_version")
    return {name: value for name, value in config.to_dict().items() if name not in about_files}


def load_tensors(
    model_class: type[PreTrainedModel], source: str, config: PreTrainedConfig, dtype: torch.dtype, **kwargs
) -> Tensors:
    """
    The tensors of a model that its files really hold.

    Raises:
        ValueError: if one has another shape than the configuration says.
    """
    model, report = model_class.from_pretrained(
        source, config=config, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
    )
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise ValueError(
            f"`{name}` of `{source}` has the shape {tuple(found)}, but the configuration says {tuple(expected)}."
        )
    return {name: tensor for name, tensor in model.state_dict().items() if name not in report["missing_keys"]}


def open_vision_tower(source: str | Path) -> Part:
    """
    A vision tower: a folder or Hub id of a model that is or has one (InstructBLIP, CLIP, SigLIP …), or LAVIS'
    `eva_vit_g.pth`. InstructBLIP's encoder, which is EVA-ViT-g, is read after its last layer and with CLS in the text
    decoder; others after their second-to-last layer and without CLS, as in the original.

    Raises:
        FileNotFoundError, ValueError: if there is no such model, or it is no encoder of fixed-size images.
    """
    if Path(source).is_file():
        files = TensorFiles([Path(source)])
        shapes = Shapes({VISION + name: shape for name, shape in files.shapes.items()})
        config = read_vision_config(shapes, None, {})[1]
        read = partial(_read_original, files, {VISION + name: name for name in files.shapes})
    else:
        found = load_config("vision_tower", source)
        found = found.vision_config if "vision_config" in found.sub_configs else found
        if found.model_type != EVA and type(found) not in MODEL_MAPPING:
            raise ValueError(f"`vision_tower`: transformers has no model of its own for the {found.model_type} it has.")
        config = describe(found)
        read = partial(_read_vision_tower, str(source), found)
    if not {"image_size", "patch_size", "hidden_size"} <= set(config):
        raise ValueError(
            f"`vision_tower`: `{source}` is a {config['model_type']}, which encodes no images of one size: pass an "
            "InstructBLIP, CLIP or SigLIP, or eva_vit_g.pth."
        )
    if config.get("num_register_tokens"):
        raise ValueError(
            f"`vision_tower`: `{source}` is a {config['model_type']} with register tokens, which are no patches: pass "
            "an encoder without them."
        )
    is_eva = config["model_type"] == EVA
    settings = {
        "vision_feature_layer": -1 if is_eva else -2,
        "image_qformer_uses_cls": is_eva,
        "video_qformer_uses_cls": is_eva,
    }
    pixels, notes = ({}, []) if Path(source).is_file() else _pixel_values(source, config["model_type"])
    return Part(str(source), config, settings, read, pixels=pixels, notes=notes)


def _pixel_values(source: str | Path, model_type: str) -> tuple[dict, list[str]]:
    """How pixels are scaled for an encoder: as the image processor beside it says, else as its kind was trained."""
    try:
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError):
        if model_type.startswith("siglip"):
            return {"image_mean": IMAGENET_STANDARD_MEAN, "image_std": IMAGENET_STANDARD_STD}, []
        if model_type == EVA or model_type.startswith("clip"):
            return {}, []  # CLIP's, by default
        return {}, [f"no image processor is beside the {model_type}: pixels are scaled as for CLIP"]
    names = ("image_mean", "image_std", "rescale_factor", "do_rescale", "do_normalize")
    return {name: getattr(processor, name) for name in names if getattr(processor, name, None) is not None}, []


def _read_vision_tower(source: str, stored: PreTrainedConfig, config: LlamaVidConfig, dtype: torch.dtype) -> Tensors:
    as_stored = copy(config.vision_config)
    as_stored.image_size = stored.image_size  # its position embedding is resized later
    if as_stored.model_type == EVA:  # has no entry of its own in AutoModel
        tensors = load_tensors(InstructBlipVisionModel, source, as_stored, dtype, key_mapping={r"^vision_model\.": ""})
    else:
        tensors = load_tensors(AutoModel, source, as_stored, dtype)
    return {TOWER + name: tensor for name, tensor in tensors.items()}


def open_text_decoder(source: str | Path | None, as_type: str | None = None) -> Part:
    """
    A text decoder: a folder or Hub id of an InstructBLIP (its Q-Former, queries, and layer norm of vision features), of
    a Q-Former or of a BERT, LAVIS' `.pth` of an InstructBLIP, or `None` for a new one. A BERT is the paper's ablated
    decoder, whose cross-attention is new; as `instructblip_qformer` it is what a Q-Former begins with, as BLIP-2's did.

    Args:
        source (`str` or `Path`, *optional*): Where it is.
        as_type (`str`, *optional*): `"bert"` or `"instructblip_qformer"`, where that is open.

    Raises:
        FileNotFoundError, ValueError: if there is no such model, or it is no text decoder of that type.
    """
    if source is None:
        part = Part("new", {"model_type": as_type or QFORMER}, drawn=DECODER)
    elif Path(source).is_file():
        part = _open_lavis(Path(source))
    else:
        part = _open_decoder_model(str(source), load_config("qformer", source), as_type)
    model_type = part.config["model_type"]
    if as_type not in (None, model_type):
        raise ValueError(f"`qformer`: `{source}` is no {as_type}: leave model_type out of config_overrides.")
    if model_type == "bert":  # the original's: it attends to projected patches, a Q-Former to layer-normed features
        part.settings |= {"qformer_layernorm": False, "qformer_vision_proj": True}
        part.settings |= {"image_qformer_uses_cls": False, "video_qformer_uses_cls": False}
    return part


def _open_decoder_model(source: str, found: PreTrainedConfig, as_type: str | None) -> Part:
    if found.model_type == "instructblip":
        folder = Path(source) / "qformer_tokenizer"
        return Part(
            source,
            describe(found.qformer_config),
            {"num_query_tokens": found.num_query_tokens},
            partial(_read_instructblip, source, found),
            tokenizer=folder if folder.is_dir() else None,
        )
    if found.model_type == QFORMER:
        tokenizer = source if (Path(source) / "tokenizer_config.json").is_file() else None
        return Part(source, describe(found), read=partial(_read_qformer, source), tokenizer=tokenizer)
    if found.model_type != "bert":
        raise ValueError(
            f"`qformer`: `{source}` is a {found.model_type}: pass an InstructBLIP, a Q-Former of one, a BERT, LAVIS' "
            ".pth, or nothing for a new one."
        )
    config = describe(found)
    if as_type == QFORMER:
        shared = describe(InstructBlipQFormerConfig()).keys() - {"encoder_hidden_size"}
        config = {name: value for name, value in config.items() if name in shared} | {"model_type": QFORMER}
    has_tokenizer = any((Path(source) / file).is_file() for file in ("tokenizer.json", "vocab.txt"))
    return Part(
        source,
        config,
        read=partial(_read_bert, source, found),
        drawn=".crossattention.",
        tokenizer=source if has_tokenizer or not Path(source).is_dir() else None,
    )


class _InstructBlipQFormer(InstructBlipPreTrainedModel):
    """What is not the vision encoder or the language model in an InstructBLIP, so that nothing else is loaded."""

    def __init__(self, config: InstructBlipConfig):
        super().__init__(config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size))
        self.qformer = InstructBlipQFormerModel(config.qformer_config)
        self.vision_model = nn.ModuleDict({"post_layernorm": nn.LayerNorm(config.vision_config.hidden_size)})
        self.post_init()


def _read_instructblip(source: str, stored: InstructBlipConfig, config: LlamaVidConfig, dtype: torch.dtype) -> Tensors:
    as_configured = copy(stored)
    as_configured.qformer_config = config.qformer_config
    tensors = load_tensors(_InstructBlipQFormer, source, as_configured, dtype)
    named = {}
    for name, tensor in tensors.items():
        if name == "query_tokens":
            named["model.query_tokens.weight"] = tensor.squeeze(0)
        else:
            named["model." + name.replace("vision_model.post_layernorm.", "qformer_layernorm.")] = tensor
    return named


def _read_qformer(source: str, config: LlamaVidConfig, dtype: torch.dtype) -> Tensors:
    tensors = load_tensors(InstructBlipQFormerModel, source, config.qformer_config, dtype)
    return {DECODER + name: tensor for name, tensor in tensors.items()}


def _read_bert(source: str, stored: PreTrainedConfig, config: LlamaVidConfig, dtype: torch.dtype) -> Tensors:
    if config.uses_bert_decoder:
        tensors = load_tensors(BertModel, source, config.qformer_config, dtype, add_pooling_layer=False)
        return {DECODER + name: tensor for name, tensor in tensors.items()}
    bert = copy(stored)
    bert.num_hidden_layers = config.qformer_config.num_hidden_layers
    tensors = load_tensors(BertModel, source, bert, dtype, add_pooling_layer=False)
    named = {"model.vlm_att_encoder.bert." + name: tensor for name, tensor in tensors.items()}
    targets, _ = rename(named, config)
    begun = {target: named[name] for target, (name,) in targets.items()}
    # Text and queries have feed-forward layers of their own, which begin alike.
    for name, tensor in list(begun.items()):
        of_queries = re.sub(r"(layer\.\d+\.(?:intermediate|output))\.", r"\1_query.", name)
        if of_queries != name:
            begun[of_queries] = tensor.clone()
    return begun


def _open_lavis(path: Path) -> Part:
    files = TensorFiles([path])
    names = {}
    for stored in files.shapes:
        for pattern, name in _LAVIS.items():
            if match := re.fullmatch(pattern, stored):
                names[match.expand(name)] = stored
    shapes = Shapes({name: files.shapes[stored] for name, stored in names.items()})
    if "model.vlm_att_query" not in shapes:
        raise ValueError(f"`qformer`: `{path}` holds no Q-Former of LAVIS (a tensor named query_tokens): pass one.")
    settings = {"num_query_tokens": shapes["model.vlm_att_query"][1]}
    return Part(str(path), read_text_decoder_config(shapes), settings, partial(_read_original, files, names))


def _read_original(files: TensorFiles, names: dict[str, str], config: LlamaVidConfig, dtype: torch.dtype) -> Tensors:
    """`names`: what the conversion of original checkpoints calls the tensors, with their names in the files."""
    tensors = {}
    for target, sources in rename(names, config)[0].items():
        found = [files.read(names[source]).to(dtype) for source in sources]
        if len(found) == 2:  # EVA keeps the biases of queries and values; keys have none
            found = [torch.cat([found[0], torch.zeros_like(found[0]), found[1]])]
        tensors[target] = found[0].squeeze(0) if target == "model.query_tokens.weight" else found[0]
    return tensors

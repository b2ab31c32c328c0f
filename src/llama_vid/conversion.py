# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""From the original research code's checkpoints to folders that `from_pretrained` loads."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch.nn.functional import interpolate
from transformers import GenerationConfig
from transformers.dynamic_module_utils import custom_object_save

from .composition import build_processor, empty_place, new_folder
from .conversion_files import SUFFIXES, WEIGHT_FILES, TensorFiles, write_shards
from .conversion_keys import VISION, check_complete, read_config, rename
from .conversion_tokenizers import extend_vocabulary, load_qformer_tokenizer, load_tokenizer
from .hub_provenance import conversion_step, write_provenance
from .modeling.configuration_llama_vid import LlamaVidConfig
from .modeling.modeling_llama_vid import LlamaVidForConditionalGeneration
from .whole_files import read_json_object

ADAPTER_FILE = "mm_projector.bin"
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
POSITIONS = "model.vision_tower.embeddings.position_embedding"


@dataclass
class ConversionReport:
    """
    What became of every tensor.

    Args:
        output (`Path`): The folder that was written.
        dtype (`torch.dtype`): Of the written weights.
        used (`dict[str, str]`): Source tensors with the target that each went into.
        dropped (`dict[str, str]`): Source tensors that were not used, with the reason.
        filled (`dict[str, str]`): Every tensor of the model with what filled it.
        processor_written (`bool`): Whether the folder has a processor.
        processor_note (`str`): How it was made, or what to pass to get one.
        notes (`list[str]`): Anything else that a person should know.
    """

    output: Path
    dtype: torch.dtype
    used: dict[str, str]
    dropped: dict[str, str]
    filled: dict[str, str]
    processor_written: bool
    processor_note: str
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.output}: {len(self.filled)} tensors ({self.dtype}) from {len(self.used)} of the original's"]
        for reason, number in Counter(self.dropped.values()).most_common():
            names = [name for name, why in self.dropped.items() if why == reason]
            lines.append(f"  not used: {names[0]}{f' and {number - 1} more' if number > 1 else ''} ({reason})")
        lines += [f"  {note}" for note in self.notes]
        lines.append(f"  processor: {self.processor_note}")
        return "\n".join(lines)


def convert_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    vision_tower: str | Path | None = None,
    base_model: str | Path | None = None,
    qformer_tokenizer: str | Path | None = None,
    tokenizer: str | Path | None = None,
    config_overrides: Mapping | None = None,
    dtype: str | torch.dtype | None = None,
) -> ConversionReport:
    """
    Convert a checkpoint of the original LLaMA-VID code to one self-contained folder: safetensors, configuration,
    generation configuration, remote code and, with an LLM tokenizer in reach, the processor.

    Tensors go from file to file in portions of at most a shard (2 GB), so memory does not grow with the model.

    Args:
        source (`str` or `Path`): Folder or Hub id of the original: a full checkpoint, or a stage-1 one
            (`mm_projector.bin`).
        output (`str` or `Path`): The folder to write; it must not exist, or be empty.
        vision_tower (`str` or `Path`, *optional*): Where the checkpoint has no vision weights: `eva_vit_g.pth`, or a
            folder or Hub id of InstructBLIP or CLIP. By default what `mm_vision_tower` in the original's config.json
            names, seen from `source`.
        base_model (`str` or `Path`, *optional*): The language model that a stage-1 checkpoint belongs to.
        qformer_tokenizer (`str` or `Path`, *optional*): Tokenizer of the instructions; by default `bert-base-uncased`
            in `source`, or on the Hub.
        tokenizer (`str` or `Path`, *optional*): The language model's tokenizer; by default the one in `source` or
            `base_model`.
        config_overrides (`Mapping`, *optional*): What weights cannot tell, nested like [`LlamaVidConfig`]:
            `{"vision_config": {"num_attention_heads": 4}, "video_qformer_uses_cls": False}`. By default head counts are
            the released models'.
        dtype (`str` or `torch.dtype`, *optional*): Of all weights; by default that of the language model's.

    Returns:
        [`ConversionReport`].

    Raises:
        FileNotFoundError: if a file or folder is missing.
        FileExistsError: if `output` holds something.
        ImportError: if the tokenizer is a SentencePiece file and its libraries are not installed.
        ValueError: if a file is damaged or a pickle with code in it, a tensor is missing, unknown or of the wrong
            shape, or the configuration makes no sense. Nothing is left behind then (by a process that is killed,
            `.<output>.….partial` beside the output, which may be deleted).
    """
    output = empty_place(output)
    original = _open_original(source, base_model, vision_tower)
    llm_tokenizer, missing_tokenizer = load_tokenizer(tokenizer, original.language_folders, original.context_length)
    text_tokenizer = None
    if llm_tokenizer is not None:
        text_tokenizer, missing_tokenizer = load_qformer_tokenizer(qformer_tokenizer, original.folder)
    vocabulary = extend_vocabulary(original.shapes["model.embed_tokens.weight"][0], llm_tokenizer)

    config = read_config(
        original.config,
        original.shapes,
        placeholder_ids=(vocabulary.image_token_id, vocabulary.video_token_id),
        vocab_size=vocabulary.size,
        image_size=original.image_size,
        vision_settings=original.vision_settings,
        overrides=config_overrides,
    )
    config.architectures = ["LlamaVidForConditionalGeneration"]
    config.dtype = _parse_dtype(dtype, original)
    with torch.device("meta"):
        model = LlamaVidForConditionalGeneration(config)
    plan = _Plan(original, config, model)

    with new_folder(output) as partial:
        write_shards(partial, plan.shapes, config.dtype, plan.make)
        config.save_pretrained(partial)
        custom_object_save(model, partial)
        _generation_config(original).save_pretrained(partial)
        write_provenance(partial, [conversion_step(source, base_model=base_model)])
        if missing_tokenizer is None:
            processor = build_processor(config, llm_tokenizer, text_tokenizer, do_pad=original.pads_images)
            processor.save_pretrained(partial)
    return ConversionReport(
        output=output,
        dtype=config.dtype,
        used={label: target for target in plan.targets for label in plan.labels(target)},
        dropped=plan.dropped,
        filled={target: plan.description(target) for target in plan.shapes},
        processor_written=missing_tokenizer is None,
        processor_note=missing_tokenizer or "written",
        notes=original.notes + vocabulary.notes,
    )


class _Original:
    """A checkpoint of the original code, whichever files it is in: its configuration, and tensors by name."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = _read_json(folder / "config.json")
        self.language_folders = [folder]
        self.vision_settings: dict = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.labels: dict[str, str] = {}
        self.dropped: dict[str, str] = {}
        self.notes: list[str] = []
        self._files: list[TensorFiles] = []
        self._places: dict[str, tuple[int, str]] = {}

    def add(self, files: TensorFiles, stored: str, name: str, label: str):
        """Take a tensor in: `name` is what the rules know, `label` what the report says."""
        if name in self.shapes:
            raise ValueError(f"`{label}` is in two of the files that make up this checkpoint.")
        if files not in self._files:
            self._files.append(files)
        self.shapes[name] = files.shapes[stored]
        self.labels[name] = label
        self._places[name] = (self._files.index(files), stored)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in its own dtype."""
        index, stored = self._places[name]
        return self._files[index].read(stored)

    def position(self, name: str) -> tuple[int, int]:
        """Where the tensor is: reading in this order opens every file once."""
        index, stored = self._places[name]
        return index, self._files[index].position(stored)

    @property
    def context_length(self) -> int:
        """Tokens that a prompt may have: the long-video model's rotary positions are stretched."""
        scaling = self.config.get("rope_scaling") or {}
        factor = scaling.get("factor", 1) if scaling.get("type", scaling.get("rope_type")) == "linear" else 1
        length = int(self.config.get("max_position_embeddings", 2048) * factor)
        return max(length, self.config.get("tokenizer_model_max_length") or 0)

    @property
    def pads_images(self) -> bool:
        """Whether images become squares by padding; otherwise they are cropped."""
        return self.config.get("image_aspect_ratio") in (None, "pad")

    @property
    def image_size(self) -> int | None:
        """Pixels along a side, from the image processor that the configuration names."""
        named = self.config.get("image_processor")
        if named is None:
            return None
        settings = self.folder / named / "preprocessor_config.json"
        if settings.is_file():
            values = _read_json(settings)
            size = values.get("crop_size") or values.get("size") or {}
            return size if isinstance(size, int) else size.get("height", size.get("shortest_edge"))
        match = re.search(r"(?<!\d)(224|336)(?!\d)", named)
        return int(match[1]) if match else None


def _open_original(source: str | Path, base_model: str | Path | None, vision_tower: str | Path | None) -> _Original:
    original = _Original(_local_folder(source))
    model_type = original.config.get("model_type")
    if model_type not in ("llama", "llava"):
        raise ValueError(
            f"`{source}` is no checkpoint of the original code: model_type {model_type!r}, not llama or llava."
        )
    folder = original.folder
    if (folder / ADAPTER_FILE).is_file() and not any((folder / name).is_file() for name in WEIGHT_FILES):
        if base_model is None:
            raise ValueError(
                f"`{source}` is a stage-1 checkpoint, {ADAPTER_FILE} without a language model: pass the one it was "
                f"trained on as base_model (its configuration says {original.config.get('_name_or_path')!r})."
            )
        base_folder = _local_folder(base_model)
        original.language_folders.append(base_folder)
        original.config = {**_read_json(base_folder / "config.json"), **original.config}
        weights = [TensorFiles([folder / ADAPTER_FILE]), TensorFiles.from_folder(base_folder)]
    else:
        if base_model is not None:
            original.notes.append("base_model was not read: the checkpoint has its own language model")
        weights = [TensorFiles.from_folder(folder)]
    for files in weights:
        for name in files.shapes:
            if not name.startswith(VISION):
                original.add(files, name, name, name)
    check_complete(original.config, original.shapes)
    if not original.pads_images:
        ratio = original.config["image_aspect_ratio"]
        original.notes.append(f"images are cropped to squares, not padded: image_aspect_ratio is {ratio!r}")
    _add_vision(original, weights, vision_tower)
    return original


def _add_vision(original: _Original, weights: list[TensorFiles], vision_tower: str | Path | None):
    """The vision encoder's tensors: the checkpoint's own if it has them, else those of `vision_tower`."""
    named = original.config.get("mm_vision_tower")
    path = None
    if vision_tower is not None:
        path = Path(vision_tower)
        if not path.is_file():
            if path.suffix in SUFFIXES and not path.is_dir():
                raise FileNotFoundError(f"`vision_tower`: the file `{vision_tower}` does not exist.")
            path = _local_folder(vision_tower)
    elif named is not None and (original.folder / named).exists():
        path = original.folder / named
    if path is not None and (path / "config.json").is_file():
        settings = _read_json(path / "config.json")
        original.vision_settings = settings.get("vision_config", settings)

    own = next((files for files in weights if any(name.startswith(VISION) for name in files.shapes)), None)
    if own is not None:
        if vision_tower is not None:
            original.notes.append("no weights were read from vision_tower: the checkpoint has its own")
        names = {name: name.removeprefix(VISION) for name in own.shapes if name.startswith(VISION)}
        _add_vision_tensors(original, own, names)
    elif path is not None:
        files = TensorFiles([path]) if path.is_file() else TensorFiles.from_folder(path)
        _add_vision_tensors(original, files, {name: name for name in files.shapes})
    else:
        raise ValueError(
            f"The checkpoint has no weights of the vision encoder, and `{named}`, which its config.json names as "
            "mm_vision_tower, is not beside it: pass vision_tower (eva_vit_g.pth, or a folder of InstructBLIP or CLIP)."
        )


def _add_vision_tensors(original: _Original, files: TensorFiles, names: Mapping[str, str]):
    """`names`: stored names with those inside the file, which may hold more models than the encoder."""
    marks = ("patch_embed.proj.weight", "embeddings.patch_embedding.weight")
    found = [name[: -len(mark)] for name in names.values() for mark in marks if name.endswith(mark)]
    if len(found) != 1:
        raise ValueError(
            f"Expected one vision encoder (a tensor named …{marks[0]} or …{marks[1]}), found {len(found)}."
        )
    for stored, name in names.items():
        if name.startswith(found[0]):
            original.add(files, stored, VISION + name.removeprefix(found[0]), VISION + name)
        else:
            original.dropped[VISION + name] = "no part of the vision encoder"


class _Plan:
    """What fills each tensor of the model, in the order in which the original's files hold it."""

    def __init__(self, original: _Original, config: LlamaVidConfig, model: LlamaVidForConditionalGeneration):
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if config.tie_word_embeddings:
            del expected[HEAD]
        self.targets, dropped = rename(original.shapes, config)
        self.dropped = {**original.dropped, **{original.labels[name]: reason for name, reason in dropped.items()}}
        self._original, self._dtype = original, config.dtype

        unfilled = sorted(set(expected) - set(self.targets))
        if unfilled:
            raise ValueError(f"Nothing in the checkpoint fills these tensors of the model: {', '.join(unfilled)}.")
        unplaced = sorted(label for target in set(self.targets) - set(expected) for label in self.labels(target))
        if unplaced:
            raise ValueError(f"The model of this configuration has no place for: {', '.join(unplaced)}.")
        order = sorted(self.targets, key=lambda target: original.position(self.targets[target][0]))
        self.shapes = {target: expected[target] for target in order}
        self._check_shapes()

    def labels(self, target: str) -> list[str]:
        return [self._original.labels[name] for name in self.targets[target]]

    def description(self, target: str) -> str:
        """What fills a target, in words."""
        text = " and ".join(self.labels(target))
        rows, source = self.shapes[target], self._original.shapes[self.targets[target][0]]
        if target in (EMBEDDING, HEAD) and rows != source:
            text += f", {rows[0] - source[0]} rows with its mean appended"
        if target.startswith(POSITIONS) and rows != source:
            text += f", resized from {math.isqrt(source[-2])} to {math.isqrt(rows[-2])} patches a side"
        return text

    def make(self, target: str) -> torch.Tensor:
        """The tensor of a target, from the original's files."""
        tensor = _fit(target, [self._original.read(name) for name in self.targets[target]], self.shapes[target])
        cast = tensor.to(self._dtype)
        if cast.dtype != tensor.dtype and cast.isinf().any() and not tensor.isinf().any():
            raise ValueError(
                f"{', '.join(self.labels(target))} overflows {self._dtype}: pass dtype='bfloat16' or 'float32'."
            )
        return cast.contiguous()

    def _check_shapes(self):
        """The transformations run on shapes alone, so that nothing is written when one does not fit."""
        wrong = []
        for target, shape in self.shapes.items():
            sources = [self._original.shapes[name] for name in self.targets[target]]
            try:
                found = tuple(_fit(target, [torch.empty(source, device="meta") for source in sources], shape).shape)
            except RuntimeError:  # not even the number of dimensions is right
                found = sources
            if found != shape:
                wrong.append(f"{', '.join(self.labels(target))} gives {found}, `{target}` is {shape}")
        if wrong:
            raise ValueError(f"Shapes do not fit the configuration: {'; '.join(wrong)}.")


def _fit(target: str, sources: list[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """Bring what the original holds into the form that it has here."""
    if len(sources) == 2:  # EVA keeps the biases of queries and values; keys have none
        query_bias, value_bias = sources
        return torch.cat([query_bias, torch.zeros_like(query_bias), value_bias])
    (tensor,) = sources
    if target in (EMBEDDING, HEAD) and len(tensor) < shape[0]:
        mean = tensor.mean(dim=0, keepdim=True, dtype=torch.float32).to(tensor.dtype)
        return torch.cat([tensor, mean.expand(shape[0] - len(tensor), -1)])
    if target == "model.query_tokens.weight":
        return tensor.squeeze(0)
    if target.startswith(POSITIONS):
        return _resize_positions(tensor, shape)
    return tensor


def _resize_positions(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A position embedding (…, 1 + side * side, C) for another side: CLS copied, the grid resized bicubically."""
    side, new_side = math.isqrt(tensor.shape[-2] - 1), math.isqrt(shape[-2] - 1)
    if side == new_side or tensor.shape[-2] != 1 + side**2:
        return tensor
    width = tensor.shape[-1]
    cls, grid = tensor.reshape(-1, width).split([1, side * side])
    grid = grid.float().T.reshape(1, width, side, side)
    grid = interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return torch.cat([cls, grid[0].flatten(1).T.to(cls.dtype)]).reshape(*tensor.shape[:-2], -1, width)


def _generation_config(original: _Original) -> GenerationConfig:
    """The original's special ids, and its sampling where it says that it samples (greedy decoding ignores the rest)."""
    found = [folder / "generation_config.json" for folder in original.language_folders]
    settings = {**original.config, **next((_read_json(path) for path in found if path.is_file()), {})}
    names = ["bos_token_id", "eos_token_id", "pad_token_id"]
    if settings.get("do_sample"):
        names += ["do_sample", "temperature", "top_k", "top_p"]
    return GenerationConfig(**{name: settings[name] for name in names if settings.get(name) is not None})


def _local_folder(name: str | Path) -> Path:
    """A folder as it is, or the files of a Hub repository."""
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) or str(name).startswith("."):
        raise FileNotFoundError(f"`{name}` is neither a folder nor a Hub id (`owner/name`).")
    folder = Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"]))
    if not any(folder.glob("*.safetensors")):  # many repositories hold their weights twice
        folder = Path(snapshot_download(str(name), allow_patterns="*.bin"))
    return folder


def _read_json(path: Path) -> dict:
    # Not through AutoConfig: `llava`, which some originals say, is another model's type in transformers.
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` is missing: the folder is no checkpoint, or its download is incomplete.")
    return read_json_object(path)


def _parse_dtype(dtype: str | torch.dtype | None, original: _Original) -> torch.dtype:
    """The dtype asked for, or that of the language model's weights."""
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    dtype = original.read("model.embed_tokens.weight").dtype if dtype is None else known.get(dtype, dtype)
    if dtype not in known.values():
        raise ValueError(f"`dtype` must be one of {', '.join(known)}, got {dtype!r}: pass one of them.")
    return dtype

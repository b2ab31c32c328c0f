"""Putting the parts of a LLaMA-VID together."""

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlavaImageProcessor, PreTrainedTokenizerBase
from transformers.utils import logging

from llama_vid.modeling import (
    LlamaVidConfig,
    LlamaVidProcessor,
    LlamaVidVideoProcessor,
)

from .composition_assembly import assemble, configure
from .composition_language import (
    has_plain_head,
    language_tensors,
    load_language_model,
    load_language_tokenizer,
    make_generation_config,
    make_head_plain,
    read_text_config,
    stretch_context,
    trained_length,
)
from .composition_parts import Part, describe, open_text_decoder, open_vision_tower
from .conversion_tokenizers import BERT, extend_vocabulary
from .hub_provenance import composition_step, write_provenance


@dataclass
class CreationReport:
    """
    What a new model was made of.

    Args:
        output (`Path`): The folder that was written.
        dtype (`torch.dtype`): Of its weights.
        config (`LlamaVidConfig`): Its configuration.
        modules (`dict[str, str]`): Every module with where its weights come from.
        notes (`list[str]`): Anything else that a person should know.
    """

    output: Path
    dtype: torch.dtype
    config: LlamaVidConfig
    modules: dict[str, str]
    notes: list[str]

    def __str__(self) -> str:
        costs = f"an image costs {self.config.image_seq_length} tokens, a frame {self.config.frame_seq_length}"
        lines = [f"{self.output} ({self.dtype}): {costs}, the context is {self.config.context_length or 'unknown'}"]
        lines += [f"  {module}: {origin}" for module, origin in self.modules.items()]
        return "\n".join(lines + [f"  {note}" for note in self.notes])


def create_model(
    output: str | Path,
    *,
    vision_tower: str | Path,
    language_model: str | Path,
    qformer: str | Path | None = None,
    tokenizer: str | Path | None = None,
    qformer_tokenizer: str | Path | None = None,
    chat_template: str | None = None,
    context_length: int | None = None,
    rope_scaling: str = "linear",
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    config_overrides: Mapping | None = None,
    trust_remote_code: bool = False,
) -> CreationReport:
    """
    Make a new LLaMA-VID of pre-trained parts, to be trained from stage 1 on: one self-contained folder with
    safetensors, configuration, generation configuration, remote code and processor. Context attention and content
    projector are new; `<image>` and `<video>` are appended to the language model's vocabulary.

    Every weight is in memory once, in `dtype`.

    Args:
        output (`str` or `Path`): The folder to write; it must not exist, or be empty.
        vision_tower (`str` or `Path`): Folder or Hub id of an InstructBLIP, CLIP, SigLIP …, whole or its vision model,
            or LAVIS' `eva_vit_g.pth`.
        language_model (`str` or `Path`): Folder or Hub id of any causal language model.
        qformer (`str` or `Path`, *optional*): The text decoder: folder or Hub id of an InstructBLIP (Q-Former, queries
            and layer norm) or of a Q-Former alone, or LAVIS' `.pth`. A BERT becomes the paper's ablated decoder, or
            what a Q-Former begins with where `config_overrides` says `{"qformer_config": {"model_type":
            "instructblip_qformer"}}`. By default a new Q-Former of BERT-base's sizes.
        tokenizer (`str` or `Path`, *optional*): The language model's, if it is not beside it.
        qformer_tokenizer (`str` or `Path`, *optional*): Of the instructions; by default the one beside `qformer`, or
            `bert-base-uncased` on the Hub.
        chat_template (`str`, *optional*): `"vicuna_v1"`, `"plain"`, `"chatml"`, `"llama3"` or a Jinja template that
            takes visuals. By default the language model's own, wrapped, or `"vicuna_v1"` for one without.
        context_length (`int`, *optional*): Tokens of a prompt, more than the language model was trained for: its rotary
            embedding is scaled (65536 in stage 3).
        rope_scaling (`str`, *optional*, defaults to `"linear"`): How: `"linear"`, as in the paper, or `"yarn"`.
        dtype (`str` or `torch.dtype`, *optional*): Of all weights; by default that of the language model's.
        seed (`int`, *optional*, defaults to 0): What new weights are drawn with.
        config_overrides (`Mapping`, *optional*): Values that win, nested like [`LlamaVidConfig`]:
            `{"vision_config": {"image_size": 336}, "video_grid_size": 2}`. Another image size resizes the tower's
            position embedding.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code in the tokenizers' repositories may run. Models are transformers' own in any case, or the
            folder would need other code to load.

    Returns:
        [`CreationReport`].

    Raises:
        FileNotFoundError: if a part is missing.
        FileExistsError: if `output` holds something.
        ValueError: if a part is of the wrong kind, lacks weights or does not fit, the context cannot be had, or an
            argument is unknown. Nothing is left behind then (by a process that is killed, `.<output>.….partial`
            beside the output, which may be deleted).
    """
    output = empty_place(output)
    dtype = _parse_dtype(dtype)
    overrides = dict(config_overrides or {})
    settings = {part: dict(overrides.pop(part, {})) for part in LlamaVidConfig.sub_configs}

    with _quiet():
        tower = open_vision_tower(vision_tower)
        decoder = open_text_decoder(qformer, settings["qformer_config"].pop("model_type", None))
        text_config = read_text_config(language_model, settings["text_config"])
        stretch_context(text_config, context_length, rope_scaling)
        llm_tokenizer, chat_template = load_language_tokenizer(
            tokenizer or language_model, chat_template, trained_length(text_config), trust_remote_code
        )
        decoder_tokenizer = _load_decoder_tokenizer(qformer_tokenizer or decoder.tokenizer or BERT, trust_remote_code)
        vocabulary = extend_vocabulary(max(llm_tokenizer.get_vocab().values()) + 1, llm_tokenizer)
        rows = max(text_config.vocab_size, vocabulary.size)
        language = Part(str(language_model), {**describe(text_config), "vocab_size": rows})
        decoder.config.setdefault("vocab_size", len(decoder_tokenizer))
        values = {"image_token_id": vocabulary.image_token_id, "video_token_id": vocabulary.video_token_id, **overrides}
        config = configure(tower, decoder, language, settings, values)
        if len(decoder_tokenizer) > config.qformer_config.vocab_size:
            raise ValueError(
                f"`qformer_tokenizer` has {len(decoder_tokenizer)} tokens, the text decoder's embedding "
                f"{config.qformer_config.vocab_size} rows: pass the tokenizer that it was trained with."
            )
        processor = build_processor(config, llm_tokenizer, decoder_tokenizer, chat_template, tower.pixels)

        llm = load_language_model(language_model, text_config, rows, dtype)
        generation_config, notes = make_generation_config(llm, processor)
        notes += tower.notes
        if not has_plain_head(llm):
            notes.append("the language model changes what its head gives (a bias, scaling, capping): left out here")
            make_head_plain(config.text_config)
        language.read = lambda *_: language_tensors(llm)
        model, modules = assemble(config, [tower, decoder, language], llm.dtype, seed)
        model.generation_config = generation_config
        with new_folder(output) as folder:
            model.save_pretrained(folder, max_shard_size="5GB")
            processor.save_pretrained(folder)
            parts = {"vision_tower": vision_tower, "language_model": language_model, "qformer": qformer}
            write_provenance(folder, [composition_step(**parts)])
    return CreationReport(output, model.dtype, model.config, modules, notes)


def _parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    parsed = known.get(dtype, dtype)
    if parsed is not None and parsed not in known.values():
        raise ValueError(f"`dtype` must be one of {', '.join(known)}, got {dtype!r}: leave it out, or pass one.")
    return parsed


def _load_decoder_tokenizer(source: str | Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise FileNotFoundError(
            f"The instructions' tokenizer is not to be had from `{source}`: pass qformer_tokenizer (folder or Hub id)."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers would list every tensor that a part does not bring; that is checked here, and the report says it."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def empty_place(output: str | Path) -> Path:
    """Where a folder can be made, links followed. Raises FileExistsError if something is there."""
    output = Path(output).resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"`{output}` exists and is not an empty folder: choose another output.")
    if os.path.ismount(output):  # which cannot be replaced by the finished folder
        raise FileExistsError(f"`{output}` is where a disk is mounted: choose a folder in it.")
    return output


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder under a temporary name (of `LEFTOVERS`), which becomes `output` if nothing fails."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        yield partial
        if output.exists():
            output.rmdir()
        os.replace(partial, output)
    finally:
        if partial.exists():
            shutil.rmtree(partial)


def build_processor(
    config: LlamaVidConfig,
    tokenizer: PreTrainedTokenizerBase,
    qformer_tokenizer: PreTrainedTokenizerBase,
    chat_template: str = "vicuna_v1",
    pixels: Mapping | None = None,
    do_pad: bool = True,
) -> LlamaVidProcessor:
    """
    The processor that fits a model: its image size and its number of tokens per image and frame.

    Args:
        config (`LlamaVidConfig`): The model's configuration.
        tokenizer (`PreTrainedTokenizerBase`):
            The language model's; its `<image>` and `<video>` must have the model's ids.
        qformer_tokenizer (`PreTrainedTokenizerBase`): The text decoder's.
        chat_template (`str`, *optional*, defaults to `"vicuna_v1"`): A Jinja template or the name of one of ours.
        pixels (`Mapping`, *optional*):
            How the visual encoder wants the values of pixels (`image_mean`, `image_std` …), CLIP's by default.
        do_pad (`bool`, *optional*, defaults to `True`): Whether images are padded to squares, instead of cropped.

    Returns:
        `LlamaVidProcessor`

    Raises:
        ValueError: if the tokenizer's placeholder ids are not the model's.
    """
    side = config.vision_config.image_size
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}, **(pixels or {})}
    processor = LlamaVidProcessor(
        image_processor=LlavaImageProcessor(do_pad=do_pad, **size),
        tokenizer=tokenizer,
        video_processor=LlamaVidVideoProcessor(**size),
        qformer_tokenizer=qformer_tokenizer,
        chat_template=chat_template,
        image_seq_length=config.image_seq_length,
        frame_seq_length=config.frame_seq_length,
    )
    ids = (processor.image_token_id, processor.video_token_id)
    if ids != (config.image_token_id, config.video_token_id):
        raise ValueError(
            f"The tokenizer has `<image>` and `<video>` at {ids}, the model at "
            f"{(config.image_token_id, config.video_token_id)}: use the tokenizer that the model was made with."
        )
    return processor

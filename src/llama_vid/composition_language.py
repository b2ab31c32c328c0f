# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""The language model of a new LLaMA-VID: its context, tokenizer, chat template and weights."""

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .composition_parts import Tensors, load_config
from .conversion_keys import check_names
from .conversion_tokenizers import like_sentencepiece
from .modeling.chat_templates_llama_vid import find_chat_template, wrap_chat_template
from .modeling.configuration_llama_vid import LlamaVidConfig
from .modeling.processing_llama_vid import LlamaVidProcessor

ROPE_SCALINGS = ("linear", "yarn")


def read_text_config(source: str | Path, overrides: Mapping) -> PreTrainedConfig:
    """
    The configuration of a language model, with values that win.

    Raises:
        FileNotFoundError, ValueError: if there is no such model, it is no decoder of text alone, or a name is unknown.
    """
    config = load_config("language_model", source)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.get_text_config() is not config:
        raise ValueError(
            f"`language_model`: `{source}` is a {config.model_type}, not a language model alone: pass one that "
            "AutoModelForCausalLM loads, such as a Llama, Qwen or Mistral."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"`language_model`: the weights of `{source}` are quantized: pass the model in 16 or 32 bits.")
    check_names("config_overrides['text_config']", overrides, config.to_dict())
    return type(config).from_dict({**config.to_dict(), **overrides})


def trained_length(text_config: PreTrainedConfig) -> int | None:
    """Tokens that a language model was trained for, with what scaling adds; `None` if it does not say."""
    return LlamaVidConfig(text_config=text_config).context_length


def stretch_context(text_config: PreTrainedConfig, context_length: int | None, rope_scaling: str) -> None:
    """
    Scale the rotary embedding to a longer context, as stage 3 does (paper, training settings); changed in place.

    Args:
        text_config (`PreTrainedConfig`): The language model's.
        context_length (`int`, *optional*): Tokens that a prompt may have from then on; by default as many as it was.
        rope_scaling (`str`): `"linear"` (the released long-video model) or `"yarn"`.

    Raises:
        ValueError: if there is no such scaling, that is shorter than what the model was trained for, it has no single
            rotary embedding, or its is scaled in another way.
    """
    if rope_scaling not in ROPE_SCALINGS:
        raise ValueError(f"`rope_scaling` must be one of {', '.join(ROPE_SCALINGS)}, got {rope_scaling!r}.")
    trained = trained_length(text_config)
    if context_length in (None, trained):
        return
    if trained is not None and context_length < trained:
        raise ValueError(
            f"`context_length={context_length}` is less than the {trained} tokens that the language model was trained "
            "for: leave it out, or pass more."
        )
    rope = text_config.to_dict().get("rope_parameters") or {}
    is_single = "rope_type" in rope and not any(isinstance(value, dict) for value in rope.values())
    if trained is None or not is_single or rope["rope_type"] not in ("default", rope_scaling):
        has = f"is scaled as {rope['rope_type']!r}" if is_single else "is none, or one for each kind of layer"
        raise ValueError(
            f"`context_length={context_length}` needs {rope_scaling} scaling of the language model's rotary embedding, "
            f"which {has}: leave it out, or say all of it in config_overrides={{'text_config': …}}."
        )
    original = rope.get("original_max_position_embeddings", text_config.max_position_embeddings)
    rope |= {"rope_type": rope_scaling, "factor": context_length / original}
    if rope_scaling == "yarn":
        rope["original_max_position_embeddings"] = original
        text_config.max_position_embeddings = context_length
    text_config.rope_parameters = rope
    text_config.validate_rope()  # not every model takes every scaling


def load_language_tokenizer(
    source: str | Path, chat_template: str | None, length: int | None, trust_remote_code: bool
) -> tuple[PreTrainedTokenizerBase, str]:
    """
    The language model's tokenizer and the chat template that goes with it: its own, made to take visuals, or Vicuna's.

    Args:
        source (`str` or `Path`): Folder or Hub id.
        chat_template (`str`, *optional*): A Jinja template or the name of one of ours, instead.
        length (`int`, *optional*): Tokens that a prompt may have; what the tokenizer says by default.
        trust_remote_code (`bool`): Whether the repository's code may run.

    Raises:
        ValueError: if there is no such template.
    """
    find_chat_template(chat_template)  # or it says that there is none
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", trust_remote_code=trust_remote_code)
    length = tokenizer.model_max_length if length is None else length
    if chat_template is None:
        own = None if tokenizer.chat_template is None else tokenizer.get_chat_template()
        chat_template = "vicuna_v1" if own is None else wrap_chat_template(own)
    if chat_template in ("vicuna_v1", "plain"):
        # The released checkpoints' formats go with their tokenization: what follows a placeholder is a text of its own.
        tokenizer = like_sentencepiece(tokenizer)
    tokenizer.model_max_length = length
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer, chat_template


def load_language_model(
    source: str | Path, config: PreTrainedConfig, rows: int, dtype: torch.dtype | None
) -> PreTrainedModel:
    """
    The language model with `rows` rows of its embedding and head; those it lacks begin as the mean of the others.

    Raises:
        ValueError: if weights are missing.
    """
    model, report = AutoModelForCausalLM.from_pretrained(
        source, config=config, dtype=dtype or "auto", trust_remote_code=False, output_loading_info=True
    )
    if report["missing_keys"]:
        raise ValueError(
            f"`language_model`: `{source}` lacks {', '.join(sorted(report['missing_keys'])[:3])} …: it is no causal "
            "language model's checkpoint, or its download is incomplete."
        )
    known = model.get_input_embeddings().weight.shape[0]
    if rows > known:
        model.resize_token_embeddings(rows, mean_resizing=False)
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            module.weight.data[known:] = module.weight.data[:known].mean(dim=0, dtype=torch.float32)
    return model


def language_tensors(model: PreTrainedModel) -> Tensors:
    """A language model's tensors by their names in LLaMA-VID, not copied."""
    tensors = {f"model.language_model.{name}": tensor for name, tensor in model.base_model.state_dict().items()}
    return {**tensors, "lm_head.weight": model.get_output_embeddings().weight.detach()}


@torch.no_grad()
def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits are what the head's matrix gives, without a bias, scaling or soft-capping of their own."""
    ids = torch.zeros(1, 1, dtype=torch.long)
    hidden_states = model.base_model(ids).last_hidden_state
    logits = hidden_states @ model.get_output_embeddings().weight.T
    return torch.allclose(model(ids).logits.float(), logits.float(), atol=1e-3)


def make_head_plain(config: PreTrainedConfig) -> None:
    """Take off scaling and capping of logits, so that nothing that reads them (TRL's fused head) does them either."""
    if getattr(config, "final_logit_softcapping", None) is not None:
        config.final_logit_softcapping = None
    for name in ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier"):
        if getattr(config, name, None) is not None:
            setattr(config, name, 1.0)


def make_generation_config(model: PreTrainedModel, processor: LlamaVidProcessor) -> tuple[GenerationConfig, list[str]]:
    """
    The language model's special ids and sampling, and what ends an answer in the processor's chat template.

    Returns:
        `GenerationConfig`, and what a person should know.
    """
    settings = model.generation_config.to_dict()
    names = ["bos_token_id", "eos_token_id"]
    if settings.get("do_sample"):
        names += ["do_sample", "temperature", "top_k", "top_p"]
    values = {name: settings[name] for name in names if settings.get(name) is not None}
    end, notes = answer_end(processor), []
    if end is None:
        notes.append("no special token ends an answer in the chat template: generation does not know where to stop")
    values["eos_token_id"] = with_end(values.get("eos_token_id", processor.tokenizer.eos_token_id), end)
    return GenerationConfig(pad_token_id=processor.tokenizer.pad_token_id, **values), notes


def with_end(known: int | list[int] | None, end: int | None) -> int | list[int] | None:
    """The ids that end a generation, as `GenerationConfig` has them, and one more."""
    ends = known if isinstance(known, list) else [known] if known is not None else []
    if end is not None and end not in ends:
        ends = [*ends, end]
    return ends[0] if len(ends) == 1 else ends or None


def answer_end(processor: LlamaVidProcessor) -> int | None:
    """The id of the special token behind an answer in a rendered chat."""
    answer = "probe-answer"
    chat = [{"role": "user", "content": "probe-question"}, {"role": "assistant", "content": answer}]
    rest = processor.apply_chat_template(chat).rpartition(answer)[2].strip()
    ids = processor.tokenizer(rest, add_special_tokens=False)["input_ids"]
    special = processor.tokenizer.added_tokens_decoder
    return ids[0] if ids and ids[0] in special and special[ids[0]].special else None

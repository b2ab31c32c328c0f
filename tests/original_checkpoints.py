# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints as the original code leaves them, tiny and random, for the tests of their conversion."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llama_vid import conversion
from llama_vid.conversion import convert_checkpoint
from llama_vid.modeling import LlamaVidForConditionalGeneration

HEADS = {"vision_config": {"num_attention_heads": 4}, "qformer_config": {"num_attention_heads": 4}}
VISION = "model.vision_tower.vision_tower."
DECODER = "model.vlm_att_encoder.bert."

# All widths differ: C, Dq, H, their feed-forward widths, vocabularies, queries.
C, DQ, H = 40, 24, 48
LLM_ROWS, BERT_ROWS, QUERIES, SIDE = 50, 31, 5, 2

CONFIG = {
    "model_type": "llava",
    "architectures": ["LlavaLlamaAttForCausalLM"],
    "_name_or_path": "vicuna",
    "bert_type": "qformer_pretrain",
    "compress_type": "mean",
    "mm_hidden_size": C,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "./model_zoo/LAVIS/eva_vit_g.pth",
    "num_query": QUERIES,
    "hidden_act": "silu",
    "hidden_size": H,
    "intermediate_size": 56,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "use_cache": False,
    "vocab_size": LLM_ROWS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def linear(name: str, rows: int, columns: int, bias: bool = True) -> dict:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def norm(name: str, width: int) -> dict:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def language_shapes() -> dict:
    shapes = {"model.embed_tokens.weight": (LLM_ROWS, H), "model.norm.weight": (H,), "lm_head.weight": (LLM_ROWS, H)}
    for i in range(2):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.rotary_emb.inv_freq": (6,)}
        shapes |= {f"{layer}input_layernorm.weight": (H,), f"{layer}post_attention_layernorm.weight": (H,)}
        for part, rows, columns in (
            ("self_attn.q_proj", H, H),
            ("self_attn.k_proj", H // 2, H),
            ("self_attn.v_proj", H // 2, H),
            ("self_attn.o_proj", H, H),
            ("mlp.gate_proj", 56, H),
            ("mlp.up_proj", 56, H),
            ("mlp.down_proj", H, 56),
        ):
            shapes |= linear(layer + part, rows, columns, bias=False)
    return shapes


def eva_shapes(blocks: int = 3, side: int = SIDE) -> dict:
    shapes = {"cls_token": (1, 1, C), "pos_embed": (1, 1 + side**2, C)}
    shapes |= {"patch_embed.proj.weight": (C, 3, 14, 14), "patch_embed.proj.bias": (C,)}
    for i in range(blocks):
        block = f"blocks.{i}."
        shapes |= norm(f"{block}norm1", C) | norm(f"{block}norm2", C)
        shapes |= {f"{block}attn.q_bias": (C,), f"{block}attn.v_bias": (C,), f"{block}attn.qkv.weight": (3 * C, C)}
        shapes |= linear(f"{block}attn.proj", C, C)
        shapes |= linear(f"{block}mlp.fc1", 68, C) | linear(f"{block}mlp.fc2", C, 68)
    return shapes


def adapter_shapes(layers: int = 4, crossed: int = C) -> dict:
    shapes = {"model.vlm_att_query": (1, QUERIES, DQ)} | norm("model.vlm_att_ln", crossed)
    shapes |= linear("model.vlm_att_projector", C, DQ) | linear("model.vlm_att_key_projector", C, C)
    shapes |= linear("model.vlm_att_val_projector", H, C)
    shapes |= linear("model.mm_projector.0", H, C) | linear("model.mm_projector.2", H, H)
    shapes |= {f"{DECODER}embeddings.position_ids": (1, 20)}
    shapes |= {f"{DECODER}embeddings.word_embeddings.weight": (BERT_ROWS, DQ)}
    shapes |= {f"{DECODER}embeddings.position_embeddings.weight": (20, DQ)} | norm(f"{DECODER}embeddings.LayerNorm", DQ)
    for i in range(layers):
        layer = f"{DECODER}encoder.layer.{i}."
        for attention, width in (("attention", DQ), *([("crossattention", crossed)] if i % 2 == 0 else [])):
            for part, columns in (("query", DQ), ("key", width), ("value", width)):
                shapes |= linear(f"{layer}{attention}.self.{part}", DQ, columns)
            shapes |= linear(f"{layer}{attention}.output.dense", DQ, DQ)
            shapes |= norm(f"{layer}{attention}.output.LayerNorm", DQ)
        for suffix in ("", "_query"):
            shapes |= linear(f"{layer}intermediate{suffix}.dense", 36, DQ)
            shapes |= linear(f"{layer}output{suffix}.dense", DQ, 36) | norm(f"{layer}output{suffix}.LayerNorm", DQ)
    return shapes


def random_state(shapes: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def original_state(**eva) -> dict[str, torch.Tensor]:
    vision = {f"{VISION}{name}": shape for name, shape in eva_shapes(**eva).items()}
    return random_state(language_shapes() | vision | adapter_shapes())


def write_original(folder: Path, state: dict | None = None, **config) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    torch.save(original_state() if state is None else state, folder / "pytorch_model.bin")
    return folder


def convert(
    source: Path, output: Path, **kwargs
) -> tuple[conversion.ConversionReport, LlamaVidForConditionalGeneration]:
    kwargs.setdefault("config_overrides", HEADS)
    report = convert_checkpoint(source, output, **kwargs)
    model, info = LlamaVidForConditionalGeneration.from_pretrained(output, output_loading_info=True)
    assert [info[key] for key in info if info[key]] == []  # no missing, unexpected or mismatched keys
    return report, model.eval()


def write_tokenizer(folder: Path, words: list[str]) -> Path:
    """A tokenizer of whole words, as a language model's."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=7
    )
    tokenizer.save_pretrained(folder)
    return folder


def write_bert_tokenizer(folder: Path) -> Path:
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "this", "?"]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": len(words)}))
    return folder

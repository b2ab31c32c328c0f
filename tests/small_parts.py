"""Small vision towers, text decoders and language models in files, and a model made of them."""

from pathlib import Path

import pytest
import torch
from original_checkpoints import (
    HEADS,
    write_bert_tokenizer,
    write_tokenizer,
)
from small_chats import WITH_DEFAULT_SYSTEM
from small_models import QFORMER, TEXT, VISION
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    InstructBlipVisionConfig,
    InstructBlipVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llama_vid import create_model

# The sizes of a new Q-Former; the tokenizer's are its vocabulary.
NEW_QFORMER = {name: value for name, value in QFORMER.items() if name != "vocab_size"}
NEW = {"qformer_config": NEW_QFORMER, "num_query_tokens": 6}
WORDS = "what is this moving red circle USER: ASSISTANT: the a".split()
# Of the released models' 16 and 12 heads, the small widths cannot be divided by.
LAVIS_HEADS = {"num_query_tokens": 5, **HEADS}

SIZES = {name: value for name, value in TEXT.items() if name != "model_type"} | {"vocab_size": 20, "eos_token_id": 2}
LLAMA = LlamaConfig(**SIZES)
QWEN = {**SIZES, "vocab_size": 40, "tie_word_embeddings": True, "max_position_embeddings": 256}
NEOX = {name: TEXT[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}


@torch.no_grad()
def write(model: PreTrainedModel, folder: Path, seed: int = 0) -> Path:
    """A model with random weights that are large enough for every path to matter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    model.save_pretrained(folder)
    return folder


def write_chat_tokenizer(folder: Path) -> Path:
    """A tokenizer as Qwen's: with a template, its marks as special tokens."""
    vocabulary = {word: i for i, word in enumerate(["<|endoftext|>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=WITH_DEFAULT_SYSTEM,
    )
    tokenizer.save_pretrained(folder)
    return folder


def instructblip() -> InstructBlipForConditionalGeneration:
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(**VISION),
        qformer_config=InstructBlipQFormerConfig(**QFORMER),
        text_config=LlamaConfig(**TEXT),
        num_query_tokens=7,
    )
    return InstructBlipForConditionalGeneration(config)


def tower_models() -> dict[str, PreTrainedModel]:
    text = {"hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "clip_vision": CLIPVisionModel(CLIPVisionConfig(**VISION)),
        "clip": CLIPModel(CLIPConfig(text_config={**text, "vocab_size": 50}, vision_config=VISION, projection_dim=16)),
        "siglip_vision": SiglipVisionModel(SiglipVisionConfig(**VISION)),
        "siglip": SiglipModel(SiglipConfig(text_config={**text, "vocab_size": 50}, vision_config=VISION)),
        "eva": InstructBlipVisionModel(InstructBlipVisionConfig(**VISION)),
        "instructblip": instructblip(),
    }


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A folder with a folder for each part."""
    root = tmp_path_factory.mktemp("parts")
    for name, model in tower_models().items():
        write(model, root / name)
    write(LlamaForCausalLM(LLAMA), write_tokenizer(root / "llama", WORDS))
    write(Qwen2ForCausalLM(Qwen2Config(**QWEN)), write_chat_tokenizer(root / "qwen"))
    neox = GPTNeoXConfig(**NEOX, vocab_size=20, max_position_embeddings=512, bos_token_id=1, eos_token_id=2)
    write(GPTNeoXForCausalLM(neox), write_tokenizer(root / "neox", WORDS))
    write_bert_tokenizer(root / "bert_tokenizer")
    bert = BertConfig(**{**QFORMER, "vocab_size": 9})
    write(BertModel(bert), write_bert_tokenizer(root / "bert"))
    write(InstructBlipQFormerModel(InstructBlipQFormerConfig(**QFORMER, encoder_hidden_size=40)), root / "qformer")
    return root


@pytest.fixture
def create(parts, tmp_path):
    """Create a model of small parts, by default a CLIP, a new Q-Former and a Llama, and load it."""

    def make(output="output", vision_tower="clip_vision", language_model="llama", qformer=None, **kwargs):
        kwargs.setdefault("config_overrides", NEW if qformer is None else None)
        report = create_model(
            tmp_path / output,
            vision_tower=parts / vision_tower,
            language_model=parts / language_model,
            qformer=None if qformer is None else parts / qformer,
            qformer_tokenizer=parts / "bert_tokenizer",
            **kwargs,
        )
        model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / output, output_loading_info=True)
        assert [info[key] for key in info if info[key]] == []  # no missing, unexpected or mismatched keys
        return report, model

    return make


def same(found: torch.nn.Module, expected: torch.nn.Module):
    state = expected.state_dict()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, state[name]), name

"""Memory that a recipe needs on each device, estimated from its sizes: the formula of recipes/README.md, in code."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from transformers import LlamaConfig

from llama_vid import LlamaVidConfig, LlamaVidForConditionalGeneration
from llama_vid.training.stages import choose_modules, modules_of

VICUNA = {
    "7b": {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "num_hidden_layers": 40, "intermediate_size": 13824, "num_attention_heads": 40},
}
DEVICES = 8
FRAMES = {1: 30, 2: 300, 3: 7200}  # of a video: half a minute, five minutes, two hours at 1 fps
CAPTION = 64  # tokens of a caption, more than nearly all of them
CHUNK = 64  # frames, or images, between encoder and language model at a time
QUESTION = 32  # tokens of a question to the text decoder
REST = 4e9  # CUDA context, buffers of communication, a gathered layer or two, fragments


@dataclass(frozen=True)
class Memory:
    """Bytes on each device."""

    state: float  # weights, gradients, Adam's two moments
    activations: float

    @property
    def total(self) -> float:
        """With all that the formula does not see."""
        return self.state + self.activations + REST


def estimate(size: str, side: int, settings: dict, launch: str) -> Memory:
    """The estimate for a recipe's settings at a model size (`7b`, `13b`) and image side, launched with a config."""
    model = architecture(size, side)
    trained = choose_modules(model, settings["stage"], settings.get("train_modules"))
    return Memory(_state(model, trained, settings, launch), _activations(model, trained, settings))


@cache
def architecture(size: str, side: int) -> LlamaVidForConditionalGeneration:
    """The model without memory."""
    text = LlamaConfig(vocab_size=32002, max_position_embeddings=4096, **VICUNA[size])
    vision = {"model_type": "instructblip_vision_model", "image_size": side}
    config = LlamaVidConfig(text_config=text, vision_config=vision, image_token_id=32000, video_token_id=32001)
    with torch.device("meta"):
        return LlamaVidForConditionalGeneration(config)


def _state(model: LlamaVidForConditionalGeneration, trained: list[str], settings: dict, launch: str) -> float:
    modules = modules_of(model)
    trains = sum(_count(modules[name]) for name in trained)
    frozen, in_4_bits = _count(model) - trains, 0
    if settings.get("use_peft"):
        language = model.model.language_model
        linear = [module for module in language.modules() if isinstance(module, nn.Linear)]
        adapters = sum(settings["lora_r"] * (layer.in_features + layer.out_features) for layer in linear)
        trains = adapters + sum(_count(modules[name]) for name in trained if name not in ("language_model", "lm_head"))
        in_4_bits = sum(map(_count, linear)) if settings.get("load_in_4bit") else 0
        frozen = _count(model) - in_4_bits  # PEFT keeps what trains whole as it was, too
    # 4 bits, and 8 for the scale of 64 numbers, whose own scale is shared by 256.
    frozen = 2 * frozen + in_4_bits * (4 + 8 / 64 + 32 / 64 / 256) / 8
    if launch == "zero2":
        return frozen + 4 * trains + 12 * trains / DEVICES
    return (frozen + 16 * trains) / (DEVICES if launch in ("zero3", "fsdp2") else 1)


def _activations(model: LlamaVidForConditionalGeneration, trained: list[str], settings: dict) -> float:
    text, vision = model.config.text_config, model.config.vision_config
    samples, stage = settings["per_device_train_batch_size"], settings["stage"]
    rows = (vision.image_size // vision.patch_size) ** 2 + 1
    tokens = samples * (rows + CAPTION if stage == 1 else settings["max_length"])
    # What checkpointing keeps of each layer, and what one layer keeps while it is computed again.
    language = tokens * (
        2 * text.hidden_size * text.num_hidden_layers + 26 * text.hidden_size + 12 * text.intermediate_size
    )
    if settings.get("use_peft") and settings["lora_dropout"]:
        # Of what goes into each adapter of that layer a copy without what dropout takes, and a mask of what it takes.
        layer = model.model.language_model.layers[0]
        language += tokens * 3 * sum(part.in_features for part in layer.modules() if isinstance(part, nn.Linear))
    # One's own messages may have videos too.
    has_video = any(data.get("format") in (None, "webvid", "video_chatgpt") for data in settings["train_datasets"])
    # As many as fit, in stage 1 one.
    images = 1 if stage == 1 else settings["max_length"] // (rows + QUESTION)
    frames = samples * max(FRAMES[stage] if has_video else 0, images if stage < 3 else 0)
    features = 2 * rows * vision.hidden_size
    decoder = model.config.qformer_config
    # While a chunk is computed again: for context attention, and for a text decoder that trains, its input twice and
    # what each layer keeps.
    if "qformer" in trained:
        width = decoder.hidden_size
        kept = 3 * features + decoder.num_hidden_layers * 4 * width * (model.config.num_query_tokens + QUESTION)
    else:
        kept = features if "context_attention" in trained else 0
    pixels = 12 * vision.image_size**2 if stage < 3 else 0
    # The visual encoder, without gradients: one layer of a chunk.
    tower = CHUNK * rows * 2 * (6 * vision.hidden_size + vision.intermediate_size) if stage < 3 else 0
    return language + frames * (features + pixels) + CHUNK * kept + tower


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

"""
Make the checkpoint of the tests, `tests/untrained`: real in every part, small, and untrained. Benchmarks use it too.

    python recipes/tiny/make_checkpoint.py [--output tests/untrained] [--seed 0] [--image-size 56]

All widths differ, so that a mix-up of two of them fails. The weights follow from the seed alone.
"""

import argparse
from itertools import product
from pathlib import Path

import torch
from files import replaced
from tokenizers_of_the_world import bert_tokenizer, llm_tokenizer
from transformers import GenerationConfig

from llama_vid.composition import build_processor
from llama_vid.modeling import LlamaVidConfig, LlamaVidForConditionalGeneration


def corpus() -> list[str]:
    """Sentences about coloured shapes that move, the language of the small world that the tiny model will be taught."""
    colours = "red green blue yellow white black orange purple cyan pink grey brown".split()
    shapes = "circle square triangle star cross diamond ring bar".split()
    moves = "enters from the left,leaves to the right,moves up,moves down,turns,stops,grows,shrinks,is hidden".split(
        ","
    )
    sentences = [
        f"The {colour} {shape} {move}."
        for (colour, shape), move in zip(product(colours, shapes), moves * 11, strict=False)
    ]
    sentences += [f"What colour is the {shape} that {move}?" for shape, move in product(shapes, moves)]
    sentences += [f"How many {colour} {shape}s are there?" for colour, shape in product(colours, shapes)]
    return [
        *sentences,
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: ASSISTANT:",
        "Below is a movie. Memorize the content and answer my question after watching this movie. Now the movie end.",
        "Describe the image concisely. What is happening in this video? What is moving? Which shape comes first, which "
        "comes last? When, in which second, does it appear? Is there any? Yes, there is. No, there is none.",
        "What was said when the shape was shown? Who said it, and why? Nobody said anything. left right top bottom "
        "before after first second third last zero one two three four five six seven eight nine ten",
        "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,:;!?'\"()-",
    ]


def tiny_config(llm_vocabulary: int, bert_vocabulary: int, image_size: int) -> LlamaVidConfig:
    """The architecture; `<image>` and `<video>` are the language model's last two rows."""
    return LlamaVidConfig(
        vision_config={
            "model_type": "instructblip_vision_model",
            "hidden_size": 56,
            "intermediate_size": 144,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": image_size,
            "patch_size": 14,
        },
        qformer_config={
            "model_type": "instructblip_qformer",
            "vocab_size": bert_vocabulary,
            "hidden_size": 40,
            "intermediate_size": 104,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": llm_vocabulary + 2,
            "hidden_size": 64,
            "intermediate_size": 168,
            "num_hidden_layers": 3,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        num_query_tokens=8,
        image_token_id=llm_vocabulary,
        video_token_id=llm_vocabulary + 1,
    )


@torch.no_grad()
def draw_weights(model: torch.nn.Module, seed: int) -> None:
    """Weights of the size that keeps a signal's, so that question, frame and text all show in the output."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            fan_in = parameter.numel() // parameter.shape[0]
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)


def make_checkpoint(output: Path, seed: int, image_size: int) -> None:
    """Write the checkpoint, weights and processor, without code: the package's own is used."""
    sentences = corpus()
    tokenizer, qformer_tokenizer = llm_tokenizer(sentences), bert_tokenizer(sentences)
    config = tiny_config(len(tokenizer), len(qformer_tokenizer), image_size)
    model = LlamaVidForConditionalGeneration(config)
    draw_weights(model, seed)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, max_new_tokens=32)
    processor = build_processor(config, tokenizer, qformer_tokenizer)
    with replaced(output) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        for code in partial.glob("*.py"):
            code.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[2] / "tests" / "untrained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=56, help="that of the tests; 224 for benchmarks")
    arguments = parser.parse_args()
    make_checkpoint(arguments.output, arguments.seed, arguments.image_size)

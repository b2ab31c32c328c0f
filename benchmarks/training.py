"""
What a training step of stage 2 costs: fully or by LoRA, with and without gradient checkpointing, and what it saves that
a video which comes up in several turns is encoded once.

    python benchmarks/training.py [--seconds 16] [--turns 4] [--batch-size 2] [--steps 5] [--vision-layers 8]
                                  [--language-layers 12] [--hidden-size 512] [--device cpu] [--dtype float32]
                                  [--output benchmarks/results/training.md]

Each row is measured in a process of its own, on one and the same batch: chats of some turns about a clip each, every
turn with it (paper, training). The model has the architecture of the released ones, fewer and narrower layers, and
random weights. A first step, which makes the optimizer's state, is not timed; memory is the most that was held during
the steps.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from peft import get_peft_model
from report import environment, peak_memory, reset_peak_memory, timed, write
from transformers import AutoProcessor
from trl import ModelConfig

from llama_vid.data.clips import make_demo_clip
from llama_vid.data.collator import LlamaVidDataCollator
from llama_vid.modeling import LlamaVidConfig, LlamaVidForConditionalGeneration
from llama_vid.modeling.modeling_llama_vid_visual import freeze_what_is_not_read
from llama_vid.session import TINY_CHECKPOINT
from llama_vid.training.stages import choose_modules, lora_config, set_trainable

SEED = 0
IMAGE_SIZE = 112


@dataclass(frozen=True)
class Variant:
    """A row of the table."""

    name: str
    lora: bool = False
    checkpointing: bool = False
    reuse: bool = True


VARIANTS = (
    Variant("full"),
    Variant("full, gradient checkpointing", checkpointing=True),
    Variant("LoRA", lora=True),
    Variant("LoRA, gradient checkpointing", lora=True, checkpointing=True),
    Variant("full, the video encoded for every turn", reuse=False),
    Variant("LoRA, the video encoded for every turn", lora=True, reuse=False),
)


def make_model(variant: Variant, processor, arguments: argparse.Namespace) -> torch.nn.Module:
    """A model with random weights, of which trains what the variant says."""
    width = arguments.hidden_size
    heads = {"hidden_size": width, "num_attention_heads": 8}
    config = LlamaVidConfig(
        vision_config={
            "model_type": "instructblip_vision_model",
            "intermediate_size": 4 * width,
            "num_hidden_layers": arguments.vision_layers,
            "image_size": IMAGE_SIZE,
            "patch_size": 14,
            **heads,
        },
        qformer_config={
            "model_type": "instructblip_qformer",
            "vocab_size": len(processor.qformer_tokenizer),
            "intermediate_size": 4 * width,
            "num_hidden_layers": 4,
            **heads,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(processor.tokenizer),
            "intermediate_size": 3 * width,
            "num_hidden_layers": arguments.language_layers,
            **heads,
        },
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
    )
    torch.manual_seed(SEED)
    model = LlamaVidForConditionalGeneration(config).to(arguments.device, getattr(torch, arguments.dtype))
    modules = choose_modules(model, stage=2)
    if variant.lora:
        adapter = lora_config(model, modules, ModelConfig(use_peft=True, lora_r=16))
        model = get_peft_model(model, adapter)
        freeze_what_is_not_read(model)
    else:
        set_trainable(model, modules)
    if variant.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def make_batch(
    variant: Variant, processor, clips: Sequence[Path], arguments: argparse.Namespace
) -> dict[str, torch.Tensor]:
    """Chats about a clip each."""
    words = ("What is moving?", "A circle moves from the left to the right."), ("And then?", "It leaves the picture.")
    chats = []
    for clip in clips:
        messages = []
        for turn in range(arguments.turns):
            question, answer = words[turn % len(words)]
            messages += [
                {"role": "user", "content": [{"type": "video", "path": str(clip)}, {"type": "text", "text": question}]},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ]
        chats.append({"messages": messages})
    batch = LlamaVidDataCollator(processor)(chats)
    if not variant.reuse and arguments.turns > 1:
        frames = batch["pixel_values_videos"].split(batch["video_num_frames"].tolist())
        shown = batch["video_indices"].tolist()
        batch["pixel_values_videos"] = torch.cat([frames[index] for index in shown])
        batch["video_num_frames"] = batch["video_num_frames"][shown]
        batch["video_indices"] = torch.arange(len(shown))
    dtype = getattr(torch, arguments.dtype)
    return {name: t.to(arguments.device, dtype if t.is_floating_point() else None) for name, t in batch.items()}


def measure(variant: Variant, clips: Sequence[Path], arguments: argparse.Namespace) -> tuple[float, int, int, str]:
    """Seconds a step, bytes, tokens of the batch, and where this was."""
    processor = AutoProcessor.from_pretrained(TINY_CHECKPOINT)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor.video_processor.size, processor.video_processor.crop_size = {"shortest_edge": IMAGE_SIZE}, size
    model = make_model(variant, processor, arguments)
    batch = make_batch(variant, processor, clips, arguments)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    on_gpu = arguments.device != "cpu"
    torch.cuda.reset_peak_memory_stats() if on_gpu else reset_peak_memory()
    seconds = statistics.median(timed(step, arguments.device)[0] for _ in range(arguments.steps))
    memory = torch.cuda.max_memory_allocated() if on_gpu else peak_memory()
    return seconds, memory, batch["input_ids"].numel(), environment(arguments.device)


def main(arguments: argparse.Namespace) -> tuple[str, str]:
    """The result's body, and where it was measured."""
    with tempfile.TemporaryDirectory() as folder:
        clips = [
            make_demo_clip(Path(folder) / f"{number}.mp4", seconds=arguments.seconds, seed=number)
            for number in range(arguments.batch_size)
        ]
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            rows = [pool.submit(measure, variant, clips, arguments).result() for variant in VARIANTS]
    seconds, memory, tokens, where = rows[0]
    lines = [
        f"Stage 2, {arguments.batch_size} chats of {arguments.turns} turns about a clip each, of {arguments.seconds} "
        f"frames ({tokens:,} tokens in all), as shares of full training without gradient checkpointing "
        f"({seconds:.2f} s a step, {memory / 1e9:.2f} GB, weights and process included); {arguments.vision_layers} "
        f"layers of encoder, {arguments.language_layers} of language model, width {arguments.hidden_size}, "
        f"{arguments.dtype}.",
        "",
        "| | time of a step | peak memory |",
        "|---|---|---|",
    ]
    for variant, (time, peak, *_) in zip(VARIANTS, rows, strict=True):
        lines.append(f"| {variant.name} | {time / seconds:.2f} | {peak / memory:.2f} |")
    return "\n".join(lines), where


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=16)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--vision-layers", type=int, default=8)
    parser.add_argument("--language-layers", type=int, default=12)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    table, place = main(given)
    options = [f"--{name.replace('_', '-')} {value}" for name, value in vars(given).items() if name != "output"]
    command = " ".join(["python benchmarks/training.py", *options])
    write("What a step of stage 2 costs", command, table, place, given.output)

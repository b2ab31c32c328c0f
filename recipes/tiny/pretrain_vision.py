"""
Pre-train the small vision tower and text decoder: an InstructBLIP in miniature, without a language model.

    python recipes/tiny/pretrain_vision.py --output models/tiny/instructblip

The tower learns to say of each patch which shape covers it and where that is, and the Q-Former to look at the patches
of the shapes that a text names, or at the background if none is there. All heads are thrown away; the folder that is
written is what `llama-vid create` takes as `--vision-tower` and `--qformer`.
"""

import argparse
import json
import re
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers_of_the_world import bert_tokenizer
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from tqdm import trange
from transformers import (
    BertTokenizer,
    InstructBlipConfig,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    InstructBlipVisionConfig,
    InstructBlipVisionModel,
    LlamaConfig,
    Trainer,
    TrainingArguments,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from llama_vid.composition import new_folder
from llama_vid.data.shapes import COLOURS, KINDS, Scene, Shape, frame_at, make_scene
from llama_vid.data.shapes_questions import picture_questions, questions, sentences

IMAGE_SIZE, PATCH_SIZE, NUM_QUERIES = 56, 14, 4
GRID = IMAGE_SIZE // PATCH_SIZE
TEXT_DECODER = {
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.1,
}
NEAR = 0.1  # how far from a shape, beyond its radius, the middle of a patch may be that it covers


def make_rows(num_scenes: int, seed: int) -> list[dict]:
    """Frames of scenes with a text about each, and for every patch what covers it and whether the text names that."""
    rows = []
    for number in trange(num_scenes, desc="frames", unit="scene"):
        random = Random(f"frames {seed} {number}")
        scene = make_scene(f"{seed}/vision/{number}", seconds=8 + number % 17)
        busy = [second for second in range(scene.seconds) if scene.visible(second)]
        for second in (0, *random.sample(busy, min(4, len(busy)))):  # the first one is empty
            asked = questions(scene, random)
            if second:
                asked += picture_questions(scene, second, random)
            text = random.choice(asked).text
            picture = Image.fromarray(frame_at(scene, second))
            picture = np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
            rows.append({"picture": picture, "text": text, **label_patches(scene, second, text)})
    return rows


class Collator:
    """Rows to a batch."""

    def __init__(self, tokenizer: BertTokenizer):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Texts as tokens, pictures as CLIP's pixels."""
        text = self.tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        arrays = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0] if name != "text"}
        pixels = arrays.pop("picture").permute(0, 3, 1, 2) / 255  # (frames, 3, H, W)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        return {"pixel_values": (pixels - mean) / std, **text, **arrays}


def label_patches(scene: Scene, second: int, text: str) -> dict[str, np.ndarray]:
    """
    For each patch the colour and the kind (0: none) of the shape that covers it and that shape's centre, and whether to
    look at it: at those that the text names, or else at those that are empty.
    """
    middles = (np.arange(GRID) + 0.5) / GRID
    colours, kinds, named = np.zeros(GRID * GRID, np.int64), np.zeros(GRID * GRID, np.int64), np.zeros(GRID * GRID)
    centres = np.zeros((GRID * GRID, 2), np.float32)
    nearest = np.full(GRID * GRID, np.inf)
    for shape in scene.visible(second):
        x, y = shape.path[second - shape.appears]
        distance = np.hypot(middles[None] - x, middles[:, None] - y).flatten()
        covered = (distance < shape.radius + NEAR) & (distance < nearest)
        nearest[covered] = distance[covered]
        colours[covered] = 1 + list(COLOURS).index(shape.colour)
        kinds[covered] = 1 + KINDS.index(shape.kind)
        centres[covered] = x, y
        named[covered] = is_named(shape, text)
    wanted = named if named.any() else colours == 0
    return {"colours": colours, "kinds": kinds, "centres": centres, "wanted": wanted.astype(np.float32)}


def is_named(shape: Shape, text: str) -> bool:
    """Whether the text means this shape: by name, colour or kind, or as any shape if it says nothing of the sort."""
    colours, kinds = "|".join(COLOURS), "|".join(KINDS)
    mentions = re.findall(rf"(?:({colours}) )?\b({kinds})\b|\b({colours})\b", text.lower())
    if not mentions:
        return True
    return any(
        (first or colour or shape.colour) == shape.colour and (kind or shape.kind) == shape.kind
        for first, kind, colour in mentions
    )


class MiniatureInstructBlip(nn.Module):
    """Vision tower and Q-Former with the heads that they are taught by."""

    def __init__(self, vision: InstructBlipVisionConfig, qformer: InstructBlipQFormerConfig):
        super().__init__()
        self.vision_model = InstructBlipVisionModel(vision)
        self.query_tokens = nn.Parameter(0.5 * torch.randn(1, NUM_QUERIES, qformer.hidden_size))
        self.qformer = InstructBlipQFormerModel(qformer)
        self.heads = nn.ModuleDict(
            {
                "colours": nn.Linear(vision.hidden_size, 1 + len(COLOURS)),
                "kinds": nn.Linear(vision.hidden_size, 1 + len(KINDS)),
                "both": nn.Linear(vision.hidden_size, 1 + len(COLOURS) * len(KINDS)),
                "centres": nn.Linear(vision.hidden_size, 2),
                "wanted": nn.Linear(qformer.hidden_size, vision.hidden_size),
            }
        )

    def forward(self, pixel_values, input_ids, attention_mask, colours, kinds, centres, wanted, **unused) -> dict:
        """The loss of all heads, and what two of them say."""
        # What LLaMA-VID reads: the last block's output, before the final norm.
        features = self.vision_model(pixel_values, output_hidden_states=True).hidden_states[-1]  # (frames, 1 + N, C)
        patches = features[:, 1:]
        both = torch.where(colours > 0, (colours - 1) * len(KINDS) + kinds, 0)
        loss = 0.02 * features.square().mean()  # or they grow without end, as no norm follows
        for name, labels in (("colours", colours), ("kinds", kinds), ("both", both)):
            logits = self.heads[name](patches)
            weight = torch.ones(logits.shape[-1]).index_fill(0, torch.tensor(0), 4 / GRID**2)  # most patches are empty
            loss = loss + cross_entropy(logits.flatten(0, 1), labels.flatten(), weight)
        covered = colours > 0
        loss = loss + 10 * mse_loss(self.heads["centres"](patches)[covered], centres[covered])

        queries = self.query_tokens.expand(len(features), -1, -1)
        text_query = self.qformer(
            input_ids=input_ids,
            attention_mask=torch.cat(
                [torch.ones_like(attention_mask[:, :1]).expand(-1, NUM_QUERIES), attention_mask], 1
            ),
            query_embeds=queries,
            encoder_hidden_states=self.vision_model.post_layernorm(features),
        ).last_hidden_state[:, :NUM_QUERIES]
        attention = attend(self.heads["wanted"](text_query), patches).mean(1)
        loss_of_attention, seen = judge(attention, wanted)
        loss = loss + loss_of_attention
        return {"loss": loss, "both": self.heads["both"](patches).argmax(-1) == both, "seen": seen}


def attend(queries: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """How much each query looks at each patch, as context attention does: (frames, queries, patches)."""
    return (queries @ patches.transpose(1, 2) / patches.shape[-1] ** 0.5).softmax(-1)


def judge(attention: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and for each frame the share of the attention, both (frames, patches), that is where it should be."""
    seen = (attention * wanted).sum(-1)
    return -seen.clamp_min(1e-4).log().mean(), seen


def configs(vocabulary: int) -> tuple[InstructBlipVisionConfig, InstructBlipQFormerConfig]:
    """The sizes; weights begin larger than usual, as the widths are small."""
    vision = InstructBlipVisionConfig(
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        initializer_range=0.02,
    )
    qformer = InstructBlipQFormerConfig(vocab_size=vocabulary, encoder_hidden_size=vision.hidden_size, **TEXT_DECODER)
    return vision, qformer


def accuracy(prediction) -> dict[str, float]:
    """Of the patches that a shape covers, the share whose colour and kind are right; the share of attention that is."""
    (both, seen), colours = prediction.predictions, prediction.label_ids
    return {"patches": both[colours > 0].mean(), "seen": seen.mean()}


def training_arguments(arguments: argparse.Namespace, **changes) -> TrainingArguments:
    """What the pre-training of both text decoders has in common."""
    return TrainingArguments(
        output_dir=arguments.output.with_name(f"{arguments.output.name}-training"),
        max_steps=arguments.steps,
        per_device_train_batch_size=64,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        logging_steps=max(arguments.steps // 20, 1),
        save_strategy="no",
        seed=arguments.seed,
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
        **changes,
    )


def save(model: MiniatureInstructBlip, tokenizer: BertTokenizer, output: Path) -> None:
    """Write it as an InstructBLIP, whose language model is not there."""
    config = InstructBlipConfig(
        vision_config=model.vision_model.config.to_dict(),
        qformer_config=model.qformer.config.to_dict(),
        text_config=LlamaConfig().to_dict(),
        num_query_tokens=NUM_QUERIES,
    )
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("heads.")}
    with new_folder(output) as folder:
        config.save_pretrained(folder)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(folder / "qformer_tokenizer")


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--scenes", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = bert_tokenizer(sentences(2000))
    torch.manual_seed(arguments.seed)
    trainer = Trainer(
        MiniatureInstructBlip(*configs(len(tokenizer))),
        training_arguments(
            arguments,
            per_device_eval_batch_size=250,
            learning_rate=4e-3,
            weight_decay=0.01,
            adam_beta2=0.98,
            eval_strategy="steps",
            eval_steps=arguments.steps // 4,
            label_names=["colours"],
        ),
        data_collator=Collator(tokenizer),
        train_dataset=make_rows(arguments.scenes, arguments.seed),
        eval_dataset=make_rows(200, arguments.seed + 1),
        compute_metrics=accuracy,
    )
    trainer.train()
    save(trainer.model, tokenizer, arguments.output)
    log = arguments.output / "training_log.json"
    log.write_text(json.dumps(trainer.state.log_history, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

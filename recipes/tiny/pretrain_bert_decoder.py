"""
Pre-train the text decoder that the paper compares the Q-Former with, on the same task: a causal BERT that attends to
the frame in every layer.

    python recipes/tiny/pretrain_bert_decoder.py --tower models/tiny/instructblip --output models/tiny/bert-decoder

`llama-vid create` takes the folder as `--qformer`. The tower stays as it is. The projection of its width is thrown
away, as stage 1 trains it anew.
"""

import argparse
from pathlib import Path

import torch
from pretrain_vision import Collator, make_rows
from tokenizers_of_the_world import bert_tokenizer
from torch import nn
from transformers import BertConfig, BertModel, InstructBlipVisionModel, Trainer, TrainingArguments

from llama_vid.composition import new_folder
from llama_vid.data.shapes_questions import sentences


class MiniatureBertDecoder(nn.Module):
    """The decoder with what it is taught by."""

    def __init__(self, tower: InstructBlipVisionModel, config: BertConfig):
        super().__init__()
        self.tower = tower.requires_grad_(False)
        self.vision_proj = nn.Linear(tower.config.hidden_size, config.hidden_size)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.wanted = nn.Linear(config.hidden_size, tower.config.hidden_size)

    def forward(self, pixel_values, input_ids, attention_mask, wanted, **unused) -> dict:
        """The loss, and the share of attention that is right: on the patches that the text names."""
        patches = self.tower(pixel_values, output_hidden_states=True).hidden_states[-1][:, 1:]  # (frames, N, C)
        text_query = self.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=self.vision_proj(patches),
        ).last_hidden_state  # (frames, words, C of BERT)
        scores = self.wanted(text_query) @ patches.transpose(1, 2) / patches.shape[-1] ** 0.5
        is_word = attention_mask[..., None]
        attention = (scores.softmax(-1) * is_word).sum(1) / is_word.sum(1)  # (frames, N)
        seen = (attention * wanted).sum(-1)
        return {"loss": -seen.clamp_min(1e-4).log().mean(), "seen": seen}


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = bert_tokenizer(sentences(2000))
    torch.manual_seed(arguments.seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=112,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
        is_decoder=True,
        add_cross_attention=True,
    )
    tower = InstructBlipVisionModel.from_pretrained(arguments.tower)
    trainer = Trainer(
        MiniatureBertDecoder(tower, config),
        TrainingArguments(
            output_dir=arguments.output.with_name(f"{arguments.output.name}-training"),
            max_steps=arguments.steps,
            per_device_train_batch_size=64,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            logging_steps=arguments.steps // 10,
            save_strategy="no",
            seed=arguments.seed,
            report_to="none",
            use_cpu=True,
            remove_unused_columns=False,
        ),
        data_collator=Collator(tokenizer),
        train_dataset=make_rows(arguments.scenes, arguments.seed),
    )
    trainer.train()
    with new_folder(arguments.output) as folder:
        trainer.model.bert.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()

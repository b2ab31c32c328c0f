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
from pretrain_vision import TEXT_DECODER, Collator, attend, judge, make_rows, training_arguments
from tokenizers_of_the_world import bert_tokenizer
from torch import nn
from transformers import BertConfig, BertModel, InstructBlipVisionModel, Trainer

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
        is_word = attention_mask[..., None]
        attention = (attend(self.wanted(text_query), patches) * is_word).sum(1) / is_word.sum(1)  # (frames, N)
        loss, seen = judge(attention, wanted)
        return {"loss": loss, "seen": seen}


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
    config = BertConfig(vocab_size=len(tokenizer), is_decoder=True, add_cross_attention=True, **TEXT_DECODER)
    tower = InstructBlipVisionModel.from_pretrained(arguments.tower)
    trainer = Trainer(
        MiniatureBertDecoder(tower, config),
        training_arguments(arguments, learning_rate=3e-3),
        data_collator=Collator(tokenizer),
        train_dataset=make_rows(arguments.scenes, arguments.seed),
    )
    trainer.train()
    with new_folder(arguments.output) as folder:
        trainer.model.bert.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()

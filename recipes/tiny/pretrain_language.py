"""
Pre-train the small language model on the world's language: scenes in words, and questions about them with answers.

    python recipes/tiny/pretrain_language.py --output models/tiny/language-model

A scene is told as a caption or as a diary, a sentence for each second; questions follow as a chat in Vicuna's form. Two
things are learned slowly from such scenes and have chats of their own: to find the one right word among what is said,
and to count the seconds of up to a minute, each told in two words as each frame of a video has two tokens.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
from datasets import Dataset
from tokenizers_of_the_world import llm_tokenizer
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from llama_vid.composition import new_folder
from llama_vid.data.shapes import FOODS, LINES, Scene, make_scene
from llama_vid.data.shapes_questions import Question, caption, diary, questions, sentences
from llama_vid.modeling.chat_templates_llama_vid import CHAT_TEMPLATES
from llama_vid.training.muon import MuonWithAdamW
from llama_vid.training.stages import parameter_groups

VOCABULARY = 900
SYSTEM = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: ASSISTANT:",
    "Below is a movie. Memorize the content and answer my question after watching this movie. Now the movie end.",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,:;!?'\"()-",
]


def corpus(scenes: int) -> list[str]:
    """What the tokenizers are trained on."""
    told = sentences(scenes)
    # As in a chat, where a question stands on a line of its own.
    return [*(f"USER: \n{sentence} ASSISTANT:" for sentence in told), *told, *(20 * SYSTEM)]


def tell(number: int, seed: int, longest: int) -> list[dict[str, str]]:
    """A chat about a scene in words, about what is said, or about a list of seconds."""
    random = Random(f"language {seed} {number}")
    form = random.choices(("scene", "transcript", "seconds"), (2, 1, 1))[0]
    if form == "transcript":
        return _chat(*transcript(random))
    if form == "seconds":
        return _chat(*list_of_seconds(f"{seed}/seconds/{number}", random))
    scene = make_scene(f"{seed}/language/{number}", seconds=random.randint(8, longest))
    in_full = random.random() < 0.7
    told = diary(scene) if in_full else caption(scene)
    asked = [question for question in questions(scene, random) if in_full or _is_in_caption(question)]
    return _chat(told, random.sample(asked, len(asked)))


def make_chats(number: int, seed: int, longest: int) -> Dataset:
    """So many of them, in memory: a cache would not know when [`tell`] has changed."""
    return Dataset.from_list([{"messages": tell(i, seed, longest)} for i in range(number)])


def transcript(random: Random) -> tuple[str, list[Question]]:
    """One to five lines about different foods, some with a picture between them, and which food is named when."""
    foods = random.sample(FOODS, random.randint(1, 5))
    told = []
    for food in foods:
        told += [_silence(random)] * (random.random() < 0.5)
        told.append(random.choice(LINES).format(food=food))
    asked = [("Which food is named first?", foods[0]), ("Which food is named last?", foods[-1])]
    for one, other in pairwise(foods):
        asked.append((f"Which food is named right after {one}?", other))
        asked.append((f"Which food is named right before {other}?", one))
    random.shuffle(asked)
    return " ".join(told), [Question("said", *pair) for pair in asked[:6]]


def list_of_seconds(seed: str, random: Random) -> tuple[str, list[Question]]:
    """Two words for each of 8 to 64 seconds and all that is said between; when, in which order and how many come."""
    scene = make_scene(seed, seconds=random.randint(8, 64))
    told = []
    for second in range(scene.seconds):
        told.append(_in_two_words(scene, second, random))
        told += [line.text for line in scene.lines if int(line.start) == second]
    asked = [question for _ in range(4) for question in questions(scene, random)]
    about = ("when", "order", "count")
    asked = [question for question in asked if question.kind in about and not _is_about_shapes_together(question)]
    return " ".join(told), list(dict.fromkeys(asked))[:6]


def _in_two_words(scene: Scene, second: int, random: Random) -> str:
    """One shape of those in the picture: the one that has just come, if any."""
    visible = scene.visible(second)
    if not visible:
        return "no shape"
    newest = visible[-1]
    return (newest if newest.appears == second else random.choice(visible)).name


def _silence(random: Random) -> str:
    """What is to be seen at some second of some scene."""
    return caption(make_scene(random.random().hex(), seconds=8), random.randrange(8))


def _chat(told: str, asked: list[Question]) -> list[dict[str, str]]:
    """The first question comes with the story."""
    messages = []
    for number, question in enumerate(asked):
        text = question.text if number else f"{told}\n{question.text}"
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": question.answer}]
    return messages


def _is_in_caption(question: Question) -> bool:
    """Whether a caption says enough; it does not tell what was when."""
    return question.kind not in ("when", "said") and not _is_about_shapes_together(question)


def _is_about_shapes_together(question: Question) -> bool:
    return any(words in question.text for words in ("at once", "at the same time"))


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Chats to a batch, padded on the right, where attention that is causal needs no mask."""
    tokens = [torch.tensor(row["input_ids"]) for row in rows]
    labels = pad_sequence(tokens, batch_first=True, padding_value=-100)
    return {"input_ids": labels.clamp(min=0), "labels": labels}  # the padding's token is 0


@torch.no_grad()
def shrink_branches(model: LlamaForCausalLM) -> None:
    """Scale down what layers add, as GPT-2 does: what goes through all of them begins no larger than it came."""
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.mul_((2 * model.config.num_hidden_layers) ** -0.5)


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--chats", type=int, default=18000)
    parser.add_argument("--longest", type=int, default=12, help="seconds of a scene")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = llm_tokenizer(corpus(2000), VOCABULARY)
    tokenizer.chat_template = CHAT_TEMPLATES["vicuna_v1"]
    chats = make_chats(arguments.chats, arguments.seed, arguments.longest)
    chats = chats.map(lambda row: tokenizer.apply_chat_template(row["messages"], return_dict=True), keep_in_memory=True)

    set_seed(arguments.seed)
    width = arguments.hidden_size
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=arguments.layers,
            num_attention_heads=4,
            max_position_embeddings=512,  # stage2.yaml stretches it
            rms_norm_eps=1e-5,
            initializer_range=width**-0.5,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},  # wavelengths that prompts of it have
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    shrink_branches(model)
    groups = parameter_groups(model, {}, arguments.learning_rate, weight_decay=0.01, use_muon=True)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=arguments.output.with_name(f"{arguments.output.name}-training"),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=24,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=0.05,
            train_sampling_strategy="group_by_length",
            logging_steps=50,
            save_strategy="no",
            seed=arguments.seed,
            report_to="none",
            use_cpu=True,
        ),
        data_collator=collate,
        train_dataset=chats.select_columns("input_ids"),
        optimizer_cls_and_kwargs=(
            MuonWithAdamW,
            {"params": groups, "lr": arguments.learning_rate, "betas": (0.9, 0.98)},
        ),
    )
    trainer.train()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, max_new_tokens=32)
    with new_folder(arguments.output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    log = arguments.output / "training_log.json"
    log.write_text(json.dumps(trainer.state.log_history, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

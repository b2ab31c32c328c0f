"""Evaluation by generated answers: greedy decoding, exact match with what the assistant should have said."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2
import torch
from tqdm import tqdm

from llama_vid.data.collator import template_of
from llama_vid.data.records import to_messages
from llama_vid.modeling import LlamaVidForConditionalGeneration, LlamaVidProcessor
from llama_vid.modeling.chat_templates_llama_vid import CHAT_TEMPLATES

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class GeneratedAnswer:
    """
    What the model said to the last question of a row.

    Args:
        text (`str`): The model's answer.
        expected (`str`): The row's, with what the chat template writes in front of it (empty thoughts).
        kind (`str`, *optional*): The kind of the question, if the row tells it.
    """

    text: str
    expected: str
    kind: str | None = None

    @property
    def is_right(self) -> bool:
        """Whether they are equal, but for case, spaces and a full stop at the end."""
        return normalize_answer(self.text) == normalize_answer(self.expected)


def answer_accuracy(
    model: LlamaVidForConditionalGeneration, processor: LlamaVidProcessor, dataset: "Dataset", **options
) -> dict[str, float]:
    """
    The share of right answers, see [`generate_answers`] for the arguments and [`accuracy`] for the result.

    ```python
    >>> test = load_mixture([DatasetConfig("world/test.jsonl")], seed=0)
    >>> answer_accuracy(model, processor, test, batch_size=32)
    {'exact_match': 0.93, 'exact_match_colour': 0.98, …}
    ```
    """
    return accuracy(generate_answers(model, processor, dataset, **options))


def accuracy(answers: Sequence[GeneratedAnswer]) -> dict[str, float]:
    """
    The share of right answers.

    Returns:
        `dict[str, float]`: `exact_match` of all, and `exact_match_<kind>` of those of a kind.

    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("`answers` is empty: there is nothing to take a share of.")
    right = defaultdict(list, exact_match=[answer.is_right for answer in answers])
    for answer in answers:
        if answer.kind is not None:
            right[f"exact_match_{answer.kind}"].append(answer.is_right)
    return {name: sum(values) / len(values) for name, values in sorted(right.items())}


def normalize_answer(text: str) -> str:
    """Without case, superfluous spaces and one full stop at the end."""
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


@torch.no_grad()
def generate_answers(
    model: LlamaVidForConditionalGeneration,
    processor: LlamaVidProcessor,
    dataset: "Dataset | Sequence[dict[str, Any]]",
    *,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    chat_template: str | None = None,
) -> list[GeneratedAnswer]:
    """
    Let the model answer the last question of each row, by greedy decoding. Earlier answers are in the prompt as the row
    has them. Several processes share the rows, and each returns all answers.

    Args:
        model (`LlamaVidForConditionalGeneration`): The model, or PEFT's around it. It is left in the mode it was in.
        processor (`LlamaVidProcessor`): Its processor.
        dataset (`Dataset` or `Sequence[dict]`):
            Rows of `load_mixture`, or records with `messages`. `kind` is the kind of the question; of several with
            commas between, the last.
        batch_size (`int`, *optional*, defaults to 16): Rows at a time, padded on the left.
        max_new_tokens (`int`, *optional*):
            The longest answer; by default two tokens more than the longest expected one, as others cannot match.
        chat_template (`str`, *optional*): As for [`LlamaVidDataCollator`], which should have the same.

    Returns:
        `list[GeneratedAnswer]`, in the order of the rows.

    Raises:
        ValueError: a row without an answer of the assistant's, or whose files cannot be read.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState()
    # Sharded models compute together: each process gets as many rows, the last one again if need be.
    per_process = -(-len(dataset) // state.num_processes)
    mine = [min(i * state.num_processes + state.process_index, len(dataset) - 1) for i in range(per_process)]
    was_training = model.training
    model.eval()
    try:
        answers = {}
        starts = range(0, len(mine), batch_size)
        for start in tqdm(starts, desc="answers", unit="batch", leave=False, disable=not state.is_main_process):
            places = mine[start : start + batch_size]
            rows = [dataset[place] for place in places]
            answers.update(zip(places, _answer(model, processor, rows, max_new_tokens, chat_template), strict=True))
    finally:
        model.train(was_training)
    gathered = dict(gather_object(list(answers.items())))
    return [gathered[place] for place in range(len(dataset))]


def _answer(
    model: LlamaVidForConditionalGeneration,
    processor: LlamaVidProcessor,
    rows: list[dict[str, Any]],
    max_new_tokens: int | None,
    chat_template: str | None,
) -> list[GeneratedAnswer]:
    """The answers to a batch."""
    template = template_of(processor, chat_template)
    prompts, answered = map(list, zip(*map(_before_and_after_answer, rows), strict=True))
    try:
        answers = _rendered_answers(processor, template, prompts, answered)
        inputs = processor.apply_chat_template(
            prompts,
            chat_template=template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"text_kwargs": {"padding": True, "padding_side": "left"}},
        )
    except (ValueError, OSError, jinja2.TemplateError) as error:
        raise ValueError(f"One of {', '.join(map(_name, rows))}: {error}") from error
    expected = processor.tokenizer(answers, add_special_tokens=False)["input_ids"]
    if max_new_tokens is None:
        max_new_tokens = max(map(len, expected)) + 2  # a full stop and the end
    generated = model.generate(
        **inputs.to(model.device), do_sample=False, num_beams=1, use_cache=True, max_new_tokens=max_new_tokens
    )
    new = generated[:, inputs["input_ids"].shape[1] :]  # (batch_size, new tokens)
    texts, answers = (processor.batch_decode(ids, skip_special_tokens=True) for ids in (new, expected))
    if template == CHAT_TEMPLATES["plain"]:
        texts = [text.partition("\n")[0] for text in texts]  # which ends a caption
    kinds = [row["kind"].rpartition(",")[2] if row.get("kind") else None for row in rows]
    texts, answers = (map(str.strip, said) for said in (texts, answers))
    return [GeneratedAnswer(*answer) for answer in zip(texts, answers, kinds, strict=True)]


def _before_and_after_answer(row: dict[str, Any]) -> tuple[list[dict], list[dict]]:
    """The messages before the assistant's last one, and those up to it."""
    messages = to_messages(row)
    places = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not places or places[-1] == 0:
        raise ValueError(f"{_name(row)} has no question with an answer of the assistant's: leave it out.")
    return messages[: places[-1]], messages[: places[-1] + 1]


def _rendered_answers(
    processor: LlamaVidProcessor, template: str, prompts: list[list[dict]], answered: list[list[dict]]
) -> list[str]:
    """What the model is to say behind each prompt: what the last message adds to it, as in training."""
    starts = processor.apply_chat_template(prompts, chat_template=template, add_generation_prompt=True)
    wholes = processor.apply_chat_template(answered, chat_template=template)
    answers = []
    for start, whole, messages in zip(starts, wholes, answered, strict=True):
        content = messages[-1]["content"]
        words = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
        # Some templates begin thoughts in the prompt that are not in the chat.
        answers.append(whole[len(start) :] if whole.startswith(start) else words)
    return answers


def _name(row: dict[str, Any]) -> str:
    return row.get("source") or str(row["messages"])[:200]

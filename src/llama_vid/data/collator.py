"""Batches for training: chats with images, videos, features and text, and labels on the assistant's words only."""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
import transformers
from packaging.version import Version
from transformers.utils.chat_template_utils import render_jinja_template

from llama_vid.data.records import BadSampleError, check_characters, check_skipped_share, to_messages
from llama_vid.modeling import LlamaVidProcessor
from llama_vid.modeling.chat_templates_llama_vid import find_chat_template
from llama_vid.modeling.messages_llama_vid import normalize_messages
from llama_vid.modeling.video_features_llama_vid import VideoFeatures

logger = logging.getLogger(__name__)

IGNORED = -100

# A share of bad samples says little before so many have been seen.
SEEN_BEFORE_CAP = 100

# Fields by which people find a sample.
NAMES = ("id", "source", "video", "image")


@dataclass
class LlamaVidDataCollator:
    """
    From records with `messages` (transformers' chat form) to a batch for [`LlamaVidForConditionalGeneration`]. Images,
    videos, features in files and plain text may stand side by side in a batch. A visual is guided by the last question
    before the next one: rows of [`load_mixture`] show it again with every question, each guided by its own.

    The loss is on the assistant's turns only, as the chat template marks them (`{% generation %}`), or, where it does
    not, on what each of them adds to the rendered chat. With the `plain` template that is stage 1: the caption and a
    newline (paper, training settings).

    A sample that is longer than `max_length` or whose files cannot be read is an error, or is left out, counted and
    logged; it is never cut and never replaced. A batch in which nothing is left holds one token without a label, from
    which nothing is learned: its gradients are zero. TRL's loss of it is zero, too; in a loop of one's own it is NaN, a
    mean of nothing as with any model of transformers: leave it out where losses are averaged.

    Args:
        processor (`LlamaVidProcessor`): The model's processor.
        chat_template (`str`, *optional*):
            A Jinja template, or the name of one of ours or of the processor's several, instead of its own.
        max_length (`int`, *optional*): Tokens that a sample may have, visual ones included.
        on_bad_sample (`str`, *optional*, defaults to `"raise"`): `"raise"` or `"skip"`.
        max_skipped_share (`float`, *optional*, defaults to 0.05):
            With `on_bad_sample="skip"`, more skipped samples than this share are an error, here after the first
            hundred; at the end of a training [`SkippedSamplesCallback`] looks, however few they were.
        pad_to_multiple_of (`int`, *optional*): Lengths of batches are multiples of it.
        encoder (`str`, *optional*):
            The `encoder_fingerprint` of the model's vision tower; features of another one are bad samples then.

    Raises:
        BadSampleError: from a call, for a bad sample, or too many of them.
        ValueError: `on_bad_sample` is neither, there is no such template, or it does not tell the assistant's words
            apart.
    """

    processor: LlamaVidProcessor
    chat_template: str | None = None
    max_length: int | None = None
    on_bad_sample: str = "raise"
    max_skipped_share: float = 0.05
    pad_to_multiple_of: int | None = None
    encoder: str | None = None

    def __post_init__(self) -> None:
        if self.on_bad_sample not in ("raise", "skip"):
            raise ValueError(f'`on_bad_sample` must be "raise" or "skip", got {self.on_bad_sample!r}.')
        self.chat_template = template_of(self.processor, self.chat_template)
        self._check_turns()
        # Shared with the processes that load data.
        self._counts = torch.zeros(2, dtype=torch.long).share_memory_()  # seen, skipped

    @property
    def num_seen(self) -> int:
        """Samples so far, in all of this process's data loaders."""
        return int(self._counts[0])

    @property
    def num_skipped(self) -> int:
        """Those of them that were left out."""
        return int(self._counts[1])

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            examples (`Sequence[dict]`): Records with `messages`, or rows of `load_mixture`.

        Returns:
            `dict` of `input_ids`, `attention_mask` and `labels`, each `(batch_size, sequence_length)`, padded on the
            right, and the visual inputs of the model's `forward`.
        """
        self._counts[0] += len(examples)
        try:
            return self._batch(examples)
        except BadSampleError as error:
            if self.on_bad_sample == "raise":
                raise
            return self._good(examples, error) or self._nothing()

    def is_good(self, example: dict[str, Any]) -> bool:
        """Whether a record can be trained on; the log says why not."""
        return self._alone(example) is not None

    def _alone(self, example: dict[str, Any]) -> dict[str, torch.Tensor] | None:
        """A batch of one record; `None`, and the log says why, if it cannot be trained on."""
        try:
            return self._batch([example])
        except BadSampleError as error:
            logger.warning("Skipped: %s", error)
            return None

    def _good(self, examples: Sequence[dict[str, Any]], error: BadSampleError) -> dict[str, torch.Tensor] | None:
        """
        A batch of the examples that can be trained on, `None` if there are none; `error` is that of all together.
        Raises BadSampleError if too many were left out so far.
        """
        good, batch = [], None
        if len(examples) == 1:  # it has been tried
            logger.warning("Skipped: %s", error)
        else:
            for example in examples:
                if (alone := self._alone(example)) is not None:
                    good.append(example)
                    batch = alone
        self._counts[1] += len(examples) - len(good)
        if self.num_seen >= SEEN_BEFORE_CAP:
            check_skipped_share(self.num_skipped, self.num_seen, self.max_skipped_share)
        return batch if len(good) <= 1 else self._batch(good)

    def _batch(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor] | None:
        if not examples:
            return None
        texts = {
            "padding": True,
            "padding_side": "right",
            "pad_to_multiple_of": self.pad_to_multiple_of,
            "return_offsets_mapping": True,
        }
        options: dict[str, Any] = {"text_kwargs": texts}
        # An argument of its own since transformers 5.23.
        since_5_23 = Version(transformers.__version__) >= Version("5.23")
        (options if since_5_23 else texts)["return_text_replacement_offsets"] = True
        try:
            conversations = [normalize_messages(to_messages(example)) for example in examples]
            check_characters(conversations)
            self._check_features(conversations)
            batch = self.processor.apply_chat_template(
                conversations,
                chat_template=self.chat_template,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=options,
            )
        except (ValueError, OSError, jinja2.TemplateError) as error:  # templates may refuse a chat
            raise BadSampleError(f"{_name(examples)}: {error}") from error
        lengths = batch["attention_mask"].sum(-1).tolist()
        for example, length in zip(examples, lengths, strict=True):
            if self.max_length is not None and length > self.max_length:
                raise BadSampleError(
                    f"{_name([example])} has {length} tokens, more than max_length={self.max_length}: raise it, or "
                    "sample fewer frames."
                )
        offsets, replacements = batch.pop("offset_mapping"), batch.pop("text_replacement_offsets")
        spoken = zip(offsets, self._assistant_spans(conversations), replacements, strict=True)
        is_spoken = torch.stack([_tokens_of(_shifted(spans, moves), starts) for starts, spans, moves in spoken])
        placeholders = torch.tensor([self.processor.image_token_id, self.processor.video_token_id])
        is_label = is_spoken & batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], placeholders)
        return {**batch, "labels": batch["input_ids"].masked_fill(~is_label, IGNORED)}

    def _check_features(self, conversations: list[list[dict]]) -> None:
        """Raises ValueError for a file of another encoder's features."""
        if self.encoder is None:
            return
        parts = [part for messages in conversations for message in messages for part in message["content"]]
        files = [part["features"] for part in parts if isinstance(part, dict) and "features" in part]
        for path in {str(file) for file in files if isinstance(file, str | Path)}:
            VideoFeatures(path).check(encoder=self.encoder)

    def _nothing(self) -> dict[str, torch.Tensor]:
        """A batch that moves no weight: other processes wait for one from each."""
        ids = torch.full((1, 1), self.processor.tokenizer.eos_token_id)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.full_like(ids, IGNORED)}

    def _check_turns(self) -> None:
        """Warns of a template that tells the words of one turn apart and not those of several; data may have one."""
        turns = [{"role": role, "content": "probe"} for role in ("user", "assistant")]
        try:
            self._assistant_spans([2 * turns])
        except ValueError as error:
            logger.warning("Chats of several turns cannot be trained on. %s", error)
        except jinja2.TemplateError:  # what it refuses is found in the data
            pass

    def _assistant_spans(self, conversations: list[list[dict]]) -> list[list[tuple[int, int]]]:
        """For each conversation where the assistant's words lie in the rendered chat, before it is expanded."""
        if re.search(r"\{%-?\s*generation\s*-?%\}", self.chat_template):
            _, spans = render_jinja_template(
                conversations=conversations,
                chat_template=self.chat_template,
                return_assistant_tokens_mask=True,
                **self.processor.tokenizer.special_tokens_map,
            )
            return spans
        return [self._added_by_assistant(messages) for messages in conversations]

    def _added_by_assistant(self, messages: list[dict]) -> list[tuple[int, int]]:
        """As `_assistant_spans`, from what each turn adds to the rendered chat."""

        def render(turns: list[dict], **kwargs) -> str:
            return self.processor.apply_chat_template(turns, chat_template=self.chat_template, **kwargs)

        whole, spans = render(messages), []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = render(messages[:i], add_generation_prompt=True), render(messages[: i + 1])
            if not (after.startswith(before) and whole.startswith(after)):
                raise ValueError(
                    "The chat template does not tell the assistant's words apart: turns change what stands before "
                    "them. Put {% generation %} … {% endgeneration %} around them in it, and pass it as chat_template."
                )
            spans.append((len(before), len(after)))
        return spans


def template_of(processor: LlamaVidProcessor, chat_template: str | None = None) -> str:
    """
    The Jinja template of a processor's chats.

    Args:
        processor (`LlamaVidProcessor`): With a template, or several by name.
        chat_template (`str`, *optional*): As for [`LlamaVidDataCollator`].

    Raises:
        ValueError: there is none, or none of that name.
    """
    own = processor.chat_template
    templates = own if isinstance(own, dict) else {None: own}
    template = templates.get(chat_template, chat_template) or templates.get("default")
    if template is None:
        raise ValueError("The processor has no default chat template: pass `chat_template`, such as 'vicuna_v1'.")
    return find_chat_template(template)


def _shifted(spans: Iterable[tuple[int, int]], replacements: Iterable[dict]) -> list[tuple[int, int]]:
    """Where the spans lie once placeholders before them are expanded."""
    moves = [(move["span"][0], len(move["replacement"]) - len(move["text"])) for move in replacements]

    def shifted(place: int) -> int:
        return place + sum(length for start, length in moves if start < place)

    return [(shifted(start), shifted(end)) for start, end in spans]


def _tokens_of(spans: Iterable[tuple[int, int]], offsets: torch.Tensor) -> torch.Tensor:
    """
    Which tokens have a character of one of the spans, (sequence_length,); `offsets`, (sequence_length, 2), are
    characters. Many tokenizers make the space before a word part of it: the first one may begin in front of its span.
    """
    starts, ends = offsets.unbind(-1)
    spoken = torch.zeros(len(offsets), dtype=torch.bool)
    for start, end in spans:
        spoken |= (starts < end) & (ends > start)
    return spoken


def _name(examples: Sequence[dict[str, Any]]) -> str:
    """What messages call samples: by where they are from, else by their beginning."""
    fields = [", ".join(f"{key}={value!r}" for key, value in example.items() if key in NAMES) for example in examples]
    return f"The sample {'; '.join(filter(None, fields)) or str(examples[0]['messages'])[:200]}"

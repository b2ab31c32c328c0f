"""
Records as they are read, and as `datasets` stores them.

A record is `{"messages": […], "source": "film.json, record 3", "kind": "colour", "length": 300}`. Messages differ from
record to record in what their parts have, and Arrow's columns have one type: they are stored as JSON, which brings back
exactly what was there, cues of subtitles included. What JSON cannot hold, the content of images and videos, stands
beside them in a column of bytes, never decoded and encoded again.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Features

logger = logging.getLogger(__name__)


class BadSampleError(ValueError):
    """A sample that cannot be trained on; the message names it, and says why."""


def make_record(source: str, read: Callable[[], list[dict]], given: Mapping[str, Any]) -> dict[str, Any]:
    """
    A record of the messages that `read` returns. Of what was `given`, it takes the `kind` of the question where that is
    a text, and the `length` where that is a number. A `ValueError` of `read`, or for a text that cannot be stored, is
    its `error`, for [`good_records`].
    """
    kind, length = given.get("kind"), given.get("length")
    record = {
        "messages": [],
        "source": source,
        "kind": kind if isinstance(kind, str) else None,
        # What the column holds; NaN is below nothing.
        "length": round(length) if isinstance(length, int | float) and abs(length) < 2**63 else None,
    }
    try:
        record["messages"] = read()
        check_characters(record)
    except ValueError as error:
        record["error"] = error
    return record


def check_characters(value: Any) -> None:
    """
    Raises ValueError for half of a character in one of the texts: JSON can write it (`"\\ud83d"`, where an emoji was
    cut in two), but neither files nor tokenizers take it.
    """
    texts = json.dumps(value, ensure_ascii=False, default=lambda content: None)
    try:
        texts.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"half of a character stands behind {texts[max(0, error.start - 20) : error.start]!r} "
            f"({texts[error.start]!r}, of an emoji that was cut in two): repair the text or leave the record out."
        ) from error


def good_records(
    records: Iterable[dict[str, Any]], on_bad_sample: str = "raise", max_skipped_share: float = 1.0
) -> Iterator[dict[str, Any]]:
    """
    The records of [`make_record`] that have no `error`.

    Args:
        records (`Iterable[dict]`): All of them.
        on_bad_sample (`str`, *optional*, defaults to `"raise"`):
            What happens to the others: `"raise"`, or `"skip"`, which logs each, and how many they were.
        max_skipped_share (`float`, *optional*, defaults to 1.0): The share of them that may be, in the end.

    Raises:
        ValueError: for the first bad record, with its source in front.
        BadSampleError: for too many of them.
    """
    seen = skipped = 0
    for record in records:
        seen += 1
        if "error" not in record:
            yield record
        elif on_bad_sample == "raise":
            raise ValueError(f"{record['source']}: {record['error']}") from record["error"]
        else:
            skipped += 1
            logger.warning("Skipped: %s: %s", record["source"], record["error"])
    if skipped:
        logger.warning("Skipped %d of %d records, of which the last is %s.", skipped, seen, record["source"])
        check_skipped_share(skipped, seen, max_skipped_share)


def check_skipped_share(skipped: int, seen: int, max_skipped_share: float) -> None:
    """Raises BadSampleError if so many are too many."""
    if skipped > max_skipped_share * seen:
        raise BadSampleError(
            f"{skipped} of {seen} samples were skipped, more than max_skipped_share={max_skipped_share}: the log above "
            "says why. Repair the data, or raise the share."
        )


def to_row(record: dict[str, Any]) -> dict[str, Any]:
    """
    A record as it is stored.

    Args:
        record (`dict`):
            `messages`, whose images and videos may be `bytes`, `source`, and `kind` and `length` if it has them.

    Returns:
        `dict` of `messages` (JSON; a part's `attachment` is a place in the next column), `attachments` (`list[bytes]`),
        `source`, `kind` and `length`, as [`row_features`] says.
    """
    attachments, places = [], {}

    def stored(part: dict) -> dict:
        content = part.get(part["type"])
        if not isinstance(content, bytes):
            return part
        if id(content) not in places:  # a visual of several turns is stored once
            places[id(content)] = len(attachments)
            attachments.append(content)
        return {
            **{key: value for key, value in part.items() if value is not content},
            "attachment": places[id(content)],
        }

    messages = [
        {"role": message["role"], "content": [stored(part) for part in message["content"]]}
        for message in record["messages"]
    ]
    return {
        "messages": json.dumps(messages, ensure_ascii=False),
        "attachments": attachments,
        "source": record["source"],
        "kind": record.get("kind"),
        "length": record.get("length"),
    }


def to_messages(row: dict[str, Any]) -> list[dict]:
    """
    The messages of a stored row, or of a record; what the collator calls.

    Returns:
        `list[dict]`: Chat messages. Attached images are RGB `PIL.Image.Image`, upright as transformers loads files, and
        attached videos `bytes`; one that several turns show is one object, by which the processor knows it.

    Raises:
        ValueError: an attached image that cannot be read.
    """
    if not isinstance(row["messages"], str):
        return row["messages"]
    messages, opened = json.loads(row["messages"]), {}
    for message in messages:
        for part in message["content"]:
            if "attachment" in part:
                place = part.pop("attachment")
                if place not in opened:
                    content = row["attachments"][place]
                    opened[place] = _open_image(content, place) if part["type"] == "image" else content
                part[part["type"]] = opened[place]
    return messages


def row_features() -> "Features":
    """The columns of stored rows, the same for every data set."""
    from datasets import Features, List, Value

    # The large types, because the others end at 2 GB for a batch of rows.
    return Features(
        {
            "messages": Value("large_string"),
            "attachments": List(Value("large_binary")),
            "source": Value("string"),
            "kind": Value("string"),
            "length": Value("int64"),
        }
    )


def _open_image(content: bytes, place: int):
    from llama_vid.modeling.image_files_llama_vid import read_image

    try:
        return read_image(content, "it")
    except ValueError as error:
        raise ValueError(
            f"attached image {place} cannot be read ({len(content)} bytes): repair it or leave the record out."
        ) from error

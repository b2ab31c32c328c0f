"""
Readers of data files. Each is a generator of records `{"messages": […], "source": "train.json, record 3"}`.

The messages are transformers' chat form, contents always lists of parts: `{"type": "text", "text"}`, `{"type": "image",
"path"}`, `{"type": "video", "path" or "features"}`, with `"subtitles"` for films. Every user turn shows what it is
about (see [`build_chat`]).
"""

import csv
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from llama_vid.data.chats import PLACEHOLDER, as_list, as_words, build_chat, messages_of_row, text_part
from llama_vid.data.media import Media
from llama_vid.data.records import good_records, make_record
from llama_vid.modeling.messages_llama_vid import FILM_END, FILM_INTRODUCTION

logger = logging.getLogger(__name__)

_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}

JSON_SUFFIXES = (".json", ".jsonl")

# Of texts about HTML and the like: no placeholder stands so where data sets have them, first or last.
WITHIN_WORDS = re.compile(rf"(?<=.){PLACEHOLDER.pattern}(?=.)", re.DOTALL)


def read_records(
    path: str | os.PathLike,
    format: str,
    *,
    root: str | os.PathLike | None = None,
    features_root: str | os.PathLike | None = None,
    subtitles_root: str | os.PathLike | None = None,
    on_bad_sample: str = "raise",
    max_skipped_share: float = 0.05,
) -> Iterator[dict[str, Any]]:
    """
    Read a data file. The files that it names are not looked for (see [`check_media`]), except subtitles of films.

    Args:
        path (`str` or `PathLike`): The file: JSON, JSON Lines (`.jsonl`) or CSV, in UTF-8.
        format (`str`): One of [`READERS`].
        root (`str` or `PathLike`, *optional*):
            The folder of its images and videos; names must stay inside. Without it names are relative to the data
            file, and absolute ones are taken.
        features_root (`str` or `PathLike`, *optional*):
            A folder that `llama-vid features` wrote: videos are taken from there, by their stems.
        subtitles_root (`str` or `PathLike`, *optional*):
            The folder of films' subtitles; by default they are looked for beside the features or videos.
        on_bad_sample (`str`, *optional*, defaults to `"raise"`):
            `"skip"` leaves out records whose chat or names make no sense, and logs each.
        max_skipped_share (`float`, *optional*, defaults to 0.05):
            The share of them that may be; more are an error when all were read.

    Returns:
        `Iterator[dict]` of `messages` and `source`.

    Raises:
        FileNotFoundError: no such data file.
        ValueError: an unknown format; while iterating, a file that is not JSON or lacks columns, or a record whose chat
            or names make no sense. Messages say where it stands.
        BadSampleError: while iterating, too many skipped records.
    """
    roots = {"root": root, "features_root": features_root, "subtitles_root": subtitles_root}
    return good_records(all_records(path, format, **roots), on_bad_sample, max_skipped_share)


def all_records(path: str | os.PathLike, format: str, **roots: str | os.PathLike | None) -> Iterator[dict[str, Any]]:
    """As [`read_records`], with the bad ones, which have an `error`."""
    if format not in READERS:
        raise ValueError(f"`format={format!r}` is unknown: use one of {', '.join(READERS)}.")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Data file {path} does not exist: check `path`.")
    return READERS[format](path, Media(path.parent, **roots))


def read_llava(path: Path, media: Media) -> Iterator[dict[str, Any]]:
    """
    LLaVA's JSON: `{"id", "image" or "video" (one or a list; optional), "conversations": [{"from": "human" or "gpt",
    "value"}]}`. Placeholders may stand anywhere in a human turn, and say `<image>` for a video too; in a record that
    has no such key, they are words within others.
    """
    return _read_json(path, partial(_llava, media=media))


def read_llava_captions(path: Path, media: Media) -> Iterator[dict[str, Any]]:
    """
    The same JSON as pairs of a visual and its caption, for stage 1: the human turn's request is left out, because the
    text decoder alone gets one (the processor's `default_instruction`; paper, training formats).
    """
    return _read_json(path, partial(_llava_caption, media=media))


def read_video_chatgpt(path: Path, media: Media) -> Iterator[dict[str, Any]]:
    """Video-ChatGPT's instructions: `{"q", "a", "video_id"}` as it publishes them, or rewritten as LLaVA's JSON."""
    return _read_json(path, partial(_video_chatgpt, media=media))


def read_long_video_qa(path: Path, media: Media) -> Iterator[dict[str, Any]]:
    """
    LLaMA-VID's questions about films: `{"id", "video": movie id or file name, "conversations"}`. Films with subtitles
    stand between the two sentences of [`LlamaVidSession`]; films without are videos like others, and counted in a
    warning.
    """
    total = without = 0
    for record in _read_json(path, partial(_long_video_qa, media=media)):
        total += 1
        without += not any("subtitles" in part for message in record["messages"] for part in message["content"])
        yield record
    if without:
        logger.warning("%s: no subtitles were found for the films of %d among %d records.", path, without, total)


def read_messages(path: Path, media: Media) -> Iterator[dict[str, Any]]:
    """JSON of what [`messages_of_row`] takes. Parquet, folders and Hub ids are for [`load_mixture`]."""
    if path.suffix not in JSON_SUFFIXES:
        raise ValueError(f"{path} is neither .json nor .jsonl: only `load_mixture` reads it.")
    return _read_json(path, partial(messages_of_row, media=media))


def read_webvid(path: Path, media: Media) -> Iterator[dict[str, Any]]:
    """
    WebVid's CSV (`videoid`, `contentUrl`, `duration`, `page_dir`, `name`) as pairs of a video and its caption, for
    stage 1. Videos are `page_dir/videoid.mp4`, as WebVid's script writes them, or `videoid.mp4` where there is no such
    folder. A column `length` may tell, as a number, about how many tokens a record has.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        try:
            if missing := {"videoid", "name"} - set(rows.fieldnames or []):
                raise ValueError(f"{path} has no column {' and '.join(sorted(missing))}: is it WebVid's CSV?")
            for row in rows:
                yield make_record(f"{path}, line {rows.line_num}", partial(_webvid, row, media), _webvid_length(row))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as CSV after line {rows.line_num}: {error}.") from error


READERS: dict[str, Callable[[Path, Media], Iterator[dict[str, Any]]]] = {
    "messages": read_messages,
    "llava": read_llava,
    "llava_captions": read_llava_captions,
    "video_chatgpt": read_video_chatgpt,
    "webvid": read_webvid,
    "long_video_qa": read_long_video_qa,
}


def _read_json(path: Path, convert: Callable[[dict], list[dict]]) -> Iterator[dict[str, Any]]:
    """The records of a JSON list or of JSON Lines, whose messages `convert` makes."""
    for number, record in enumerate(_json_records(path)):
        source = f"{path}, record {number}"
        given = record if isinstance(record, dict) else {}
        source += f" (id {given['id']!r})" if "id" in given else ""
        yield make_record(source, partial(_converted, record, convert), given)


def _converted(record: Any, convert: Callable[[dict], list[dict]]) -> list[dict]:
    if not isinstance(record, dict):
        raise ValueError(f"this is {record!r:.100}: an object with a conversation is expected.")
    return convert(record)


def _json_records(path: Path) -> Iterator[Any]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            if path.suffix == ".jsonl":
                yield from (_parse_json(line, path, number) for number, line in enumerate(file, 1) if line.strip())
                return
            records = _parse_json(file.read(), path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}): save it as UTF-8.") from error
    if not isinstance(records, list):
        raise ValueError(f"{path} holds {type(records).__name__} instead of a list of records.")
    yield from records


def _parse_json(text: str, path: Path, first_line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON: {error.msg} (line {first_line + error.lineno - 1}, column {error.colno}). Repair "
            "it or download it again; a file with one record a line is called .jsonl."
        ) from error


def _llava(record: dict, media: Media) -> list[dict]:
    visuals = _llava_visuals(record, media)
    turns = _llava_turns(record)
    if visuals:
        [kind] = visuals
        turns = [(role, PLACEHOLDER.sub(f"<{kind}>", words)) for role, words in turns]
    elif not record.keys() & {"image", "images", "video", "videos"}:
        turns = [(role, WITHIN_WORDS.sub(as_words, words.strip())) for role, words in turns]
    return build_chat(turns, visuals)


def _llava_turns(record: dict) -> list[tuple[str, str]]:
    """(role, words) of each turn."""
    conversation = record.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise ValueError(
            "no conversation: `conversations` must be a list of {'from': 'human' or 'gpt', 'value': text}."
        )
    turns = []
    for i, turn in enumerate(conversation):
        speaker, words = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if not isinstance(speaker, str) or speaker not in _ROLES:
            raise ValueError(f"turn {i} is from {speaker!r:.100}: use human, gpt or system.")
        if not isinstance(words, str):
            raise ValueError(f"turn {i} has no text as `value`, but {words!r:.100}.")
        turns.append((_ROLES[speaker], words))
    return turns


def _llava_visuals(record: dict, media: Media) -> dict[str, list[dict]]:
    named = {kind: record.get(kind) or record.get(f"{kind}s") for kind in ("image", "video")}
    kinds = [kind for kind, names in named.items() if names]
    if len(kinds) > 1:
        raise ValueError("`image` and `video` are both there: use the format `messages` for such records.")
    return {kind: [media.part(kind, name) for name in as_list(named[kind])] for kind in kinds}


def _llava_caption(record: dict, media: Media) -> list[dict]:
    messages = _llava(record, media)
    roles = [message["role"] for message in messages]
    if roles != ["user", "assistant"]:
        raise ValueError(f"a caption is one human and one gpt turn, found {len(roles)} turns.")
    visuals = [part for part in messages[0]["content"] if part["type"] != "text"]
    if not visuals:
        raise ValueError("a caption without `image` or `video`: name what it describes.")
    return _caption(visuals, messages[1]["content"][0]["text"])


def _caption(visuals: list[dict], caption: str) -> list[dict]:
    return build_chat([("user", visuals), ("assistant", caption)])


def _video_chatgpt(record: dict, media: Media) -> list[dict]:
    if "conversations" in record:
        return _llava(record, media)
    for key in ("q", "a", "video_id"):
        if not isinstance(record.get(key), str):
            raise ValueError(
                f"no conversation: `q`, `a` and `video_id` must be text, but `{key}` is {record.get(key)!r}."
            )
    video = media.video(media.with_suffix(record["video_id"]))
    return build_chat([("user", record["q"]), ("assistant", record["a"])], {"video": [video]})


def _long_video_qa(record: dict, media: Media) -> list[dict]:
    if not isinstance(record.get("video"), str):
        raise ValueError(f"`video` must be a movie id or file name, but is {record.get('video')!r}.")
    video = media.film(media.with_suffix(record["video"]))
    film = [text_part(FILM_INTRODUCTION), video, text_part(FILM_END)] if "subtitles" in video else [video]
    return build_chat(
        (role, [*film, text_part(PLACEHOLDER.sub("", words).strip())] if role == "user" else words)
        for role, words in _llava_turns(record)
    )


def _webvid(row: dict[str, str], media: Media) -> list[dict]:
    video_id, caption, folder = row["videoid"], row["name"], row.get("page_dir")
    if not video_id or not caption:
        raise ValueError("`videoid` or `name` is empty: a video and its caption are expected.")
    name = f"{folder}/{video_id}.mp4" if folder and os.path.isdir(media.path(folder)) else f"{video_id}.mp4"
    return _caption([media.video(name)], caption)


def _webvid_length(row: dict[str, str]) -> dict[str, float]:
    """The `length` of a row, whose values are texts, if it has one that is a number."""
    try:
        return {"length": float(row.get("length") or "")}
    except ValueError:
        return {}

# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Chat messages: their form, what their videos bring along, and which words guide which visual."""

import re
from collections.abc import Mapping
from typing import NamedTuple

# The sentences that stand around a film in the long-video data (stage 3): not words about what to look for.
FILM_INTRODUCTION = "Below is a movie. Memorize the content and answer my question after watching this movie."
FILM_END = "Now the movie end."


class Turn(NamedTuple):
    """A message or a stretch of a prompt: the user's words in it (`None` for others') and its placeholders in order."""

    user_text: str | None
    placeholders: list[str]


def words_of_user(text: str, kinds: dict[str, str]) -> str:
    """A user turn's words: without placeholders (the keys of `kinds`) and the sentences around a film."""
    other = "|".join(map(re.escape, (*kinds, FILM_INTRODUCTION, FILM_END)))
    return re.sub(rf"\n?(?:{other})", "", text).strip()


def turn_of_message(message: dict, kinds: dict[str, str], with_typed_tokens: bool) -> Turn:
    """A message; placeholders that were typed in its texts count, or are words."""
    content = message.get("content", "")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    tokens = {kind: token for token, kind in kinds.items()}
    text = "\n".join(tokens.get(part["type"], part.get("text", "")) for part in parts)
    placeholders = _placeholders(text, kinds)
    if not with_typed_tokens:
        placeholders = [part["type"] for part in parts if part["type"] in tokens]
    return Turn(words_of_user(text, kinds) if message["role"] == "user" else None, placeholders)


def turns_of_prompt(prompt: str, markers: list[str] | None, kinds: dict[str, str]) -> list[Turn]:
    """A rendered prompt as turns, by the markers around user turns; without markers it has no user text."""
    if not markers:
        return [Turn(None, _placeholders(prompt, kinds))]
    start, end = map(re.escape, markers)
    turns, position = [], 0
    for match in re.finditer(rf"{start}(.*?)(?={end}|{start}|\Z)", prompt, flags=re.DOTALL):
        turns.append(Turn(None, _placeholders(prompt[position : match.start()], kinds)))
        turns.append(Turn(words_of_user(match[1], kinds), _placeholders(match[1], kinds)))
        position = match.end()
    return [*turns, Turn(None, _placeholders(prompt[position:], kinds))]


def _placeholders(text: str, kinds: dict[str, str]) -> list[str]:
    # Behind transformers' mark (`sanitize_control_tokens`) it is what a user typed.
    either = "|".join(map(re.escape, kinds))
    return [kinds[token] for token in re.findall(f"(?<!\U000f0000)(?:{either})", text)]


def choose_instructions(turns: list[Turn], default: str) -> list[str]:
    """One for each placeholder: the last user turn before the next turn that brings its own visual."""
    bringing = [i for i, turn in enumerate(turns) if turn.placeholders]
    chosen = []
    for i, following in zip(bringing, [*bringing, len(turns)][1:], strict=True):
        asked = [turn.user_text for turn in turns[i:following] if turn.user_text]
        earlier = [turn.user_text for turn in turns[:i] if turn.user_text]
        instruction = (asked or earlier or [default])[-1]
        chosen += [instruction] * len(turns[i].placeholders)
    return chosen


def normalize_messages(messages) -> list[dict]:
    """
    New messages (transformers rewrites them in place), without the `None` entries that data sets fill in.

    Raises:
        ValueError: for a message that is no dictionary, or a part that is neither text nor image nor video, or an
            `image_url` without one.
    """
    normalized = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise ValueError(
                f"A message is a {type(message).__name__}: pass dictionaries with `role` and `content` (objects of "
                "clients have `model_dump()`, data classes `dataclasses.asdict`)."
            )
        message = {key: value for key, value in message.items() if value is not None}
        if not isinstance(message.get("content", ""), str):
            message["content"] = [_normalize_part(part) for part in message["content"]]
        normalized.append(message)
    return normalized


def _normalize_part(part: dict) -> dict:
    if not isinstance(part, Mapping):
        raise ValueError(
            f'A part of a message is {part!r:.100}: pass dictionaries such as {{"type": "text", "text": …}}.'
        )
    part = {key: value for key, value in part.items() if value is not None}
    if part.get("type") == "image_url":  # OpenAI's form
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if not isinstance(url, str):
            raise ValueError(f"A part of type image_url has no address as `image_url`, but {url!r:.100}.")
        part = {"type": "image", "url": url}
    if part.get("type") not in ("text", "image", "video"):
        raise ValueError(f"Unknown content type {part.get('type')!r} in a message: use text, image or video.")
    return part


def video_parts(conversations: list[list[dict]]) -> dict[str, list]:
    """
    What the videos of a batch of messages bring along besides files, one entry for each: the processor's arguments
    `video_features`, `video_times` and `subtitles`, as far as any video has them.
    """
    contents = [message.get("content", "") for messages in conversations for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content if part["type"] == "video"]
    names = {"features": "video_features", "times": "video_times", "subtitles": "subtitles"}
    return {
        argument: [part.get(name) for part in parts]
        for name, argument in names.items()
        if any(name in part for part in parts)
    }

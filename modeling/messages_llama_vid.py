# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Chat messages: their form, what their videos bring along, and which words guide which visual."""

from typing import NamedTuple

# The sentences that stand around a film in the long-video data (stage 3): not words about what to look for.
FILM_INTRODUCTION = "Below is a movie. Memorize the content and answer my question after watching this movie."
FILM_END = "Now the movie end."


class Turn(NamedTuple):
    """A message or a stretch of a prompt: the user's words in it (`None` for others') and its placeholders in order."""

    user_text: str | None
    placeholders: list[str]


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
        ValueError: for a part that is neither text nor image nor video.
    """
    normalized = []
    for message in messages:
        message = {key: value for key, value in message.items() if value is not None}
        if not isinstance(message.get("content", ""), str):
            message["content"] = [_normalize_part(part) for part in message["content"]]
        normalized.append(message)
    return normalized


def _normalize_part(part: dict) -> dict:
    part = {key: value for key, value in part.items() if value is not None}
    if part.get("type") == "image_url":  # OpenAI's form
        url = part["image_url"]
        part = {"type": "image", "url": url["url"] if isinstance(url, dict) else url}
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

"""From the turns of a record to messages for training: visuals stand where their placeholders did, in every turn."""

import base64
import re
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

from llama_vid.data.media import Media, is_url
from llama_vid.modeling.messages_llama_vid import FILM_END, FILM_INTRODUCTION, normalize_messages

PLACEHOLDER = re.compile(r"<(image|video)>")

# What a visual comes as; a part with none of them is a placeholder.
_SOURCES = {"image", "video", "path", "url", "base64", "features"}

# What a visual's part may say; `index` counts the row's visuals in many data sets.
_KEYS = {
    "image": {"type", "image", "path", "url", "base64", "index"},
    "video": {"type", "video", "path", "url", "features", "times", "subtitles", "index"},
}

# Where messages hold what the assistant says or does besides `content`.
_SPEECH = ("reasoning_content", "reasoning", "thinking", "tool_calls", "function_call", "refusal", "audio")


def build_chat(
    turns: Iterable[tuple[str, str | list[dict]]], visuals: dict[str, list[dict]] | None = None
) -> list[dict]:
    """
    The messages of a training sample.

    A user turn that has no visual shows those of the last turn that had some again, in front of its words (for a film
    with the sentences around it): so its own words guide what is seen, not those of a later turn (paper, training
    formats). The model encodes them once.

    Args:
        turns (`Iterable` of `(role, content)`):
            Text, or parts of messages. `<image>` and `<video>` in a user's words are placeholders, in others' words.
        visuals (`dict[str, list[dict]]`, *optional*):
            Parts for the placeholders, by kind (`image`, `video`) and in order. Where a user's turns have no visual and
            no placeholder of that kind, they stand in front of the first.

    Returns:
        `list[dict]` of `{"role", "content"}`; each content is a list of parts.

    Raises:
        ValueError: no turns, roles out of order, a visual that the user does not show, or placeholders and visuals that
            do not match.
    """
    messages = [{"role": role, "content": _parts(role, content)} for role, content in turns]
    _check_roles([message["role"] for message in messages])
    for kind in ("image", "video"):
        _fill_placeholders(messages, kind, (visuals or {}).get(kind, []))
    _repeat_visuals(messages)
    return messages


def messages_of_row(row: dict[str, Any], media: Media) -> list[dict]:
    """
    The messages of a row with chat columns.

    Args:
        row (`dict`):
            `messages`, or `prompt` and `completion` (text or messages each); besides, as far as there are visuals whose
            parts or placeholders name no file, `image`, `images`, `video` or `videos`: one or a list of what
            [`Media.part`] takes.
        media (`Media`): The folders of its files.

    Raises:
        ValueError: as [`build_chat`]; no conversation, a message or part that is none, or a key of theirs of which
            nothing would be learned.
    """
    if row.get("messages") is not None:
        messages = _as_messages(row["messages"], "user")
    elif row.get("prompt") is not None and row.get("completion") is not None:
        messages = [*_as_messages(row["prompt"], "user"), *_as_messages(row["completion"], "assistant")]
    else:
        raise ValueError(f"no conversation: `messages`, or `prompt` and `completion` are expected, not {sorted(row)}.")
    for i, message in enumerate(messages):
        if not _is_message(message):
            raise ValueError(f"turn {i} is {message!r:.200}: a message with `role` and `content` is expected.")
        if lost := [key for key in _SPEECH if message.get(key)]:
            raise ValueError(
                f"turn {i} says something in `{'`, `'.join(lost)}`, of which nothing would be learned: write it into "
                "`content`, or leave the record out."
            )
    turns = [
        (message["role"], content if isinstance(content, str) else [_with_files(part, media) for part in content])
        for message in normalize_messages(messages)
        for content in [message["content"]]
    ]
    visuals = {
        kind: [media.part(kind, value) for column in (kind, f"{kind}s") for value in as_list(row.get(column))]
        for kind in ("image", "video")
    }
    return build_chat(turns, visuals)


def text_part(text: str) -> dict[str, str]:
    """Words as a part of a message."""
    return {"type": "text", "text": text}


def as_words(placeholder: re.Match) -> str:
    """A placeholder that is none, such as a tag of HTML: a space keeps it from being read as one."""
    return f"< {placeholder[0][1:]}"


def as_list(value: Any) -> list:
    """One or several values, or none."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _parts(role: str, content: str | list[dict]) -> list[dict]:
    parts = [text_part(content)] if isinstance(content, str) else content
    for part in parts:
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise ValueError(f"a part of type text of the {role}'s has no `text`.")
        if role != "user" and part["type"] != "text":
            raise ValueError(f"the {role}'s turn has a visual: only the user's can show something.")
    if role == "user":
        return [piece for part in parts for piece in _pieces(part)]
    return [{**part, "text": PLACEHOLDER.sub(as_words, part["text"])} for part in parts]


def _pieces(part: dict) -> list[dict]:
    """A user's words as words and placeholders."""
    if part["type"] != "text":
        return [part]
    # The group makes `split` return the kinds of the placeholders between the words.
    pieces = [
        {"type": piece} if is_kind else text_part(piece.strip())
        for piece, is_kind in zip(PLACEHOLDER.split(part["text"]), cycle((False, True)), strict=False)
    ]
    return [piece for piece in pieces if piece != text_part("")]


def _check_roles(roles: Sequence[str]) -> None:
    first = 1 if roles[:1] == ["system"] else 0
    for i, (role, expected) in enumerate(zip(roles[first:], cycle(("user", "assistant")), strict=False), start=first):
        if role != expected:
            raise ValueError(
                f"roles are out of order: turn {i} is from {role!r}, expected {expected!r}. A chat may begin with a "
                "system text, then user and assistant take turns."
            )
    if roles[-1:] != ["assistant"]:
        raise ValueError(f"roles are out of order: the assistant must have the last word, found {list(roles)}.")


def _fill_placeholders(messages: list[dict], kind: str, visuals: list[dict]) -> None:
    users = [message for message in messages if message["role"] == "user"]
    if visuals and not any(part["type"] == kind for user in users for part in user["content"]):
        users[0]["content"] = [*visuals, *users[0]["content"]]
        return
    counts = [sum(_is_placeholder(part, kind) for part in user["content"]) for user in users]
    # All in one turn, spread over the turns, or all of them in every turn that has placeholders.
    if sum(counts) != len(visuals) and not (any(counts) and set(counts) <= {0, len(visuals)}):
        raise ValueError(
            f"{sum(counts)} `<{kind}>` placeholders for {len(visuals)} {kind}s: write one for each, or none at all to "
            "have them in front of the first question."
        )
    given = cycle(visuals)
    for user in users:
        user["content"] = [{**part, **next(given)} if _is_placeholder(part, kind) else part for part in user["content"]]


def _is_placeholder(part: dict, kind: str) -> bool:
    return part["type"] == kind and not _SOURCES & part.keys()


def _repeat_visuals(messages: list[dict]) -> None:
    shown = []
    for message in messages:
        if message["role"] != "user":
            continue
        if any(part["type"] != "text" for part in message["content"]):
            shown = [
                part
                for part in message["content"]
                if part["type"] != "text" or part["text"] in (FILM_INTRODUCTION, FILM_END)
            ]
        else:
            message["content"] = [*shown, *message["content"]]


def _as_messages(content: Any, role: str) -> list[dict]:
    return content if isinstance(content, list) else [{"role": role, "content": content}]


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    return isinstance(content, str) or (isinstance(content, list) and all(isinstance(part, dict) for part in content))


def _with_files(part: dict, media: Media) -> dict:
    """A part of a message with the paths of its files."""
    kind = part["type"]
    if kind == "text":
        return part
    if unknown := sorted(part.keys() - _KEYS[kind]):
        raise ValueError(
            f"a part of type {kind} has `{'`, `'.join(unknown)}`, which does nothing in training: known are "
            f"{', '.join(sorted(_KEYS[kind]))} (videos are sampled as the model's processor_config.json says)."
        )
    part = dict(part)
    if isinstance(part.get("subtitles"), str):
        part["subtitles"] = media.path(part["subtitles"], media.subtitles_root)
    if "features" in part:
        part["features"] = media.path(part["features"], media.features_root)
    if "url" in part and not (isinstance(part["url"], str) and is_url(part["url"])):
        part["path"] = part.pop("url")
    if "base64" in part:  # read here: what reads it later would also take a path, to anywhere
        part[kind] = _decoded(part.pop("base64"))
    if len(sources := sorted({"url", "path", kind} & part.keys())) > 1:
        raise ValueError(f"a part of type {kind} has `{'` and `'.join(sources)}`: leave all but one out.")
    for key in ("path", kind):
        if key in part:
            return {**media.part(kind, part.pop(key)), **part}
    return part


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text.rpartition(",")[2], validate=True)
    except (AttributeError, ValueError) as error:
        raise ValueError(f"`base64` is {str(text)[:50]!r}, which is no base64.") from error

# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Subtitles: files and lists to cues, and cues to the frames that their words stand behind."""

import html
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from packaging.version import Version
from transformers.utils import logging

from .subtitle_tracks_llama_vid import (
    HELD_BRACE,
    TYPED_BRACE,
    UTF16_MARKS,
    is_media_file,
    read_text_track,
    words_of_event,
)

try:
    import pysubs2
except ImportError:  # needed for files only
    pysubs2 = None
try:
    import chardet
except ImportError:  # needed for files that are neither UTF-8 nor UTF-16
    chardet = None

logger = logging.get_logger(__name__)

# A film has some thousands; more is no subtitle file, and would not fit a prompt.
MAX_CUES = 100_000
MAX_BYTES = 32 * 1024**2

# What subtitles come in. Their rarer neighbours differ in a letter or two, and would be taken for these now and then.
ENCODINGS = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "koi8-r", "tis-620"),
    *("gb18030", "big5hkscs", "cp932", "euc_jis_2004", "cp949"),
)

# What players take for markup in SubRip, in any spelling.
SUBRIP_TAGS = r"</?(?:[bius]|font|span|ruby|rt)(?:\s[^<>\n]*)?/?>"


class Cue(NamedTuple):
    """Words and when they are shown, in seconds after the first frame."""

    start: float
    end: float
    text: str


class Clock(NamedTuple):
    """When a video's frames are shown, and the part of it that was sampled, in seconds after the first frame."""

    times: list[float]
    end: float
    start: float = -math.inf

    @classmethod
    def of_part(cls, times: list[float], duration: float, start: float | None, end: float | None) -> "Clock":
        """From the whole video's duration and what was asked for of it."""
        return cls(times, duration if end is None else min(end, duration), start or -math.inf)

    @classmethod
    def of_times(cls, times: Iterable[float]) -> "Clock":
        """Where no more is known: the last frame is shown as long as the others, and nothing before a late first."""
        if isinstance(times, cls):
            return times
        times = [float(time) for time in times]
        if not times:
            return cls([], 0.0)
        pause = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1.0
        return cls(times, times[-1] + pause, times[0] or -math.inf)


def read_subtitles(subtitles: str | os.PathLike | Iterable, *, on_error: str = "raise") -> list[Cue]:
    """
    Read subtitles, sorted by their start.

    Args:
        subtitles (`str`, `PathLike` or iterable of `(start, end, text)`):
            A SubRip (.srt), WebVTT (.vtt) or ASS file, in UTF-8, UTF-16 or an encoding that chardet detects; a video
            file with a text track (the default one, else the first); or cues with times in seconds.
        on_error (`str`, *optional*, defaults to `"raise"`):
            `"keep"` takes of a damaged video file's text track what comes before the damage, with a warning.

    Returns:
        `list[Cue]`: Without markup, line breaks and empty cues. A cue that ends before it starts ends at its start.

    Raises:
        FileNotFoundError: if the file does not exist.
        ImportError: if pysubs2 is needed and missing.
        ValueError: if it is neither a path nor cues, or no subtitle file, its encoding is unknown, the video has no
            text track, or there are more than `MAX_CUES` cues.
    """
    cues = _read_file(Path(subtitles), on_error) if isinstance(subtitles, str | os.PathLike) else _read_list(subtitles)
    cues = [Cue(start, max(start, end), " ".join(text.split())) for start, end, text in cues]
    return sorted((cue for cue in cues if cue.text), key=lambda cue: cue[:2])


def subtitles_of_videos(subtitles, number: int) -> list:
    """Subtitles for every one of `number` videos, of which one may come without a list around its own."""
    if subtitles is None:
        return [None] * number
    is_list = isinstance(subtitles, list | tuple)
    if not is_list or (len(subtitles) > 0 and all(map(_is_cue, subtitles))):
        subtitles = [subtitles]
    if len(subtitles) != number:
        raise ValueError(
            f"`subtitles` has {len(subtitles)} entries for {number} videos: pass one for each, None for one without."
        )
    return list(subtitles)


def _is_cue(item) -> bool:
    return isinstance(item, list | tuple) and len(item) == 3 and isinstance(item[0], int | float)


def _read_list(cues: Iterable) -> list[Cue]:
    if not isinstance(cues, Iterable):
        raise ValueError(f"Subtitles are {cues!r:.100}: a file, or a list of (start seconds, end seconds, text).")
    found = []
    for i, cue in enumerate(cues):
        try:
            start, end, text = cue
            found.append(Cue(float(start), float(end), str(text)))
            if math.isnan(found[-1].start) or math.isnan(found[-1].end):
                raise ValueError("NaN is no time")
        except (TypeError, ValueError) as error:
            raise ValueError(f"Subtitle cue {i} is {cue!r}: expected (start seconds, end seconds, text).") from error
        _check_count(len(found))
    return found


def _check_count(count: int) -> None:
    if count > MAX_CUES:
        raise ValueError(f"{count} subtitle cues are more than {MAX_CUES}: are these the subtitles of one film?")


def _read_file(path: Path, on_error: str) -> list[Cue]:
    if not path.is_file():
        raise FileNotFoundError(f"Subtitle file {path} does not exist.")
    if is_media_file(path):
        return _read_list((start, end, _without_markup(text)) for start, end, text in read_text_track(path, on_error))
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"Subtitle file {path} has more than {MAX_BYTES} bytes: is it one?")
    if pysubs2 is None:
        raise ImportError("Subtitle files are read by pysubs2: pip install pysubs2, or pass a list of cues.")
    text = _decode(path).replace("\r\n", "\n").replace("\r", "\n")
    _check_count(max(text.count("-->"), text.count("\nDialogue:")))  # parsing takes a while
    try:
        events = _events(text)
    except (pysubs2.Pysubs2Error, ValueError) as error:
        raise ValueError(f"Subtitle file {path} cannot be read as SubRip, WebVTT or ASS: {error}.") from error
    cues = [
        Cue(event.start / 1000, event.end / 1000, _without_markup(words_of_event(event)))
        for event in events
        if not event.is_comment
    ]
    if not any(cue.text.strip() for cue in cues):  # times alone are not enough: other formats have them too
        raise ValueError(f"Subtitle file {path} has no cues: expected SubRip (.srt), WebVTT (.vtt) or ASS (.ass).")
    return cues


def _events(text: str) -> list:
    """What pysubs2 reads of a file's content; typed braces are held back from its search for markup."""
    text = text.lstrip("\ufeff")
    if text.lstrip().startswith("[Script Info]"):
        return pysubs2.SSAFile.from_string(text, format_="ass").events
    text = re.sub(TYPED_BRACE, HELD_BRACE, text)
    if text.startswith("WEBVTT"):
        return pysubs2.SSAFile.from_string(_cues_alone(text), format_="vtt").events
    if long := re.search(r"^\d{3,}:\d\d:\d\d[,.]\d+ *-->", text, flags=re.MULTILINE):
        raise ValueError(f"{long[0]!r} has more hours than SubRip can say: save it as WebVTT")
    # A number in the last line would be the next cue's. Only some tags are markup; others are words in brackets.
    text = re.sub(SUBRIP_TAGS, "", f"{text}\n\n0\n", flags=re.IGNORECASE)
    return pysubs2.SSAFile.from_string(text, format_="srt", keep_unknown_html_tags=True).events


def _decode(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith(UTF16_MARKS):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError as error:
            raise ValueError(f"Subtitle file {path} is damaged UTF-16 ({error}): copy or download it again.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding, can_detect = None, chardet is not None and Version(chardet.__version__) >= Version("7")
        if can_detect:
            found = chardet.detect(
                content,
                max_bytes=MAX_BYTES,
                include_encodings=ENCODINGS,
                compat_names=False,
                prefer_superset=True,
                no_match_encoding="utf-8",
            )
            encoding = found["encoding"]
        if encoding in (None, "utf-8"):
            advice = "save it as UTF-8" + ("" if can_detect else ', or pip install "chardet>=7"')
            raise ValueError(
                f"Subtitle file {path} is not UTF-8 and its encoding was not recognised: {advice}."
            ) from error
        logger.warning(f"Subtitle file {path} is not UTF-8: read as {encoding}. Save it as UTF-8 if that is wrong.")
        return content.decode(encoding)


def _cues_alone(text: str) -> str:
    """WebVTT without notes, styles, names of cues and times within words, which pysubs2 would take for others."""
    blocks = ["WEBVTT"]
    for block in re.split(r"\n{2,}", text):
        lines = re.sub(r"<[\d:.]+>", "", block).split("\n")
        timing = next((number for number, line in enumerate(lines) if "-->" in line), None)
        if timing is not None:
            blocks.append("\n".join(lines[timing:]) + "\n\n0")
    return "\n\n".join(blocks)


def _without_markup(text: str) -> str:
    """WebVTT's time stamps (of a text track) and entities, which pysubs2 leaves."""
    return html.unescape(re.sub(r"<[\d:.]+>", "", text))


def align_subtitles(
    cues: Sequence[Cue], times: Sequence[float], end: float, start: float = -math.inf
) -> tuple[list[str], int]:
    """
    Give every cue to the last frame that is shown before the cue ends, or to the first one if none is (as in the
    original's long-video data).

    Args:
        cues (`Sequence[Cue]`): Sorted by start.
        times (`Sequence[float]`):
            When each sampled frame is shown, in seconds after the first frame, ascending. A frame that was sampled
            several times counts as shown for its share of the time until the next.
        end (`float`): Where the part that is looked at ends, in seconds after the first frame: with the video, at most.
        start (`float`, *optional*): Where it begins, if not with the video.

    Returns:
        The words behind each frame, cues joined by a space, and how many cues were dropped because they start after the
        end, or end before the start.
    """
    shown: list[list[Cue]] = [[] for _ in times]
    times = _apart(times, start, end)
    dropped, frame = 0, 0
    for cue in sorted(cues, key=lambda cue: cue.end):
        if cue.start >= end or cue.end <= start:
            dropped += 1
            continue
        while frame + 1 < len(times) and times[frame + 1] < cue.end:
            frame += 1
        shown[frame].append(cue)
    return [" ".join(cue.text for cue in sorted(behind, key=lambda cue: cue[:2])) for behind in shown], dropped


def _apart(times: Sequence[float], start: float, end: float) -> list[float]:
    """
    Equal times (of slides, which are sampled more often than they change) spread up to the next one, within the part
    that is looked at.
    """
    numbers = Counter(times)
    distinct, spread = list(numbers), []
    for time, following in zip(distinct, [*distinct[1:], max(end, distinct[-1])], strict=True):
        begin = max(time, start)
        spread += [begin + (following - begin) * place / numbers[time] for place in range(numbers[time])]
    return spread


def without_control_tokens(text: str, tokens: Iterable[str]) -> str:
    """
    Take apart what a tokenizer would read as a placeholder or a special token: a space behind its first character.

    Args:
        text (`str`): Words of a subtitle or a question.
        tokens (`Iterable[str]`): The tokenizer's special tokens.

    Returns:
        `str`: The text, in which none of the tokens is left.
    """
    for token in sorted(tokens, key=len, reverse=True):
        text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text

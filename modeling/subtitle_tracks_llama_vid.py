# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Tracks of a media file beside its pictures: the text track's cues, and which track counts."""

import codecs
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
from transformers.utils import logging

from .video_decoding_llama_vid import decoded, first_video_stream, open_container

try:
    import pysubs2
except ImportError:  # needed for text tracks only
    pysubs2 = None

logger = logging.get_logger(__name__)

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

# Outside ASS, where markup in braces begins with a backslash and all else in them is a note; some of FFmpeg's decoders
# write a brace that was typed as the first of these, because a bare one would begin markup.
TYPED_BRACE = r"\\\{\{\}|\{(?!\\)"
HELD_BRACE = "\ufdd0"  # stands for it while markup is taken away


def is_media_file(path: Path) -> bool:
    """Whether a file is binary: every container has a zero byte near its start, and of texts only UTF-16 does."""
    if path.suffix.lower() in (".srt", ".vtt", ".ass", ".ssa"):  # text, even if damaged
        return False
    with path.open("rb") as file:
        head = file.read(4096)
    return b"\0" in head and not head.startswith(UTF16_MARKS)


def read_text_track(path: Path, on_error: str = "raise") -> Iterator[tuple[float, float, str]]:
    """
    Read the text track of a media file (mov_text, SubRip, ASS or WebVTT): the default one, else the first, of
    those that are not forced.

    Args:
        path (`Path`): A video file.
        on_error (`str`, *optional*, defaults to `"raise"`): `"keep"` ends before damage, with a warning.

    Yields:
        `(start, end, text)`, in seconds after the first video frame, in the order of the file; without ASS markup and
        drawings, with line breaks.

    Raises:
        ImportError: if pysubs2 is missing.
        ValueError: No media file, no pictures, no text track, pictures of text only, or a damaged file.
    """
    if pysubs2 is None:
        raise ImportError("Text tracks are read with pysubs2: pip install pysubs2, or pass a list of cues.")
    name, source = str(path), str(path.absolute())
    zero = first_frame_seconds(source, name)
    with open_container(source, name) as container:
        stream = text_stream(container, name)
        try:
            for packet in container.demux(stream):
                if not packet.size or packet.pts is None or packet.is_discard:  # discard: outside an MP4's edit list
                    continue
                start = packet.pts * stream.time_base - zero
                end = start + (packet.duration or 0) * stream.time_base
                for subtitle in stream.decode(packet):
                    yield (
                        float(start),
                        float(end),
                        plain_text(subtitle.ass.decode("utf-8", "replace"), stream.codec_context.codec.name),
                    )
        except av.FFmpegError as error:
            damage = f"The text track of {name} is damaged. FFmpeg says: {error}"
            if on_error != "keep":
                raise ValueError(damage) from error
            logger.warning(f"{damage} The words before that are kept.")


def plain_text(event: str, codec: str) -> str:
    """The words of an ASS event as FFmpeg writes it: eight fields, then text with markup. A drawing has none."""
    text = event.split(",", 8)[-1]
    if codec not in ("ass", "ssa"):
        text = re.sub(TYPED_BRACE, HELD_BRACE, text)
    return words_of_event(pysubs2.SSAEvent(text=text))


def words_of_event(event: "pysubs2.SSAEvent") -> str:
    """
    The words of an event, without markup; a drawing has none. Long texts of braces take pysubs2 time that grows with
    their square: it looks for the end of each one that has none, and adds up the tags before each place.
    """
    before, end, behind = event.text.rpartition("}")
    event.text = before + end + behind.replace("{", HELD_BRACE)  # no markup begins where none ends
    markup = "".join(event.OVERRIDE_SEQUENCE.findall(event.text))
    return "" if re.search(r"\\p[1-9]", markup) else event.plaintext.replace(HELD_BRACE, "{")


def text_stream(container: av.container.InputContainer, name: str) -> av.stream.Stream:
    """The text track that counts. Raises ValueError if there is none."""
    streams = container.streams.subtitles
    texts = [stream for stream in streams if stream.codec_context is not None and stream.codec_context.codec.text_sub]
    advice = "Pass a text file (subtitles=film.srt), or have the sound transcribed (--transcribe)."
    if texts:  # a forced one has only what is said in another language than the film's
        forced = av.stream.Disposition.forced
        return choose_track([stream for stream in texts if not stream.disposition & forced] or texts, "text", name)
    if streams:
        kinds = ", ".join(sorted({stream.name or "unknown" for stream in streams}))
        raise ValueError(f"The subtitles in {name} are pictures, not text ({kinds}). {advice}")
    raise ValueError(f"{name} has no text track. {advice}")


def choose_track(streams: Sequence[av.stream.Stream], kind: str, name: str) -> av.stream.Stream:
    """The track that players begin with: the default one, else the first. Says which one if there are several."""
    default = (stream for stream in streams if stream.disposition & av.stream.Disposition.default)
    chosen = next(default, streams[0])
    if len(streams) > 1:
        title = chosen.metadata.get("title") or chosen.metadata.get("name")  # in Matroska, in MP4
        called = f"language: {chosen.language or 'unknown'}" + (f", title: {title}" if title else "")
        logger.warning(f"{name} has {len(streams)} {kind} tracks: reading one ({called}), leaving {len(streams) - 1}.")
    return chosen


def first_frame_seconds(source: str | bytes, name: str) -> Fraction:
    """When the first video frame that can be decoded is shown, on the container's clock. Raises ValueError."""
    with open_container(source, name) as container:
        stream = first_video_stream(container, name)
        try:
            first = next(decoded(container, stream), None)
        except av.FFmpegError as error:
            raise ValueError(f"{name} is damaged: its first frame cannot be decoded. FFmpeg says: {error}") from error
        if first is None:
            raise ValueError(f"{name} holds no frame that can be decoded: it is damaged or cut off.")
        return (first.pts or 0) * stream.time_base

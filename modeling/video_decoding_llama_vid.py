# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Videos as streams of frames: where they come from, and decoding the frames that are looked at."""

import http.client
import io
import os
import re
import tempfile
import time
import urllib.error
import urllib.request
from array import array
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from transformers.utils import logging
from transformers.video_utils import VideoMetadata

from .video_groups_llama_vid import (
    NotAsIndexedError,
    PacketIndex,
    available_threads,
    decode_runs,
    keyframe_runs,
    plan_runs,
)
from .video_sampling_llama_vid import Timeline, choose_frames, keyframes_before, seconds_between

logger = logging.get_logger(__name__)

URL_TIMEOUT = 30.0  # seconds without any data
URL_MAX_SECONDS = 1800.0  # for the whole download
URL_MAX_BYTES = 2 * 1024**3

# A file that ends this much before what its header promises, or whose decoder does, has been cut off or damaged.
MISSING_SECONDS = 1


@dataclass
class LlamaVidVideoMetadata(VideoMetadata):
    """
    transformers' `VideoMetadata` whose `timestamps` are the kept frames' real times, not frame numbers over a rate.

    Args:
        times (`list[float]`, *optional*): Seconds after the first frame, one for each of `frames_indices`.
    """

    times: list[float] | None = None

    @property
    def timestamps(self) -> list[float]:
        """Seconds from the first frame of the video to each kept frame."""
        return self.times


@dataclass
class Clip:
    """
    One opened video.

    Args:
        metadata (`LlamaVidVideoMetadata`): What is known of it before its frames are read; `times` is not yet.
        frames (`Iterator[tuple[torch.Tensor, float]]`): The kept frames one at a time, full size: (3, height, width),
            uint8 (or float, as an array was given), and seconds after the first frame.
    """

    metadata: LlamaVidVideoMetadata
    frames: Iterator[tuple[torch.Tensor, float]]


# Sources.


def source_name(video: Any) -> str:
    """What messages call a file: its path or URL, or how many bytes there are."""
    return f"<{len(video)} bytes>" if isinstance(video, bytes) else str(video)


@contextmanager
def local_source(video: str | os.PathLike | bytes) -> Iterator[str | bytes]:
    """
    What PyAV can open: an absolute path or bytes. A URL is downloaded to a temporary file, which is removed on leaving.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A folder, an empty file, a URL that is not http(s) or cannot be downloaded.
    """
    name = source_name(video)
    if isinstance(video, bytes):
        if not video:
            raise ValueError("The video <0 bytes> is empty. Pass the whole content of a video file.")
        yield video
    elif re.match(r"https?://", name, re.IGNORECASE):
        with tempfile.TemporaryDirectory(prefix="llama-vid-") as folder:
            path = os.path.join(folder, "video")
            download(name, path)
            yield path
    elif re.match(r"[a-z][a-z0-9+.-]*://", name, re.IGNORECASE):
        raise ValueError(f"{name}: only http and https URLs are read. Download the video and pass its path.")
    else:
        path = Path(name)
        if not path.exists():
            raise FileNotFoundError(f"Video file {name} does not exist (looked in {path.absolute().parent}).")
        if path.is_dir():
            raise ValueError(f"{name} is a folder, not a video file. Pass the path of one video file.")
        if path.stat().st_size == 0:
            raise ValueError(f"{name} is an empty file, not a video. Copy or download it again.")
        # Absolute, because FFmpeg would take the `a:` of a relative name for a protocol.
        yield str(path.absolute())


def download(url: str, path: str) -> None:
    """
    Stream `url` to the file `path`.

    Raises:
        ValueError: The server cannot be reached, refuses, stops halfway or is silent for `URL_TIMEOUT` seconds; more
            than `URL_MAX_BYTES` bytes or `URL_MAX_SECONDS` seconds.
    """
    # Not `build_opener`: its redirects may lead to ftp.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    advice = "Download the video and pass its path."
    deadline, size = time.monotonic() + URL_MAX_SECONDS, 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "llama-vid"})
        with opener.open(request, timeout=URL_TIMEOUT) as response, open(path, "wb") as file:
            promised = int(response.headers.get("Content-Length", 0))
            while promised <= URL_MAX_BYTES and (block := response.read1(1 << 20)):
                size += len(block)
                if size > URL_MAX_BYTES:
                    break
                if time.monotonic() > deadline:
                    raise ValueError(f"{url} took more than {URL_MAX_SECONDS:g} s to download. {advice}")
                file.write(block)
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise ValueError(f"{url} could not be downloaded: {error}. Check the address, or pass a local file.") from error
    if max(size, promised) > URL_MAX_BYTES:
        raise ValueError(f"{url} is larger than {URL_MAX_BYTES} bytes. {advice}")
    if size < promised:
        raise ValueError(f"{url} broke off after {size} of {promised} bytes. Try again, or pass a local file.")


# Files: a demux-only pass for the timeline, then decoding what it takes for the wanted frames.


@contextmanager
def open_file(
    video: str | os.PathLike | bytes,
    rule: dict[str, Any],
    *,
    keyframes_only: bool = False,
    threads: int | None = None,
) -> Iterator[Clip]:
    """
    Open a video file, choose its frames by `rule` (arguments of `choose_frames`) and decode them in a stream.

    Args:
        video (`str`, `PathLike` or `bytes`): A path, an http(s) URL, or a file's content.
        rule (`dict`): Arguments of `choose_frames`.
        keyframes_only (`bool`): Fast and approximate, see `keyframes_before`.
        threads (`int`, *optional*): Threads that decode; as many as there are cores by default.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a readable, complete video; `frames` of the clip raises it too, where decoding fails.
    """
    name = source_name(video)
    with local_source(video) as source:
        with open_container(source, name) as container:
            timeline, index = read_timeline(container, name)
        with open_container(source, name) as container:
            first_pts, first = next(decode(container, timeline, name))
        # A file cut out of a stream begins with packets that nothing can be decoded from: they are not on screen.
        visible = timeline.pts[min(np.searchsorted(timeline.pts, first_pts), len(timeline.pts) - 1) :]
        timeline = replace(timeline, pts=visible)
        indices = choose_frames(timeline, **rule, name=name)
        if keyframes_only:
            indices = keyframes_before(timeline, np.asarray(index.pts)[index.keyframes], indices, name)

        turned = quarter_turns(first) % 2 == 1
        seconds = float(timeline.duration * timeline.time_base)
        metadata = LlamaVidVideoMetadata(
            total_num_frames=len(timeline.pts),
            fps=len(timeline.pts) / seconds,
            width=first.height if turned else first.width,
            height=first.width if turned else first.height,
            duration=seconds,
            video_backend="pyav",
            frames_indices=indices,
        )
        instants = timeline.pts[indices].tolist()
        threads = threads or available_threads()
        frames = wanted_frames(source, name, timeline, index, instants, first, keyframes_only, threads)
        frames = in_seconds(frames, first_pts, timeline.time_base)
        with closing(frames):
            yield Clip(metadata, frames)


def in_seconds(
    frames: Generator[tuple[int, torch.Tensor]], first_pts: int, time_base: Fraction
) -> Iterator[tuple[torch.Tensor, float]]:
    """From (pts, picture) to (picture, seconds after the first frame)."""
    with closing(frames):
        for pts, image in frames:
            yield image, float((pts - first_pts) * time_base)


def wanted_frames(
    source: str | bytes,
    name: str,
    timeline: Timeline,
    index: PacketIndex,
    instants: Sequence[int],
    first: av.VideoFrame,
    keyframes_only: bool,
    threads: int,
) -> Iterator[tuple[int, torch.Tensor]]:
    """
    For each of the ascending `instants` (pts of frames), the pts and the RGB picture of the frame on screen. Where the
    short way is not possible, or fails, everything is decoded, which also says what is wrong with a damaged file.
    """

    def open_stream() -> tuple[av.container.InputContainer, av.VideoStream]:
        container = open_container(source, name)
        return container, first_video_stream(container, name)

    done, pts, image = 0, None, None
    plan = keyframe_runs if keyframes_only else plan_runs
    runs = plan(index, sorted(set(instants))) if timeline.timed else None
    if runs is not None:
        frames = decode_runs(
            open_stream,
            index,
            runs,
            frame_to_rgb,
            frame_bytes=3 * first.width * first.height,
            # The second field of a frame may be one that nothing refers to, while its first field is not.
            drop_unreferenced=not first.interlaced_frame,
            threads=threads,
        )
        try:
            for instant in instants:
                if instant != pts:
                    pts, image = next(frames)
                yield pts, image
                done += 1
            return
        except NotAsIndexedError as error:
            logger.info(f"Decoding all of {name}, because {error}.")
        finally:
            frames.close()

    with open_container(source, name) as container:
        yield from to_rgb(frames_on_screen(decode(container, timeline, name), instants[done:]))


def open_container(source: str | bytes, name: str) -> av.container.InputContainer:
    """Open a path or bytes with PyAV. Raises ValueError if that is no media file."""
    try:
        return av.open(
            io.BytesIO(source) if isinstance(source, bytes) else source,
            metadata_errors="replace",  # titles in Latin-1 are no reason to refuse a film
            options={"protocol_whitelist": "file"},  # a playlist must not open connections
        )
    except av.FFmpegError as error:
        raise ValueError(
            f"{name} could not be opened as a video: it is not a video file, or it is cut off before its index (an MP4 "
            f"without its `moov` box). Copy or download it again, or convert it. FFmpeg says: {error}"
        ) from error


def first_video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """The first video stream that is no cover picture. Raises ValueError if there is none, or no decoder for it."""
    if container.format.name == "tty":  # what FFmpeg takes .txt and .nfo files for
        raise ValueError(f"{name} is not a video: FFmpeg would show its text as on a terminal. Pass a video file.")
    for stream in container.streams.video:
        if stream.disposition & av.stream.Disposition.attached_pic:
            continue
        if stream.codec_context is None:
            raise ValueError(f"{name} holds a video that this build of FFmpeg cannot decode. Convert it to H.264.")
        stream.thread_type = "AUTO"
        return stream
    kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
    raise ValueError(f"{name} has no video stream (it holds: {kinds}). Pass a file with pictures.")


def read_timeline(container: av.container.InputContainer, name: str) -> tuple[Timeline, PacketIndex]:
    """
    Read all packets, decoding none: exact times, and where decoding may start, at the cost of reading the file.

    Where timestamps are missing (a raw H.264 stream), frames are numbered and shown at the average rate.

    Raises:
        ValueError: No video, no frames, or fewer than the header promises.
    """
    stream = first_video_stream(container, name)
    pts, durations, timed = array("q"), array("q"), True
    index = PacketIndex(stream)
    packets, ends = 0, {}  # ends: where each stream, sound included, ends, in its own ticks
    try:
        for packet in container.demux():
            if not packet.size:  # the mark at the end of a stream
                continue
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                ends[packet.stream] = max(ends.get(packet.stream, stamp), stamp + (packet.duration or 0))
            if packet.stream is not stream:
                continue
            packets += 1
            index.add(packet)
            if packet.is_discard:  # outside an MP4's edit list: decoded for others' sake, never shown
                continue
            timed = timed and packet.pts is not None
            pts.append(packet.pts or 0)
            durations.append(packet.duration or 0)
    except av.FFmpegError as error:
        raise ValueError(f"{name} cannot be read to its end: it is damaged. FFmpeg says: {error}") from error
    if not pts:
        raise ValueError(f"{name} holds no video frames: it is empty or cut off. Copy or download it again.")
    if not timed:
        rate = stream.average_rate or Fraction(25)
        return Timeline(np.arange(len(pts)), end=len(pts), time_base=1 / rate, timed=False), index

    order = np.argsort(pts, kind="stable")  # packets come in decoding order
    shown = np.asarray(pts)[order]
    pauses = np.diff(shown)
    last_duration = durations[order[-1]] or (int(np.median(pauses)) if len(pauses) else 1)
    # AVI numbers packets in the order of the file, whatever the order on screen.
    timed = container.format.name != "avi" or not stream.codec_context.has_b_frames
    timeline = Timeline(shown, end=int(shown[-1]) + last_duration, time_base=stream.time_base, timed=timed)

    if stream.frames:  # MP4, AVI: the header says how many frames there are, and how long they last
        promised = (stream.start_time or 0) + (stream.duration or 0)
        complete = packets >= stream.frames or timeline.end + timeline.frame_duration / 2 >= promised
    else:  # MKV: only how long the longest stream lasts; the last frame may well have been a long one
        missing = Fraction(container.duration or 0, av.time_base) - max(t * s.time_base for s, t in ends.items())
        complete = missing <= max(MISSING_SECONDS, int(pauses.max(initial=0)) * stream.time_base)
    if not complete:
        raise ValueError(
            f"{name} is cut off: it ends after {packets} frames, {seconds_between(timeline, timeline.end):.2f} s, "
            "and its header promises more. Copy or download it again, or repair it (ffmpeg -i … -c copy …)."
        )
    return timeline, index


def decode(
    container: av.container.InputContainer, timeline: Timeline, name: str
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode all frames in the order they are shown: (pts in `timeline`'s ticks, frame). Raises ValueError."""
    last = None
    try:
        for number, frame in enumerate(container.decode(first_video_stream(container, name))):
            pts = frame.pts if timeline.timed else int(timeline.pts[min(number, len(timeline.pts) - 1)])
            if pts is not None:  # one without a time cannot be placed
                last = pts
                yield pts, frame
    except av.FFmpegError as error:
        where = "at its first frame" if last is None else f"{seconds_between(timeline, last):.2f} s after its start"
        raise ValueError(f"{name} is damaged: decoding failed {where}. FFmpeg says: {error}") from error
    if last is None:
        raise ValueError(f"{name} holds no frame that can be decoded: it is damaged or cut off.")
    if (int(timeline.pts[-1]) - last) * timeline.time_base > MISSING_SECONDS:
        raise ValueError(
            f"{name} is damaged: the last frame that can be decoded is {seconds_between(timeline, last):.2f} s after "
            f"its start, and there should be frames until {seconds_between(timeline, int(timeline.pts[-1])):.2f} s."
        )


def frames_on_screen(frames: Iterator[tuple[int, Any]], instants: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """
    For each of the ascending `instants`, the (pts, frame) on screen: the last one that appeared by then. Reads no
    further than the last of them, and holds one frame.
    """
    shown, position = None, 0
    for pts, frame in frames:
        # Before the first frame there was none: it stands for what came earlier.
        shown = shown or (pts, frame)
        while position < len(instants) and instants[position] < pts:
            yield shown
            position += 1
        shown = pts, frame
        while position < len(instants) and instants[position] == pts:
            yield shown
            position += 1
        if position == len(instants):
            return
    for _ in instants[position:]:
        yield shown


def to_rgb(frames: Iterator[tuple[int, av.VideoFrame]]) -> Iterator[tuple[int, torch.Tensor]]:
    """Convert each frame once, however often it is repeated in a row."""
    converted, image = None, None
    for pts, frame in frames:
        if frame is not converted:
            converted, image = frame, frame_to_rgb(frame)
        yield pts, image


def frame_to_rgb(frame: av.VideoFrame) -> torch.Tensor:
    """
    A decoded frame as it is displayed, full size: uint8, (3, height, width). FFmpeg converts the colours only: its own
    scaler would take the chroma at half width.
    """
    image = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    turns = quarter_turns(frame)
    return torch.rot90(image, turns, dims=(1, 2)) if turns else image  # a turn by nothing would be a slow copy


def quarter_turns(frame: av.VideoFrame) -> int:
    """Anticlockwise quarter turns from the stored picture to the displayed one (phones film sideways)."""
    return round(frame.rotation / 90) % 4

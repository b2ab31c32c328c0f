# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Videos as streams of frames: where they come from, which frames are looked at, and decoding just those."""

import http.client
import io
import math
import os
import re
import tempfile
import time
import urllib.error
import urllib.request
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from transformers.utils import logging
from transformers.video_utils import VideoMetadata

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


# Which frames: arithmetic only, no file.


@dataclass(frozen=True)
class Timeline:
    """
    When each frame of a video is on screen.

    Args:
        pts (`np.ndarray` of shape `(num_frames,)`, int64): When each frame appears, in ticks, ascending.
        end (`int`): The tick at which the last frame disappears.
        time_base (`Fraction`): Seconds in a tick.
        timed (`bool`): `False` if the container has no timestamps and `pts` are frame numbers at its average rate.
    """

    pts: np.ndarray
    end: int
    time_base: Fraction
    timed: bool = True

    @property
    def duration(self) -> int:
        """Ticks from the first frame to the end, at least 1."""
        return max(1, self.end - int(self.pts[0]))

    @property
    def frame_duration(self) -> int:
        """Ticks that a frame typically stays on screen: the median, which a few long pauses do not move."""
        return int(np.median(np.diff(self.pts))) if len(self.pts) > 1 else self.duration


def exact_rate(rate: float) -> Fraction:
    """
    The rate that was meant: 0.1, 5 / 3 and 29.97 as floats lie beside 1/10, 5/3 and 2997/100, and that is enough to
    push a sampling instant in front of the frame that appears at it.
    """
    return Fraction(rate).limit_denominator(10**6) or Fraction(rate)


def choose_frames(
    timeline: Timeline,
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    max_frames: int | None = None,
    name: str = "the video",
) -> list[int]:
    """
    The frames to look at: those on screen at the sampling instants, counted from the first frame's appearance.

    - `fps`: the instants are 0, 1/fps, 2/fps … before the end (the last frame's timestamp + its duration). Cameras
      that count 29.97 frames as 30 overshoot a whole second by a few milliseconds: an instant that is nearer to the
      end than half a frame is not wanted (half a sampling period, where frames last longer than that). So 4.0 s
      and 120 frames at 30000/1001 per second (4.004 s) both give 4 frames at 1 fps, and 101 frames at 25 give 5.
    - `num_frames`: n instants i * duration / n; n equal to the number of frames gives every frame.
    - neither: every frame.
    - `max_frames`: if more are wanted, that many of them, evenly spread, with a warning.

    A frame that is on screen at several instants (a slide, or `fps` above the video's own rate) is repeated. The
    arithmetic is exact: a timestamp equal to the instant counts as on screen.

    Args:
        timeline (`Timeline`): The frames' times.
        fps (`float`, *optional*): Frames a second.
        num_frames (`int`, *optional*): Frames in all.
        max_frames (`int`, *optional*): Upper limit for either.
        name (`str`): What the video is called in messages.

    Returns:
        `list[int]`: Positions in `timeline.pts`, ascending, at least one.

    Raises:
        ValueError: `num_frames` exceeds the number of frames.
    """
    count = len(timeline.pts)
    if num_frames is not None and num_frames > count:
        raise ValueError(
            f"num_frames={num_frames} exceeds the {count} frames of {name}. Pass at most {count}, or sample by fps."
        )

    if num_frames == count or (num_frames is None and fps is None):
        step, wanted = None, count
    elif num_frames is not None:
        step, wanted = Fraction(timeline.duration, num_frames), num_frames
    else:
        step = 1 / (exact_rate(fps) * timeline.time_base)  # ticks from one instant to the next
        margin = min(step, timeline.frame_duration) / 2
        wanted = max(1, math.floor((timeline.duration - margin) / step) + 1)

    kept = range(wanted)
    if max_frames is not None and wanted > max_frames:
        kept = [i * wanted // max_frames for i in range(max_frames)]
        spacing = float(timeline.duration * timeline.time_base) / max_frames
        logger.warning(
            f"Keeping {max_frames} of the {wanted} frames wanted from {name}, because of max_frames={max_frames}: one "
            f"every {spacing:.3g} s."
        )
    if step is None:
        return list(kept)
    instants = [int(timeline.pts[0]) + i * step.numerator // step.denominator for i in kept]
    return (np.searchsorted(timeline.pts, instants, side="right") - 1).tolist()


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


# Files: a demux-only pass for the timeline, then one decoding pass.


@contextmanager
def open_file(video: str | os.PathLike | bytes, rule: dict[str, Any]) -> Iterator[Clip]:
    """
    Open a video file, choose its frames by `rule` (arguments of `choose_frames`) and decode them in a stream.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a readable, complete video; `frames` of the clip raises it too, where decoding fails.
    """
    name = source_name(video)
    with local_source(video) as source:
        with open_container(source, name) as container:
            timeline = read_timeline(container, name)
        with open_container(source, name) as container:
            frames = decode(container, timeline, name)
            first_pts, first = next(frames)
            # A file cut out of a stream begins with packets that nothing can be decoded from: they are not on screen.
            visible = timeline.pts[min(np.searchsorted(timeline.pts, first_pts), len(timeline.pts) - 1) :]
            timeline = replace(timeline, pts=visible)
            indices = choose_frames(timeline, **rule, name=name)

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
            shown = frames_on_screen(chain([(first_pts, first)], frames), timeline.pts[indices].tolist())
            yield Clip(metadata, rgb_and_seconds(shown, first_pts, timeline.time_base))


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


def read_timeline(container: av.container.InputContainer, name: str) -> Timeline:
    """
    Read all packets, decoding none: exact times at the cost of reading the file.

    Where timestamps are missing (a raw H.264 stream), frames are numbered and shown at the average rate.

    Raises:
        ValueError: No video, no frames, or fewer than the header promises.
    """
    stream = first_video_stream(container, name)
    pts, durations, timed = array("q"), array("q"), True
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
        return Timeline(np.arange(len(pts)), end=len(pts), time_base=1 / rate, timed=False)

    order = np.argsort(pts, kind="stable")  # packets come in decoding order
    shown = np.asarray(pts)[order]
    pauses = np.diff(shown)
    last_duration = durations[order[-1]] or (int(np.median(pauses)) if len(pauses) else 1)
    timeline = Timeline(shown, end=int(shown[-1]) + last_duration, time_base=stream.time_base)

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
    return timeline


def decode(
    container: av.container.InputContainer, timeline: Timeline, name: str
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode all frames in the order they are shown: (pts in `timeline`'s ticks, frame). Raises ValueError."""
    last = None
    try:
        for number, frame in enumerate(container.decode(first_video_stream(container, name))):
            pts = frame.pts if timeline.timed else number
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


def seconds_between(timeline: Timeline, pts: int) -> float:
    """Seconds from the first frame to `pts`."""
    return float((pts - int(timeline.pts[0])) * timeline.time_base)


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


def rgb_and_seconds(
    frames: Iterator[tuple[int, av.VideoFrame]], first_pts: int, time_base: Fraction
) -> Iterator[tuple[torch.Tensor, float]]:
    """Convert each frame once, however often it is repeated in a row."""
    converted, image = None, None
    for pts, frame in frames:
        if frame is not converted:
            converted, image = frame, frame_to_rgb(frame)
        yield image, float((pts - first_pts) * time_base)


def frame_to_rgb(frame: av.VideoFrame) -> torch.Tensor:
    """
    A decoded frame as it is displayed, full size: uint8, (3, height, width). FFmpeg converts the colours only: its own
    scaler would take the chroma at half width.
    """
    image = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    return torch.rot90(image, quarter_turns(frame), dims=(1, 2))


def quarter_turns(frame: av.VideoFrame) -> int:
    """Anticlockwise quarter turns from the stored picture to the displayed one (phones film sideways)."""
    return round(frame.rotation / 90) % 4

# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Video files as streams of the frames that are looked at."""

import io
import os
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
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
from .video_sources_llama_vid import DamagedVideoError, local_source, size_and_time, source_name, unchanged
from .video_torchcodec_llama_vid import torchcodec_frames

logger = logging.get_logger(__name__)

# A file that ends this much before what its header promises, or whose decoder does, has been cut off or damaged.
MISSING_SECONDS = 1
# Half a turn of MPEG-TS's clock, 13 hours.
WRAP_TICKS = 1 << 32
# Of a frame: twice those of 8K. A header that claims more would make the decoder take gigabytes.
MAX_PIXELS = 8192 * 8192

BACKENDS = ("pyav", "torchcodec")
ON_ERROR = ("raise", "keep")


@dataclass
class LlamaVidVideoMetadata(VideoMetadata):
    """
    transformers' `VideoMetadata` whose `timestamps` are the kept frames' real times, not frame numbers over a rate.

    Args:
        times (`list[float]`, *optional*): Seconds after the first frame, one for each of `frames_indices`.
        start, end (`float`, *optional*): The part that was sampled, if it was not all of the video, in the same clock.
    """

    times: list[float] | None = None
    start: float | None = None
    end: float | None = None

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
        frames (`Iterator[tuple[torch.Tensor, float]]`): The kept frames one at a time, (3, height, width), as
            `prepare` made them of full-size ones in uint8 (or float, as an array was given), and seconds after the
            first frame.
    """

    metadata: LlamaVidVideoMetadata
    frames: Iterator[tuple[torch.Tensor, float]]


# A demux-only pass for the timeline, then decoding what it takes for the wanted frames.


@contextmanager
def open_file(
    video: str | os.PathLike | bytes,
    rule: dict[str, Any],
    *,
    prepare: Callable[[torch.Tensor], torch.Tensor] | None = None,
    keyframes_only: bool = False,
    video_backend: str = "pyav",
    on_error: str = "raise",
    threads: int | None = None,
) -> Iterator[Clip]:
    """
    Open a video file, choose its frames by `rule` (arguments of `choose_frames`) and decode them in a stream.

    Args:
        video (`str`, `PathLike` or `bytes`): A path, an http(s) URL, or a file's content.
        rule (`dict`): Arguments of `choose_frames`.
        prepare (`Callable`, *optional*): What becomes of each full-size frame, uint8 of shape (3, height, width), at
            once, in the thread that decoded it: so that no more than one a thread is ever held.
        keyframes_only (`bool`): Fast and approximate, see `keyframes_before`.
        video_backend (`str`): Who decodes: `"pyav"`, or `"torchcodec"` if it is installed with FFmpeg's libraries.
        on_error (`str`): `"keep"` the frames before the place where a file is damaged or cut off, with a warning, or
            `"raise"`.
        threads (`int`, *optional*): Threads that decode; as many as there are cores by default.

    Raises:
        FileNotFoundError: No such file.
        ImportError: torchcodec was asked for and does not load.
        ValueError: Not a readable, complete video, or frames of more than `MAX_PIXELS`; `frames` of the clip raises it
            too, where decoding fails, or in the end, if the file has changed meanwhile.
    """
    for argument, value, possible in (("video_backend", video_backend, BACKENDS), ("on_error", on_error, ON_ERROR)):
        if value not in possible:
            raise ValueError(f"{argument} must be one of {', '.join(possible)}, got {value!r}.")
    name = source_name(video)
    with local_source(video) as source:
        before = size_and_time(source)
        with open_container(source, name) as container:
            timeline, index, damage = read_timeline(container, name)
        if damage is not None and on_error == "raise":
            raise damage
        with open_container(source, name) as container:
            first_pts, first = next(decode(container, timeline, name))
        # A file cut out of a stream begins with packets that nothing can be decoded from: they are not on screen.
        visible = timeline.pts[min(np.searchsorted(timeline.pts, first_pts), len(timeline.pts) - 1) :]
        timeline = replace(timeline, pts=visible)
        indices = choose_frames(timeline, **rule, name=name)
        if keyframes_only:
            indices = keyframes_before(timeline, np.asarray(index.pts)[index.keyframes], indices, name)

        turned = orientation(first).transposed
        seconds = float(timeline.duration * timeline.time_base)
        metadata = LlamaVidVideoMetadata(
            total_num_frames=len(timeline.pts),
            fps=len(timeline.pts) / seconds,
            width=first.height if turned else first.width,
            height=first.width if turned else first.height,
            duration=seconds,
            video_backend=video_backend,
            frames_indices=indices,
            start=rule.get("start"),
            end=rule.get("end"),
        )
        instants = timeline.pts[indices].tolist()
        threads = threads or available_threads()
        if video_backend == "torchcodec":
            frames = torchcodec_frames(source, name, timeline, instants, prepare, threads)
        else:
            frames = wanted_frames(source, name, timeline, index, instants, first, prepare, keyframes_only, threads)
        frames = unchanged(frames, source, name, before)
        if on_error == "keep":
            frames = before_damage(frames, instants, damage, timeline, metadata)
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


def before_damage(
    frames: Generator[tuple[int, torch.Tensor]],
    instants: Sequence[int],
    damage: DamagedVideoError | None,
    timeline: Timeline,
    metadata: LlamaVidVideoMetadata,
) -> Iterator[tuple[int, torch.Tensor]]:
    """
    What can be read, and then a warning if that is not all, for which `damage` may be a reason that is known. The
    `duration` of the metadata ends before the first frame that is missing.
    """
    kept, complete = 0, True
    with closing(frames):
        try:
            for frame, instant in zip(frames, instants, strict=True):
                # Some decoders do not give their last frames where half a packet follows, and say nothing.
                complete = complete and (damage is None or frame[0] == instant)
                if complete:
                    yield frame
                    kept += 1
        except DamagedVideoError as error:
            damage = damage or error
    if damage is not None:
        if not kept:
            raise ValueError(f"{damage.args[0]} No frame from before that was asked for.") from damage
        if kept < len(instants):
            metadata.duration = seconds_between(timeline, instants[kept])
        logger.warning(f"{damage.args[0]} {kept} frames from before that are kept.")


def wanted_frames(
    source: str | bytes,
    name: str,
    timeline: Timeline,
    index: PacketIndex,
    instants: Sequence[int],
    first: av.VideoFrame,
    prepare: Callable[[torch.Tensor], torch.Tensor] | None,
    keyframes_only: bool,
    threads: int,
) -> Iterator[tuple[int, torch.Tensor]]:
    """
    For each of the ascending `instants` (pts of frames), the pts and the picture of the frame on screen. Where the
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
            lambda: picture_maker(prepare),
            picture_bytes=picture_maker(prepare)(first).nbytes,
            decoder_bytes=16 * sum(plane.buffer_size for plane in first.planes),
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
        yield from pictures(frames_on_screen(decode(container, timeline, name), instants[done:]), prepare)


def open_container(source: str | bytes, name: str) -> av.container.InputContainer:
    """Open a path or bytes with PyAV. Raises ValueError if that is no media file."""
    try:
        return av.open(
            io.BytesIO(source) if isinstance(source, bytes) else source,
            metadata_errors="replace",  # titles in Latin-1 are no reason to refuse a film
            # A playlist must not open connections. The limit holds for the frames that tell what kind of video it is.
            options={"protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)},
        )
    except av.FFmpegError as error:
        raise ValueError(
            f"{name} could not be opened as a video: it is not a video file, or it is cut off before its index (an MP4 "
            f"without its `moov` box). Copy or download it again, or convert it. FFmpeg says: {error}"
        ) from error


def first_video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """
    The first video stream that is no cover picture. Raises ValueError if there is none, no decoder for it, or if its
    frames are larger than `MAX_PIXELS`.
    """
    if container.format.name == "tty":  # what FFmpeg takes .txt and .nfo files for
        raise ValueError(f"{name} is not a video: FFmpeg would show its text as on a terminal. Pass a video file.")
    for stream in container.streams.video:
        if stream.disposition & av.stream.Disposition.attached_pic:
            continue
        if stream.codec_context is None:
            raise ValueError(f"{name} holds a video that this build of FFmpeg cannot decode. Convert it to H.264.")
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"{name} claims frames of {width} x {height} pixels, more than {MAX_PIXELS}: its header is damaged, or "
                "it has to be scaled down (ffmpeg -i … -vf scale=1280:-2 …)."
            )
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # the size may change
        stream.thread_type = "AUTO"
        return stream
    kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
    raise ValueError(f"{name} has no video stream (it holds: {kinds}). Pass a file with pictures.")


def read_timeline(
    container: av.container.InputContainer, name: str
) -> tuple[Timeline, PacketIndex, DamagedVideoError | None]:
    """
    Read all packets, decoding none: exact times, and where decoding may start, at the cost of reading the file.

    Where timestamps are missing (a raw H.264 stream) or start again (streams that were joined), frames are numbered and
    shown at the average rate.

    Returns:
        `tuple[Timeline, PacketIndex, DamagedVideoError | None]`: The timeline of what can be read, all packets, and
        what is wrong if the file is damaged, or has fewer frames than its header promises.

    Raises:
        ValueError: No video, or no frames.
    """
    stream = first_video_stream(container, name)
    pts, durations, timed = array("q"), array("q"), True
    index, last_is_cut, damage = PacketIndex(stream), False, None
    packets, ends = 0, {}  # ends: where each stream, sound included, ends, in its own ticks
    last_dts, between = None, False
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
            last_is_cut = packet.is_corrupt
            if packet.is_discard:  # outside an MP4's edit list: decoded for others' sake, never shown
                continue
            if pts and timed and packet.pts is None and packet.dts is None and not between:
                between = True  # one alone, as FFmpeg gives the second field of a frame in MPEG-TS
                durations[-1] += packet.duration or 0
                continue
            between = False
            timed = timed and packet.pts is not None and not _starts_again(last_dts, packet, container.format.name)
            last_dts = packet.dts if packet.dts is not None else last_dts
            pts.append(packet.pts or 0)
            durations.append(packet.duration or 0)
    except av.FFmpegError as error:
        damage = DamagedVideoError(f"{name} cannot be read to its end: it is damaged. FFmpeg says: {error}")
        damage.__cause__ = error
    empty = f"{name} holds no video frames: it is empty or cut off. Copy or download it again."
    if not pts:
        raise ValueError(empty) from damage
    if not timed:
        rate = stream.average_rate or Fraction(25)
        logger.info(f"The timestamps of {name} are incomplete or start again: it is read as {float(rate):g} frames/s.")
        return Timeline(np.arange(len(pts)), end=len(pts), time_base=1 / rate, timed=False), index, damage

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
        # FFmpeg lets a clock that wraps soon begin below zero; the end is the duration only from zero on.
        promised = Fraction((container.duration or 0) + min(0, container.start_time or 0), av.time_base)
        missing = promised - max(t * s.time_base for s, t in ends.items())
        complete = missing <= max(MISSING_SECONDS, int(pauses.max(initial=0)) * stream.time_base)
    if damage is None and not complete:
        damage = DamagedVideoError(
            f"{name} is cut off: it ends after {packets} frames, {seconds_between(timeline, timeline.end):.2f} s, "
            "and its header promises more. Copy or download it again, or repair it (ffmpeg -i … -c copy …)."
        )
    if damage is not None:
        if packets == 1 and last_is_cut:
            raise ValueError(empty) from damage
        timeline = without_gaps(timeline, index, last_is_cut)
    return timeline, index, damage


def _starts_again(last_dts: int | None, packet: av.Packet, format_name: str) -> bool:
    """Whether the clock of a stream goes back, or as FFmpeg takes that in MPEG-TS, on by a whole turn of 33 bits."""
    if last_dts is None or packet.dts is None:
        return False
    wraps = format_name == "mpegts" and packet.dts - last_dts > WRAP_TICKS
    return wraps or (last_dts - packet.dts) * packet.time_base > MISSING_SECONDS


def without_gaps(timeline: Timeline, index: PacketIndex, last_is_cut: bool) -> Timeline:
    """
    Of a file that ends early, the part of which no frame is missing. Packets that are not there would be decoded after
    the last one, hence shown after that: but maybe before other frames that are there (B-frames).
    """
    known = index.dts[-1] + 1
    if last_is_cut:  # half a packet is as good as none
        known = min(known, index.pts[-1])
    count = max(1, int(np.searchsorted(timeline.pts, known)))
    return timeline if count == len(timeline.pts) else replace(timeline, pts=timeline.pts[:count], end=known)


def decode(
    container: av.container.InputContainer, timeline: Timeline, name: str
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode all frames in the order they are shown: (pts in `timeline`'s ticks, frame). Raises ValueError."""
    stream, last = first_video_stream(container, name), None
    try:
        for number, frame in enumerate(decoded(container, stream)):
            pts = frame.pts if timeline.timed else int(timeline.pts[min(number, len(timeline.pts) - 1)])
            if pts is not None:  # one without a time cannot be placed
                last = pts
                yield pts, frame
    except av.FFmpegError as error:
        reason = f"FFmpeg says: {error}"
        if isinstance(error, av.ArgumentError) and not stream.codec_context.width:  # it refused a size
            reason = f"A frame claims more than {MAX_PIXELS} pixels."
        if last is None:
            raise ValueError(f"{name} is damaged: decoding failed at its first frame. {reason}") from error
        where = f"{seconds_between(timeline, last):.2f} s after its start"
        raise DamagedVideoError(f"{name} is damaged: decoding failed {where}. {reason}") from error
    if last is None:
        raise ValueError(f"{name} holds no frame that can be decoded: it is damaged or cut off.")
    if (int(timeline.pts[-1]) - last) * timeline.time_base > MISSING_SECONDS:
        raise DamagedVideoError(
            f"{name} is damaged: the last frame that can be decoded is {seconds_between(timeline, last):.2f} s after "
            f"its start, and there should be frames until {seconds_between(timeline, int(timeline.pts[-1])):.2f} s."
        )


def decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """
    All frames that FFmpeg decodes. A file that was cut out of a stream may begin with packets that cannot be, as what
    describes them comes with the first keyframe; an error of any other packet is raised.
    """
    lead, seen_keyframe, failed = 0, False, 0
    for packet in container.demux(stream):
        seen_keyframe = seen_keyframe or packet.is_keyframe
        lead += not seen_keyframe
        try:
            frames = packet.decode()
        except av.FFmpegError:  # threads tell of it later, but once for each packet, and in order
            failed += 1
            if failed > lead:
                raise
            continue
        yield from frames


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


def pictures(
    frames: Iterator[tuple[int, av.VideoFrame]], prepare: Callable[[torch.Tensor], torch.Tensor] | None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Make the picture of each frame once, however often it is repeated in a row."""
    shown, image, make = None, None, picture_maker(prepare)
    for pts, frame in frames:
        if frame is not shown:
            shown, image = frame, make(frame)
        yield pts, image


def picture_maker(
    prepare: Callable[[torch.Tensor], torch.Tensor] | None,
) -> Callable[[av.VideoFrame], torch.Tensor]:
    """
    What makes a picture of a decoded frame: turned as it is displayed, in the stored pixels whatever their shape (as
    the original's decord gives them), uint8, (3, height, width), and then as `prepare` wants it. FFmpeg converts the
    colours only: its own scaler would take the chroma at half width. For one thread: FFmpeg's converter is kept from
    frame to frame.
    """
    converter = VideoReformatter()

    def make(frame: av.VideoFrame) -> torch.Tensor:
        rgb = converter.reformat(frame, format="rgb24", threads=1)
        plane = rgb.planes[0]
        rows = torch.frombuffer(plane, dtype=torch.uint8).view(rgb.height, plane.line_size)  # padded
        image = rows[:, : 3 * rgb.width].view(rgb.height, rgb.width, 3).permute(2, 0, 1)
        turn = orientation(frame)
        image = image.transpose(1, 2) if turn.transposed else image
        flipped = [dim for dim, is_flipped in ((1, turn.upside_down), (2, turn.mirrored)) if is_flipped]
        image = image.flip(flipped) if flipped else image  # by nothing, it would be a slow copy
        return image if prepare is None else prepare(image)

    return make


class Orientation(NamedTuple):
    """From the stored picture to the displayed one: first transposed, then flipped along its displayed axes."""

    transposed: bool = False
    mirrored: bool = False
    upside_down: bool = False


def orientation(frame: av.VideoFrame) -> Orientation:
    """How a picture is displayed (phones film sideways, and their front cameras mirrored)."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    return Orientation(True, c < 0, b < 0) if abs(b) > abs(a) else Orientation(False, a < 0, d < 0)

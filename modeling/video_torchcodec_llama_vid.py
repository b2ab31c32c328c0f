# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""torchcodec as another way to the same frames."""

from collections.abc import Callable, Iterator, Sequence

import torch

from .video_sampling_llama_vid import Timeline, seconds_between
from .video_sources_llama_vid import DamagedVideoError

# Full-size frames that are decoded at a time.
BATCH_SIZE = 8


def torchcodec_frames(
    source: str | bytes,
    name: str,
    timeline: Timeline,
    instants: Sequence[int],
    prepare: Callable[[torch.Tensor], torch.Tensor] | None,
    threads: int,
) -> Iterator[tuple[int, torch.Tensor]]:
    """
    For each of the ascending `instants` (pts of frames), the pts and the picture of the frame on screen.

    Args:
        source (`str` or `bytes`): A path or a file's content.
        name (`str`): What the video is called in messages.
        timeline (`Timeline`): Its frames' times, as its container tells them.
        instants (`Sequence[int]`): Ascending, some of `timeline.pts`.
        prepare (`Callable`, *optional*): What becomes of each frame, uint8 of shape (3, height, width).
        threads (`int`): Threads that decode.

    Raises:
        ImportError: torchcodec is missing, or does not find FFmpeg's libraries.
        ValueError: No timestamps, torchcodec has others, or the file is damaged.
    """
    if not timeline.timed:
        raise ValueError(f'{name} has no timestamps, by which torchcodec finds frames: use video_backend="pyav".')
    decoder = _open(source, name, threads)
    # It may give the frames of an AVI other times, under which it would find the wrong ones.
    _check_time(decoder.metadata.begin_stream_seconds, int(timeline.pts[0]), timeline, name)
    frames, pts, image = _each_once(decoder, timeline, sorted(set(instants)), name), None, None
    for instant in instants:
        if instant != pts:
            pts, frame = next(frames)
            image = frame if prepare is None else prepare(frame)
        yield pts, image


def _each_once(decoder, timeline: Timeline, instants: Sequence[int], name: str) -> Iterator[tuple[int, torch.Tensor]]:
    for start in range(0, len(instants), BATCH_SIZE):
        yield from _batch(decoder, timeline, instants[start : start + BATCH_SIZE], name)


def _batch(decoder, timeline: Timeline, wanted: Sequence[int], name: str) -> Iterator[tuple[int, torch.Tensor]]:
    # Half a tick late: seconds are rounded, and must not fall in front of the frame.
    seconds = [float((pts + 0.5) * timeline.time_base) for pts in wanted]
    try:
        batch = decoder.get_frames_played_at(seconds=seconds)
    except (RuntimeError, ValueError, IndexError) as error:
        if len(wanted) == 1:
            where = f"{seconds_between(timeline, wanted[0]):.2f} s after its start"
            raise DamagedVideoError(
                f'torchcodec cannot decode {name} {where}: it is damaged, or only video_backend="pyav" can read it. '
                f"torchcodec says: {error}"
            ) from error
        batch = None
    if batch is None:  # one by one, for those in front of the damage
        for pts in wanted:
            yield from _batch(decoder, timeline, [pts], name)
        return
    for pts, found, image in zip(wanted, batch.pts_seconds.tolist(), batch.data, strict=True):
        _check_time(found, pts, timeline, name)
        yield pts, image


def _check_time(found: float, pts: int, timeline: Timeline, name: str) -> None:
    if abs(found - float(pts * timeline.time_base)) > timeline.time_base / 2:
        raise ValueError(
            f"torchcodec shows another frame of {name} than its container has {seconds_between(timeline, pts):.2f} s "
            'after its start: use video_backend="pyav".'
        )


def _open(source: str | bytes, name: str, threads: int):
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            'video_backend="torchcodec" needs torchcodec (pip install torchcodec) and the shared libraries of FFmpeg, '
            'which it does not bring along; video_backend="pyav" needs neither.'
        ) from error
    try:
        return VideoDecoder(source, num_ffmpeg_threads=threads)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"torchcodec cannot open {name}: {error}") from error

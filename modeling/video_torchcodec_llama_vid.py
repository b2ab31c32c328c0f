# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""torchcodec as another way to the same frames."""

from collections.abc import Callable, Iterator, Sequence

import torch

from .video_sampling_llama_vid import Timeline

# Full-size frames that are decoded at a time.
BATCH_SIZE = 8


def torchcodec_frames(
    source: str | bytes,
    name: str,
    timeline: Timeline,
    instants: Sequence[int],
    prepare: Callable[[torch.Tensor], torch.Tensor] | None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """
    For each of the ascending `instants` (pts of frames), the pts and the picture of the frame on screen.

    Args:
        source (`str` or `bytes`): A path or a file's content.
        name (`str`): What the video is called in messages.
        timeline (`Timeline`): Its frames' times, as its container tells them.
        instants (`Sequence[int]`): Ascending, some of `timeline.pts`.
        prepare (`Callable`, *optional*): What becomes of each frame, uint8 of shape (3, height, width).

    Raises:
        ImportError: torchcodec is missing, or does not find FFmpeg's libraries.
        ValueError: No timestamps, or the file is damaged.
    """
    if not timeline.timed:
        raise ValueError(f'{name} has no timestamps, by which torchcodec finds frames: use video_backend="pyav".')
    decoder = _open(source, name)
    for start in range(0, len(instants), BATCH_SIZE):
        wanted = instants[start : start + BATCH_SIZE]
        # Half a tick late: seconds are rounded, and must not fall in front of the frame.
        seconds = [float((pts + 0.5) * timeline.time_base) for pts in wanted]
        try:
            batch = decoder.get_frames_played_at(seconds=seconds)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(f"torchcodec cannot decode {name}: {error}") from error
        for pts, found, image in zip(wanted, batch.pts_seconds.tolist(), batch.data, strict=True):
            if abs(found - float(pts * timeline.time_base)) > float(timeline.time_base):
                raise ValueError(
                    f"torchcodec shows another frame of {name} than its container has at {seconds[0]:.3f} s: use "
                    'video_backend="pyav".'
                )
            yield pts, image if prepare is None else prepare(image)


def _open(source: str | bytes, name: str):
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            'video_backend="torchcodec" needs torchcodec (pip install torchcodec) and the shared libraries of FFmpeg, '
            'which it does not bring along; video_backend="pyav" needs neither.'
        ) from error
    try:
        return VideoDecoder(source, num_ffmpeg_threads=0)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"torchcodec cannot open {name}: {error}") from error

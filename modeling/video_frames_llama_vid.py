# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Frames in memory, or in files of their own, as a video."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format

from .video_decoding_llama_vid import Clip, LlamaVidVideoMetadata
from .video_frame_files_llama_vid import FrameFiles
from .video_sampling_llama_vid import (
    Timeline,
    check_sampling,
    choose_frames,
    exact_rate,
    seconds_between,
    timeline_of_times,
)


def open_frames(
    video: np.ndarray | torch.Tensor | list | FrameFiles,
    rule: dict[str, Any],
    name: str,
    given: dict[str, Any],
    default_fps: float | None,
    do_convert_rgb: bool,
    input_data_format: str | None,
    prepare: Callable[[torch.Tensor], torch.Tensor],
) -> Clip:
    """
    A 4D array or a sequence of frames as a clip. `given` (transformers' video metadata) holds their rate `fps` and, if
    they are already a sample, which frames of the source they are (`frames_indices`); or when each of them appears
    (`times`, in seconds), which counts if there is both. Without either there is no clock: every frame is kept, and the
    frames are taken to be `1 / default_fps` seconds apart.
    """
    frames_indices = given.get("frames_indices")
    numbers = np.arange(len(video)) if frames_indices is None else np.asarray(frames_indices, dtype=np.int64)
    if numbers.shape != (len(video),) or (np.diff(numbers) < 0).any():
        raise ValueError(
            f"video_metadata of {name}: frames_indices must be ascending, one for each of the {len(video)} frames, got "
            f"{numbers.tolist()}."
        )
    rate, times = given.get("fps"), given.get("times")
    if times is not None:
        timeline = timeline_of_times(times, len(video), name)
        rate = len(video) / (timeline.duration * timeline.time_base)
    else:
        if rate is None:
            rule, rate = {**rule, "fps": None}, default_fps or 1.0
        check_sampling(fps=rate)
        step = int(np.median(np.diff(numbers))) if len(numbers) > 1 else 1
        timeline = Timeline(numbers, end=int(numbers[-1]) + step, time_base=1 / exact_rate(rate))
    indices = choose_frames(timeline, **rule, name=name)

    def frames() -> Iterator[tuple[torch.Tensor, float]]:
        shown, image = None, None
        for index in indices:
            if index != shown:  # a repeated frame is prepared once
                where = f"Frame {index} of {name}"
                shown, image = index, prepare(to_channels_first(video[index], where, do_convert_rgb, input_data_format))
            yield image, seconds_between(timeline, int(timeline.pts[index]))

    metadata = LlamaVidVideoMetadata(
        total_num_frames=given.get("total_num_frames") or len(video),
        fps=float(rate),
        duration=float(timeline.duration * timeline.time_base),
        frames_indices=numbers[indices].tolist(),
        start=rule["start"],
        end=rule["end"],
    )
    return Clip(metadata, frames())


def check_eight_bits(image: PIL.Image.Image, where: str):
    """Raises ValueError for a picture of more than 8 bits a channel, whose values PIL would clip to black and white."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{where} is a picture of mode {image.mode}, not of 8 bits a channel. Convert it to RGB.")


def to_channels_first(
    frame: PIL.Image.Image | np.ndarray | torch.Tensor,
    where: str,
    do_convert_rgb: bool,
    input_data_format: str | None,
) -> torch.Tensor:
    """
    One frame as (3, height, width): uint8 as it is, anything else as float32 with the values it has.

    Grey becomes three equal channels and alpha is dropped, if `do_convert_rgb`.

    Raises:
        ValueError: A picture of more than 8 bits a channel, no channel axis, channels that are not RGB, NaN or infinite
            values.
    """
    if isinstance(frame, PIL.Image.Image):
        check_eight_bits(frame, where)
        frame = np.array(frame.convert("RGB") if do_convert_rgb else frame)
        frame = frame if frame.ndim == 3 else frame[..., None]
        input_data_format = ChannelDimension.LAST
    elif input_data_format is None:
        try:
            input_data_format = infer_channel_dimension_format(frame, num_channels=(1, 3, 4))
        except ValueError as error:
            raise ValueError(f"{where}, of shape {tuple(frame.shape)}, has no axis of 1, 3 or 4 channels.") from error
    if isinstance(frame, np.ndarray):
        frame = torch.from_numpy(np.array(frame, order="C"))  # a copy: torch takes no reversed views (BGR to RGB)
    if input_data_format == ChannelDimension.LAST:
        frame = frame.permute(2, 0, 1)
    if do_convert_rgb:
        frame = frame.expand(3, -1, -1) if frame.shape[0] == 1 else frame[:3]
    if frame.shape[0] != 3 or 0 in frame.shape:
        raise ValueError(
            f"{where} must have three channels and some pixels, got (channels, height, width) {tuple(frame.shape)}. "
            "Leave do_convert_rgb on for grey frames and for alpha."
        )
    if frame.is_floating_point() and not frame.isfinite().all():
        raise ValueError(f"{where} has NaN or infinite values. Repair or leave out that frame.")
    return frame if frame.dtype == torch.uint8 else frame.float()

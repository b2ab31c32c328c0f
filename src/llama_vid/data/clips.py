"""Real video files, written by PyAV: for the demo, the tests and synthetic training data."""

import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from llama_vid.whole_files import whole_file

if TYPE_CHECKING:
    import numpy as np

# Ticks a second of clips with explicit times: every usual rate divides it, and MPEG-4 allows no more than 65535.
TICKS = 60000


def write_clip(
    path: str | os.PathLike,
    frames: Iterable["np.ndarray"],
    *,
    fps: float | Fraction = 25,
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    gop_size: int | None = None,
    b_frames: int | None = None,
    audio: tuple["np.ndarray", int] | None = None,
) -> Path:
    """
    Encode frames to a video file; the container follows from the suffix (`.mp4`, `.mkv`, `.webm`, `.avi`, …).

    The file is written under a temporary name beside it and renamed, so that `path` is never half a video.

    Args:
        path (`str` or `PathLike`): Where to write it.
        frames (`Iterable[np.ndarray]`): uint8 arrays of shape (height, width, 3), RGB, all of one size.
        fps (`float` or `Fraction`): Frames a second; with `times`, 1 / fps is how long the last frame is shown.
        times (`Sequence[float]`, *optional*): Seconds at which each frame appears, ascending: a variable frame rate.
        codec (`str`): FFmpeg's name of a video encoder.
        pixel_format (`str`): What it is given, such as `yuv444p` for odd sizes.
        gop_size (`int`, *optional*): Frames from one keyframe to the next; the encoder's choice otherwise.
        b_frames (`int`, *optional*):
            Frames in a row, at most, that refer to later ones; the encoder's choice otherwise.
        audio (`tuple[np.ndarray, int]`, *optional*): Mono float32 samples from -1 to 1, and their rate: an AAC track.

    Returns:
        `Path`: `path`.

    Raises:
        ValueError: No frames, frames that are not as above, or another number of times than of frames.
    """
    import av

    path = Path(path)
    with whole_file(path) as partial, av.open(str(partial), "w") as container:
        rate = Fraction(fps).limit_denominator(1001000)
        video = container.add_stream(codec, rate=rate)
        video.pix_fmt = pixel_format
        video.thread_type = "AUTO"  # PyAV's own choice makes x264 cut frames into slices, as no film has them
        # Without sc_threshold, x264 adds keyframes where the scene changes.
        options = {"g": gop_size, "sc_threshold": None if gop_size is None else 0, "bf": b_frames}
        if video.codec.name == "libx264":  # `h264` is it, too
            options["mbtree"] = 0  # with it, equal frames now and then make unequal files
        video.options = {key: str(value) for key, value in options.items() if value is not None}
        video.codec_context.time_base = 1 / rate if times is None else Fraction(1, TICKS)
        sound = None if audio is None else container.add_stream("aac", rate=audio[1], layout="mono")

        durations = {}
        for pts, duration, array in _timed(frames, times, rate):
            _check_frame(array)
            if not durations:
                video.height, video.width = array.shape[:2]
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = pts, video.codec_context.time_base
            durations[pts] = duration
            _mux(container, video.encode(frame), durations)
        if not durations:
            raise ValueError(f"No frames to write to {path}.")
        _mux(container, video.encode(), durations)
        if sound is not None:
            _write_audio(container, sound, audio[0])
    return path


def _timed(frames, times, rate: Fraction) -> Iterator[tuple[int, int, "np.ndarray"]]:
    """(when it appears, how long it stays, frame), in ticks: 1 / rate, or 1 / TICKS if there are times."""
    if times is None:
        for index, array in enumerate(frames):
            yield index, 1, array
        return
    starts = [round(seconds * TICKS) for seconds in times]
    if any(later <= earlier for earlier, later in pairwise(starts)):
        raise ValueError(f"times must be ascending, got {list(times)}.")
    ends = [*starts[1:], *(start + round(TICKS / rate) for start in starts[-1:])]
    for start, end, array in zip(starts, ends, frames, strict=True):
        yield start, end - start, array


def _check_frame(array: "np.ndarray") -> None:
    if array.dtype != "uint8" or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"A frame must be uint8 of shape (height, width, 3), got {array.dtype} {array.shape}.")


def _mux(container, packets, durations: dict[int, int]) -> None:
    for packet in packets:
        packet.duration = durations[packet.pts]  # encoders leave it out, and the last frame's length would be lost
        container.mux(packet)


def _write_audio(container, stream, samples: "np.ndarray") -> None:
    import av

    for start in range(0, len(samples), 1024):
        block = samples[start : start + 1024]
        frame = av.AudioFrame.from_ndarray(block[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = stream.rate, start, Fraction(1, stream.rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def make_demo_clip(path: str | os.PathLike, *, seconds: int = 8, seed: int = 0) -> Path:
    """
    Write a small H.264 clip (320 x 240, 25 frames a second): coloured shapes that bounce off the edges, and a beep at
    each whole second.

    Args:
        path (`str` or `PathLike`): Where to write it, `.mp4` or `.mkv`.
        seconds (`int`): How long it is.
        seed (`int`): Decides colours, sizes, places and directions: equal seeds give the same pictures (x264 itself may
            compress them into other bytes).

    Returns:
        `Path`: `path`.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    width, height, fps, rate = 320, 240, 25, 16000
    random = np.random.default_rng(seed)
    colours = random.permutation(["red", "green", "blue", "yellow", "magenta", "cyan"])
    shapes = [
        {"kind": kind, "colour": str(colour), "size": random.integers(20, 36), "speed": random.uniform(40, 110, 2)}
        for kind, colour in zip(("circle", "square", "triangle"), colours, strict=False)
    ]
    starts = random.uniform(0, 1, (len(shapes), 2))

    def frame(index: int) -> np.ndarray:
        picture = Image.new("RGB", (width, height), (40, 40, 48))
        draw = ImageDraw.Draw(picture)
        for shape, start in zip(shapes, starts, strict=True):
            radius = int(shape["size"])
            room = np.array([width, height]) - 2 * radius
            # A point that bounces between two walls goes round a circle twice as long, seen from the side.
            travelled = (start * room + shape["speed"] * index / fps) % (2 * room)
            x, y = np.minimum(travelled, 2 * room - travelled) + radius
            box = (x - radius, y - radius, x + radius, y + radius)
            if shape["kind"] == "circle":
                draw.ellipse(box, fill=shape["colour"])
            elif shape["kind"] == "square":
                draw.rectangle(box, fill=shape["colour"])
            else:
                draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], shape["colour"])
        return np.array(picture)

    clock = np.arange(seconds * rate) / rate
    beep = np.where(clock % 1 < 0.1, 0.3 * np.sin(2 * np.pi * 880 * clock), 0).astype(np.float32)
    return write_clip(path, (frame(index) for index in range(seconds * fps)), fps=fps, audio=(beep, rate))

"""Small videos, and a reader that decodes everything: what the processor's sampling is compared with."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from llama_vid.modeling.video_decoding_llama_vid import LlamaVidVideoMetadata, open_file


def pictures(count: int, height: int = 48, width: int = 64):
    """Frames that all differ: a bar moves over a background that changes its colour."""
    for index in range(count):
        picture = np.empty((height, width, 3), np.uint8)
        picture[:] = (7 * index % 256, 255 - 5 * index % 256, 40)
        picture[:, 3 * index % width :][:, :8] = (250, 20 * index % 256, 128)
        yield picture


def encode(
    path: Path,
    frames,
    *,
    codec: str = "libx264",
    rate: Fraction | int = 25,
    pixel_format: str = "yuv420p",
    pts: list[int] | None = None,
    **options,
) -> Path:
    """Write a video with any options of the encoder; `pts` are ticks of 1 / rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.pix_fmt = pixel_format
        stream.options = {key: str(value) for key, value in options.items()}
        stream.codec_context.time_base = 1 / Fraction(rate)
        for index, picture in enumerate(frames):
            if index == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = pts[index] if pts else index, stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decode_everything(path: Path) -> tuple[list[int], list[np.ndarray], Fraction]:
    """All frames as RGB with their timestamps and the time base, decoded in one thread."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        frames = list(container.decode(stream))
        return [frame.pts for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames], stream.time_base


def on_screen_at(seconds: Fraction, pts: list[int], time_base: Fraction) -> int:
    """The last frame that has appeared `seconds` after the first one, found the slow way."""
    return max(index for index, stamp in enumerate(pts) if (stamp - pts[0]) * time_base <= seconds)


def prepare(picture: np.ndarray, size: int) -> torch.Tensor:
    """Shortest edge to `size` by bicubic interpolation with antialiasing on uint8, centre crop, CLIP mean and std."""
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)
    height, width = image.shape[1:]
    shape = (size, int(size * width / height)) if height <= width else (int(size * height / width), size)
    image = resize(image, list(shape), interpolation=InterpolationMode.BICUBIC, antialias=True)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    image = image[:, top : top + size, left : left + size] / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return (image - mean) / std


def read(video, *, threads: int | None = None, **rule) -> tuple[list[torch.Tensor], list[float], LlamaVidVideoMetadata]:
    """Frames, their times and the metadata that the decoder gives, at 1 fps unless the rule says otherwise."""
    with open_file(video, {"fps": 1, **rule}, threads=threads) as clip:
        frames = list(clip.frames)
    return [image for image, _ in frames], [seconds for _, seconds in frames], clip.metadata

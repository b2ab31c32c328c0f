"""Videos for the benchmarks: made here, so that everyone can make the same."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch

from llama_vid.data.clips import write_clip

FRAME_RATE = 25
SHOT_FRAMES = 50, 200  # from one cut to the next; films cut every few seconds


def make_film(path: Path, seconds: int, size: tuple[int, int], scene_seconds: int = 60) -> Path:
    """
    H.264 as x264 makes it by default: shots of 2 to 8 seconds in which a view wanders over a rough texture, with a few
    moving things and some grain.

    One scene is encoded, and stands again and again in a longer film, packet by packet: a decoder has the same work as
    with ever new scenes, and an hour is made in minutes.

    Args:
        path (`Path`): Where to write it.
        seconds (`int`): How long it is; cut to whole scenes.
        size (`tuple[int, int]`): Width and height.
        scene_seconds (`int`): How long the scene is; no longer than the film.
    """
    scene_seconds = min(seconds, scene_seconds)
    scene = write_clip(path.with_stem(f"{path.stem}-scene"), pictures(scene_seconds, size), fps=FRAME_RATE)
    repeat(scene, path, seconds // scene_seconds)
    scene.unlink()
    return path


def pictures(seconds: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Frames of a scene, (height, width, 3), uint8."""
    width, height = size
    random = np.random.default_rng(0)
    rough = torch.zeros(1, 3, 2 * height, 2 * width)
    for cells in (8, 64, 512):
        coarse = torch.from_numpy(random.uniform(0, 80, (1, 3, cells, cells)).astype(np.float32))
        rough += torch.nn.functional.interpolate(coarse, size=rough.shape[-2:], mode="bicubic")
    texture = rough[0].clamp(0, 245).byte().permute(1, 2, 0).numpy()
    grain = random.integers(0, 10, (8, height, width, 1), dtype=np.uint8)
    cut = 0
    for index in range(FRAME_RATE * seconds):
        if index == cut:
            cut += random.integers(*SHOT_FRAMES)
            phases, colours = random.uniform(0, 2 * np.pi, 2), random.permutation(3)
        top, left = (np.array([height, width]) * (0.5 + 0.45 * np.sin(index / np.array([97, 61]) + phases))).astype(int)
        picture = texture[top : top + height, left : left + width, colours] + grain[index % len(grain)]
        for thing in range(5):
            x, y = (index * (3 + thing)) % (width - 80), (index * (2 + thing) + 90 * thing) % (height - 80)
            picture[y : y + 80, x : x + 80, thing % 3] ^= 255
        yield picture


def repeat(scene: Path, path: Path, times: int) -> None:
    """Write the packets of `scene` so many times in a row, one scene's length later each time."""
    with av.open(str(path), "w") as film:
        copy, written, length = None, 0, 0
        for _ in range(times):
            with av.open(str(scene)) as container:
                stream = container.streams.video[0]
                copy = copy or film.add_stream_from_template(stream)
                for packet in container.demux(stream):
                    if packet.size:
                        packet.pts, packet.dts = packet.pts + written, packet.dts + written
                        packet.stream = copy
                        film.mux(packet)
                length = stream.duration
            written += length

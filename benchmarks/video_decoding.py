"""
One frame a second from a long video, 224 pixels wide and high: time and memory of this project's decoding and others'.

    python benchmarks/video_decoding.py [--seconds 600] [--size 1280x720] [--repeats 3] [--video FILE]
                                        [--output benchmarks/results/video_decoding.md]

Every measurement is a process of its own, all in turn, so that ratios mean something where absolute times do not.
Memory is the peak above what the process held once everything was imported; Linux tells it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from clips import make_film
from report import environment, peak_memory, reset_peak_memory, write
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, resize
from transformers.video_utils import load_video

from llama_vid.modeling.video_decoding_llama_vid import open_file


def shrink(image: torch.Tensor) -> torch.Tensor:
    """(…, 3, height, width), uint8, to (…, 3, 224, 224), in the same way for everyone."""
    return center_crop(resize(image, [224], interpolation=InterpolationMode.BICUBIC, antialias=True), [224])


def decode_everything(path: str) -> torch.Tensor:
    """PyAV in its usual way: all frames, of which the one on screen at each second is converted."""
    kept = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.time >= len(kept):
                kept.append(shrink(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)))
    return torch.stack(kept)


def ours(path: str, **options) -> torch.Tensor:
    """This project's decoding."""
    with open_file(path, {"fps": 1}, prepare=shrink, **options) as clip:
        return torch.stack([image for image, _ in clip.frames])


def with_transformers(path: str) -> torch.Tensor:
    """transformers' loader on PyAV: an array of full-size frames."""
    return shrink(torch.from_numpy(load_video(path, fps=1, backend="pyav")[0]).permute(0, 3, 1, 2))


def open_torchcodec(path: str):
    """torchcodec's decoder, which loads FFmpeg's libraries only now."""
    from torchcodec.decoders import VideoDecoder

    return VideoDecoder(path, num_ffmpeg_threads=0)


def with_torchcodec(path: str) -> torch.Tensor:
    """torchcodec, asked for all instants at once."""
    decoder = open_torchcodec(path)
    seconds = np.arange(int(decoder.metadata.duration_seconds))
    return shrink(decoder.get_frames_played_at(seconds=seconds.tolist()).data)


def open_decord(path: str):
    """decord's reader (the package eva-decord)."""
    from decord import VideoReader

    return VideoReader(path)


def with_decord(path: str) -> torch.Tensor:
    """decord, asked for all frames at once."""
    reader = open_decord(path)
    indices = np.arange(int(len(reader) / reader.get_avg_fps())) * reader.get_avg_fps()
    return shrink(torch.from_numpy(reader.get_batch(indices.astype(int)).asnumpy()).permute(0, 3, 1, 2))


METHODS = {
    "decoding everything, PyAV": decode_everything,
    "llama-vid, 1 thread": lambda path: ours(path, threads=1),
    "llama-vid, all threads": ours,
    "transformers `load_video`, PyAV": with_transformers,
    "torchcodec": with_torchcodec,
    "decord": with_decord,
}
OPTIONAL = {"torchcodec": open_torchcodec, "decord": open_decord}


def loads(method: str, path: str) -> bool:
    """Whether what a method needs is installed, with the libraries that it needs in turn."""
    try:
        if method in OPTIONAL:
            OPTIONAL[method](path)
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def measure(method: str, path: str) -> dict[str, float]:
    """Run one method in this process."""
    loads(method, path)  # imports are not measured
    shrink(torch.zeros(3, 300, 300, dtype=torch.uint8))  # what torch sets up at its first call is no memory of decoding
    memory, wall, cpu = reset_peak_memory(), time.perf_counter(), time.process_time()
    pixels = METHODS[method](path)
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "memory": peak_memory() - memory,
        "frames": len(pixels),
        "checksum": int(pixels.long().sum()),
    }


def main(video: Path, repeats: int) -> str:
    """Run all methods in turn and return the table."""
    runs = {name: [] for name in METHODS if loads(name, str(video))}
    for _ in range(repeats):
        for name, results in runs.items():
            command = [sys.executable, __file__, "--video", str(video), "--measure", name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(output.splitlines()[-1]))

    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        duration = container.duration / av.time_base
        keyframes = sum(packet.is_keyframe for packet in container.demux(stream))
        about = (
            f"{duration:.0f} s of {stream.width}x{stream.height} {stream.codec_context.name}, {stream.frames} frames, "
            f"{keyframes} keyframes, {video.stat().st_size / duration / 125e3:.1f} Mbit/s"
        )
    lines = [
        f"{about}; one frame a second, resized to 224; median of {repeats}, in turn. Equal checksums mean equal "
        "pixels.",
        "",
        "| method | wall, s | CPU, s | peak memory, MB | frames | checksum | share of the first |",
        "|---|---|---|---|---|---|---|",
    ]
    base = statistics.median(run["wall"] for run in runs["decoding everything, PyAV"])
    for name in METHODS:
        if name not in runs:
            lines.append(f"| {name} | not installed, or does not load | | | | | |")
            continue
        wall, cpu, memory = (statistics.median(run[key] for run in runs[name]) for key in ("wall", "cpu", "memory"))
        last = runs[name][-1]
        lines.append(
            f"| {name} | {wall:.2f} | {cpu:.2f} | {memory / 1e6:.0f} | {last['frames']} | {last['checksum']} | "
            f"{wall / base:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--video", type=Path, help="measure on this file instead of one that is made")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", choices=list(METHODS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, str(arguments.video))))
        sys.exit()
    with tempfile.TemporaryDirectory() as folder:
        size = tuple(map(int, arguments.size.split("x")))
        video = arguments.video or make_film(Path(folder) / "film.mp4", arguments.seconds, size)
        table = main(video, arguments.repeats)
    made = "--video FILE" if arguments.video else f"--seconds {arguments.seconds} --size {arguments.size}"
    command = f"python benchmarks/video_decoding.py {made} --repeats {arguments.repeats}"
    write("Decoding a frame a second", command, table, environment("cpu"), arguments.output)

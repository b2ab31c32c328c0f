"""
An hour of 1080p video from the file to an answer: time by part, peak memory beside a minute's, and a second question.

    python benchmarks/long_video.py [--seconds 3600] [--size 1920x1080] [--video FILE]
                                    [--output benchmarks/results/long_video.md]

The model is the embedded one and one like it for frames of 224 pixels, with random weights: what is shown is what this
project adds to the decoder, the encoder and the language model, not what those of a large model cost. Every measurement
is a process of its own. Memory is the peak above what the process held once the model was loaded; Linux tells it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from clips import make_film
from report import environment, peak_memory, reset_peak_memory, write

from llama_vid import LlamaVidForConditionalGeneration, LlamaVidSession, extract_features
from llama_vid.composition import build_processor

QUESTIONS = ("Which shape comes first?", "When does the red circle enter?")
TOKENS = 32


def make_checkpoint(folder: Path, side: int) -> Path:
    """The embedded checkpoint's architecture for frames of `side` pixels and prompts of 8,192 tokens, drawn anew."""
    embedded = LlamaVidSession.from_pretrained()
    config = embedded.model.config
    config.vision_config.image_size = side
    config.text_config.rope_parameters = {**config.text_config.rope_parameters, "rope_type": "linear", "factor": 16.0}
    torch.manual_seed(0)
    model = LlamaVidForConditionalGeneration(config)
    model.generation_config = embedded.model.generation_config
    model.save_pretrained(folder)
    processor = embedded.processor
    build_processor(config, processor.tokenizer, processor.qformer_tokenizer).save_pretrained(folder)
    return folder


def timed(function: Callable, part: str, seconds: Counter) -> Callable:
    """The function, which adds the time that it takes to `seconds[part]`."""

    def run(*args, **kwargs):
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[part] += time.perf_counter() - start

    return run


def measure(video: str, checkpoint: str) -> dict:
    """Open a video and ask two questions, in this process."""
    session, seconds = LlamaVidSession.from_pretrained(checkpoint), Counter()
    model = session.model
    for owner, method, part in (
        (model, "encode_frames", "encoder"),
        (model.model, "get_video_features", "tokens"),
        (model, "prefill", "prefill"),
        (model, "generate", "generation"),
        (session, "open", "opening"),
    ):
        setattr(owner, method, timed(getattr(owner, method), part, seconds))
    memory = reset_peak_memory()
    session.open(video)
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    first = session.ask(QUESTIONS[0], **options)
    peak, parts = peak_memory() - memory, dict(seconds)
    second = session.ask(QUESTIONS[1], **options)
    text = model.config.text_config
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 4  # bytes of a token
    return {
        "frames": first.num_frames,
        "prompt": first.prompt_length,
        "waiting for frames": parts["opening"] - parts.get("encoder", 0),
        "encoder": parts.get("encoder", 0),
        "tokens": parts["tokens"],
        "prefill": parts["prefill"] - parts["tokens"],
        "generation": parts["generation"],
        "first": first.seconds,
        "second": second.seconds,
        "peak": peak,
        "own": session.features.nbytes + first.prompt_length * (cache + 4 * text.hidden_size),
    }


def in_its_own_process(video: Path, checkpoint: Path) -> dict:
    """What `measure` returns."""
    command = [sys.executable, __file__, "--measure", str(video), str(checkpoint)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main(video: Path | None, seconds: int, size: tuple[int, int]) -> str:
    """Make what is needed, measure, and return the tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = video or make_film(folder / "film.mp4", seconds, size)
        minute = make_film(folder / "minute.mp4", 60, size)
        results = {}
        for side in (56, 224):
            checkpoint = make_checkpoint(folder / str(side), side)
            results[f"1 minute, {side} px"] = in_its_own_process(minute, checkpoint)
            results[f"{seconds / 60:g} minutes, {side} px"] = in_its_own_process(video, checkpoint)
            features = extract_features(video, folder / f"features-{side}", model=checkpoint).written[0]
            results[f"{seconds / 60:g} minutes, {side} px, from a file of features"] = in_its_own_process(
                features, checkpoint
            )
        megabits = video.stat().st_size / seconds / 125e3
    return tables(results, f"{seconds / 60:g} minutes of {size[0]}x{size[1]} H.264 at {megabits:.1f} Mbit/s")


def tables(results: dict[str, dict], about: str) -> str:
    """Times by part, then memory beside a minute's."""
    parts = ["waiting for frames", "encoder", "tokens", "prefill", "generation", "first", "second"]
    lines = [
        f"{about}, one frame a second, {TOKENS} tokens of answer. *Waiting for frames* is decoding that does not run "
        "beside the encoder; *tokens* is text decoder, context attention and projector. The models are tiny: what is "
        "shown is what stands around a large model's own time.",
        "",
        "| video | frames | prompt | " + " | ".join(f"{part}, s" for part in parts) + " | second / first |",
        "|---|---|---" + "|---" * len(parts) + "|---|",
    ]
    for name, result in results.items():
        cells = " | ".join(f"{result[part]:.2f}" for part in parts)
        share = 100 * result["second"] / result["first"]
        lines.append(f"| {name} | {result['frames']} | {result['prompt']} | {cells} | {share:.1f} % |")
    lines += [
        "",
        "*Own size* is that of features, prompt embeddings and the language model's cache.",
        "",
        "| video | peak memory, MB | own size, MB | above a minute's peak and the difference of own size, MB |",
        "|---|---|---|---|",
    ]
    base = None
    for name, result in results.items():
        base = result if name.startswith("1 minute") else base
        more = result["peak"] - base["peak"] - (result["own"] - base["own"])
        lines.append(f"| {name} | {result['peak'] / 1e6:.0f} | {result['own'] / 1e6:.0f} | {more / 1e6:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3600, help="of the film that is made, or of --video")
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--video", type=Path, help="measure on this file instead of one that is made")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        sys.exit()
    size = tuple(map(int, arguments.size.split("x")))
    table = main(arguments.video, arguments.seconds, size)
    command = f"python benchmarks/long_video.py --seconds {arguments.seconds} --size {arguments.size}"
    command += " --video FILE" if arguments.video else ""
    write("An hour of video, from the file to an answer", command, table, environment("cpu"), arguments.output)

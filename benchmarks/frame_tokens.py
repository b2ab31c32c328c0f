"""
What frames cost after the visual encoder, as a share of the encoder's time, at the released sizes with random weights.

    python benchmarks/frame_tokens.py [--frames 8] [--repeats 3] [--device cpu] [--dtype float32]
                                      [--output benchmarks/results/frame_tokens.md]

Needs about 6 GB in float32: EVA-ViT-g, the Q-Former, context attention and the projector; the language model is a stub.
"""

import argparse
import statistics
from pathlib import Path

import torch
from report import environment, timed, write

from llama_vid.modeling import LlamaVidConfig, LlamaVidModel


@torch.inference_mode()
def main(frames: int, repeats: int, device: str, dtype: torch.dtype) -> str:
    """Run the encoder and what comes after it in turn and return the table."""
    torch.manual_seed(0)
    stub = {"hidden_size": 4096, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    config = LlamaVidConfig(text_config={"model_type": "llama", **stub}, image_token_id=62, video_token_id=63)
    model = LlamaVidModel(config).to(device, dtype).eval()
    pixels = torch.randn(frames, 3, 224, 224, device=device, dtype=dtype)
    ids = torch.randint(1000, 2000, (1, 20), device=device)

    grids = {"2 tokens a frame": 1, "17 tokens a frame": 4, "257 tokens a frame": None}
    encoder, after = [], {name: [] for name in grids}
    for repeat in range(repeats + 1):
        seconds, features = timed(lambda: model.encode_frames(pixels), device)
        if repeat:  # the first one warms up
            encoder.append(seconds)
        for name, grid in grids.items():
            config.video_grid_size = grid
            inputs = {"qformer_input_ids_videos": ids, "video_features": features}
            seconds, _ = timed(lambda inputs=inputs: model.get_video_features(**inputs), device)
            if repeat:
                after[name].append(seconds)
    base = statistics.median(encoder)
    lines = [
        f"{frames} frames at 224 px, a question of 20 word pieces, {str(dtype).removeprefix('torch.')}, "
        f"median of {repeats}.",
        "",
        "| part | ms a frame | share of the visual encoder's time |",
        "|---|---|---|",
        f"| visual encoder (EVA-ViT-g) | {1e3 * base / frames:.1f} | 100 % |",
    ]
    for name, times in after.items():
        seconds = statistics.median(times)
        lines.append(
            f"| text decoder, context attention, content: {name} | {1e3 * seconds / frames:.1f} | "
            f"{100 * seconds / base:.1f} % |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    settings = vars(arguments)
    command = "python benchmarks/frame_tokens.py " + " ".join(
        f"--{name} {settings[name]}" for name in ("frames", "repeats", "device", "dtype")
    )
    table = main(arguments.frames, arguments.repeats, arguments.device, getattr(torch, arguments.dtype))
    write("Tokens of a frame", command, table, environment(arguments.device), arguments.output)

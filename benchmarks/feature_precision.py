"""
What keeping features in fewer bits or rows does to the answers: logits from stored features beside those from pixels.

Each question is asked about a demo clip. The model answers greedily from what its encoder gave, and the same answer is
then scored from each kind of file: how far the logits of its tokens move, and how often the most likely token stays the
same. The last row, features of another clip, shows how much the logits depend on the video at all.

Answers of the embedded checkpoint are one word and its end. Example:
`python benchmarks/feature_precision.py --tokens 2 --output benchmarks/results/feature_precision.md`
"""

import argparse
import tempfile
from pathlib import Path

import torch
from report import environment, write
from transformers import AutoModelForImageTextToText, AutoProcessor

from llama_vid.data.clips import make_demo_clip
from llama_vid.features import extract_features
from llama_vid.modeling.video_features_llama_vid import VideoFeatures
from llama_vid.session import TINY_CHECKPOINT

QUESTIONS = (
    "What is moving?",
    "How many circles are there?",
    "Which colour is the square?",
    "Describe the video from its beginning to its end.",
)


def prompt(processor, features: torch.Tensor, question: str, device: str) -> dict[str, torch.Tensor]:
    """The inputs of a question about a video's features."""
    content = [{"type": "video", "features": features}, {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(device)


def answer_logits(model, processor, features: torch.Tensor, question: str, answer: torch.Tensor) -> torch.Tensor:
    """Scores of each token of `answer` (tokens,) given those before: (tokens, vocabulary without placeholders)."""
    inputs = prompt(processor, features, question, model.device)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer[None]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    logits = model(**inputs, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
    placeholders = {model.config.image_token_id, model.config.video_token_id}
    return logits[:, [token for token in range(logits.shape[-1]) if token not in placeholders]]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the error over the norm of what was expected."""
    return float((found - expected).norm() / expected.norm())


@torch.inference_mode()
def main(checkpoint: str, seconds: int, tokens: int, device: str) -> str:
    """Measure every kind of file, and return the table."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval().to(device)
    processor = AutoProcessor.from_pretrained(checkpoint)
    side = model.config.patch_grid_side
    grids = [k for k in range(side // 2, 0, -1) if side % k == 0]
    kinds = {
        "float16": {},
        "bfloat16": {"dtype": "bfloat16"},
        "int8, a scale a row": {"dtype": "int8"},
        **{f"float16, CLS + {k} x {k} pooled": {"grid_size": k} for k in grids},
        **{f"int8, CLS + {k} x {k} pooled": {"grid_size": k, "dtype": "int8"} for k in grids[:1]},
    }
    with tempfile.TemporaryDirectory() as folder:
        clips = [make_demo_clip(f"{folder}/{seed}.mp4", seconds=seconds, seed=seed) for seed in range(2)]
        encoded = []
        for clip in clips:
            chunks = processor.video_processor.iter_chunks(clip)
            encoded.append(torch.cat([model.encode_frames(pixels.to(device)) for pixels, _ in chunks]))
        exact, sizes = encoded[0], {}
        stored = {}
        for number, (kind, options) in enumerate(kinds.items()):
            path = extract_features(clips[0], f"{folder}/{number}", model=checkpoint, **options).written[0]
            features = VideoFeatures(path)
            kept, width = (features.grid_size or side) ** 2 + features.rows - side**2, features.shape[2]
            sizes[kind] = kept * (width + 4 if features.dtype == "int8" else 2 * width) / 1e3
            stored[kind] = features.load().to(device)
        stored["another clip"] = encoded[1]

    answers, expected = [], []
    for question in QUESTIONS:
        inputs = prompt(processor, exact, question, device)
        output = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        answers.append(output[0, inputs["input_ids"].shape[1] :])
        expected.append(answer_logits(model, processor, exact, question, answers[-1]))

    lines = [
        f"{len(exact)} frames of a demo clip with {side} x {side} patches each, {len(QUESTIONS)} questions, greedy "
        f"answers of {tokens} tokens. Checkpoint: "
        + ("the embedded one." if checkpoint == TINY_CHECKPOINT else f"`{checkpoint}`."),
        "",
        "| Stored as | kB a frame | Error of features | Error of logits | Most likely token is the same |",
        "|---|---|---|---|---|",
    ]
    for kind, features in stored.items():
        found = [answer_logits(model, processor, features, *pair) for pair in zip(QUESTIONS, answers, strict=True)]
        error = sum(relative(*pair) for pair in zip(found, expected, strict=True)) / len(QUESTIONS)
        same = torch.cat(found).argmax(-1) == torch.cat(expected).argmax(-1)
        size = f"{sizes[kind]:.2f}" if kind in sizes else ""
        lines.append(
            f"| {kind} | {size} | {relative(features, exact):.1e} | {error:.1e} | {100 * same.float().mean():.1f} % |"
        )
    lines += ["", "Errors are norms of differences over norms of what the encoder's own output gives."]
    if checkpoint == TINY_CHECKPOINT:
        lines += [
            "",
            "The checkpoint is small and knows a small world: large encoders often have a few channels far larger than "
            f"the others, which costs int8 precision, and {side} x {side} patches are few to pool. Measure yours with "
            "`--model`.",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint's folder or Hub id; the embedded one by default")
    parser.add_argument("--seconds", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    command = "python benchmarks/feature_precision.py " + " ".join(
        f"--{name} {value}"
        for name, value in vars(arguments).items()
        if name in ("model", "seconds", "tokens", "device") and value is not None
    )
    table = main(arguments.model or TINY_CHECKPOINT, arguments.seconds, arguments.tokens, arguments.device)
    write("Features in fewer bits and rows", command, table, environment(arguments.device), arguments.output)

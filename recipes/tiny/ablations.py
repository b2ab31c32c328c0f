"""
The paper's ablations in miniature: which tokens a frame has, on the same pre-trained parts and the same data.

    python recipes/tiny/ablations.py [--seeds 0 1 2] [--variants ...] [--output runs/tiny/ablations]

Each run goes from untrained connections to instruction tuning on images and then on clips of a single shape, shortened,
and answers 500 questions about other images, of up to three shapes, and 500 about other clips. What is done already is
not done again, so several processes may share the runs, and an interrupted one goes on where it was. It ends with the
table of all runs so far, `ablations.md`.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
from filelock import FileLock, Timeout
from transformers import AutoModelForImageTextToText, AutoProcessor

from llama_vid.composition import create_model
from llama_vid.data.mixture import DatasetConfig, load_mixture
from llama_vid.data.records import to_messages
from llama_vid.training.evaluation import answer_accuracy
from llama_vid.training.sft import train
from llama_vid.whole_files import write_text

HERE = Path(__file__).parent
VISION, LANGUAGE = "models/tiny/instructblip", "models/tiny/language-model"
# Values of the configuration, or another text decoder.
VARIANTS = {
    "context + content": {},
    "content only": {"use_context_token": False},
    "context only": {"use_content_token": False},
    "context + 2 x 2 content": {"video_grid_size": 2},
    "context + 4 x 4 content": {"video_grid_size": 4},
    "context of a BERT decoder + content": {"qformer": "models/tiny/bert-decoder"},
}
STEPS = {"stage2-images": 150, "stage2-simple": 100}
TESTS = {"images": "data/tiny/test_pictures-pictures.jsonl", "clips": "data/tiny/test_simple.jsonl"}


def run(variant: str, seed: int, folder: Path) -> dict[str, float]:
    """Train and test once; the scores."""
    values = dict(VARIANTS[variant])
    qformer = values.pop("qformer", VISION)
    model_name = folder / "untrained"
    if not model_name.exists():
        create_model(
            model_name,
            vision_tower=VISION,
            qformer=qformer,
            language_model=LANGUAGE,
            config_overrides={"image_grid_size": values.get("video_grid_size", 1), **values},
            seed=seed,
        )
    for stage, steps in STEPS.items():
        settings = {
            "model_name_or_path": model_name,
            "max_steps": steps,
            "max_length": 1024,  # a frame may have 17 tokens
            "seed": seed,
            "save_strategy": "no",
        }
        model_name = folder / stage
        if not (model_name / "config.json").exists():
            options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
            train(["--config", str(HERE / f"{stage}.yaml"), "--output_dir", str(model_name), *options])
    model = AutoModelForImageTextToText.from_pretrained(model_name, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(model_name)
    scores = {"tokens": model.config.frame_seq_length}
    for test, path in TESTS.items():
        asked = [question for row in load_mixture([DatasetConfig(path)], seed=0) for question in _one_by_one(row)]
        for name, share in answer_accuracy(model, processor, asked, batch_size=25).items():
            kind = name.removeprefix("exact_match").removeprefix("_") or "all"
            scores[f"{test}: {kind}"] = share
    return scores


def _one_by_one(row: dict) -> list[dict]:
    """A chat's questions as chats of their own."""
    messages, kinds = to_messages(row), row["kind"].split(",")
    return [{"messages": messages[2 * i : 2 * i + 2], "kind": kind} for i, kind in enumerate(kinds)]


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Mean and standard deviation over the seeds, in percent."""
    names = list(next(iter(results.values()))[0])[1:]
    lines = [f"| a frame has | tokens | runs | {' | '.join(names)} |", f"|{'---|' * (3 + len(names))}"]
    for variant, runs in results.items():
        cells = [_cell([scores[name] for scores in runs]) for name in names]
        lines.append(f"| {variant} | {runs[0]['tokens']} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(shares: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * mean(shares):.1f}{spread}"


def main() -> None:
    """Do what is not done yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--output", type=Path, default=Path("runs/tiny/ablations"))
    arguments = parser.parse_args()
    results = {}
    arguments.output.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for variant in arguments.variants:
            folder = arguments.output / f"{variant.replace(' ', '-')}-{seed}"
            path = folder.with_suffix(".json")
            try:
                with FileLock(f"{path}.lock", timeout=0):
                    if not path.exists():
                        folder.mkdir(exist_ok=True)
                        write_text(path, json.dumps(run(variant, seed, folder), indent=1))
                        shutil.rmtree(folder)
            except Timeout:
                print(f"{variant}, seed {seed}: another process is at it")
    for path in sorted(arguments.output.glob("*.json")):
        variant = path.stem.rpartition("-")[0]
        results.setdefault(variant, []).append(json.loads(path.read_text(encoding="utf-8")))
    results = {name: results[slug] for name in VARIANTS if (slug := name.replace(" ", "-")) in results}
    write_text(arguments.output / "ablations.md", table(results))
    print(table(results))


if __name__ == "__main__":
    main()

"""
Ask a checkpoint the questions of the tests: short clips, subtitles, and one event in films of 3,600 frames.

    python recipes/tiny/evaluate.py --model runs/tiny/stage3 [--data data/tiny] [--tests test test_said test_films]

The scores are printed, and written to `evaluation.json` in the checkpoint's folder for its model card to find; each
stands beside what one gets by always giving a kind's most frequent answer.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor

import llama_vid  # noqa: F401  registers the classes
from llama_vid.data.mixture import DatasetConfig, load_mixture
from llama_vid.data.records import to_messages
from llama_vid.data.shapes_questions import Question, majority_baseline
from llama_vid.training.evaluation import accuracy, generate_answers
from llama_vid.whole_files import write_text

# Name, and how many rows are answered at a time: a film's prompt has 7,200 tokens.
TESTS = {
    "test": ("short clips, 8 to 64 frames", 25),
    "test_said": ("subtitles, 8 to 64 frames", 25),
    "test_films": ("one event in 3,600 frames", 1),
}


def asked(rows: Dataset) -> list[Question]:
    """The questions of a test, each in a row of its own."""
    found = []
    for row in rows:
        question, answer = to_messages(row)
        found.append(Question(row["kind"], question["content"][-1]["text"], answer["content"][-1]["text"]))
    return found


def main() -> None:
    """Evaluate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("data/tiny"))
    parser.add_argument("--tests", nargs="*", choices=list(TESTS), default=list(TESTS))
    arguments = parser.parse_args()
    state = PartialState(cpu=not torch.cuda.is_available())  # several processes share the questions
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(arguments.model)
    scores = []
    for test in arguments.tests:
        name, batch_size = TESTS[test]
        features = arguments.data / "features" if test == "test_films" else None
        config = DatasetConfig(str(arguments.data / f"{test}.jsonl"), features_root=features)
        rows = load_mixture([config], seed=0)
        shares = accuracy(generate_answers(model, processor, rows, batch_size=batch_size))
        baselines = majority_baseline(asked(rows))
        state.print(f"\n{name}, {len(rows)} questions{'exact match':>20}{'majority':>12}")
        kinds = Counter(row["kind"] for row in rows)
        if len(kinds) == 1:
            shares = {"exact_match": shares["exact_match"]}  # which is that of its kind
        for metric, share in shares.items():
            kind = metric.removeprefix("exact_match").removeprefix("_") or "all"
            state.print(f"  {kind:<36}{share:>14.1%}{baselines[kind]:>12.1%}")
            scores.append(
                {
                    "name": name if kind == "all" else f"{name}: {kind}",
                    "dataset": f"small synthetic world, {test}",
                    "metric": "exact_match",
                    "value": round(share, 4),
                    "baseline": round(baselines[kind], 4),
                    "samples": kinds.get(kind, len(rows)),
                    "source": "recipes/tiny/evaluate.py",
                }
            )
    if state.is_main_process:
        write_text(arguments.model / "evaluation.json", json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()

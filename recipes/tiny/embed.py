"""
Put a trained checkpoint, its scores and its model card into the package, and the losses of all trainings into
`results`.

    python recipes/tiny/embed.py --model runs/tiny/stage3 [--output src/llama_vid/tiny]
"""

import argparse
import shutil
from pathlib import Path

from files import replaced

from llama_vid import publish

# The package has the code, and nobody resumes from here.
LEFT_OUT = ("*.py", "checkpoint-*", "training_args.bin", "README.md")

RESULTS = Path(__file__).with_name("results")
PRETRAINED = {"instructblip": "vision", "language-model": "language"}


def main() -> None:
    """Copy, and write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[2] / "src" / "llama_vid" / "tiny")
    arguments = parser.parse_args()
    with replaced(arguments.output) as partial:
        shutil.copytree(arguments.model, partial, ignore=shutil.ignore_patterns(*LEFT_OUT))
        (partial / "model.safetensors").chmod(0o644)
        shutil.copy(Path(__file__).with_name("about.json"), partial)
        publish(partial, "your-name/llama-vid-tiny", license="apache-2.0", dry_run=True)
    for curve in arguments.model.parent.glob("stage*/loss_curve.*"):
        shutil.copy(curve, RESULTS / f"{curve.parent.name}{curve.suffix}")
    for part, name in PRETRAINED.items():
        shutil.copy(Path("models/tiny", part, "training_log.json"), RESULTS / f"{name}.json")


if __name__ == "__main__":
    main()

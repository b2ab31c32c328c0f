"""
Put a trained checkpoint, its scores and its model card into the package.

    python recipes/tiny/embed.py --model runs/tiny/stage3 [--output src/llama_vid/tiny]
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from llama_vid import publish

# The package has the code, and nobody resumes from here.
LEFT_OUT = ("*.py", "checkpoint-*", "training_args.bin", "README.md")


def main() -> None:
    """Copy, and write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[2] / "src" / "llama_vid" / "tiny")
    arguments = parser.parse_args()
    output = arguments.output
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        partial = Path(folder) / output.name
        shutil.copytree(arguments.model, partial, ignore=shutil.ignore_patterns(*LEFT_OUT))
        (partial / "model.safetensors").chmod(0o644)
        publish(partial, "your-name/llama-vid-tiny", dry_run=True)
        if output.exists():
            shutil.rmtree(output)
        os.replace(partial, output)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{output.name}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

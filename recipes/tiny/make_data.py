"""
Write the small world that the tiny model is trained and tested on: about 5,000 clips, and films of up to an hour.

    python recipes/tiny/make_data.py [--output data/tiny] [--workers 2]

No two splits share a video. What is there already is kept.
"""

import argparse
from pathlib import Path

from llama_vid.data.shapes_dataset import make_world

SEED = 0
HARD_KINDS = ("direction", "order", "when", "said")
# The tests are 500 questions each.
SPLITS = {
    "train": {"num_videos": 3000, "seconds": (8, 24), "questions_per_video": 12, "turns": 6, "images_per_video": 4},
    "train_hard": {"num_videos": 1500, "seconds": (8, 24), "questions_per_video": 6, "turns": 6, "kinds": HARD_KINDS},
    "train_said": {"num_videos": 1000, "seconds": (8, 24), "questions_per_video": 2, "turns": 2, "kinds": ("said",)},
    "train_longer": {"num_videos": 700, "seconds": (24, 64), "questions_per_video": 6, "turns": 3},
    "train_films": {"num_videos": 60, "seconds": (300, 3600), "questions_per_video": 6, "long": True},
    "validation": {"num_videos": 100, "seconds": (8, 64), "questions_per_video": 2},
    "test": {"num_videos": 250, "seconds": (8, 64), "questions_per_video": 2},
    "test_said": {"num_videos": 250, "seconds": (8, 64), "questions_per_video": 2, "kinds": ("said",)},
    "test_films": {"num_videos": 125, "seconds": (3600, 3600), "questions_per_video": 4, "long": True},
}


def main() -> None:
    """Write all splits, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("splits", nargs="*", metavar="split", help=f"by default all: {', '.join(SPLITS)}")
    parser.add_argument("--output", type=Path, default=Path("data/tiny"))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.splits) - set(SPLITS)):
        parser.error(f"unknown splits: {', '.join(unknown)}; there are {', '.join(SPLITS)}")
    for split in arguments.splits or SPLITS:
        make_world(arguments.output, split=split, seed=SEED, workers=arguments.workers, **SPLITS[split])


if __name__ == "__main__":
    main()

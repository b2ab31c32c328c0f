"""
Write the small world that the tiny model is trained and tested on: about 9,000 clips, and films of up to an hour.

    python recipes/tiny/make_data.py ["train*"] [--output data/tiny] [--workers 2]

No two splits share a video. What is there already is kept.
"""

import argparse
from fnmatch import filter as matching
from itertools import chain
from pathlib import Path

from llama_vid.data.shapes_dataset import make_world

SEED = 0
SIMPLE_KINDS = ("colour", "shape", "direction", "when", "said", "presence")
HARD_KINDS = ("direction", "order", "when", "said")
HARD_KINDS_OF_LONG_CLIPS = ("direction", "order", "when", "count")
# The tests are 500 questions each.
SPLITS = {
    # One shape each, to begin with.
    "train_simple": {
        "num_videos": 800,
        "seconds": (8, 10),
        "long": True,
        "kinds": SIMPLE_KINDS,
        "questions_per_video": 12,
        "turns": 4,
    },
    "train": {"num_videos": 2500, "seconds": (8, 12), "questions_per_video": 12, "turns": 4, "images_per_video": 4},
    "train_hard": {"num_videos": 1500, "seconds": (8, 16), "kinds": HARD_KINDS, "questions_per_video": 8, "turns": 4},
    "train_said": {"num_videos": 1000, "seconds": (8, 32), "kinds": ("said",), "questions_per_video": 2, "turns": 2},
    # One question each, as the tests: every further turn begins at another token, from which seconds are to be counted.
    "train_longer": {"num_videos": 500, "seconds": (16, 64), "questions_per_video": 8},
    "train_longer_hard": {
        "num_videos": 1000,
        "seconds": (16, 64),
        "kinds": HARD_KINDS_OF_LONG_CLIPS,
        "questions_per_video": 8,
    },
    # Late seconds are what is told least exactly.
    "train_when": {"num_videos": 1000, "seconds": (16, 64), "kinds": ("when",), "questions_per_video": 4},
    # Clips of every kind, announced as films: their seconds are counted from behind the introduction.
    "train_announced": {"num_videos": 600, "seconds": (8, 64), "film": True, "questions_per_video": 8},
    "train_scenes": {"num_videos": 360, "seconds": (64, 900), "long": True, "film": True, "questions_per_video": 6},
    "train_films": {"num_videos": 80, "seconds": (900, 3600), "long": True, "film": True, "questions_per_video": 6},
    "validation": {"num_videos": 150, "questions_per_video": 4},
    "test": {"num_videos": 250, "questions_per_video": 2},
    "test_said": {"num_videos": 250, "kinds": ("said",), "questions_per_video": 2},
    # What the ablations are tested on: five questions about each picture.
    "test_simple": {
        "num_videos": 250,
        "seconds": (8, 10),
        "long": True,
        "kinds": SIMPLE_KINDS,
        "questions_per_video": 2,
    },
    "test_pictures": {"num_videos": 100, "seconds": (8, 16), "questions_per_video": 1, "images_per_video": 1},
    "test_films": {"num_videos": 125, "seconds": (3600, 3600), "long": True, "film": True, "questions_per_video": 4},
}


def main() -> None:
    """Write all splits, or those whose names match."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "splits", nargs="*", default=["*"], metavar="split", help=f"by default all: {', '.join(SPLITS)}"
    )
    parser.add_argument("--output", type=Path, default=Path("data/tiny"))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    chosen = {pattern: matching(SPLITS, pattern) for pattern in arguments.splits}
    if unknown := [pattern for pattern, splits in chosen.items() if not splits]:
        parser.error(f"unknown splits: {', '.join(unknown)}; there are {', '.join(SPLITS)}")
    for split in chain.from_iterable(chosen.values()):
        settings = {"images_per_video": 0, **SPLITS[split]}
        make_world(arguments.output, split=split, seed=SEED, workers=arguments.workers, **settings)


if __name__ == "__main__":
    main()

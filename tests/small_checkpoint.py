"""
A checkpoint on disk, for tests that must not depend on how the embedded one was trained: `python
recipes/tiny/make_checkpoint.py` wrote it.
"""

from pathlib import Path

UNTRAINED = str(Path(__file__).parent / "untrained")

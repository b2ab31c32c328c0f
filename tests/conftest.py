"""Fixtures that several test files use."""

import os

import pytest
from small_models import small_model
from small_parts import create, parts  # noqa: F401

from llama_vid.modeling import LlamaVidForConditionalGeneration

FLOOR = "LLAMA_VID_FLOOR"

# Files that take a minute or more, most of it in processes of their own. With them first, two workers end together.
LONG = ("test_hub", "test_hub_callback", "test_hub_documents", "test_hub_faults", "test_distributed", "test_features")
LONG += ("test_remote_code", "test_video_exactness", "test_checkpoints", "test_trl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="module", params=["installed", "floor"])
def version(request) -> str:
    """The folder that is put first on the path: nothing, or one with the oldest supported transformers."""
    if request.param == "installed":
        return ""
    if FLOOR not in os.environ:
        pytest.skip(f"{FLOOR} names no folder with the oldest supported transformers (`make test` installs one)")
    return os.environ[FLOOR]


@pytest.fixture
def model() -> LlamaVidForConditionalGeneration:
    return small_model()

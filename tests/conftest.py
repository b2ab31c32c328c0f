"""Fixtures that several test files use."""

import os

import pytest
from small_models import small_model
from small_parts import create, parts  # noqa: F401

from llama_vid.modeling import LlamaVidForConditionalGeneration

FLOOR = "LLAMA_VID_FLOOR"


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

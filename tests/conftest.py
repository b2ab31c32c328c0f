"""Fixtures that several test files use."""

import pytest
from small_models import small_model
from small_parts import create, parts  # noqa: F401

from llama_vid.modeling import LlamaVidForConditionalGeneration


@pytest.fixture
def model() -> LlamaVidForConditionalGeneration:
    return small_model()

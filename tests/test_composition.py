"""Building a processor for a model, and the embedded checkpoint."""

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from llama_vid.composition import build_processor
from llama_vid.session import TINY_CHECKPOINT


def test_processor_follows_the_configuration():
    loaded = AutoProcessor.from_pretrained(TINY_CHECKPOINT)
    config = AutoConfig.from_pretrained(TINY_CHECKPOINT)
    config.image_grid_size = 2
    processor = build_processor(config, loaded.tokenizer, loaded.qformer_tokenizer)
    assert processor.image_seq_length == 5
    assert processor.frame_seq_length == 2
    assert processor.image_processor.crop_size.height == config.vision_config.image_size
    assert processor.video_processor.crop_size["height"] == config.vision_config.image_size
    assert processor.image_processor.do_pad


def test_placeholder_ids_must_be_the_models():
    loaded = AutoProcessor.from_pretrained(TINY_CHECKPOINT)
    config = AutoConfig.from_pretrained(TINY_CHECKPOINT)
    config.image_token_id -= 1
    with pytest.raises(ValueError, match="use the tokenizer that the model was made with"):
        build_processor(config, loaded.tokenizer, loaded.qformer_tokenizer)


def test_embedded_checkpoint_is_small_complete_and_without_code():
    files = [file for file in Path(TINY_CHECKPOINT).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 3_000_000
    assert not [file for file in files if file.suffix in (".py", ".bin", ".pt", ".pth")]
    model, report = AutoModelForImageTextToText.from_pretrained(TINY_CHECKPOINT, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    config = model.config
    widths = [
        config.vision_config.hidden_size,
        config.vision_config.intermediate_size,
        config.qformer_config.hidden_size,
        config.qformer_config.intermediate_size,
        config.text_config.hidden_size,
        config.text_config.intermediate_size,
        config.text_config.vocab_size,
        config.qformer_config.vocab_size,
    ]
    assert len(set(widths)) == len(widths)

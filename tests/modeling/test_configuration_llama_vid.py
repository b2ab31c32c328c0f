# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""The configuration: its defaults, what follows from it, and what it refuses."""

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from small_models import QFORMER, TEXT, VISION, Sample, collate, small_config, small_model
from transformers import AutoConfig, InstructBlipQFormerConfig

from llama_vid.modeling import LlamaVidConfig, LlamaVidForConditionalGeneration


def test_defaults_are_the_papers_mixed_use_at_7b_and_224():
    config = LlamaVidConfig()
    assert (config.image_seq_length, config.frame_seq_length) == (257, 2)
    assert config.vision_config.hidden_size == config.qformer_encoder_hidden_size == 1408
    assert (config.vision_num_layers, config.num_query_tokens, config.patch_grid_side) == (39, 32, 16)
    assert (config.text_config.hidden_size, config.context_length) == (4096, 4096)
    assert config.text_config.vocab_size == config.video_token_id + 1 == 32002


@pytest.mark.parametrize(
    ("settings", "image", "frame"),
    [
        ({}, 17, 2),
        ({"image_grid_size": 2, "video_grid_size": 4}, 5, 17),
        ({"image_grid_size": 1, "video_grid_size": None}, 2, 17),
        ({"use_context_token": False}, 16, 1),
        ({"use_content_token": False}, 1, 1),
    ],
)
def test_what_visuals_cost(settings, image, frame):
    config = small_config(**settings)
    assert (config.image_seq_length, config.frame_seq_length) == (image, frame)


def test_saved_and_loaded(tmp_path):
    config = small_config(image_grid_size=2)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is LlamaVidConfig
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()


def test_code_is_found_wherever_it_is_saved(tmp_path):
    config = small_config(auto_map={"AutoConfig": "someone/somewhere--configuration_llama_vid.LlamaVidConfig"})
    assert config.auto_map["AutoConfig"] == "configuration_llama_vid.LlamaVidConfig"
    assert config.auto_map["AutoModel"] == "modeling_llama_vid.LlamaVidModel"


def test_the_bert_decoder_is_a_decoder_with_cross_attention():
    config = small_config(qformer_config={"model_type": "bert", **QFORMER}, qformer_vision_proj=True)
    assert config.uses_bert_decoder
    assert config.qformer_config.is_decoder
    assert config.qformer_config.add_cross_attention
    assert config.qformer_encoder_hidden_size == QFORMER["hidden_size"]


def test_ties_as_the_language_model_does():
    assert small_config(text_config={**TEXT, "tie_word_embeddings": True}).tie_word_embeddings
    assert not small_config(text_config={**TEXT, "tie_word_embeddings": False}).tie_word_embeddings


@pytest.mark.parametrize("ties", [True, False])
def test_a_given_tie_counts_and_not_the_language_models(ties, tmp_path):
    config = small_config(text_config={**TEXT, "tie_word_embeddings": not ties}, tie_word_embeddings=ties)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert config.tie_word_embeddings is loaded.tie_word_embeddings is ties


BAD = {
    "a grid that does not divide": ({"image_grid_size": 3}, r"`image_grid_size=3` does not fit the 4 x 4 patches"),
    "a grid of nothing": ({"video_grid_size": 0}, r"`video_grid_size=0` does not fit"),
    "no token": ({"use_context_token": False, "use_content_token": False}, "a frame would have no token"),
    "a layer that is not there": ({"vision_feature_layer": -4}, "must lie between -3 and -1"),
    "no queries": ({"num_query_tokens": 0}, "`num_query_tokens` must be at least 1"),
    "widths that do not fit": (
        {"qformer_config": InstructBlipQFormerConfig(**QFORMER, encoder_hidden_size=41)},
        "width 41, the vision tower gives 40: set `qformer_vision_proj=True`",
    ),
    "SigLIP has no CLS": (
        {"vision_config": {"model_type": "siglip_vision_model", **VISION}},
        "has no CLS row",
    ),
    "a whole CLIP": ({"vision_config": {"model_type": "clip"}}, "pass the vision part of a model"),
    "images of any size": (
        {"vision_config": {"model_type": "siglip2_vision_model"}},
        "no encoder of fixed-size",
    ),
    "sides of two lengths": ({"vision_config": {**VISION, "image_size": [56, 28]}}, "must be integers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values(name):
    settings, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        small_config(**settings)


def test_types_are_checked():
    with pytest.raises(StrictDataclassFieldValidationError, match="image_grid_size"):
        small_config(image_grid_size="2")


def test_overrides_at_loading_are_checked(tmp_path):
    small_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`video_grid_size=3` does not fit"):
        LlamaVidForConditionalGeneration.from_pretrained(tmp_path, video_grid_size=3)
    with pytest.raises(ValueError, match="`vision_feature_layer` must lie between"):
        LlamaVidForConditionalGeneration.from_pretrained(tmp_path, vision_feature_layer=-9)
    with pytest.raises(ValueError, match=r"`video_token_id=5000` must be below the language model's `vocab_size=\d+`"):
        LlamaVidForConditionalGeneration.from_pretrained(tmp_path, video_token_id=5000)


def test_scores_of_routers(model):
    experts = {"model_type": "mixtral", "num_local_experts": 3, "output_router_logits": True}  # as TRL sets it
    model = small_model(text_config={**TEXT, **experts})
    batch = collate([Sample(model, 1, image=True)])
    assert len(model.generate(**batch, max_new_tokens=2)) == 1
    outputs = model(**batch, output_router_logits=True)
    assert [scores.shape[-1] for scores in outputs.router_logits] == [3, 3]

# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""The converted model's configuration: sizes from weights, switches from config.json, overrides."""

import json
from pathlib import Path

import pytest
import torch
from original_checkpoints import (
    BERT_ROWS,
    CONFIG,
    DQ,
    HEADS,
    LLM_ROWS,
    QUERIES,
    C,
    H,
    convert,
    linear,
    original_state,
    random_state,
    write_original,
)

from llama_vid.conversion import convert_checkpoint


@pytest.fixture
def source(tmp_path) -> Path:
    return write_original(tmp_path / "source")


def test_sizes_come_from_the_weights_and_switches_from_the_configuration(source, tmp_path):
    config = convert(source, tmp_path / "output")[1].config
    vision, qformer, text = config.vision_config, config.qformer_config, config.text_config
    assert (vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers, vision.patch_size) == (C, 68, 3, 14)
    assert (qformer.hidden_size, qformer.intermediate_size, qformer.num_hidden_layers) == (DQ, 36, 4)
    assert (qformer.vocab_size, qformer.encoder_hidden_size, qformer.cross_attention_frequency) == (BERT_ROWS, C, 2)
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (H, 56, 2)
    assert (text.vocab_size, text.num_key_value_heads, text.rms_norm_eps) == (LLM_ROWS + 2, 2, 1e-5)
    assert text.use_cache  # training had switched it off
    assert (config.image_token_id, config.video_token_id) == (LLM_ROWS, LLM_ROWS + 1)
    assert (config.num_query_tokens, config.projector_num_layers, config.vision_feature_layer) == (QUERIES, 2, -1)
    assert (config.image_grid_size, config.video_grid_size) == (1, 1)
    assert (config.qformer_layernorm, config.qformer_vision_proj) == (True, False)
    assert config.image_qformer_uses_cls
    assert config.video_qformer_uses_cls


@pytest.mark.parametrize(("compress_type", "grid_size"), [(None, None), ("mean", 1), ("grid:2", 2)])
def test_compress_type(tmp_path, compress_type, grid_size):
    source = write_original(tmp_path / "source", compress_type=compress_type)
    config = convert(source, tmp_path / "output")[1].config
    assert (config.image_grid_size, config.video_grid_size) == (grid_size, grid_size)


def test_keys_that_older_configurations_lack_have_defaults(source, tmp_path):
    config = dict(CONFIG)
    for key in ("bert_type", "compress_type", "mm_projector_type", "mm_vision_select_layer", "rope_scaling"):
        del config[key]
    (source / "config.json").write_text(json.dumps(config))
    config = convert(source, tmp_path / "output")[1].config
    assert config.image_grid_size is None
    assert config.qformer_layernorm


def test_a_projector_of_one_linear_layer(tmp_path):
    state = {name: tensor for name, tensor in original_state().items() if "mm_projector" not in name}
    state |= random_state(linear("model.mm_projector", H, C))
    source = write_original(tmp_path / "source", state, mm_projector_type="linear")
    _, model = convert(source, tmp_path / "output")
    assert torch.equal(model.model.multi_modal_projector.linear_1.weight, state["model.mm_projector.weight"])


def test_rotary_scaling_of_the_long_video_model(tmp_path):
    scaling = {"type": "linear", "factor": 16.0}
    source = write_original(tmp_path / "source", rope_scaling=scaling)
    plain = convert(write_original(tmp_path / "plain"), tmp_path / "plain-output")[1]
    _, model = convert(source, tmp_path / "output")
    frequencies = [m.model.language_model.rotary_emb.inv_freq for m in (model, plain)]
    torch.testing.assert_close(frequencies[0] * 16, frequencies[1])


def test_overrides_win(source, tmp_path):
    overrides = {**HEADS, "video_qformer_uses_cls": False, "text_config": {"rms_norm_eps": 1e-3}}
    config = convert(source, tmp_path / "output", config_overrides=overrides)[1].config
    assert config.image_qformer_uses_cls
    assert not config.video_qformer_uses_cls
    assert config.text_config.rms_norm_eps == 1e-3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"video_uses_cls": False}, r"`config_overrides` has unknown names: video_uses_cls\. Known: .*video_qformer"),
        ({"vision_config": {"heads": 4}}, r"`config_overrides\['vision_config'\]` has unknown names: heads"),
        ({}, r"16 attention heads do not divide the width 40.*config_overrides=\{'vision_config'"),
        ({"vision_config": {"num_attention_heads": 4}, "qformer_config": {"num_attention_heads": 5}}, "do not divide"),
        ({**HEADS, "qformer_config": {"num_attention_heads": 4, "hidden_size": 32}}, "Shapes do not fit.*word_embed"),
    ],
)
def test_wrong_overrides(source, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, tmp_path / "output", config_overrides=overrides)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compress_type": "max"}, "compress_type 'max' in config.json is unknown"),
        ({"compress_type": "grid:3"}, "`image_grid_size=3` does not fit"),
        ({"bert_type": "qformer"}, "bert_type 'qformer', but the weights have a `model.vlm_att_ln`"),
        ({"bert_type": "raw_bert_layer:2"}, "lacks model.vlm_att_bert_proj"),
        ({"mm_projector_type": "mlp3x_gelu"}, "'mlp3x_gelu' in config.json does not fit the weights' 2 linear layers"),
        ({"model_type": "llama_vid"}, "model_type 'llama_vid', not llama or llava"),
    ],
)
def test_configurations_that_make_no_sense(tmp_path, settings, message):
    source = write_original(tmp_path / "source", **settings)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, tmp_path / "output", config_overrides=HEADS)


def test_only_settings_that_say_something_go_into_the_generation_configuration(source, tmp_path):
    settings = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.9, "max_length": 4096}
    (source / "generation_config.json").write_text(json.dumps(settings))
    _, model = convert(source, tmp_path / "output")
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 0)
    assert model.generation_config.temperature in (None, 1.0)
    assert model.generation_config.max_length != 4096

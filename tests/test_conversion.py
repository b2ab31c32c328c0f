# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Conversion of original checkpoints: the forms they come in, their vision towers, every tensor, the written folder."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from original_checkpoints import (
    CONFIG,
    DECODER,
    HEADS,
    LLM_ROWS,
    SIDE,
    VISION,
    C,
    H,
    adapter_shapes,
    convert,
    eva_shapes,
    language_shapes,
    linear,
    norm,
    original_state,
    random_state,
    write_original,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, InstructBlipVisionConfig, InstructBlipVisionModel

from llama_vid import conversion, conversion_files
from llama_vid.conversion import convert_checkpoint


@pytest.fixture
def source(tmp_path) -> Path:
    return write_original(tmp_path / "source")


def halves(state: dict) -> list[dict]:
    names = list(state)
    return [{name: state[name] for name in names[::2]}, {name: state[name] for name in names[1::2]}]


@pytest.mark.parametrize("form", ["legacy", "sharded", "safetensors", "sharded safetensors"])
def test_every_form_of_a_checkpoint_gives_the_same_model(source, tmp_path, form):
    expected = convert(source, tmp_path / "expected")[1].state_dict()
    state = original_state()
    other = write_original(tmp_path / "other")
    (other / "pytorch_model.bin").unlink()
    if form == "legacy":
        torch.save(state, other / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif form == "safetensors":
        save_file(state, other / "model.safetensors")
    else:
        pattern = "model-{}-of-2.safetensors" if "safetensors" in form else "pytorch_model-{}-of-2.bin"
        index = "model.safetensors.index.json" if "safetensors" in form else "pytorch_model.bin.index.json"
        weight_map = {}
        for i, shard in enumerate(halves(state)):
            file = other / pattern.format(i)
            save_file(shard, file) if "safetensors" in form else torch.save(shard, file)
            weight_map |= dict.fromkeys(shard, file.name)
        (other / index).write_text(json.dumps({"weight_map": weight_map}))

    found = convert(other, tmp_path / "found")[1].state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_model_type_llama_is_read_too(tmp_path):
    convert(write_original(tmp_path / "source", model_type="llama"), tmp_path / "output")


def write_stage1(folder: Path, adapter: dict | None = None) -> tuple[Path, Path]:
    write_original(folder)
    (folder / "pytorch_model.bin").unlink()
    torch.save(random_state(adapter_shapes()) if adapter is None else adapter, folder / "mm_projector.bin")
    base = folder.with_name("base")
    base.mkdir()
    (base / "config.json").write_text(json.dumps(CONFIG | {"model_type": "llama"}))
    save_file(random_state(language_shapes()), base / "model.safetensors")
    torch.save(random_state(eva_shapes()), folder.with_name("eva_vit_g.pth"))
    return folder, base


def test_stage_1_joins_adapter_base_model_and_vision_tower(tmp_path):
    stage1, base = write_stage1(tmp_path / "stage1")
    report, model = convert(stage1, tmp_path / "output", base_model=base, vision_tower=tmp_path / "eva_vit_g.pth")
    state = model.state_dict()
    adapter, language, eva = (random_state(shapes) for shapes in (adapter_shapes(), language_shapes(), eva_shapes()))
    assert torch.equal(state["model.query_tokens.weight"], adapter["model.vlm_att_query"][0])
    assert torch.equal(state["model.language_model.norm.weight"], language["model.norm.weight"])
    assert torch.equal(state["model.vision_tower.embeddings.class_embedding"], eva["cls_token"])
    assert set(report.used) | set(report.dropped) == {*adapter, *language, *(VISION + name for name in eva)}


def test_stage_1_needs_its_base_model(tmp_path):
    stage1, _ = write_stage1(tmp_path / "stage1")
    with pytest.raises(ValueError, match=r"stage-1 checkpoint.*pass.*base_model.*'vicuna'"):
        convert_checkpoint(stage1, tmp_path / "output")


def test_an_older_stage_1_save_without_text_decoder_is_named(tmp_path):
    adapter = {name: tensor for name, tensor in random_state(adapter_shapes()).items() if "vlm_att" not in name}
    stage1, base = write_stage1(tmp_path / "stage1", adapter)
    with pytest.raises(ValueError, match=r"lacks .*vlm_att_encoder.*Older stage-1 saves"):
        convert_checkpoint(stage1, tmp_path / "output", base_model=base)


def test_the_vision_tower_named_in_the_configuration_is_found_beside_it(tmp_path):
    state = {name: tensor for name, tensor in original_state().items() if not name.startswith(VISION)}
    source = write_original(tmp_path / "source", state)
    (source / "model_zoo" / "LAVIS").mkdir(parents=True)
    torch.save({"model": random_state(eva_shapes(), seed=7)}, source / "model_zoo" / "LAVIS" / "eva_vit_g.pth")
    _, model = convert(source, tmp_path / "output")
    found = model.model.vision_tower.embeddings.class_embedding
    assert torch.equal(found, random_state(eva_shapes(), seed=7)["cls_token"])


def test_missing_vision_weights_say_what_to_pass(tmp_path):
    state = {name: tensor for name, tensor in original_state().items() if not name.startswith(VISION)}
    source = write_original(tmp_path / "source", state)
    with pytest.raises(ValueError, match=r"eva_vit_g\.pth.*mm_vision_tower.*pass vision_tower"):
        convert_checkpoint(source, tmp_path / "output")


def test_a_vision_tower_that_is_not_there_is_no_repository(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"`vision_tower`: the file `parts/eva_vit_g\.pth` does not exist"):
        convert_checkpoint(source, tmp_path / "output", vision_tower="parts/eva_vit_g.pth")


def test_query_and_value_biases_become_one_with_zero_for_the_keys(source, tmp_path):
    _, model = convert(source, tmp_path / "output")
    state = original_state()
    query, key, value = model.model.vision_tower.encoder.layers[1].self_attn.qkv.bias.split(C)
    assert torch.equal(query, state[f"{VISION}blocks.1.attn.q_bias"])
    assert torch.equal(value, state[f"{VISION}blocks.1.attn.v_bias"])
    assert not key.any()


def test_the_published_eva_file_has_a_block_norm_and_head_too_many(tmp_path):
    eva = random_state(eva_shapes(blocks=40) | norm("norm", C) | linear("head", 3, C))
    torch.save(eva, tmp_path / "eva_vit_g.pth")
    state = {name: tensor for name, tensor in original_state().items() if not name.startswith(VISION)}
    source = write_original(tmp_path / "source", state)
    report, model = convert(source, tmp_path / "output", vision_tower=tmp_path / "eva_vit_g.pth")
    assert model.config.vision_config.num_hidden_layers == len(model.model.vision_tower.encoder.layers) == 39
    dropped = {name.removeprefix(VISION) for name in report.dropped if name.startswith(VISION)}
    assert dropped == {name for name in eva if name.startswith(("blocks.39.", "norm.", "head."))}


def test_the_depth_of_the_vision_tower_can_be_overridden(source, tmp_path):
    overrides = {**HEADS, "vision_config": {"num_attention_heads": 4, "num_hidden_layers": 2}}
    report, model = convert(source, tmp_path / "output", config_overrides=overrides)
    assert len(model.model.vision_tower.encoder.layers) == 2
    assert "layer 3 of an encoder that is read after layer 2" in report.dropped[f"{VISION}blocks.2.norm1.weight"]


def test_a_position_embedding_is_resized_to_the_image_processors_size(tmp_path):
    source = write_original(tmp_path / "source", image_processor="./processor")
    (source / "processor").mkdir()
    settings = {"crop_size": {"height": 42, "width": 42}}
    (source / "processor" / "preprocessor_config.json").write_text(json.dumps(settings))
    report, model = convert(source, tmp_path / "output")
    assert model.config.vision_config.image_size == 42
    found = model.model.vision_tower.embeddings.position_embedding.detach()
    original = original_state()[f"{VISION}pos_embed"]
    grid = original[:, 1:].reshape(1, 2, 2, C).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(3, 3), mode="bicubic", align_corners=False)
    name = "model.vision_tower.embeddings.position_embedding"
    assert report.filled[name] == f"{VISION}pos_embed, resized from 2 to 3 patches a side"
    torch.testing.assert_close(found, torch.cat([original[:, :1], grid.permute(0, 2, 3, 1).reshape(1, 9, C)], dim=1))


@pytest.mark.parametrize(("name", "size"), [("openai/clip-vit-large-patch14-336", 336), ("./clip-patch14-224", 224)])
def test_the_image_size_is_read_from_the_processors_name(tmp_path, name, size):
    source = write_original(tmp_path / "source", image_processor=name)
    convert_checkpoint(source, tmp_path / "output", config_overrides=HEADS)
    config = json.loads((tmp_path / "output" / "config.json").read_text())
    assert config["vision_config"]["image_size"] == size


def test_without_a_size_anywhere_the_position_embedding_says_it(source, tmp_path):
    assert convert(source, tmp_path / "output")[1].config.vision_config.image_size == SIDE * 14


def clip_source(folder: Path, clip: CLIPVisionModel, **config) -> Path:
    state = {name: tensor for name, tensor in original_state().items() if not name.startswith(VISION)}
    state |= {f"{VISION}vision_model.{name}": tensor for name, tensor in clip.state_dict().items()}
    state[f"{VISION}vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    settings = {"mm_vision_tower": "./clip", "mm_vision_select_layer": -2} | config
    source = write_original(folder, state, **settings)
    clip.save_pretrained(source / "clip")
    return source


def tiny_clip() -> CLIPVisionModel:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=C,
        intermediate_size=52,
        num_hidden_layers=4,
        num_attention_heads=5,
        image_size=28,
        patch_size=14,
        hidden_act="gelu",
    )
    return CLIPVisionModel(config).eval()


@torch.no_grad()
@pytest.mark.parametrize("select_layer", [-1, -2, -3])
def test_clip_is_read_at_the_configured_layer_and_without_cls(tmp_path, select_layer):
    clip = tiny_clip()
    source = clip_source(tmp_path / "source", clip, mm_vision_select_layer=select_layer)
    report, model = convert(
        source, tmp_path / "output", config_overrides={"qformer_config": {"num_attention_heads": 4}}
    )
    pixels = torch.randn(2, 3, 28, 28)
    expected = clip(pixels, output_hidden_states=True).hidden_states[select_layer]
    torch.testing.assert_close(model.encode_frames(pixels), expected)
    assert not model.config.image_qformer_uses_cls
    assert not model.config.video_qformer_uses_cls
    # The folder beside the checkpoint knew what its weights cannot tell.
    assert model.config.vision_config.num_attention_heads == 5
    assert model.config.vision_config.hidden_act == "gelu"
    assert report.dropped[f"{VISION}vision_model.post_layernorm.weight"]
    unused = [name for name in report.dropped if "encoder.layers." in name]
    assert len(unused) == 16 * (-1 - select_layer)


def test_clip_features_with_cls_are_refused(tmp_path):
    source = clip_source(tmp_path / "source", tiny_clip(), mm_vision_select_feature="cls_patch")
    with pytest.raises(ValueError, match="mm_vision_select_feature 'cls_patch' in config"):
        convert_checkpoint(source, tmp_path / "output", config_overrides=HEADS)


@torch.no_grad()
def test_instructblip_serves_as_vision_tower(tmp_path):
    torch.manual_seed(0)
    config = InstructBlipVisionConfig(
        hidden_size=C, intermediate_size=52, num_hidden_layers=2, num_attention_heads=5, image_size=28, patch_size=14
    )
    tower = InstructBlipVisionModel(config).eval()
    for parameter in tower.parameters():
        parameter.normal_(std=0.1)
    folder = tmp_path / "instructblip"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "instructblip", "vision_config": config.to_dict()}))
    state = {f"vision_model.{name}": tensor for name, tensor in tower.state_dict().items()}
    save_file(state | {"query_tokens": torch.zeros(1)}, folder / "model.safetensors")

    state = {name: tensor for name, tensor in original_state().items() if not name.startswith(VISION)}
    source = write_original(tmp_path / "source", state)
    overrides = {"qformer_config": {"num_attention_heads": 4}}
    report, model = convert(source, tmp_path / "output", vision_tower=folder, config_overrides=overrides)
    pixels = torch.randn(2, 3, 28, 28)
    expected = tower(pixels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(model.encode_frames(pixels), expected)
    assert report.dropped[f"{VISION}query_tokens"] == "no part of the vision encoder"
    assert model.config.image_qformer_uses_cls


def test_the_report_names_every_tensor(source, tmp_path):
    report, model = convert(source, tmp_path / "output")
    assert {*report.used, *report.dropped} == set(original_state())
    assert not set(report.used) & set(report.dropped)
    assert set(report.filled) == set(model.state_dict())
    assert "cancels" in report.dropped["model.vlm_att_key_projector.bias"]
    assert "configuration" in report.dropped["model.layers.0.self_attn.rotary_emb.inv_freq"]
    qkv = report.filled["model.vision_tower.encoder.layers.0.self_attn.qkv.bias"]
    assert qkv == f"{VISION}blocks.0.attn.q_bias and {VISION}blocks.0.attn.v_bias"
    text = str(report)
    assert "not used: model.vlm_att_key_projector.bias (the same number" in text
    assert f"{len(report.filled)} tensors (torch.float32) from {len(report.used)}" in text
    assert "processor: not written" in text


def test_placeholders_are_appended_as_the_mean_row(source, tmp_path):
    _, model = convert(source, tmp_path / "output")
    state = original_state()
    for found, name in (
        (model.get_input_embeddings().weight, "model.embed_tokens.weight"),
        (model.lm_head.weight, "lm_head.weight"),
    ):
        assert torch.equal(found[:LLM_ROWS], state[name])
        torch.testing.assert_close(found[LLM_ROWS:], state[name].mean(dim=0).expand(2, -1))


def test_tied_embeddings_stay_tied(tmp_path):
    state = original_state()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    source = write_original(tmp_path / "source", state, tie_word_embeddings=True)
    report, model = convert(source, tmp_path / "output")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert report.dropped["lm_head.weight"] == "tied to the input embedding"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.norm.weight", r"Nothing in the checkpoint fills.*: model\.language_model\.norm\.weight\."),
        ("model.vlm_att_val_projector.bias", r"fills.*model\.context_attention\.value_proj\.bias"),
        ("model.embed_tokens.weight", r"lacks model\.embed_tokens\.weight"),
        ("model.layers.0.mlp.gate_proj.weight", r"lacks `model\.layers\.0\.mlp\.gate_proj\.weight`"),
        (f"{DECODER}embeddings.word_embeddings.weight", r"lacks `model\..*word_embeddings\.weight`"),
        (f"{DECODER}encoder.layer.0.crossattention.self.key.weight", r"lacks `model\..*crossattention\.self\.key"),
        (f"{VISION}pos_embed", r"lacks `model\.vision_tower\.vision_tower\.pos_embed`"),
        (f"{VISION}blocks.0.mlp.fc1.weight", r"lacks `model\..*fc1"),
        (f"{VISION}blocks.2.mlp.fc1.weight", r"fills.*model\.vision_tower\.encoder\.layers\.2\.mlp\.fc1\.weight"),
        (f"{VISION}blocks.1.attn.v_bias", r"Shapes do not fit.*q_bias gives \(40,\).*is \(120,\)"),
    ],
)
def test_missing_tensors(tmp_path, name, message):
    state = original_state()
    del state[name]
    source = write_original(tmp_path / "source", state)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, tmp_path / "output", config_overrides=HEADS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.something_new.weight", r"no part of LLaMA-VID: model\.something_new\.weight"),
        ("model.layers.0.self_attn.q_proj.bias", r"has no place for: model\.layers\.0\.self_attn\.q_proj\.bias"),
        (f"{DECODER}embeddings.token_type_embeddings.weight", "has no place for: .*token_type_embeddings"),
    ],
)
def test_extra_tensors(tmp_path, name, message):
    source = write_original(tmp_path / "source", original_state() | {name: torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, tmp_path / "output", config_overrides=HEADS)


def test_tensors_of_the_wrong_shape(tmp_path):
    state = original_state() | {"model.layers.1.mlp.up_proj.weight": torch.zeros(3, H)}
    source = write_original(tmp_path / "source", state)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight gives \(3, 48\).*is \(56, 48\)"):
        convert_checkpoint(source, tmp_path / "output", config_overrides=HEADS)


def test_all_weights_take_the_language_models_dtype(tmp_path):
    state = {name: tensor if "vision" in name else tensor.bfloat16() for name, tensor in original_state().items()}
    source = write_original(tmp_path / "source", state)
    report, _ = convert(source, tmp_path / "output")
    weights = load_file(tmp_path / "output" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {report.dtype} == {torch.bfloat16}
    assert json.loads((tmp_path / "output" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", ["float16", torch.float16])
def test_another_dtype(source, tmp_path, dtype):
    convert(source, tmp_path / "output", dtype=dtype)
    weights = load_file(tmp_path / "output" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


def test_an_unknown_dtype(source, tmp_path):
    with pytest.raises(ValueError, match="`dtype` must be one of float32, float16, bfloat16, got 'int8'"):
        convert_checkpoint(source, tmp_path / "output", dtype="int8", config_overrides=HEADS)


def test_values_that_a_dtype_cannot_hold(tmp_path):
    state = original_state()
    state["model.norm.weight"][0] = 1e6
    source = write_original(tmp_path / "source", state)
    with pytest.raises(ValueError, match=r"model\.norm\.weight overflows torch\.float16: pass dtype"):
        convert_checkpoint(source, tmp_path / "output", dtype="float16", config_overrides=HEADS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_folders_that_hold_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub id"):
        convert_checkpoint(tmp_path / "nowhere", tmp_path / "output")
    with pytest.raises(FileNotFoundError, match=r"config\.json` is missing"):
        convert_checkpoint(tmp_path, tmp_path / "output")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        convert_checkpoint(tmp_path, tmp_path / "output")
    (tmp_path / "config.json").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"config\.json` must be a JSON object, but is no JSON"):
        convert_checkpoint(tmp_path, tmp_path / "output")


@pytest.mark.parametrize("twice", [True, False])
def test_a_hub_repository_is_downloaded_once(source, tmp_path, monkeypatch, twice):
    if twice:
        save_file(original_state(), source / "model.safetensors")
    asked, cache = [], tmp_path / "cache"
    cache.mkdir()

    def download(name, allow_patterns):
        asked.append(name)
        names = [file.name for file in source.iterdir()]
        for chosen in filter_repo_objects(names, allow_patterns=allow_patterns):
            shutil.copy(source / chosen, cache)
        return str(cache)

    monkeypatch.setattr(conversion, "snapshot_download", download)
    convert("owner/name", tmp_path / "output")
    assert set(asked) == {"owner/name"}
    weights = {file.name for file in cache.iterdir() if file.suffix in (".bin", ".safetensors")}
    assert weights == ({"model.safetensors"} if twice else {"pytorch_model.bin"})


def test_an_output_with_something_in_it_is_left_alone(source, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    convert(source, output)
    before = sorted(output.iterdir())
    with pytest.raises(FileExistsError, match="not an empty folder"):
        convert_checkpoint(source, output, config_overrides=HEADS)
    assert sorted(output.iterdir()) == before


def test_an_output_may_be_a_link_or_the_current_folder(source, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    convert(source, tmp_path / "link")
    assert (tmp_path / "disk" / "model.safetensors").is_file()
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert_checkpoint(source, ".", config_overrides=HEADS)
    assert (tmp_path / "here" / "model.safetensors").is_file()


def test_an_output_where_a_disk_is_mounted_is_refused_at_once(source, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "disk")
    with pytest.raises(FileExistsError, match="disk` is where a disk is mounted: choose a folder in it"):
        convert_checkpoint(source, tmp_path / "disk", config_overrides=HEADS)


def test_nothing_is_left_behind_when_writing_fails(source, tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):  # as safetensors says it
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(conversion_files, "save_file", full_disk)
    with pytest.raises(OSError, match=r"model\.safetensors cannot be written to .*No space left"):
        convert_checkpoint(source, tmp_path / "output", config_overrides=HEADS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_the_folder_brings_its_code_and_names_all_auto_classes(source, tmp_path):
    convert(source, tmp_path / "output")
    names = {path.name for path in (tmp_path / "output").iterdir()}
    assert {"configuration_llama_vid.py", "modeling_llama_vid.py", "generation_config.json"} <= names
    auto_map = json.loads((tmp_path / "output" / "config.json").read_text())["auto_map"]
    assert {"AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"} <= set(auto_map)

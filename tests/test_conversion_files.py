# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Reading other people's files: what is damaged or dangerous is refused, and little of it is in memory at a time."""

import json
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from original_checkpoints import convert, original_state, write_original
from safetensors.torch import load_file, save_file

from llama_vid import conversion_files
from llama_vid.conversion import convert_checkpoint
from llama_vid.conversion_files import TensorFiles


@pytest.fixture
def source(tmp_path) -> Path:
    return write_original(tmp_path / "source")


class Surprise:
    def __reduce__(self):
        return Path.touch, (Path("surprise"),)


def test_a_pickle_with_code_in_it_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(original_state() | {"surprise": Surprise()}, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin` was refused.*could run code") as caught:
        convert_checkpoint(source, tmp_path / "output")
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError)
    assert not (tmp_path / "surprise").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_truncated_file_is_named(source, tmp_path, name):
    if name == "model.safetensors":
        save_file(original_state(), source / name)
    content = (source / name).read_bytes()
    (source / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=name):
        convert_checkpoint(source, tmp_path / "output")


def test_missing_shards_are_named(source, tmp_path):
    index = {"weight_map": {"model.norm.weight": "pytorch_model-00001-of-00002.bin"}}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"pytorch_model-00001-of-00002\.bin"):
        convert_checkpoint(source, tmp_path / "output")
    index = {"weight_map": {"model.norm.bias": "pytorch_model.bin"}}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"in no shard: model\.norm\.bias"):
        convert_checkpoint(source, tmp_path / "output")


@pytest.mark.parametrize(
    "content",
    ['{"weight_map": {"model.norm.weight": "pyt', "", "{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}'],
)
def test_a_damaged_index_is_named(source, tmp_path, content):
    (source / "pytorch_model.bin.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin\.index\.json` must .*weight_map.*get it again"):
        convert_checkpoint(source, tmp_path / "output")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xef\xbb\xbf{}", b"\xff"])
def test_a_damaged_configuration_is_named(source, tmp_path, name, content):
    (source / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"source/{name}` must be a JSON object"):
        convert(source, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_tensors_without_names_are_refused(source, tmp_path):
    torch.save({3: torch.zeros(1)}, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin` must hold a dictionary of tensors by name"):
        convert(source, tmp_path / "output")


@pytest.mark.parametrize("content", ["../../_shared/eva_vit_g.pth", "Entry not found", "(", "R0.", ""])
def test_a_text_in_place_of_weights_is_named(tmp_path, content):
    (tmp_path / "eva_vit_g.pth").write_text(content)
    with pytest.raises(
        ValueError, match=r"eva_vit_g\.pth` (was refused|is no readable PyTorch file .*download it again)"
    ):
        TensorFiles([tmp_path / "eva_vit_g.pth"])


@pytest.mark.parametrize("form", ["pytorch_model.bin", "model.safetensors"])
def test_never_more_than_a_shard_is_in_memory(source, tmp_path, monkeypatch, form):
    limit = 100_000
    monkeypatch.setattr(conversion_files, "MAX_SHARD_BYTES", limit)
    if form == "model.safetensors":
        save_file(original_state(), source / form)
        (source / "pytorch_model.bin").unlink()
    living: list[weakref.ref] = []
    peaks = []
    read = TensorFiles.read

    def watched(self, name):
        tensor = read(self, name)
        living.append(weakref.ref(tensor))
        peaks.append(sum(t.nbytes for ref in living if (t := ref()) is not None))
        return tensor

    monkeypatch.setattr(TensorFiles, "read", watched)
    convert(source, tmp_path / "output")
    largest = max(tensor.nbytes for tensor in original_state().values())
    assert max(peaks) <= limit + largest
    shards = sorted((tmp_path / "output").glob("*.safetensors"))
    assert len(shards) > 3
    assert all(sum(tensor.nbytes for tensor in load_file(shard).values()) <= limit for shard in shards)

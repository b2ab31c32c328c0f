# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Tensors on disk for the conversion: other people's files are read one tensor at a time and never executed."""

import json
import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .whole_files import read_json_object

# A shard is what is in memory at once, so this bounds the memory of a conversion.
MAX_SHARD_BYTES = 2_000_000_000

WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)

# Of files with weights: what ends so is no name of a repository.
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


class TensorFiles:
    """
    The tensors of one checkpoint, in one file or many, by name. Nothing is kept but the file opened last, whose tensors
    are memory-mapped (old files that are no zip archives cannot be: they are read whole).

    Args:
        files (`Iterable[Path]`): safetensors or PyTorch files. A PyTorch file holds a dictionary of tensors, or one
            under the key `"model"`.

    Raises:
        ValueError: if a file is damaged, holds anything but tensors, or repeats a name.
    """

    def __init__(self, files: Iterable[Path]):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Path] = {}
        self._opened: tuple[Path, _SafetensorsFile | _PickleFile] | None = None
        self._read_bytes = 0
        for file in files:
            for name, shape in self._open(file).shapes().items():
                if name in self._file_of:
                    raise ValueError(f"`{name}` is in `{self._file_of[name]}` and again in `{file}`.")
                self.shapes[name] = shape
                self._file_of[name] = file
        self._positions = {name: position for position, name in enumerate(self.shapes)}

    @classmethod
    def from_folder(cls, folder: Path) -> "TensorFiles":
        """
        The checkpoint of a folder: `model.safetensors` or `pytorch_model.bin`, sharded or not.

        Raises:
            FileNotFoundError: if there is none, or a shard that its index names is missing.
            ValueError: if the index is damaged, or a tensor that it names is in no shard; and as the class.
        """
        found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
        if not found:
            raise FileNotFoundError(f"`{folder}` holds no weights: expected one of {', '.join(WEIGHT_FILES)}.")
        if found[0].suffix != ".json":
            return cls([found[0]])
        weight_map = _read_weight_map(found[0])
        shards = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise FileNotFoundError(f"`{found[0]}` names shards that are not there: {', '.join(missing)}.")
        files = cls(shards)
        absent = sorted(set(weight_map) - set(files.shapes))
        if absent:
            raise ValueError(f"`{found[0]}` names tensors that are in no shard: {', '.join(absent)}.")
        return files

    def position(self, name: str) -> int:
        """Where a tensor stands: reading in this order opens every file once."""
        return self._positions[name]

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU, in its own dtype."""
        file = self._open(self._file_of[name])
        tensor = file.read(name)
        self._read_bytes += tensor.nbytes
        if file.is_mapped and self._read_bytes > MAX_SHARD_BYTES:
            self._opened = None  # pages that were read count as this process's memory until the mapping goes
        return tensor

    def _open(self, file: Path) -> "_SafetensorsFile | _PickleFile":
        if self._opened is None or self._opened[0] != file:
            self._opened = None  # the last one's memory goes before the next one comes
            self._read_bytes = 0
            self._opened = (file, _SafetensorsFile(file) if file.suffix == ".safetensors" else _PickleFile(file))
        return self._opened[1]


def _read_weight_map(index: Path) -> dict[str, str]:
    """Tensors with the shards that they are in."""
    weight_map = read_json_object(index, "weight_map")["weight_map"]
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ValueError(f"`{index}` must name a file for every tensor in its `weight_map`: get it again.")
    return weight_map


class _SafetensorsFile:
    is_mapped = True

    def __init__(self, path: Path):
        try:
            self._file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"`{path}` is no readable safetensors file: {error}.") from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}  # noqa: SIM118

    def read(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)


class _PickleFile:
    def __init__(self, path: Path):
        self.is_mapped = zipfile.is_zipfile(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=self.is_mapped)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"`{path}` was refused: it is damaged, or a pickle with more than tensors in it, which could run code."
            ) from error
        except OSError:
            raise
        except Exception as error:  # of whatever kind: a text that is read as a pickle may be any instructions
            raise ValueError(f"`{path}` is no readable PyTorch file ({error}): download it again.") from error
        if isinstance(content, dict) and isinstance(content.get("model"), dict):
            content = content["model"]
        if not isinstance(content, dict) or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
        ):
            raise ValueError(f"`{path}` must hold a dictionary of tensors by name, or one under the key `model`.")
        self._tensors: dict[str, torch.Tensor] = content

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach()


def write_shards(
    folder: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, make: Callable[[str], torch.Tensor]
) -> None:
    """
    Write tensors as `model.safetensors`, or as numbered shards of at most `MAX_SHARD_BYTES` with an index. Only the
    tensors of one shard are in memory at a time.

    Args:
        folder (`Path`): An existing folder.
        shapes (`dict[str, tuple[int, ...]]`): Name and shape of every tensor, in the order to make them.
        dtype (`torch.dtype`): Of all of them.
        make (`Callable`): Gives the tensor of a name.

    Raises:
        OSError: if the disk is full, or does not take the file.
    """
    sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + size > MAX_SHARD_BYTES:
            shards.append([])
        shards[-1].append(name)
    if len(shards) == 1:
        files = ["model.safetensors"]
    else:
        files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        _write_shard(folder / file, {name: make(name) for name in names})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # of a full disk, for one
        raise OSError(f"{path.name} cannot be written to {path.parent.parent}: {error}") from error

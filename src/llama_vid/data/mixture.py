"""Mixtures of data sets: what a recipe lists, as one `datasets` data set of rows that [`to_messages`] reads."""

import importlib.metadata
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from llama_vid.data.chats import messages_of_row
from llama_vid.data.formats import JSON_SUFFIXES, READERS, all_records
from llama_vid.data.media import Media
from llama_vid.data.records import check_skipped_share, good_records, make_record, row_features, to_row

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, IterableDataset

# Streams cannot be shuffled as a whole; so many rows wait, and a random one of them is next.
SHUFFLE_BUFFER = 1000

# Rows that are converted together: with images of some megabytes each they should not fill the memory.
_ROWS_AT_ONCE = 32


@dataclass
class DatasetConfig:
    """
    One data set of a mixture.

    Args:
        path (`str`):
            A data file; with `format="messages"` also a Parquet file, a folder or a Hub id for `datasets.load_dataset`.
        format (`str`, *optional*, defaults to `"messages"`): One of [`READERS`].
        name (`str`, *optional*): Which of several data sets under a Hub id.
        split (`str`, *optional*, defaults to `"train"`):
            Of a Parquet file, folder or Hub id; `"train[:90%]"` is a part of it, but not in a stream.
        root (`str`, *optional*): The folder of images and videos, see [`read_records`].
        features_root (`str`, *optional*): The folder of extracted features, instead of videos.
        subtitles_root (`str`, *optional*): The folder of films' subtitles.
        weight (`float`, *optional*, defaults to 1.0):
            How often each record is seen in an epoch: 0.1 draws a tenth of them, 2.5 shows each two or three times. In
            a stream, whose length is not known, it is the share of the data set in what is drawn.
        max_samples (`int`, *optional*): Only so many records, the first ones.

    Raises:
        ValueError: a value that makes no sense.
    """

    path: str
    format: str = "messages"
    name: str | None = None
    split: str = "train"
    root: str | None = None
    features_root: str | None = None
    subtitles_root: str | None = None
    weight: float = 1.0
    max_samples: int | None = None

    def __post_init__(self) -> None:
        if self.format not in READERS:
            raise ValueError(f"`format={self.format!r}` is unknown: use one of {', '.join(READERS)}.")
        if not isinstance(self.weight, int | float) or not 0 < self.weight < math.inf:
            raise ValueError(f"`weight` must be a number above 0, got {self.weight!r}: leave out what is not wanted.")
        if self.max_samples is not None and not (isinstance(self.max_samples, int) and self.max_samples >= 1):
            raise ValueError(f"`max_samples` must be a whole number of at least 1, got {self.max_samples!r}.")
        if self.name is not None and (self.is_read_here or self.is_parquet):
            raise ValueError(f"`name` is {self.name!r}, but {self.path} is a file, and one data set: leave `name` out.")
        if self.split != "train" and self.is_read_here:
            raise ValueError(
                f"`split` is {self.split!r}, but {self.path} is a file that is read as a whole: write what is for "
                "training and what is for evaluation into files of their own, or take its first records by "
                "`max_samples`."
            )

    @property
    def is_read_here(self) -> bool:
        """Whether it is a file of [`READERS`]; `datasets` loads the others."""
        return self.format != "messages" or Path(self.path).suffix in JSON_SUFFIXES

    @property
    def is_parquet(self) -> bool:
        """Whether it is a Parquet file."""
        return not self.is_read_here and Path(self.path).suffix == ".parquet"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "DatasetConfig":
        """From a mapping as YAML has it. Raises ValueError for unknown keys, or without `path`."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"A data set has the unknown key {', '.join(unknown)}: known are {', '.join(known)}.")
        if "path" not in values:
            raise ValueError(f"A data set has no `path`, only {dict(values)}: name its file, folder or Hub id.")
        return cls(**values)


def load_mixture(
    configs: Sequence[DatasetConfig | Mapping[str, Any]],
    *,
    seed: int,
    streaming: bool = False,
    endless: bool = False,
    on_bad_sample: str = "raise",
    max_skipped_share: float = 0.05,
) -> "Dataset | IterableDataset":
    """
    Load data sets as one.

    Files are read into memory, as JSON text without media; Parquet files, folders and Hub ids are converted once to
    files in the cache of `datasets`, with the images they contain. A stream does neither.

    Args:
        configs (`Sequence[DatasetConfig]`): The data sets, or mappings of their fields.
        seed (`int`): Decides which records a `weight` draws or repeats, and the order of a stream.
        streaming (`bool`, *optional*, defaults to `False`): Read while training.
        endless (`bool`, *optional*, defaults to `False`):
            Whether a stream begins again when it ends: processes that share it come to its end at different steps.
        on_bad_sample (`str`, *optional*, defaults to `"raise"`):
            `"skip"` leaves out records whose chat or names make no sense, and logs each.
        max_skipped_share (`float`, *optional*, defaults to 0.05):
            The share of them in a data set that may be; more are an error when all of it was read. A stream under a Hub
            id has no end at which that would be found.

    Returns:
        `Dataset`, one data set after another (the trainer shuffles); or `IterableDataset`, drawn by the weights until
        each record was seen at least once, where data sets that end earlier begin again, and shuffled among
        `SHUFFLE_BUFFER` rows. Their rows have the columns of [`row_features`].

    Raises:
        FileNotFoundError: no such data file.
        ValueError: no configs, a data set without records, or what [`read_records`] raises; for files in a stream,
            while iterating.
        BadSampleError: too many skipped records; for files in a stream, while iterating.
    """
    from datasets import concatenate_datasets, interleave_datasets

    if not configs:
        raise ValueError("`configs` is empty: list at least one data set.")
    configs = [given if isinstance(given, DatasetConfig) else DatasetConfig.from_mapping(given) for given in configs]
    parts = [_load(config, streaming, on_bad_sample, max_skipped_share) for config in configs]
    if not streaming:
        parts = [_weighted(part, configs[i].weight, Random(f"{seed}/{i}")) for i, part in enumerate(parts)]
        return concatenate_datasets(parts)
    total = sum(config.weight for config in configs)
    shares = [config.weight / total for config in configs]
    mixture = interleave_datasets(parts, probabilities=shares, seed=seed, stopping_strategy="all_exhausted")
    if endless:
        mixture = mixture.repeat(None)
    return mixture.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)


def check_lengths(dataset: "Dataset", strategy: str) -> None:
    """
    For training that puts samples of a length together. Raises ValueError if a row has no `length`: visuals have tokens
    that only a look into each file would tell.
    """
    lengths = dataset["length"]
    missing = [row for row, length in enumerate(lengths) if length is None]
    if missing:
        raise ValueError(
            f"`train_sampling_strategy` is {strategy}, but {len(missing)} of {len(lengths)} records have no `length`, "
            f"such as {dataset[missing[0]]['source']}: give each record one (a number, about how many tokens it has), "
            "or choose the strategy random."
        )


def _load(
    config: DatasetConfig, streaming: bool, on_bad_sample: str, max_skipped_share: float
) -> "Dataset | IterableDataset":
    from datasets import Dataset, IterableDataset

    if not config.is_read_here:
        return _load_source(config, streaming, on_bad_sample, max_skipped_share)
    arguments = {"config": config, "on_bad_sample": on_bad_sample, "max_skipped_share": max_skipped_share}
    if streaming:
        return IterableDataset.from_generator(_rows, features=row_features(), gen_kwargs=arguments)
    return Dataset.from_list(list(_rows(**arguments)), features=row_features())


def _rows(config: DatasetConfig, **bad_samples) -> Iterator[dict[str, Any]]:
    """The rows of a data file."""
    roots = {"root": config.root, "features_root": config.features_root, "subtitles_root": config.subtitles_root}
    records = islice(all_records(config.path, config.format, **roots), config.max_samples)
    row = None
    for record in good_records(records, **bad_samples):
        row = to_row(record)
        yield row
    if row is None:
        raise _empty(config)


def _load_source(
    config: DatasetConfig, streaming: bool, on_bad_sample: str, max_skipped_share: float
) -> "Dataset | IterableDataset":
    """Rows of what `datasets` loads."""
    from datasets import load_dataset

    path = Path(config.path)
    source = {"path": config.path, "name": config.name, "split": config.split}
    if config.is_parquet:
        source = {"path": "parquet", "data_files": config.path, "split": config.split}
    try:
        dataset = load_dataset(**source, streaming=streaming)
    except ValueError as error:  # an unknown name or split, or one without records
        raise ValueError(f"The data set {config.path} cannot be loaded: {error}") from error
    # Images as they are stored, not decoded: for a stream of a folder the format is not enough.
    if streaming and dataset.features:
        dataset = dataset.decode(False)
    dataset = dataset.with_format("arrow")
    if next(iter(dataset), None) is None:
        raise _empty(config)
    if config.max_samples is not None:
        dataset = dataset.take(config.max_samples if streaming else min(config.max_samples, len(dataset)))
    folder = path.parent if path.is_file() else path if path.is_dir() else None
    media = Media(folder, config.root, config.features_root, config.subtitles_root)
    # Conversions are cached by their arguments: another release may convert otherwise.
    arguments = {"name": config.path, "media": media, "on_bad_sample": on_bad_sample}
    arguments |= {"version": importlib.metadata.version("llama-vid")}
    convert = partial(_convert, **arguments)
    options = {"with_indices": True, "batched": True, "batch_size": _ROWS_AT_ONCE, "features": row_features()}
    rows = dataset.map(convert, **options).with_format(None)
    if not streaming:
        check_skipped_share(len(dataset) - len(rows), len(dataset), max_skipped_share)
        if len(rows) == 0:
            raise _empty(config)
    return rows


def _convert(
    table: "pa.Table", indices: list[int], name: str, media: Media, on_bad_sample: str, version: str
) -> "pa.Table":
    """A table of a source's rows as one of ours."""
    import pyarrow as pa

    columns = [_plain(column.to_pylist(), pa.list_(column.type)) for column in table.columns]
    rows = [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]
    records = [
        make_record(f"{name}, record {index}", partial(messages_of_row, row, media), row)
        for index, row in zip(indices, rows, strict=True)
    ]
    good = [to_row(record) for record in good_records(records, on_bad_sample)]
    return pa.Table.from_pylist(good, schema=row_features().arrow_schema)


def _plain(value: Any, kind: "pa.DataType") -> Any:
    """A value of Arrow's; where types are mixed, `datasets` makes a column of JSON, which Arrow gives as text."""
    import pyarrow as pa

    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if pa.types.is_struct(kind):
        return {field.name: _plain(value[field.name], field.type) for field in kind}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_plain(item, kind.value_type) for item in value]
    return value


def _weighted(dataset: "Dataset", weight: float, random: Random) -> "Dataset":
    """Each record as often as the weight says, in their order; the fraction at random."""
    times, rest = divmod(max(1, round(weight * len(dataset))), len(dataset))
    chosen = sorted(random.sample(range(len(dataset)), rest))
    return dataset.select([*(times * list(range(len(dataset)))), *chosen])


def _empty(config: DatasetConfig) -> ValueError:
    return ValueError(f"The data set {config.path} has no records: check `path` and `split`, or leave it out.")

"""The files of a data set: from names in its records to parts of messages, within the folders that are theirs."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from llama_vid.features import features_name, features_stem
from llama_vid.modeling import video_sources_llama_vid

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
# An ending of any file; "Mr. Nobody" and "clip_1.5s" have none.
ENDING = re.compile(r"\.([A-Za-z][A-Za-z0-9]{1,3}|3gp)$")


@dataclass(frozen=True)
class Media:
    """
    Where a data set's files lie. Data sets are other people's: a relative name must not leave its folder by `..`, and
    an absolute one is taken only where no root is given for it. http(s) URLs stay as they are. Nothing is opened here
    but what only `datasets` can name, files within archives or on the Hub; whether others exist is for the collator to
    find out, or for [`check_media`].

    Args:
        folder (`Path`, *optional*): The data file's folder, for relative names where there is no root.
        root (`str` or `PathLike`, *optional*): The folder of images and videos.
        features_root (`str` or `PathLike`, *optional*):
            The folder in which `llama-vid features` wrote the videos, to be read instead of them.
        subtitles_root (`str` or `PathLike`, *optional*): The folder of subtitles, `<stem>.srt` or `<stem>.vtt`.
    """

    folder: Path | None = None
    root: str | os.PathLike | None = None
    features_root: str | os.PathLike | None = None
    subtitles_root: str | os.PathLike | None = None
    _owners: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)  # of features' files

    def path(self, name: str, root: str | os.PathLike | None = None) -> str:
        """
        Where a file lies: `name` in `root`, else in `self.root`, else in the data file's folder.

        Raises:
            ValueError: `name` is no text, is absolute although there is a root, or leads out of the folder.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"the name of a file is expected, found {name!r}.")
        if is_url(name):
            return name
        root = self.root if root is None else root
        if os.path.isabs(name):
            if root is not None:
                raise ValueError(f"{name!r} is absolute, but files lie in the root {root}: pass no root to allow it.")
            return name
        base = self.folder if root is None else root
        if base is None:
            raise ValueError(f"{name!r} is relative, and there is no data file beside it: pass `root`.")
        name = os.path.normpath(name)
        if ".." in Path(name).parts:
            raise ValueError(f"{name!r} leads out of the folder {base}: pass a `root` that holds all files.")
        return os.path.join(base, name)

    def part(self, kind: str, value: Any) -> dict[str, Any]:
        """
        The part of a message for an image or a video.

        Args:
            kind (`str`): `image` or `video`.
            value (`str`, `bytes` or `dict`): A name, a file's content, or both as `datasets` stores them, `{"bytes",
                "path"}`, where the content counts if there is any.

        Raises:
            ValueError: as [`~Media.path`]; a file within an archive or on the Hub that cannot be read.
        """
        if isinstance(value, dict):
            value = self._stored(value.get("bytes"), value.get("path"))
        if isinstance(value, bytes):
            return {"type": kind, kind: value}
        return {"type": "image", "path": self.path(value)} if kind == "image" else self.video(value)

    def _stored(self, content: bytes | None, name: str | None) -> bytes | str | None:
        """What `datasets` stores: the content, read now where the name means nothing to others, or the name."""
        if content is None and isinstance(name, str) and _is_inner(name):
            return self._read(name)
        return name if content is None else content

    def _read(self, name: str) -> bytes:
        import fsspec

        *members, file = name.split("::")
        if not file.startswith("hf://"):
            file = self.path(file)
        try:
            with fsspec.open("::".join([*members, file]), "rb") as opened:
                return opened.read()
        except Exception as error:  # damaged archives raise of every kind
            raise ValueError(f"{name!r} cannot be read ({error}): repair it or leave the record out.") from error

    def video(self, name: str) -> dict[str, Any]:
        """A video by its name: as features if there is a folder of them, or the name is that of such a file."""
        if isinstance(name, str) and name.endswith(".safetensors"):
            return {"type": "video", "features": self.path(name, self.features_root)}
        path = self.path(name)
        if self.features_root is None:
            return {"type": "video", "path": path}
        return {"type": "video", "features": self._features(features_stem(name), path)}

    def _features(self, stem: str, path: str) -> str:
        """A video's file of features, by the rule of `feature_paths`. Raises ValueError if it is another video's."""
        apart = self.path(features_name(stem, path, is_alone=False), self.features_root)
        if os.path.isfile(apart):
            return apart
        features = self.path(features_name(stem, path, is_alone=True), self.features_root)
        owner = self._owners.setdefault(features, path)
        if owner != path:
            raise ValueError(
                f"{owner} and {path} would both have the features {features}: pass both videos to one `llama-vid "
                "features`, which names them apart."
            )
        return features

    def film(self, name: str) -> dict[str, Any]:
        """As [`~Media.video`], with its subtitles if there are any: without a folder of them, beside the video."""
        root = self.features_root if self.subtitles_root is None else self.subtitles_root
        stem = PurePosixPath(name).with_suffix("") if root is None else features_stem(name)
        files = (self.path(f"{stem}{suffix}", root) for suffix in (".srt", ".vtt"))
        subtitles = next(filter(os.path.isfile, files), None)
        return self.video(name) if subtitles is None else {**self.video(name), "subtitles": subtitles}

    def with_suffix(self, name: str) -> str:
        """A video's file name from its id: with the suffix of the file that is there, `.mp4` if there is none."""
        path = self.path(name)
        if ENDING.search(name) or os.path.exists(path):  # also a folder of frames
            return name
        return name + next((suffix for suffix in VIDEO_SUFFIXES if os.path.isfile(path + suffix)), ".mp4")


def check_media(records: Iterable[dict[str, Any]]) -> list[str]:
    """
    Find out which files of a data set are missing, before a training does.

    Args:
        records (`Iterable[dict]`): Of [`read_records`] or [`load_mixture`].

    Returns:
        `list[str]`: Paths of images, videos, features and subtitles that do not exist, each once, in the records'
        order.
    """
    paths = {}
    for record in records:
        messages = record["messages"]
        messages = json.loads(messages) if isinstance(messages, str) else messages
        parts = [part for message in messages for part in message["content"]]
        named = [part.get(key) for part in parts for key in ("path", "features", "subtitles")]
        paths |= dict.fromkeys(path for path in named if isinstance(path, str) and not is_url(path))
    return [path for path in paths if not os.path.exists(path)]


def is_url(name: str) -> bool:
    """Whether it is an address on the network, or a picture itself (`data:`), and no file."""
    return video_sources_llama_vid.is_url(name) or name.lower().startswith("data:image/")


def _is_inner(name: str) -> bool:
    """
    Whether `datasets` means a file within an archive, `zip://a.jpg::/data/train.zip`, or on the Hub. Other protocols of
    `fsspec` are not for names in data sets.
    """
    *members, file = name.split("::")
    return all(member.startswith("zip://") for member in members) and (bool(members) or file.startswith("hf://"))

"""Names in data sets: which files they mean, and which they must not."""

import io
import zipfile
from pathlib import Path

import pytest

from llama_vid.data.media import Media, check_media
from llama_vid.features import feature_paths


def test_names_are_relative_to_the_root_or_the_data_file():
    assert Media(Path("data")).path("a/b.jpg") == "data/a/b.jpg"
    assert Media(Path("data"), "media").path("./a//../b.jpg") == "media/b.jpg"
    assert Media(Path("data"), "media").path("b.srt", "words") == "words/b.srt"
    assert Media(root="media").path("HTTPS://example.org/../b.jpg") == "HTTPS://example.org/../b.jpg"


def test_absolute_names_need_to_be_allowed():
    assert Media(Path("data")).path("/films/b.mp4") == "/films/b.mp4"
    with pytest.raises(ValueError, match=r"'/films/b\.mp4' is absolute, but files lie in the root media: pass no root"):
        Media(Path("data"), "media").path("/films/b.mp4")


@pytest.mark.parametrize("name", ["..", "../b.jpg", "a/../../b.jpg"])
def test_names_stay_in_their_folder(name):
    for media in (Media(Path("data")), Media(Path("data"), "media"), Media(Path())):
        with pytest.raises(ValueError, match="leads out of the folder"):
            media.path(name)


def test_names_that_mean_nothing():
    with pytest.raises(ValueError, match=r"'b\.jpg' is relative, and there is no data file beside it: pass `root`"):
        Media().path("b.jpg")
    for name in (None, "", 5):
        with pytest.raises(ValueError, match="the name of a file is expected"):
            Media(Path("data")).part("image", name)


def test_parts_of_messages():
    media = Media(Path("data"))
    assert media.part("image", "a.jpg") == {"type": "image", "path": "data/a.jpg"}
    assert media.part("video", {"path": "a.mp4", "bytes": None}) == {"type": "video", "path": "data/a.mp4"}
    assert media.part("video", {"path": "a.mp4", "bytes": b"film"}) == {"type": "video", "video": b"film"}
    assert media.part("image", b"picture") == {"type": "image", "image": b"picture"}


def test_files_within_archives_are_read(tmp_path):
    """By the names of `datasets`, in its columns only; the archive is a file like others."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/a.jpg", b"picture")
    name = f"zip://x/a.jpg::{tmp_path}/a.zip"
    media = Media(tmp_path)
    assert media.part("image", {"path": name, "bytes": None}) == {"type": "image", "image": b"picture"}
    assert media.part("image", {"path": name, "bytes": b"other"}) == {"type": "image", "image": b"other"}
    assert media.part("image", name)["path"].startswith(f"{tmp_path}/zip:")
    with pytest.raises(ValueError, match=r"a\.zip' is absolute, but files lie in the root media: pass no root"):
        Media(root="media").part("image", {"path": name})
    with pytest.raises(ValueError, match="leads out of the folder"):
        media.part("image", {"path": "zip://x/a.jpg::../a.zip"})
    for lost in (name.replace("x/a", "x/b"), f"{name}.zip"):
        with pytest.raises(ValueError, match=r"'zip://x/.* cannot be read \(.*\): repair it or leave the record out"):
            media.part("image", {"path": lost})


def test_files_of_streamed_hub_repositories_are_read(monkeypatch):
    monkeypatch.setattr("fsspec.open", lambda name, mode: io.BytesIO(name.encode()))
    for name in ("hf://datasets/a/b@main/c.jpg", "zip://c.jpg::hf://datasets/a/b@main/c.zip"):
        assert Media().part("image", {"path": name}) == {"type": "image", "image": name.encode()}


def test_other_protocols_are_none(tmp_path):
    (tmp_path / "secret").write_text("secret")
    for name in (f"file://{tmp_path}/secret", f"zip://a::filecache::file://{tmp_path}/secret"):
        assert Media(tmp_path).part("image", {"path": name})["path"].startswith(f"{tmp_path}/")


def test_features_take_the_place_of_videos():
    assert Media(Path("data")).video("x/a.safetensors") == {"type": "video", "features": "data/x/a.safetensors"}
    media = Media(Path("data"), "media", "features")
    assert media.video("x/a.mp4") == {"type": "video", "features": "features/a.safetensors"}
    assert media.video("x/a.safetensors") == {"type": "video", "features": "features/x/a.safetensors"}
    with pytest.raises(ValueError, match="leads out of the folder"):
        media.video("../a.mp4")


def test_features_of_videos_with_equal_stems(tmp_path):
    """They are named apart where they were extracted together; one must not stand for the other."""
    videos = [tmp_path / "clips" / folder / "001.mp4" for folder in "ab"]
    media = Media(tmp_path, tmp_path / "clips", tmp_path / "features")
    alone = feature_paths(videos[:1], tmp_path / "features")[str(videos[0])]
    assert media.video("a/001.mp4")["features"] == media.video("./a/001.mp4")["features"] == str(alone)
    with pytest.raises(ValueError, match=r"a/001\.mp4 and .*b/001\.mp4 would both have the features"):
        media.video("b/001.mp4")
    together = feature_paths(videos, tmp_path / "features")
    (tmp_path / "features").mkdir()
    for path in together.values():
        path.touch()
    found = [media.video(f"{folder}/001.mp4")["features"] for folder in "ab"]
    assert found == [str(together[str(video)]) for video in videos]


def test_features_have_the_names_that_are_written():
    media = Media(None, "media", "features")
    names = ["00001.mts", "film.vob", "clip_1.5s", "Mr. Nobody.mkv", "a.MOV", "frames", f"{124 * 'é'}.mp4"]
    for name in [*names, "https://example.org/x/clip%201.webm?key=1"]:
        video = name if name.startswith("http") else f"media/{name}"
        assert media.video(name)["features"] == str(feature_paths([video], "features")[video]), name


def test_ids_with_dots_get_an_ending():
    media = Media(Path("data"), "media", "features")
    names = ["Mr. Nobody", "clip_1.5s", "Mr. Nobody.mkv", "film.mts", "film.3gp"]
    assert [media.with_suffix(name) for name in names] == ["Mr. Nobody.mp4", "clip_1.5s.mp4", *names[2:]]
    assert media.video(media.with_suffix("Mr. Nobody"))["features"] == "features/Mr. Nobody.safetensors"


def test_subtitles_lie_in_their_folder_or_beside_the_film(tmp_path):
    for name in ("beside/film.srt", "words/film.vtt", "features/film.srt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()

    def subtitles(**roots):
        return Media(tmp_path, **roots).film("beside/film.mp4").get("subtitles")

    assert subtitles() == str(tmp_path / "beside/film.srt")
    assert subtitles(features_root=tmp_path / "features") == str(tmp_path / "features/film.srt")
    assert subtitles(features_root=tmp_path / "features", subtitles_root=tmp_path / "words") == str(
        tmp_path / "words/film.vtt"
    )
    assert subtitles(subtitles_root=tmp_path) is None


def test_ids_get_the_suffix_of_their_file(tmp_path):
    (tmp_path / "a.webm").touch()
    (tmp_path / "a.srt").touch()
    (tmp_path / "frames").mkdir()
    media = Media(tmp_path)
    assert [media.with_suffix(name) for name in ("a", "b", "c.avi", "frames")] == ["a.webm", "b.mp4", "c.avi", "frames"]


def test_missing_files_are_listed_once(tmp_path):
    (tmp_path / "there.jpg").touch()
    parts = [
        {"type": "image", "path": str(tmp_path / "there.jpg")},
        {"type": "video", "features": str(tmp_path / "b.safetensors"), "subtitles": str(tmp_path / "b.srt")},
        {"type": "video", "path": "https://example.org/a.mp4", "subtitles": [[0, 1, "Hello."]]},
        {"type": "image", "path": str(tmp_path / "a.jpg")},
    ]
    record = {"messages": [{"role": "user", "content": parts}]}
    assert check_media([record, record]) == [str(tmp_path / name) for name in ("b.safetensors", "b.srt", "a.jpg")]

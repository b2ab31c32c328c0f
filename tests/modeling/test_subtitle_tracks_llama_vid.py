"""Text tracks of video files: which one is read, what its words are, and when they are shown."""

import logging
from fractions import Fraction

import av
import pysubs2
import pytest
from av.stream import Disposition
from av.subtitles.subtitle import SubtitleSet
from small_videos import pictures

from llama_vid.data.clips import write_clip
from llama_vid.modeling import subtitle_tracks_llama_vid as tracks
from llama_vid.modeling import subtitles_llama_vid as subtitles
from llama_vid.modeling.subtitles_llama_vid import Cue, read_subtitles

MILLISECOND = Fraction(1, 1000)

# What FFmpeg's encoders of text need to know of styles.
ASS_HEADER = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""

# Times in milliseconds after the first frame, ASS markup.
CUES = [
    (-1000, 200, "too early"),
    (500, 1250, r"{\i1}Hello{\i0}\Nthere, you"),
    (1000, 1900, "caf\u00e9 & \u4f60\u597d"),
    (2000, 2000, "no time"),
    (9000, 60000, "to the end"),
]
EXPECTED = [
    Cue(-1.0, 0.2, "too early"),
    Cue(0.5, 1.25, "Hello there, you"),
    Cue(1.0, 1.9, "caf\u00e9 & \u4f60\u597d"),
    Cue(2.0, 2.0, "no time"),
    Cue(9.0, 60.0, "to the end"),
]


def write_film(path, *texts, codec: str = "subrip", start: int = 2000, b_frames: int = 0, encode: bool = True):
    """
    A film of ten seconds whose first frame is shown `start` milliseconds after the container begins, with a text track
    for each of `texts`: cues (their bytes if not to `encode`), language, title and whether it is the default one.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.options = {"bf": str(b_frames)}
        video.codec_context.time_base = MILLISECOND
        streams = []
        for _, language, title, default in texts:
            stream = container.add_stream(codec) if encode else container.add_mux_stream(codec)
            stream.time_base = MILLISECOND
            stream.disposition = default if isinstance(default, Disposition) else Disposition(int(default))
            stream.metadata.update({"language": language, "title": title})
            if encode:
                stream.codec_context.subtitle_header = ASS_HEADER
                stream.codec_context.time_base = MILLISECOND
            streams.append(stream)
        for index, picture in enumerate(pictures(100)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = start + 100 * index, MILLISECOND
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for stream, (cues, *_) in zip(streams, texts, strict=True):
            for number, (begin, end, text) in enumerate(cues):
                if encode:
                    event = SubtitleSet.create(f"{number},0,Default,,0,0,0,,{text}".encode(), 0, end - begin)
                    packet = stream.codec_context.encode_subtitle(event)
                else:
                    packet = av.Packet(text)
                packet.pts = packet.dts = start + begin
                packet.duration, packet.time_base, packet.stream = end - begin, MILLISECOND, stream
                container.mux(packet)
    return path


KINDS = [("subrip", "mkv"), ("ass", "mkv"), ("webvtt", "mkv"), ("mov_text", "mp4")]


@pytest.mark.parametrize(("codec", "suffix"), KINDS)
@pytest.mark.parametrize("start", [1500, 7000])
@pytest.mark.parametrize("b_frames", [0, 2])
def test_every_kind_of_track(tmp_path, codec, suffix, start, b_frames):
    # MP4 has no overlapping cues.
    cues, expected = (CUES[::2], EXPECTED[::2]) if codec == "mov_text" else (CUES, EXPECTED)
    path = write_film(tmp_path / f"a.{suffix}", (cues, "eng", "", True), codec=codec, start=start, b_frames=b_frames)
    assert read_subtitles(path) == expected
    assert read_subtitles(str(path)) == expected


def test_the_suffix_does_not_matter(tmp_path):
    film = write_film(tmp_path / "film.mkv", (CUES, "eng", "", True))
    assert read_subtitles(film.rename(tmp_path / "film")) == EXPECTED
    words = tmp_path / "words.mkv"
    words.write_text("WEBVTT\n\n00:01.000 --> 00:02.000\nHello\n")
    assert read_subtitles(words) == [Cue(1.0, 2.0, "Hello")]


@pytest.mark.parametrize(
    "text",
    [
        r"{\i1}a{\i0} {",
        r"{\an8{\b1}b",
        r"{\c {\d",
        "a} {note} b",
        r"{\i1\p1}m 0 0{\p0}",
        r"{\p0}a\Nb",
        r"{\pos(1)}a",
    ],
)
def test_words_of_an_event_are_pysubs2s(text):
    event = pysubs2.SSAEvent(text=text)
    expected = "" if event.is_drawing else event.plaintext
    assert tracks.words_of_event(event) == expected


def test_no_end_is_sought_of_braces_that_have_none(tmp_path, monkeypatch):
    """From each of them it would be, up to the end of the text."""
    searched = []

    class Search:
        def findall(self, text):
            searched.append(text)
            return []

        def sub(self, new, text):
            searched.append(text)
            return text

    monkeypatch.setattr(pysubs2.SSAEvent, "OVERRIDE_SEQUENCE", Search())
    path = tmp_path / "film.srt"
    path.write_text("1\n00:00:01,000 --> 00:00:02,000\n" + 9 * "{\\i1} {\\")
    assert len(read_subtitles(path)) == 1
    assert tracks.plain_text(8 * "," + 9 * "{\\", "subrip") == 9 * "{\\"
    assert len(searched) == 4
    assert not any("{" in text.rpartition("}")[2] for text in searched)


def test_markup_and_drawings_go_and_braces_stay(tmp_path):
    cues = [
        (0, 500, r"{\an8\fs20}Up{\b1} here\hnow{a note}"),
        (1000, 1500, r"{\p1}m 0 0 l 10 10 20 0{\p0}"),
        (2000, 2500, r"{\k20}sing{\k30}ing, \nloud"),
    ]
    read = read_subtitles(write_film(tmp_path / "signs.mkv", (cues, "jpn", "", True), codec="ass"))
    assert [cue.text for cue in read] == ["Up here now", "singing, loud"]
    payload = [(0, 500, b"a {b} <v Bob>c</v> &amp; d")]
    typed = write_film(tmp_path / "typed.mkv", (payload, "eng", "", True), codec="webvtt", encode=False)
    assert [cue.text for cue in read_subtitles(typed)] == ["a {b} c & d"]
    payload = [(0, 500, rb"{\an8}{laughs} a {b}")]
    typed = write_film(tmp_path / "srt.mkv", (payload, "eng", "", True), codec="subrip", encode=False)
    assert [cue.text for cue in read_subtitles(typed)] == ["{laughs} a {b}"]


@pytest.mark.parametrize(
    ("defaults", "text", "said"),
    [
        ((False, False, True), "c", "language: fre, title: Full"),
        ((False, True, True), "b", "language: ger"),
        ((False, False, False), "a", "language: eng, title: Signs"),
    ],
)
def test_which_track_is_read(tmp_path, caplog, defaults, text, said):
    names = [("a", "eng", "Signs"), ("b", "ger", ""), ("c", "fre", "Full")]
    texts = [([(0, 1000, t)], *name, default) for (t, *name), default in zip(names, defaults, strict=True)]
    path = write_film(tmp_path / "film.mkv", *texts)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert read_subtitles(path) == [Cue(0.0, 1.0, text)]
    finally:
        logger.removeHandler(caplog.handler)
    assert f"film.mkv has 3 text tracks: reading one ({said}), leaving 2" in caplog.text


def test_forced_tracks_have_few_words(tmp_path):
    full = ([(0, 1000, "full")], "eng", "Full", False)
    forced = ([(0, 1000, "forced")], "eng", "Forced", Disposition.default | Disposition.forced)
    assert read_subtitles(write_film(tmp_path / "film.mkv", full, forced)) == [Cue(0.0, 1.0, "full")]
    assert read_subtitles(write_film(tmp_path / "film.mkv", forced)) == [Cue(0.0, 1.0, "forced")]


def test_one_track_is_not_announced(tmp_path, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        read_subtitles(write_film(tmp_path / "film.mkv", (CUES, "eng", "", True)))
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.text == ""


def test_pictures_of_text_are_no_text(tmp_path):
    cues = [(0, 500, b"\x80\x00\x00")]
    film = write_film(tmp_path / "film.mkv", (cues, "eng", "", True), codec="hdmv_pgs_subtitle", encode=False)
    with pytest.raises(ValueError, match=r"subtitles in .*film\.mkv are pictures, not text \(.*pgs.*\).*--transcribe"):
        read_subtitles(film)


def test_files_without_text(tmp_path):
    with pytest.raises(ValueError, match=r"film\.mp4 has no text track\. Pass a text file .*or .*--transcribe"):
        read_subtitles(write_clip(tmp_path / "film.mp4", pictures(5)))
    noise = tmp_path / "noise"
    noise.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(ValueError, match="noise could not be opened as a video"):
        read_subtitles(noise)


def test_damaged_text(tmp_path):
    cues = [(0, 500, "caf\u00e9".encode("latin-1"))]
    film = write_film(tmp_path / "film.mkv", (cues, "eng", "", True), encode=False)
    with pytest.raises(ValueError, match=r"The text track of .*film\.mkv is damaged.* FFmpeg says"):
        read_subtitles(film)


def test_words_before_damage_can_be_kept(tmp_path, caplog, monkeypatch):
    cues = [(0, 500, b"hello"), (1000, 1500, "caf\u00e9".encode("latin-1"))]
    film = write_film(tmp_path / "film.mkv", (cues, "eng", "", True), encode=False)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert read_subtitles(film, on_error="keep") == [Cue(0.0, 0.5, "hello")]
    assert "The text track of" in caplog.text
    assert "The words before that are kept" in caplog.text


def test_reading_stops_where_there_are_too_many(tmp_path, monkeypatch):
    film = write_film(tmp_path / "film.mkv", ([(i, i + 1, "a") for i in range(500)], "eng", "", True))
    read = []
    plain_text = tracks.plain_text
    monkeypatch.setattr(tracks, "plain_text", lambda *event: read.append(event) or plain_text(*event))
    monkeypatch.setattr(subtitles, "MAX_CUES", 20)
    with pytest.raises(ValueError, match="21 subtitle cues are more than 20"):
        read_subtitles(film)
    assert len(read) == 21


def test_pysubs2_is_needed(tmp_path, monkeypatch):
    film = write_film(tmp_path / "film.mkv", (CUES, "eng", "", True))
    monkeypatch.setattr(tracks, "pysubs2", None)
    with pytest.raises(ImportError, match="pip install pysubs2"):
        read_subtitles(film)

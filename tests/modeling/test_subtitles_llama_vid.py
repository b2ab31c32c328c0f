# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Subtitles: reading them, whose frame they stand behind, and the exact prompt that comes of it."""

import itertools
import logging
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_checkpoint import UNTRAINED
from small_videos import pictures
from transformers import AutoProcessor

from llama_vid.data.clips import write_clip
from llama_vid.modeling import subtitles_llama_vid as subtitles
from llama_vid.modeling.subtitles_llama_vid import Cue, align_subtitles, read_subtitles, without_control_tokens

SRT = """1
00:00:01,000 --> 00:00:02,500
<i>Hello</i> <font color="red">there</font>, {\\an8}you
two.

2
00:00:00,250 --> 00:00:00,750
Before.

3
00:00:03,000 --> 00:00:04,000
<b></b>
"""
VTT = """WEBVTT

NOTE nobody reads this

intro
00:01.000 --> 00:02.500 align:start
<v Bob>Hi <c.yellow>there</c> <00:00:01.500>&amp; now

00:00:03.000 --> 00:00:04.000
caf\u00e9
"""


def write(folder, name: str, text: str, encoding: str = "utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def test_subrip(tmp_path):
    assert read_subtitles(write(tmp_path, "film.srt", SRT)) == [
        Cue(0.25, 0.75, "Before."),
        Cue(1.0, 2.5, "Hello there, you two."),
    ]


def test_webvtt(tmp_path):
    assert read_subtitles(str(write(tmp_path, "film.vtt", VTT))) == [
        Cue(1.0, 2.5, "Hi there & now"),
        Cue(3.0, 4.0, "caf\u00e9"),
    ]


def test_webvtt_of_captioning_services(tmp_path):
    """Times of words, names of cues and notes between them are neither words nor cues; a line of one space is."""
    content = "WEBVTT\r\nKind: captions\r\n\r\n4a6f/1-0\r\n00:01.000 --> 00:02.000 align:start\r\n \r\n"
    content += (
        "we<00:00:01.200><c> are</c><00:00:01.600><c> here</c>\r\n\r\nNOTE an editor's remark\r\nof two lines\r\n\r\n"
    )
    content += "STYLE\r\n::cue { color: red }\r\n\r\n4a6f/2-0\r\n00:03.000 --> 00:04.000\r\nbye\r\n"
    path = write(tmp_path, "film.vtt", content)
    assert read_subtitles(path) == [Cue(1.0, 2.0, "we are here"), Cue(3.0, 4.0, "bye")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom"])
def test_unicode_encodings(tmp_path, encoding):
    content = VTT.encode("utf-16") if encoding == "utf-16-le-bom" else VTT.encode(encoding)
    path = tmp_path / "film.vtt"
    path.write_bytes(content)
    assert read_subtitles(path)[1].text == "caf\u00e9"


SENTENCES = {
    "cp1252": [
        "Grüße aus München, schöne Äpfel für böse Könige",
        "Noël approche. Ça va, garçon naïf ? Il faut être prêt là-bas, mon frère",
        "A mãe não está. O coração dela é bom, e você viu o avião?",
    ],
    "cp1251": ["Привет, как дела? Я не знаю, что происходит"],
    "cp1250": ["Dziękuję bardzo. Chcę już iść do domu, może później przyjdą"],
    "gb18030": ["我不知道发生了什么。非常感谢。"],
}


@pytest.mark.parametrize(
    ("encoding", "words"), [(encoding, words) for encoding, texts in SENTENCES.items() for words in texts]
)
def test_other_encodings_are_detected_and_said(tmp_path, caplog, encoding, words):
    text = "".join(f"{i}\n00:00:{i:02d},000 --> 00:00:{i:02d},900\n{words} {i}.\n\n" for i in range(1, 30))
    path = write(tmp_path, "film.srt", text, encoding)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        cues = read_subtitles(path)
    finally:
        logger.removeHandler(caplog.handler)
    assert cues[0].text == f"{words} 1."
    assert f"is not UTF-8: read as {encoding}" in caplog.text


@pytest.mark.parametrize("version", [None, "5.2.0"])
def test_unknown_encoding_is_an_error(tmp_path, monkeypatch, version):
    monkeypatch.setattr(subtitles, "chardet", version and SimpleNamespace(__version__=version))
    with pytest.raises(ValueError, match=r"is not UTF-8 .*save it as UTF-8, or pip install .chardet>=7"):
        read_subtitles(write(tmp_path, "film.srt", SRT.replace("there", "caf\u00e9"), "latin-1"))


@pytest.mark.parametrize("name", ["film.srt", "film.vtt"])
def test_words_that_look_like_the_files_own(tmp_path, name):
    """The number of the next cue, and markup in braces."""
    said = ["In the year\n2001", "{laughs}", "I like {curly} things", "The answer is\n42"]
    times = [f"00:00:0{i}.000 --> 00:00:0{i}.900" for i in range(len(said))]
    if name == "film.srt":
        times = [f"{i}\n{time.replace('.', ',')}" for i, time in enumerate(times)]
        said[1] = "{\\an8}{laughs}"
    content = "" if name == "film.srt" else "WEBVTT\n\n"
    content += "\n".join(f"{time}\n{words}\n" for time, words in zip(times, said, strict=True))
    found = read_subtitles(write(tmp_path, name, content))
    expected = ["In the year 2001", "{laughs}", "I like {curly} things", "The answer is 42"]
    assert [cue.text for cue in found] == expected


def test_words_in_angle_brackets_are_no_markup(tmp_path):
    said = '{\\an8}<<Bonjour>> dit-il <rires> a <b and c> d <I>it</I> <font color="#ff0000">red</font> 1 < 2 x</b>'
    found = read_subtitles(write(tmp_path, "film.srt", f"1\n00:00:01,000 --> 00:00:02,000\n{said}\n"))
    assert [cue.text for cue in found] == ["<<Bonjour>> dit-il <rires> a d it red 1 < 2 x"]


@pytest.mark.parametrize("end", ["\r", "\r\n"])
@pytest.mark.parametrize("content", [SRT, VTT])
def test_line_ends(tmp_path, content, end):
    assert read_subtitles(write(tmp_path, "film.srt", content.replace("\n", end))) == read_subtitles(
        write(tmp_path, "other.srt", content)
    )


def test_utf16_that_is_cut_off(tmp_path):
    path = tmp_path / "film.srt"
    path.write_bytes(SRT.encode("utf-16")[:-1])
    with pytest.raises(ValueError, match=r"Subtitle file .*film\.srt is damaged UTF-16 \(.*truncated data\): copy"):
        read_subtitles(path)


def test_any_kind_of_path(tmp_path):
    write(tmp_path, "film.srt", SRT)
    [entry] = os.scandir(tmp_path)
    assert read_subtitles(entry) == read_subtitles(tmp_path / "film.srt")


def test_ass(tmp_path):
    lines = ["Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\\i1}Hello{\\i0}\\Nthere, {a note}you"]
    lines += ["Comment: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,not shown"]
    lines += ["Dialogue: 0,0:00:05.00,0:00:06.00,Default,,0,0,0,,{\\p1}m 0 0 l 1 1"]
    content = (
        "[Script Info]\nScriptType: v4.00+\n\n[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, "
    )
    content += "MarginV, Effect, Text\n" + "\n".join(lines) + "\n"
    assert read_subtitles(write(tmp_path, "film.ass", content)) == [Cue(1.0, 2.5, "Hello there, you")]


def test_lists_are_sorted_and_mended():
    cues = [(5, 4, "ends  before\nit starts"), (1, 2, " b "), (0.5, 9, "a"), (3, 3, "   ")]
    assert read_subtitles(cues) == [Cue(0.5, 9.0, "a"), Cue(1.0, 2.0, "b"), Cue(5.0, 5.0, "ends before it starts")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no cues|cannot be read as SubRip, WebVTT or ASS"),
        ("Just some words.", "has no cues|cannot be read as SubRip, WebVTT or ASS"),
        ("1\n100:00:01,000 --> 100:00:02,000\nlate\n", "'100:00:01,000 -->' has more hours than SubRip can say"),
        ('<p begin="00:00:01.000" end="00:00:02.000">Words of TTML</p>', "has no cues"),
    ],
)
def test_files_that_are_no_subtitles(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_subtitles(write(tmp_path, "film.srt", content))


def test_bad_sources(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"film\.srt does not exist"):
        read_subtitles(tmp_path / "film.srt")
    with pytest.raises(ValueError, match=r"cue 1 is \(1, 'a'\): expected \(start seconds, end seconds, text\)"):
        read_subtitles([(0, 1, "a"), (1, "a")])
    with pytest.raises(ValueError, match=r"cue 0 is \(nan, 1, 'a'\): expected"):
        read_subtitles([(float("nan"), 1, "a")])
    with pytest.raises(ValueError, match="Subtitles are 3: a file, or a list"):
        read_subtitles(3)
    monkeypatch.setattr(subtitles, "MAX_CUES", 3)
    with pytest.raises(ValueError, match="4 subtitle cues are more than 3"):
        read_subtitles([(i, i + 1, "a") for i in range(4)])
    monkeypatch.setattr(subtitles, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="has more than 10 bytes"):
        read_subtitles(write(tmp_path, "film.srt", SRT))
    monkeypatch.setattr(subtitles, "pysubs2", None)
    monkeypatch.setattr(subtitles, "MAX_BYTES", 10**6)
    with pytest.raises(ImportError, match="pip install pysubs2"):
        read_subtitles(write(tmp_path, "film.srt", SRT))


def test_a_million_cues_are_refused_before_they_are_parsed(tmp_path, monkeypatch):
    path = write(tmp_path, "film.vtt", "WEBVTT\n\n" + "00:00.000 --> 00:01.000\na\n\n" * 10**6)
    monkeypatch.setattr(subtitles.pysubs2, "SSAFile", None)
    with pytest.raises(ValueError, match=r"1000000 subtitle cues are more than 100000: are these .* of one film"):
        read_subtitles(path)
    with pytest.raises(ValueError, match="100001 subtitle cues are more than 100000"):
        read_subtitles((i, i + 1, "endless") for i in itertools.count())


def test_text_with_zero_bytes_stays_text(tmp_path):
    path = write(tmp_path, "film.srt", SRT.replace("Before.", "Be\0fore."))
    assert read_subtitles(path)[0] == Cue(0.25, 0.75, "Be\0fore.")


# A film of ten frames, one a second, and cues in every awkward position.
AWKWARD = [
    (2.2, 2.8, "c"),  # within a second
    (-3.0, -1.0, "a"),  # over before the film begins: the first frame
    (0.0, 0.0, "b"),  # of no length, at the first frame
    (3.0, 3.0, "d"),  # of no length, at a frame that is not shown before it ends
    (4.0, 7.0, "f"),  # ends as a frame begins, which is not shown before it ends
    (3.5, 4.5, "e"),  # overlaps the next
    (4.2, 4.4, "e2"),  # inside it
    (9.5, 99.0, "g"),  # longer than the film
    (10.0, 11.0, "never"),  # starts as the film ends
    (50.0, 51.0, "never"),
]
EXPECTED = ["a b", "", "c d", "", "e e2", "", "f", "", "", "g"]


def test_alignment():
    words, dropped = align_subtitles(read_subtitles(AWKWARD), [float(i) for i in range(10)], 10.0)
    assert words == EXPECTED
    assert dropped == 2


def test_alignment_to_uneven_times():
    words, dropped = align_subtitles(read_subtitles([(0, 2, "a"), (2, 6, "b"), (6, 9, "c")]), [0.0, 0.4, 5.9], 8.0)
    assert (words, dropped) == (["", "a", "b c"], 0)


def test_words_of_a_slide_stand_where_they_are_said():
    """A frame that is shown for ten seconds and sampled ten times is not all shown at once."""
    times = [0.0] * 10 + [10.0] * 10
    words, dropped = align_subtitles([Cue(1, 2, "one"), Cue(8, 9, "two"), Cue(14, 15, "three")], times, end=20.0)
    assert ({i: word for i, word in enumerate(words) if word}, dropped) == ({1: "one", 8: "two", 14: "three"}, 0)
    # Of the second part, the still picture stands for that part only.
    words, dropped = align_subtitles([Cue(10, 11, "one"), Cue(18, 19, "two")], [0.0] * 10, end=20.0, start=10.0)
    assert ({i: word for i, word in enumerate(words) if word}, dropped) == ({0: "one", 8: "two"}, 0)


def test_control_tokens_are_taken_apart():
    tokens = ["</s>", "<image>", "<video>", "<s>"]
    text = without_control_tokens("a </s><video> b<s> <3", tokens)
    assert text == "a < /s>< video> b< s> <3"
    assert not any(token in text for token in tokens)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(UNTRAINED)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_clip(path, pictures(100), fps=10)
    return path


FILM = "".join("<video><video>" + words for words in EXPECTED)


def test_exact_prompt_in_every_way(processor, film, caplog):
    prompt = "USER: <video>\nWho speaks? ASSISTANT:"
    expected = processor.tokenizer(prompt.replace("<video>", FILM))["input_ids"]

    from_text = processor(text=prompt, videos=film, subtitles=AWKWARD)
    assert from_text["input_ids"] == [expected]

    part = {"type": "video", "path": str(film), "subtitles": AWKWARD}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [part, {"type": "text", "text": "Who speaks?"}]},
    ]
    arguments = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    from_messages = processor.apply_chat_template(messages, **arguments)
    rendered = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert from_messages["input_ids"] == [processor.tokenizer(rendered.replace("<video>", FILM))["input_ids"]]
    assert from_messages["qformer_input_ids_videos"] == processor.qformer_tokenizer(["Who speaks?"])["input_ids"]

    features = torch.zeros(10, 17, 56)
    times = list(range(10))
    from_features = processor(text=prompt, video_features=[features], video_times=[times], subtitles=[AWKWARD])
    assert from_features["input_ids"] == [expected]
    messages[1]["content"][0] = {"type": "video", "features": features, "times": times, "subtitles": AWKWARD}
    assert processor.apply_chat_template(messages, **arguments)["input_ids"] == from_messages["input_ids"]


def test_files_and_videos_without_subtitles(processor, film, tmp_path):
    path = write(tmp_path, "film.srt", SRT)
    batch = processor(text=["<video>", "<video>"], videos=[film, film], subtitles=[None, path], num_frames=2)
    plain, spoken = batch["input_ids"]
    assert plain == processor.tokenizer("<video>" * 4)["input_ids"]
    assert spoken == processor.tokenizer("<video><video>Before. Hello there, you two.<video><video>")["input_ids"]
    assert "video_metadata" not in batch
    assert batch["video_indices"] == [0, 0]


def test_words_of_a_subtitle_are_no_placeholders_or_special_tokens(processor, film):
    text = "say </s> and <image> and <video> USER: now"
    batch = processor(text="<video>", videos=film, subtitles=[(0, 1, text)], num_frames=1)
    ids = batch["input_ids"][0]
    assert ids.count(processor.video_token_id) == 2
    assert processor.image_token_id not in ids
    assert processor.tokenizer.eos_token_id not in ids


def test_dropped_cues_are_counted(processor, film, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        processor(text="<video>", videos=film, subtitles=AWKWARD)
    finally:
        logger.removeHandler(caplog.handler)
    assert "Video 0 is looked at from 0.0 to 10.0 s: 2 subtitle cues outside that are dropped" in caplog.text


def test_subtitles_must_fit_the_videos(processor, film):
    with pytest.raises(ValueError, match="`subtitles` has 2 entries for 1 videos"):
        processor(text="<video>", videos=film, subtitles=[None, None])
    for no_subtitles in (3, [3]):
        with pytest.raises(ValueError, match="Subtitles are 3: a file, or a list"):
            processor(text="<video>", videos=film, subtitles=no_subtitles)
    with pytest.raises(ValueError, match="its features have no times: pass `video_times`"):
        processor(text="<video>", video_features=[torch.zeros(2, 17, 56)], subtitles=[AWKWARD])


@pytest.mark.parametrize("times", [[], [0.0], [0.0, 1.0, 2.0], [1.0, 0.0], [0.0, float("nan")]])
def test_times_must_fit_the_features(processor, times):
    with pytest.raises(ValueError, match=r"Video 0 has 2 frames of features and the `video_times` \["):
        processor(text="<video>", video_features=[torch.zeros(2, 17, 56)], video_times=[times], subtitles=[AWKWARD])


def test_a_single_frame_is_shown_for_a_second(processor):
    features, cues = torch.zeros(1, 17, 56), [(0.2, 0.8, "a"), (1.5, 2, "b")]
    batch = processor(text="<video>", video_features=[features], video_times=[[0.0]], subtitles=[cues])
    assert processor.decode(batch["input_ids"][0], skip_special_tokens=True) == "a"


def test_frames_in_memory_have_the_processors_clock(processor):
    frames = np.stack(list(pictures(3)))
    batch = processor(text="<video>", videos=frames, subtitles=[(0, 0.5, "one"), (1.5, 1.9, "two")])
    assert batch["input_ids"] == [processor.tokenizer("<video><video>one<video><video>two<video><video>")["input_ids"]]


@pytest.mark.parametrize(("part", "words"), [((0, 10), "abcd"), ((2, 10), "bcd"), ((2, 5), "bc"), ((None, 5), "abc")])
def test_a_part_of_the_film_has_its_own_words(processor, film, part, words):
    """Cues outside are dropped, in every way that a part is known."""
    start, end = part
    cues = [(0.2, 1.8, "a"), (1.5, 2.5, "b"), (4.5, 5.5, "c"), (8, 9, "d")]
    batch = processor(text="<video>", videos=film, subtitles=cues, start=start, end=end)
    assert processor.decode(batch["input_ids"][0], skip_special_tokens=True).replace(" ", "") == words

    with processor.video_processor.open(film, start=start, end=end) as reader:
        times = torch.cat([times for _, times in reader.chunks])
    features = [torch.zeros(len(times), 17, 56)]
    batch = processor(text="<video>", video_features=features, video_times=[times], subtitles=[cues])
    assert processor.decode(batch["input_ids"][0], skip_special_tokens=True).replace(" ", "") == words

"""Questions about the small world: their answers are true to the pictures, and cannot be guessed."""

import math
import re
from collections import Counter
from functools import cache
from random import Random

import numpy as np
import pytest

from llama_vid.data.shapes import COLOURS, FOODS, KINDS, Scene, frame_at, make_scene
from llama_vid.data.shapes_questions import (
    NUMBERS,
    PICTURE_KINDS,
    QUESTION_KINDS,
    Question,
    caption,
    describe,
    diary,
    majority_baseline,
    picture_questions,
    questions,
    sentences,
)

LENGTHS = (8, 12, 16, 24, 40, 64)


def asked_about(count: int, prefix: str) -> list[tuple[Scene, Question]]:
    found = []
    for i in range(count):
        scene = make_scene(f"{prefix} {i}", seconds=LENGTHS[i % len(LENGTHS)])
        found += [(scene, question) for question in questions(scene, Random(f"{prefix} {i}"))]
    return found


ASKED = asked_about(800, "questions")


@cache
def look(scene: Scene) -> dict[str, dict[int, tuple[float, float]]]:
    """For each colour the seconds at which the pictures show it, and the middle of its pixels (x, y)."""
    seen = {}
    for second in range(scene.seconds):
        frame = frame_at(scene, second)
        for colour, value in COLOURS.items():
            rows, columns = np.nonzero((frame == value).all(axis=-1))
            if len(rows):
                seen.setdefault(colour, {})[second] = (columns.mean(), rows.mean())
    return seen


def side(start: tuple[float, float], end: tuple[float, float]) -> str:
    """Where one looks from the start to the end."""
    x, y = end[0] - start[0], end[1] - start[1]
    return ("right" if x > 0 else "left") if abs(x) > abs(y) else ("bottom" if y > 0 else "top")


def answer_by_looking(scene: Scene, question: Question) -> str:
    """From the pictures of whole seconds and the subtitles; only which colour has which kind is taken on trust."""
    seen = look(scene)
    order = sorted(seen, key=lambda colour: min(seen[colour]))
    kind_of = {shape.colour: shape.kind for shape in scene.shapes}
    words = re.findall(r"\w+", question.text.lower())
    named = [colour for colour in order if colour in words or kind_of[colour] in words]
    places = list(seen[named[0]].values()) if named else []
    match question.kind:
        case "colour":
            return named[0]
        case "shape":
            return kind_of[named[0]]
        case "count" if "same" in words or "once" in words:
            return NUMBERS[max(Counter(second for seconds in seen.values() for second in seconds).values())]
        case "count":
            return NUMBERS[len(seen)]
        case "direction" if "come" in words:
            return side(places[len(places) // 2], places[0])
        case "direction" if "leave" in words:
            return side(places[(len(places) - 1) // 2], places[-1])
        case "direction":
            way = side(places[0], places[-1])
            return {"top": "up", "bottom": "down"}.get(way, way)
        case "order" if "or" in words:
            return kind_of[named["later" in words]]
        case "order" if "right" in words:
            return kind_of[order[order.index(named[0]) + (1 if "after" in words else -1)]]
        case "order":
            return kind_of[order[-1 if "last" in words else 0]]
        case "when":
            return str(min(seen[named[0]]))
        case "said":
            [food] = [line.food for line in scene.lines if int(line.start) in seen[named[0]]]
            return food


@pytest.mark.parametrize("kind", [kind for kind in QUESTION_KINDS if kind != "presence"])
def test_answers_are_true_to_the_pictures(kind):
    for scene, question in [case for case in ASKED if case[1].kind == kind][:40]:
        assert answer_by_looking(scene, question) == question.answer, (scene, question)


def test_answers_about_presence_are_true():
    for scene, question in [case for case in ASKED if case[1].kind == "presence"]:
        thing = re.search(r"\ban? (.*?)( appear| shown| never|\?)", question.text).group(1).split()
        there = any({*thing} <= {shape.colour, shape.kind, "shape"} for shape in scene.shapes)
        asked_for_absence = "without" in question.text or "never" in question.text
        assert question.answer == ("yes" if there != asked_for_absence else "no"), (scene, question)


def test_questions_follow_from_scene_and_random():
    scene = make_scene(3, seconds=32, num_shapes=3)
    assert questions(scene, Random(1)) == questions(scene, Random(1))
    assert questions(scene, Random(1)) != questions(scene, Random(2))


def test_every_kind_is_asked_in_several_ways_and_once_a_scene():
    for scene, _ in ASKED[::50]:
        kinds = [question.kind for question in questions(scene, Random(0))]
        assert kinds == [kind for kind in QUESTION_KINDS if kind in kinds]
        assert set(QUESTION_KINDS).difference(kinds) <= {"direction", "order", "said"}
    names = re.compile("|".join([*COLOURS, *KINDS]))
    wordings = {kind: {names.sub("_", q.text) for _, q in ASKED if q.kind == kind} for kind in QUESTION_KINDS}
    assert all(len(texts) >= 2 for texts in wordings.values()), wordings


def test_answers_are_one_word_of_a_few():
    expected = {
        "colour": set(COLOURS),
        "shape": set(KINDS),
        "count": {"one", "two", "three", "four"},
        "direction": {"left", "right", "top", "bottom", "up", "down"},
        "order": set(KINDS),
        "said": set(FOODS),
        "presence": {"yes", "no"},
    }
    for kind, answers in expected.items():
        assert {question.answer for _, question in ASKED if question.kind == kind} == answers
    assert all(question.answer.isdigit() for _, question in ASKED if question.kind == "when")


def test_the_most_frequent_answer_is_seldom_right():
    bounds = {
        "colour": 0.2,
        "shape": 0.24,
        "count": 0.45,
        "direction": 0.33,
        "order": 0.26,
        "when": 0.2,
        "said": 0.16,
        "presence": 0.55,
        "all": 0.3,
    }
    shares = majority_baseline(question for _, question in ASKED)
    assert shares.keys() == bounds.keys()
    assert {kind: share for kind, share in shares.items() if share > bounds[kind]} == {}


def test_majority_baseline():
    answers = [("colour", "red"), ("colour", "red"), ("colour", "blue"), ("presence", "yes"), ("presence", "no")]
    shares = majority_baseline(Question(kind, "?", answer) for kind, answer in answers)
    assert shares == pytest.approx({"colour": 2 / 3, "presence": 1 / 2, "all": 3 / 5})
    assert majority_baseline([]) == {}


def test_what_rests_is_not_asked_for_its_direction():
    for scene, question in ASKED:
        if question.kind == "direction":
            [shape] = [shape for shape in scene.shapes if shape.name in question.text]
            assert math.dist(shape.path[0], shape.path[-1]) > 0.3


def test_captions():
    scene = make_scene("captions", seconds=32, num_shapes=4)
    whole = caption(scene)
    assert whole.count(", then ") == 3
    assert [whole.index(shape.name) for shape in scene.shapes] == sorted(whole.index(s.name) for s in scene.shapes)

    assert caption(scene, 0) == "Nothing."
    for second in range(scene.seconds):
        visible = scene.visible(second)
        named = caption(scene, second)
        assert [shape.name in named for shape in scene.shapes] == [shape in visible for shape in scene.shapes]
        for shape in visible:
            place = named.split(shape.name)[1].split(" and ")[0]
            x, y = shape.centre(second)
            assert ("left" in place, "right" in place) == (x < 1 / 3, x >= 2 / 3)
            assert ("top" in place, "bottom" in place) == (y < 1 / 3, y >= 2 / 3)


def test_a_single_shape_and_a_diary_in_words():
    scene = make_scene("captions", seconds=32, num_shapes=4, subtitles=True)
    shape = scene.shapes[0]
    told = describe(shape, shape.appears)
    assert told.startswith(("A ", "An "))
    assert f"{told[2:].removesuffix('.')} and " in f"{caption(scene, shape.appears)[2:].removesuffix('.')} and "

    written = diary(scene)
    for line in scene.lines:
        assert f"{caption(scene, int(line.start))} {line.text}" in written
        written = written.replace(f" {line.text}", "", 1)
    assert written == " ".join(caption(scene, second) for second in range(32))


def test_questions_about_a_picture():
    for seed in range(40):
        scene = make_scene(f"picture {seed}", seconds=24, num_shapes=4)
        second = next(second for second in range(24) if scene.visible(second))
        visible = scene.visible(second)
        asked = {question.kind: question for question in picture_questions(scene, second, Random(seed))}
        assert tuple(asked) == PICTURE_KINDS
        [by_kind] = [shape for shape in visible if f"the {shape.kind}" in asked["colour"].text]
        assert asked["colour"].answer == by_kind.colour
        [by_colour] = [shape for shape in visible if shape.colour in asked["shape"].text]
        assert asked["shape"].answer == by_colour.kind
        assert asked["count"].answer == NUMBERS[len(visible)]
        [named] = [shape for shape in visible if shape.name in asked["place"].text]
        assert f"{named.name} {asked['place'].answer}" in caption(scene, second)
        words = asked["presence"].text
        there = any(s.name in words or f"a {s.kind}" in words or f"{s.colour} shape" in words for s in visible)
        assert asked["presence"].answer == ("yes" if there else "no")


def test_articles():
    assert "an orange" in " ".join(sentences(100))
    assert not re.search(r"\ba orange|\ban [^o]", " ".join(sentences(100)), re.IGNORECASE)


def test_sentences_have_every_word_of_the_world():
    def words(texts) -> set[str]:
        return {word.lower() for text in texts for word in re.findall(r"[^\W\d]+", text)}

    asked = asked_about(800, "other scenes")
    used = words(text for scene, q in asked for text in (q.text, q.answer, caption(scene), caption(scene, 4)))
    used |= words(line.text for scene, _ in asked for line in scene.lines)
    assert sentences(5) == sentences(5)
    assert used - words(sentences()) == set()

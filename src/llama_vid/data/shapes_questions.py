"""What can be asked and said about a scene of the small world: questions with short answers, captions, its language."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random

from llama_vid.data.shapes import COLOURS, KINDS, Scene, Shape, make_scene

NUMBERS = ("zero", "one", "two", "three", "four")
WAY = {
    "left": "right",
    "right": "left",
    "top": "down",
    "bottom": "up",
}  # of what comes from a side and goes straight on
PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the middle", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)


@dataclass(frozen=True)
class Question:
    """A question of one of `QUESTION_KINDS` or `PICTURE_KINDS`, and its only right answer: one word, or a place."""

    kind: str
    text: str
    answer: str


def questions(scene: Scene, random: Random) -> list[Question]:
    """
    Ask one question of every kind that the scene has an unambiguous answer to.

    Args:
        scene (`Scene`): What is asked about.
        random (`Random`): Decides what is asked for and the wording; the answers follow from the scene.

    Returns:
        `list[Question]`: In the order of `QUESTION_KINDS`.
    """
    drawn = [(kind, ask(scene, random)) for kind, ask in _ASK.items()]
    return [Question(kind, *found) for kind, found in drawn if found is not None]


def _colour(scene: Scene, random: Random) -> tuple[str, str]:
    shape = random.choice(scene.shapes)
    wordings = ("What colour is the {kind}?", "Which colour does the {kind} have?", "What is the colour of the {kind}?")
    return random.choice(wordings).format(kind=shape.kind), shape.colour


def _shape(scene: Scene, random: Random) -> tuple[str, str]:
    shape = random.choice(scene.shapes)
    wordings = ("Which shape is {colour}?", "What is the {colour} thing?", "What shape does the {colour} thing have?")
    return random.choice(wordings).format(colour=shape.colour), shape.kind


def _count(scene: Scene, random: Random) -> tuple[str, str]:
    if random.random() < 0.5:
        wordings = ("How many shapes are shown in all?", "How many shapes come in the whole video?")
        return random.choice(wordings), NUMBERS[len(scene.shapes)]
    wordings = ("How many shapes are there at once at most?", "What is the largest number of shapes at the same time?")
    return random.choice(wordings), NUMBERS[max(len(scene.visible(second)) for second in range(scene.seconds))]


def _direction(scene: Scene, random: Random) -> tuple[str, str] | None:
    # What rests slides in and out between two whole seconds, which one frame a second does not show.
    moving = [shape for shape in scene.shapes if shape.motion != "rests"]
    if not moving:
        return None
    shape = random.choice(moving)
    asked = random.choice(("from", "to", "way") if shape.motion == "crosses" else ("from", "to"))
    wordings, answer = {
        "from": (("From which side does the {name} come?", "Where does the {name} come from?"), shape.comes_from),
        "to": (("To which side does the {name} leave?", "Where does the {name} leave to?"), shape.leaves_to),
        "way": (("Which way does the {name} move?", "In which direction does the {name} go?"), WAY[shape.comes_from]),
    }[asked]
    return random.choice(wordings).format(name=shape.name), answer


def _order(scene: Scene, random: Random) -> tuple[str, str] | None:
    if len(scene.shapes) < 2:
        return None
    earlier, later = random.choice(list(zip(scene.shapes, scene.shapes[1:], strict=False)))
    one, other = random.sample((earlier, later), 2)
    wordings, answer = random.choice(
        (
            (("Which shape comes first?", "What is the first shape?"), scene.shapes[0]),
            (("Which shape comes last?", "What is the last shape?"), scene.shapes[-1]),
            (("Which shape comes right before the {later}?", "What comes right before the {later}?"), earlier),
            (("Which shape comes right after the {earlier}?", "What comes right after the {earlier}?"), later),
            (("Which one comes first, the {one} or the {other}?",), earlier),
            (("Which one comes later, the {one} or the {other}?",), later),
        )
    )
    names = {"earlier": earlier.name, "later": later.name, "one": one.name, "other": other.name}
    return random.choice(wordings).format(**names), answer.kind


def _when(scene: Scene, random: Random) -> tuple[str, str]:
    shape = random.choice(scene.shapes)
    wordings = ("At which second does the {name} appear?", "After how many seconds does the {name} appear?")
    return random.choice(wordings).format(name=shape.name), str(shape.appears)


def _said(scene: Scene, random: Random) -> tuple[str, str] | None:
    heard = [(shape, _foods_during(scene, shape)) for shape in scene.shapes]
    clear = [(shape, foods[0]) for shape, foods in heard if len(foods) == 1]
    if not clear:
        return None
    shape, food = random.choice(clear)
    wordings = ("Which food is named while the {name} is there?", "What is spoken of when the {name} is shown?")
    return random.choice(wordings).format(name=shape.name), food


def _foods_during(scene: Scene, shape: Shape) -> list[str]:
    """Also what is named while it slides in, which could be meant too."""
    return [line.food for line in scene.lines if shape.appears - 1 <= line.start < shape.leaves]


def _presence(scene: Scene, random: Random) -> tuple[str, str]:
    present = random.random() < 0.5
    thing = _thing(scene, random, present)
    if random.random() < 0.5:
        wordings, answers = ("Is there {thing}?", "Does {thing} appear?", "Is {thing} shown?"), ("no", "yes")
    else:
        wordings, answers = ("Is the video without {thing}?", "Is it true that {thing} never appears?"), ("yes", "no")
    return random.choice(wordings).format(thing=thing), answers[present]


def _thing(scene: Scene, random: Random, present: bool) -> str:
    """Such as `a red circle`, `a circle` or `a red shape`: what is in the scene, or what is not."""
    here, colours = [shape.name for shape in scene.shapes], [shape.colour for shape in scene.shapes]
    kinds = [shape.kind for shape in scene.shapes]
    # What is absent shares its colour or its kind with a shape of the scene, so that both have to be looked at.
    near = [f"{c} {k}" for c in COLOURS for k in KINDS if (c in colours or k in kinds) and f"{c} {k}" not in here]
    names, absent = random.choice(
        (
            (here, near),
            (kinds, [kind for kind in KINDS if kind not in kinds]),
            ([f"{colour} shape" for colour in colours], [f"{c} shape" for c in COLOURS if c not in colours]),
        )
    )
    return _with_article(random.choice(names if present else absent))


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


_ASK = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "direction": _direction,
    "order": _order,
    "when": _when,
    "said": _said,
    "presence": _presence,
}
QUESTION_KINDS = tuple(_ASK)
PICTURE_KINDS = ("colour", "shape", "count", "place", "presence")


def picture_questions(scene: Scene, second: int, random: Random) -> list[Question]:
    """
    Ask one question of each of `PICTURE_KINDS` about the picture at a whole second, at which a shape is to be seen.

    Args:
        scene (`Scene`): The picture is one of its frames.
        second (`int`): A whole second.
        random (`Random`): As for [`questions`].

    Returns:
        `list[Question]`: In the order of `PICTURE_KINDS`.
    """
    picture = replace(scene, shapes=tuple(scene.visible(second)))
    present = random.random() < 0.5
    there = random.choice(("Is there {thing}?", "Is {thing} shown?")).format(thing=_thing(picture, random, present))
    shape = random.choice(picture.shapes)
    where = random.choice(("Where is the {name}?", "In which place is the {name}?")).format(name=shape.name)
    found = {
        "colour": _colour(picture, random),
        "shape": _shape(picture, random),
        "count": ("How many shapes are there?", NUMBERS[len(picture.shapes)]),
        "place": (where, _place(shape, second)),
        "presence": (there, ("no", "yes")[present]),
    }
    return [Question(kind, *found[kind]) for kind in PICTURE_KINDS]


def majority_baseline(asked: Iterable[Question]) -> dict[str, float]:
    """
    The share of questions that are answered right without looking, by always giving each kind's most frequent answer:
    for each kind, and for all of them (`all`).
    """
    answers = defaultdict(Counter)
    for question in asked:
        answers[question.kind][question.answer] += 1
    if not answers:
        return {}
    kinds = dict.fromkeys((*QUESTION_KINDS, *PICTURE_KINDS))
    best = {kind: max(answers[kind].values()) for kind in kinds if kind in answers}
    shares = {kind: most / answers[kind].total() for kind, most in best.items()}
    return {**shares, "all": sum(best.values()) / sum(counts.total() for counts in answers.values())}


def caption(scene: Scene, second: int | None = None) -> str:
    """
    One sentence about the whole scene, or about what is to be seen at one second (for an image).

    Args:
        scene (`Scene`): What is described.
        second (`int`, *optional*): A whole second.

    Returns:
        `str`: Such as `A red ring comes from the left and goes to the top, then a blue star rests.`, or `A red ring on
        the left and a blue star at the bottom.`.
    """
    if second is None:
        parts = [f"{_with_article(shape.name)} {_motion(shape)}" for shape in scene.shapes]
        sentence = ", then ".join(parts)
    else:
        parts = [f"{_with_article(shape.name)} {_place(shape, second)}" for shape in scene.visible(second)]
        sentence = " and ".join(parts) or "nothing"
    return f"{sentence[0].upper()}{sentence[1:]}."


def describe(shape: Shape, second: int) -> str:
    """One sentence about a single shape, at a second at which it is in the picture: `A red ring on the left.`"""
    sentence = f"{_with_article(shape.name)} {_place(shape, second)}."
    return f"{sentence[0].upper()}{sentence[1:]}"


def diary(scene: Scene) -> str:
    """The scene in words: for each second the caption of its frame, and then what is said during it."""
    spoken = defaultdict(list)
    for line in scene.lines:
        spoken[int(line.start)].append(line.text)
    return " ".join(text for second in range(scene.seconds) for text in (caption(scene, second), *spoken[second]))


def _motion(shape: Shape) -> str:
    return (
        "rests" if shape.motion == "rests" else f"comes from the {shape.comes_from} and goes to the {shape.leaves_to}"
    )


def _place(shape: Shape, second: int) -> str:
    x, y = shape.path[second - shape.appears]
    return PLACES[int(3 * y)][int(3 * x)]


def sentences(count: int = 1000) -> list[str]:
    """
    The world's language: questions with their answers, subtitles and captions of `count` scenes, to train a tokenizer
    or a language model on. Some thousand scenes have every word that there is.
    """
    found = []
    for index in range(count):
        scene = make_scene(f"sentences {index}", seconds=64)
        random = Random(f"sentences {index}")
        asked = questions(scene, random)
        busy = [second for second in range(scene.seconds) if scene.visible(second)]
        asked += picture_questions(scene, random.choice(busy), random)
        found += [f"{question.text} {question.answer}" for question in asked]
        found += [line.text for line in scene.lines]
        found += [caption(scene), *(caption(scene, random.randrange(scene.seconds)) for _ in range(2))]
    return found

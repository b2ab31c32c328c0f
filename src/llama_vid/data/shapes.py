"""
A small world to learn from: coloured shapes that enter, move, turn, overlap and leave on a textured background.

A scene follows from its seed alone. At each whole second a shape is either well inside the picture or outside of it, so
that one frame a second shows all there is to know.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from llama_vid.data.clips import write_clip

if TYPE_CHECKING:
    import numpy as np

SIZE = 112  # pixels of a side; the tiny model looks at 56, where a shape is about two patches wide
SHORTEST_SCENE = 8  # seconds
COLOURS = {
    "red": (225, 30, 35),
    "green": (35, 165, 55),
    "blue": (40, 75, 230),
    "yellow": (245, 225, 40),
    "orange": (250, 135, 20),
    "purple": (140, 40, 185),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
}
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
# What is spoken about: words that tell nothing of what is to be seen.
FOODS = tuple("apple bread butter cake cheese fish honey lemon nuts rice soup sugar".split())
LINES = ("I like {food}.", "More {food}, please.", "We have {food} today.", "Who wants {food}?")


def _outline(*corners: tuple[float, float]) -> list[tuple[float, float]]:
    """Corners given by angle (degrees, clockwise from the right) and distance, as x and y."""
    return [(r * math.cos(math.radians(angle)), r * math.sin(math.radians(angle))) for angle, r in corners]


# Corners around (0, 0), where a circle of the same size has radius 1; all cover about the same area.
OUTLINES = {
    "circle": _outline(*((15 * i, 1) for i in range(24))),
    "square": _outline(*((45 + 90 * i, 1.25) for i in range(4))),
    "triangle": _outline(*((-90 + 120 * i, 1.5) for i in range(3))),
    "star": _outline(*((-90 + 36 * i, (1.6, 0.7)[i % 2]) for i in range(10))),
    "cross": _outline(*((90 * i + a, r) for i in range(4) for a, r in ((-17, 1.41), (17, 1.41), (45, 0.6)))),
    "ring": [],  # no polygon
}
KINDS = tuple(OUTLINES)


@dataclass(frozen=True)
class Shape:
    """
    One shape and its way. Places and lengths are fractions of the picture's side, from its top left corner.

    Args:
        kind (`str`): One of `KINDS`.
        colour (`str`): One of `COLOURS`.
        radius (`float`): That of a circle of about the same area.
        spin (`float`): Degrees a second, clockwise.
        appears (`int`): The first second at which it is in the picture.
        leaves (`int`): The first second at which it is no longer.
        motion (`str`): `crosses` the picture straight, `turns` aside in the middle of it, or `rests` in one place.
        comes_from (`str`): The side of the picture over which it slides in, during the second before it appears.
        leaves_to (`str`): The side over which it slides out, during its last second.
        path (`tuple[tuple[float, float], ...]`): Its centre at each whole second from `appears` to `leaves - 1`.
    """

    kind: str
    colour: str
    radius: float
    spin: float
    appears: int
    leaves: int
    motion: str
    comes_from: str
    leaves_to: str
    path: tuple[tuple[float, float], ...]

    @property
    def name(self) -> str:
        """Such as `red circle`: no other shape of the scene has this colour or this kind."""
        return f"{self.colour} {self.kind}"

    def centre(self, time: float) -> tuple[float, float] | None:
        """Where it is after `time` seconds; `None` before it comes and after it has left."""
        if not self.appears - 1 < time < self.leaves:
            return None
        before, after = _beside(self.path[0], self.comes_from, -0.3), _beside(self.path[-1], self.leaves_to, -0.3)
        return _between([before, *self.path, after], time - self.appears + 1)


@dataclass(frozen=True)
class Line:
    """A subtitle: `text`, about one of `FOODS`, shown from `start` to `end` (seconds), within one whole second."""

    start: float
    end: float
    text: str
    food: str


@dataclass(frozen=True)
class Scene:
    """
    What happens in a clip.

    Args:
        seed (`int` or `str`): What it was made from; the background's texture follows from it.
        seconds (`int`): Its length.
        shapes (`tuple[Shape, ...]`): In the order in which they appear, no two at the same second; later ones are drawn
            over earlier ones. Colours and kinds differ from one another.
        lines (`tuple[Line, ...]`): Subtitles, in order, all about different foods; none for a silent scene.
    """

    seed: int | str
    seconds: int
    shapes: tuple[Shape, ...]
    lines: tuple[Line, ...] = ()

    def visible(self, second: int) -> list[Shape]:
        """The shapes in the picture at a whole second."""
        return [shape for shape in self.shapes if shape.appears <= second < shape.leaves]


def make_scene(seed: int | str, *, seconds: int, num_shapes: int | None = None, subtitles: bool | None = None) -> Scene:
    """
    Invent a scene: one to four shapes, at most three at once, none in the first and the last second.

    Args:
        seed (`int` or `str`): Equal seeds give equal scenes, everywhere.
        seconds (`int`): Its length, at least `SHORTEST_SCENE`.
        num_shapes (`int`, *optional*): How many shapes, at most a quarter of `seconds`; drawn otherwise.
        subtitles (`bool`, *optional*): Whether something is said; drawn otherwise.

    Raises:
        ValueError: The scene is too short, or for so many shapes.
    """
    if seconds < SHORTEST_SCENE:
        raise ValueError(f"A scene lasts at least {SHORTEST_SCENE} seconds, got seconds={seconds}.")
    most = min(4, seconds // 4)
    if num_shapes is not None and not 1 <= num_shapes <= most:
        raise ValueError(f"num_shapes must be from 1 to {most} in {seconds} seconds, got {num_shapes}.")
    random = Random(f"scene {seed}")  # a string, as those are hashed alike in every process
    if num_shapes is None:
        num_shapes = min(most, random.choices((1, 2, 3, 4), (4, 4, 6, 6))[0])
    if subtitles is None:
        subtitles = random.random() < 0.5

    names = list(zip(random.sample(KINDS, num_shapes), random.sample(list(COLOURS), num_shapes), strict=True))
    shapes = None  # a crowded timetable may leave no room for the last one
    while shapes is None:
        shapes = _arrange(random, names, _timetable(random, seconds, num_shapes))
    return Scene(seed, seconds, shapes, _lines(random, seconds, shapes) if subtitles else ())


def _timetable(random: Random, seconds: int, count: int) -> list[tuple[int, int]]:
    """(appears, leaves) of each shape: groups of shapes that are there together, and pauses between the groups."""
    longest = 3 + min(seconds // 8, 9)
    quiet = -1
    while quiet < 0:
        groups, left = [], count
        while left:
            groups.append(_group(random, random.randint(1, min(3, left)), longest))
            left -= len(groups[-1])
        lengths = [max(leaves for _, leaves in group) for group in groups]
        quiet = seconds - 2 - sum(lengths)
    pauses = sorted(random.randint(0, quiet) for _ in groups)  # quiet seconds before each group
    starts = [1 + pause + sum(lengths[:i]) for i, pause in enumerate(pauses)]
    return [(start + a, start + b) for start, group in zip(starts, groups, strict=True) for a, b in group]


def _group(random: Random, size: int, longest: int) -> list[tuple[int, int]]:
    """(appears, leaves) of shapes that come one after another and are all there when the last one appears."""
    stay = random.randint(3, longest)
    offsets = [0, *sorted(random.sample(range(1, stay), size - 1))]
    stays = [stay, *(random.randint(3, longest) for _ in offsets[1:])]
    return [(a, max(a + length, offsets[-1] + 1)) for a, length in zip(offsets, stays, strict=True)]


def _arrange(random: Random, names: list[tuple[str, str]], timetable: list[tuple[int, int]]) -> tuple | None:
    """Shapes that cover little of one another at whole seconds; `None` if no way was found for one of them."""
    shapes = []
    for (kind, colour), (appears, leaves) in zip(names, timetable, strict=True):
        for _ in range(50):
            radius, spin = random.uniform(0.17, 0.2), random.choice((0, 0, -20, 20))
            shape = Shape(kind, colour, radius, spin, appears, leaves, *_way(random, leaves - appears))
            if all(_apart(shape, other) for other in shapes):
                shapes.append(shape)
                break
        else:
            return None
    return tuple(shapes)


def _way(random: Random, stay: int) -> tuple[str, str, str, tuple[tuple[float, float], ...]]:
    """Motion, the sides over which it comes and leaves, and its place at each of `stay` seconds."""
    motion = random.choice(("crosses", "crosses", "turns", "rests"))
    side = random.choice(list(OPPOSITE))
    place = (random.uniform(0.22, 0.78), random.uniform(0.22, 0.78))
    if motion == "crosses":
        end = OPPOSITE[side]
        points = [_beside(place, side, 0.22), _beside(place, end, 0.22)]
    elif motion == "turns":
        end = random.choice([other for other in OPPOSITE if other not in (side, OPPOSITE[side])])
        corner = _beside(_beside(place, side, random.uniform(0.5, 0.78)), end, random.uniform(0.5, 0.78))
        points = [_beside(corner, side, 0.22), corner, _beside(corner, end, 0.22)]
    else:
        end = random.choice(list(OPPOSITE))
        points = [place, place]
    step = (len(points) - 1) / (stay - 1)
    return motion, side, end, tuple(_between(points, i * step) for i in range(stay))


def _beside(place: tuple[float, float], side: str, distance: float) -> tuple[float, float]:
    """The place moved to a distance from one side: inside the picture, or outside of it if negative."""
    x, y = place
    return {"left": (distance, y), "right": (1 - distance, y), "top": (x, distance), "bottom": (x, 1 - distance)}[side]


def _between(points: list[tuple[float, float]], place: float) -> tuple[float, float]:
    """On the line through the points: at place 0.5 half-way from the first to the second."""
    i = min(int(place), len(points) - 2)
    (x, y), (u, v) = points[i : i + 2]
    return x + (place - i) * (u - x), y + (place - i) * (v - y)


def _apart(one: Shape, other: Shape) -> bool:
    together = range(max(one.appears, other.appears), min(one.leaves, other.leaves))
    return all(math.dist(one.path[t - one.appears], other.path[t - other.appears]) > 0.3 for t in together)


def _lines(random: Random, seconds: int, shapes: tuple[Shape, ...]) -> tuple[Line, ...]:
    """Something said while each shape is there, and at some of the seconds when there is none."""
    busy = {second for shape in shapes for second in range(shape.appears - 1, shape.leaves)}
    quiet = [second for second in range(seconds) if second not in busy]
    spoken = {random.randrange(shape.appears, shape.leaves) for shape in shapes}
    spoken |= set(random.sample(quiet, min(len(quiet), 1 + seconds // 20, len(FOODS) - len(shapes))))
    foods = random.sample(FOODS, len(spoken))
    return tuple(
        Line(second + 0.1, second + 0.9, random.choice(LINES).format(food=food), food)
        for second, food in zip(sorted(spoken), foods, strict=True)
    )


def frame_at(scene: Scene, time: float) -> "np.ndarray":
    """The picture after `time` seconds: uint8 of shape (SIZE, SIZE, 3), RGB."""
    import numpy as np
    from PIL import ImageDraw

    picture = _background(scene.seed).copy()
    draw = ImageDraw.Draw(picture)
    for shape in scene.shapes:
        centre = shape.centre(time)
        if centre is not None:
            _draw(draw, shape, centre, math.radians(shape.spin * (time - shape.appears)))
    return np.array(picture)


def _draw(draw, shape: Shape, centre: tuple[float, float], angle: float) -> None:
    x, y, radius = SIZE * centre[0], SIZE * centre[1], SIZE * shape.radius
    if shape.kind == "ring":
        draw.circle((x, y), 1.2 * radius, outline=COLOURS[shape.colour], width=round(0.55 * radius))
        return
    cos, sin = radius * math.cos(angle), radius * math.sin(angle)
    corners = [(x + cos * a - sin * b, y + sin * a + cos * b) for a, b in OUTLINES[shape.kind]]
    draw.polygon(corners, COLOURS[shape.colour])


@lru_cache(maxsize=2)
def _background(seed: int | str):
    """A greyish tint with soft clouds and some grain, of other brightness than any shape."""
    import numpy as np
    from PIL import Image

    random = Random(f"background {seed}")
    tint = [random.randint(105, 135) for _ in range(3)]
    clouds = Image.frombytes("L", (10, 10), random.randbytes(100)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    grain = np.frombuffer(random.randbytes(SIZE * SIZE), np.uint8).reshape(SIZE, SIZE)
    shade = 0.2 * (np.asarray(clouds) - 127.5) + 0.08 * (grain - 127.5)  # (SIZE, SIZE)
    return Image.fromarray((tint + shade[..., None]).astype(np.uint8))


def render(scene: Scene, *, fps: int = 2) -> Iterator["np.ndarray"]:
    """The scene's frames, `fps` a second: uint8 of shape (SIZE, SIZE, 3), RGB."""
    return (frame_at(scene, index / fps) for index in range(scene.seconds * fps))


def write_scene(scene: Scene, path: str | os.PathLike, *, fps: int = 2) -> Path:
    """Write the scene as an H.264 video with [`write_clip`], and return its path; subtitles are not in it."""
    return write_clip(path, render(scene, fps=fps), fps=fps)

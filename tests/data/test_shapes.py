"""The small world: scenes follow from their seeds, and pictures and files show what the scenes say."""

import ast
import math
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest
from small_videos import read

from llama_vid.data import shapes
from llama_vid.data.shapes import COLOURS, KINDS, SIZE, Scene, frame_at, make_scene, render, write_scene

LENGTHS = (8, 11, 16, 30, 64, 600)
SCENES = [make_scene(f"test {i}", seconds=LENGTHS[i % len(LENGTHS)]) for i in range(240)]
SHORT_SCENES = [scene for scene in SCENES if scene.seconds <= 64]


def coloured(frame: np.ndarray, colour: str, distance: int = 0) -> np.ndarray:
    """Where a frame has a colour, up to a distance in each channel: (height, width), booleans."""
    return (np.abs(frame.astype(int) - COLOURS[colour]) <= distance).all(axis=-1)


def test_a_seed_gives_the_same_scene_and_frames():
    one, again = (make_scene(7, seconds=12) for _ in range(2))
    assert one == again
    assert all(np.array_equal(a, b) for a, b in zip(render(one), render(again), strict=True))

    other = make_scene(8, seconds=12)
    assert one.shapes != other.shapes
    assert not np.array_equal(frame_at(one, 0), frame_at(other, 0))


def test_a_scene_gives_the_same_file(tmp_path):
    """Whatever else lies in memory, on which x264's macroblock tree depends."""
    scene = make_scene("0/train_said/6/0", seconds=24)
    held = []
    for i in range(8):
        held.append(np.full(12_345 * (i + 1), i, np.uint8))
        write_scene(scene, tmp_path / f"{i}.mp4")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_scenes_do_not_change_from_one_machine_to_another():
    scene = make_scene("pinned", seconds=24, num_shapes=3, subtitles=True)
    assert [(shape.name, shape.appears, shape.leaves, shape.motion) for shape in scene.shapes] == [
        ("blue ring", 9, 14, "crosses"),
        ("orange circle", 15, 19, "crosses"),
        ("white star", 18, 23, "crosses"),
    ]
    assert [line.food for line in scene.lines] == ["fish", "cake", "cheese", "rice", "sugar"]


@pytest.mark.parametrize("seconds", LENGTHS)
def test_scenes_are_unambiguous(seconds):
    for scene in [scene for scene in SCENES if scene.seconds == seconds]:
        colours, kinds, starts = zip(*((s.colour, s.kind, s.appears) for s in scene.shapes), strict=True)
        assert len(set(colours)) == len(set(kinds)) == len(set(starts)) == len(scene.shapes)
        assert list(starts) == sorted(starts)
        assert scene.visible(0) == scene.visible(seconds - 1) == []
        for second in range(seconds):
            visible = scene.visible(second)
            assert len(visible) <= 3
            for one, other in combinations(visible, 2):
                assert math.dist(one.centre(second), other.centre(second)) > 0.3


def test_scenes_differ_as_they_should():
    seen = [shape for scene in SCENES for shape in scene.shapes]
    assert {shape.kind for shape in seen} == set(KINDS)
    assert {shape.colour for shape in seen} == set(COLOURS)
    assert {shape.motion for shape in seen} == {"crosses", "turns", "rests"}
    assert {len(scene.shapes) for scene in SCENES} == {1, 2, 3, 4}
    assert {max(len(scene.visible(second)) for second in range(scene.seconds)) for scene in SCENES} == {1, 2, 3}
    assert 0.3 < np.mean([bool(scene.lines) for scene in SCENES]) < 0.7
    # The second at which things happen is no constant.
    assert len({shape.appears for scene in SHORT_SCENES for shape in scene.shapes}) > 30


def test_a_shape_is_in_the_picture_at_its_seconds_and_beside_it_at_the_others():
    for shape in (shape for scene in SCENES for shape in scene.shapes):
        assert shape.leaves - shape.appears >= 3
        assert [shape.centre(t) for t in range(shape.appears, shape.leaves)] == list(shape.path)
        assert all(0.21 < x < 0.79 and 0.21 < y < 0.79 for x, y in shape.path)
        assert shape.centre(shape.appears - 1) is None
        assert shape.centre(shape.leaves) is None
        # It slides in and out over the sides that are named.
        for time, side in ((shape.appears - 0.99, shape.comes_from), (shape.leaves - 0.01, shape.leaves_to)):
            x, y = shape.centre(time)
            assert {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}[side] < -0.25


def test_pictures_show_the_shapes_of_each_second_and_no_others():
    for scene in SHORT_SCENES[::4]:
        for second in range(scene.seconds):
            frame = frame_at(scene, second)
            assert frame.shape == (SIZE, SIZE, 3)
            assert frame.dtype == np.uint8
            shown = {colour: coloured(frame, colour).sum() / SIZE**2 for colour in COLOURS}
            assert {c for c, share in shown.items() if share} == {shape.colour for shape in scene.visible(second)}
            for shape in scene.visible(second):
                assert shown[shape.colour] > 0.02  # of about 0.1, partly covered by others


def test_a_shape_that_is_not_covered_has_its_place_and_its_size():
    alone = [(scene, scene.visible(t), t) for scene in SHORT_SCENES[::4] for t in range(scene.seconds)]
    for scene, [shape], second in (case for case in alone if len(case[1]) == 1):
        rows, columns = np.nonzero(coloured(frame_at(scene, second), shape.colour))
        x, y = shape.centre(second)
        if shape.kind == "circle":  # the edge of the picture cuts no corner off
            assert (columns.mean() / SIZE, rows.mean() / SIZE) == pytest.approx((x, y), abs=0.03)
        assert len(rows) / SIZE**2 == pytest.approx(math.pi * shape.radius**2, rel=0.35)


def test_a_spinning_shape_turns():
    scene = next(scene for scene in SHORT_SCENES if any(s.kind == "square" and s.spin for s in scene.shapes))
    shape = next(shape for shape in scene.shapes if shape.kind == "square")
    still = Scene(scene.seed, scene.seconds, (shape,))

    def width(second: int) -> int:
        return coloured(frame_at(still, second), shape.colour).any(axis=0).sum()

    assert width(shape.appears + 2) > 1.1 * width(shape.appears)  # by 40 degrees: nearly on its corner


def test_the_background_is_textured_and_unlike_any_shape():
    frame = frame_at(Scene("empty", 8, ()), 0).astype(int)
    assert frame.std(axis=(0, 1)).min() > 3
    for colour in COLOURS.values():
        assert np.abs(frame - colour).max(axis=-1).min() > 40


def test_subtitles_are_spoken_within_a_second_and_tell_nothing_of_what_is_seen():
    spoken = [(scene, line) for scene in SCENES for line in scene.lines]
    for scene, line in spoken:
        assert int(line.start) == int(line.end) < scene.seconds
        assert line.food in line.text
    words = {word.strip(".,?").lower() for _, line in spoken for word in line.text.split()}
    assert words.isdisjoint([*COLOURS, *KINDS, *shapes.OPPOSITE, "up", "down", "one", "two", "three", "four"])
    for scene in SCENES:
        assert len({line.food for line in scene.lines}) == len(scene.lines)
        seconds = [int(line.start) for line in scene.lines]
        for shape in scene.shapes if scene.lines else ():
            assert set(seconds) & set(range(shape.appears, shape.leaves))


def test_an_h264_file_shows_the_scene(tmp_path):
    scene = make_scene("file", seconds=16, num_shapes=4)
    path = write_scene(scene, tmp_path / "scene.mp4")

    with av.open(str(path)) as container:
        video = container.streams.video[0]
        assert (video.codec_context.name, video.average_rate, video.frames) == ("h264", 2, 32)
    frames, times, _ = read(path)
    assert times == list(range(16))
    for second, frame in enumerate(frames):
        picture = frame.permute(1, 2, 0).numpy()
        assert np.abs(picture.astype(int) - frame_at(scene, second)).mean() < 6
        for colour in COLOURS:
            here = colour in [shape.colour for shape in scene.visible(second)]
            assert (coloured(picture, colour, distance=40).sum() > 0.02 * SIZE**2) == here


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": 7}, "seconds=7"),
        ({"seconds": 8, "num_shapes": 3}, "from 1 to 2 in 8 seconds, got 3"),
        ({"seconds": 60, "num_shapes": 5}, "from 1 to 4"),
        ({"seconds": 60, "num_shapes": 0}, "from 1 to 4"),
    ],
)
def test_scenes_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_scene(0, **arguments)


@pytest.mark.parametrize("name", ["shapes", "shapes_questions", "shapes_dataset"])
def test_heavy_libraries_are_imported_where_they_are_used(name):
    code = ast.parse((Path(shapes.__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    imports = [node for node in code.body if isinstance(node, ast.Import | ast.ImportFrom)]
    named = {alias.name for node in imports for alias in node.names} | {getattr(node, "module", "") for node in imports}
    assert named.isdisjoint({"av", "datasets", "numpy", "PIL", "torch", "transformers"})

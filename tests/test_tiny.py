"""The embedded checkpoint: small, whole, and right about clips that its training has not seen."""

from pathlib import Path
from random import Random

import pytest

from llama_vid.data.shapes import make_scene, write_scene
from llama_vid.data.shapes_questions import questions
from llama_vid.session import TINY_CHECKPOINT, LlamaVidSession
from llama_vid.training.evaluation import normalize_answer


def test_it_is_small():
    files = [path for path in Path(TINY_CHECKPOINT).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10e6
    assert {path.suffix for path in files} <= {".json", ".jinja", ".safetensors", ".md", ".png"}


@pytest.fixture(scope="module")
def session() -> LlamaVidSession:
    return LlamaVidSession.from_pretrained()


def test_it_answers(session, tmp_path):
    """A wrong answer now and then is in its scores; by always giving the most frequent answer one gets about three of
    ten."""
    right = []
    for seed in range(4):
        scene = make_scene(f"test of the embedded checkpoint {seed}", seconds=9)
        session.open(write_scene(scene, tmp_path / f"{seed}.mp4"))
        for question in questions(scene, Random(seed)):
            if question.kind in ("colour", "shape", "count", "presence"):
                session.reset()
                right.append(normalize_answer(session.ask(question.text).text) == question.answer)
    assert sum(right) / len(right) > 0.8


def test_the_question_guides_what_it_sees(session, tmp_path):
    scene = make_scene("two shapes", seconds=9, num_shapes=2, subtitles=False)
    session.open(write_scene(scene, tmp_path / "clip.mp4"))
    for shape in scene.shapes:
        session.reset()
        assert session.ask(f"What colour is the {shape.kind}?").text == shape.colour

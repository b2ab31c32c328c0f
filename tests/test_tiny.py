"""The embedded checkpoint: small, whole, and right about clips that its training has not seen; its recipe's scripts."""

import importlib
import json
import re
import sys
from pathlib import Path
from random import Random

import pytest

from llama_vid.data.shapes import make_scene, write_scene
from llama_vid.data.shapes_questions import questions
from llama_vid.session import TINY_CHECKPOINT, LlamaVidSession
from llama_vid.training.evaluation import normalize_answer

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "tiny"


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


def test_the_readme_has_its_scores():
    scores = {entry["name"]: entry for entry in json.loads((Path(TINY_CHECKPOINT) / "evaluation.json").read_text())}
    table = re.search(r"(?<=\n\n)\| test \|.*?(?=\n\n)", (RECIPE / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[0].splitlines()]
    kinds = ["said" if kind == "what was said" else kind for kind in header[3:]]
    for test, asked, overall, *cells in rows:
        stated = {f"{test}: {kind}": cell for kind, cell in zip(kinds, cells, strict=True)}
        stated[test] = overall.replace("*", "")
        assert int(asked) == scores[test]["samples"]
        for name in scores.keys() & stated.keys():
            score = scores.pop(name)
            right, baseline = (f"{100 * score[key]:.1f}".replace("100.0", "100") for key in ("value", "baseline"))
            assert stated[name] == f"{right} ({baseline})", name
    assert not scores


@pytest.fixture
def script(monkeypatch):
    """Imports one of the recipe's scripts, and gives its `main` a command line."""

    def load(name: str, *arguments: str):
        monkeypatch.syspath_prepend(RECIPE)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        return importlib.import_module(name)

    return load


def test_the_demo(script, tmp_path, capsys):
    clip = tmp_path / "clip.mp4"
    assert script("demo", "--clip", str(clip)).main() == 0
    assert "5 of 5 right" in capsys.readouterr().out
    assert clip.exists()


def test_the_demo_asks_five_questions_or_none(script, tmp_path, capsys):
    clip = tmp_path / "clip.mp4"
    assert script("demo", "--clip", str(clip), "--seed", "0").main() == 1
    told = capsys.readouterr().out
    assert told == "The clip of --seed 0 has no question of the kind said: choose another.\n"
    assert not clip.exists()


def test_chats_of_the_language_are_those_of_its_code(script, monkeypatch):
    """Not of a cache."""
    pretraining = script("pretrain_language")
    assert pretraining.make_chats(4, 0, 12)["messages"] == [pretraining.tell(i, 0, 12) for i in range(4)]
    monkeypatch.setattr(pretraining, "tell", lambda *_: [{"role": "user", "content": "changed"}])
    assert pretraining.make_chats(1, 0, 12)[0] == {"messages": [{"role": "user", "content": "changed"}]}

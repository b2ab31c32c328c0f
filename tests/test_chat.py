"""The conversation on the terminal: its commands, errors that do not end it, and Ctrl-C."""

from collections.abc import Iterator

import pytest

from llama_vid import chat as chat_module
from llama_vid import extract_features
from llama_vid.chat import chat
from llama_vid.data.clips import make_demo_clip
from llama_vid.session import TINY_CHECKPOINT, LlamaVidSession


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return str(make_demo_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=3))


def type_in(monkeypatch, *lines: str) -> Iterator[str]:
    """Returns those that were not read yet."""
    pending = iter(lines)

    def answer_prompt(prompt: str) -> str:
        try:
            return next(pending)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer_prompt)
    return pending


def test_commands_and_errors(clip, tmp_path, monkeypatch, capsys):
    missing = str(tmp_path / "missing.mp4")
    type_in(monkeypatch, "What is moving?", "/reset", f"/video {missing}", "/help", f"/video {clip}", "", "What?")
    chat(clip, max_new_tokens=4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3 frames. /reset")
    assert lines[1].strip()
    assert lines[2] == "The conversation is forgotten."
    assert lines[3].startswith(f"Error: Video file {missing} does not exist")
    assert lines[4] == chat_module.COMMANDS
    assert lines[5] == "3 frames."
    assert lines[6].strip()


def test_features_after_a_video(clip, tmp_path, monkeypatch, capsys):
    """How the video was sampled is not asked of features, which were."""
    [features] = extract_features(clip, tmp_path, model=TINY_CHECKPOINT).written
    type_in(monkeypatch, f"/video {features}")
    chat(clip, fps=2)
    assert capsys.readouterr().out.splitlines()[1] == "3 frames."


def test_quit_ends(clip, monkeypatch):
    pending = type_in(monkeypatch, "/quit", "never read")
    chat(clip)
    assert list(pending) == ["never read"]


def test_answers_appear_as_they_are_made(clip, monkeypatch, capsys):
    type_in(monkeypatch, "What is moving?")
    sessions = []
    ask = LlamaVidSession.ask
    monkeypatch.setattr(LlamaVidSession, "ask", lambda self, *a, **k: sessions.append(ask(self, *a, **k)))
    chat(clip, max_new_tokens=6)
    assert sessions[0].text in capsys.readouterr().out


def test_ctrl_c_stops_the_answer_and_not_the_program(clip, monkeypatch, capsys):
    type_in(monkeypatch, "What is moving?", "/reset")

    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(LlamaVidSession, "ask", interrupted)
    chat(clip)
    out = capsys.readouterr().out
    assert "(stopped" in out
    assert "The conversation is forgotten." in out

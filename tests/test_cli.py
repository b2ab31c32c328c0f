"""The command line: what it prints, and how it fails."""

import json
import re
import subprocess
import sys

import jinja2
import pytest
import yaml
from original_checkpoints import HEADS, write_original
from PIL import Image
from safetensors.torch import load
from small_videos import pictures

from llama_vid.cli import main
from llama_vid.data.clips import make_demo_clip
from llama_vid.modeling import LlamaVidConfig


@pytest.fixture
def llama_vid(monkeypatch, capsys):
    """Run the command line in this process."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["llama-vid", *arguments])
        code = None
        try:
            main()
        except SystemExit as end:
            code = end.code
        return subprocess.CompletedProcess(arguments, code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return str(make_demo_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=4))


def test_ask_prints_answer_frames_cost_and_time(clip):
    program = [sys.executable, "-c", "from llama_vid.cli import main; main()"]
    arguments = ["ask", clip, "What is moving?", "--max-new-tokens", "8"]
    result = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.strip().splitlines()
    assert lines[0].strip()
    assert "small world of coloured shapes" in result.stdout
    assert "4 frames, 2 tokens per frame" in lines[-1]
    assert lines[-1].endswith(" s")


def test_ask_about_a_part_of_a_folder_of_frames(llama_vid, tmp_path):
    for number, picture in enumerate(pictures(40)):
        Image.fromarray(picture).save(tmp_path / f"frame_{number}.png")
    options = "--frame-rate 10 --start 1 --end 3 --fps 2 --keyframes-only --max-new-tokens 2".split()
    result = llama_vid("ask", str(tmp_path), "What is moving?", *options)
    assert result.returncode == 0, result.stderr
    assert "4 frames, 2 tokens per frame" in result.stdout


def test_errors_are_one_message_without_a_traceback(llama_vid, tmp_path):
    result = llama_vid("ask", str(tmp_path / "missing.mp4"), "What?")
    assert result.returncode == 1
    assert "Error: Video file" in result.stderr
    assert "does not exist" in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


def test_convert_says_what_is_wrong(llama_vid, tmp_path):
    result = llama_vid("convert", str(tmp_path), str(tmp_path / "out"))
    assert result.returncode == 1
    assert "config.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_convert_takes_what_weights_cannot_tell(llama_vid, tmp_path):
    source, overrides = write_original(tmp_path / "source"), json.dumps({**HEADS, "video_grid_size": 2})
    result = llama_vid(
        "convert", str(source), str(tmp_path / "out"), "--config-overrides", overrides, "--no-video-qformer-uses-cls"
    )
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vision_config"]["num_attention_heads"] == 4
    assert (config["video_grid_size"], config["video_qformer_uses_cls"]) == (2, False)


@pytest.mark.parametrize("value", ["video_grid_size=2", "2", "[]", "null", ""])
@pytest.mark.parametrize("command", ["convert source", "create --vision-tower clip --language-model llama"])
def test_overrides_are_a_json_object(llama_vid, command, value):
    result = llama_vid(*command.split(), "out", "--config-overrides", value)
    assert result.returncode == 1
    assert "Error: `--config-overrides` must be a JSON object such as" in result.stderr
    assert f"got {value!r}" in result.stderr


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda: load(b"cut off"), "A file of weights is damaged"),
        (lambda: LlamaVidConfig(num_query_tokens="x"), "A configuration has a wrong value, .* 'num_query_tokens'"),
        (lambda: yaml.safe_load("a: [1\nb: {"), "A YAML file, such as the recipe of `--config`, cannot be read"),
        (lambda: jinja2.Template("{% for x"), "A chat template is wrong, that of `--chat-template`"),
        (lambda: json.loads("[" * 100_000), "A file is nested too deeply"),
    ],
    ids=["weights", "configuration", "recipe", "template", "nesting"],
)
def test_errors_of_libraries_are_told_too(llama_vid, monkeypatch, make, cause):
    monkeypatch.setattr("llama_vid.cli.app", make)
    result = llama_vid("ask")
    assert result.returncode == 1
    assert re.match(f"Error: {cause}", result.stderr)


def test_other_errors_keep_their_traceback(llama_vid, monkeypatch):
    monkeypatch.setattr("llama_vid.cli.app", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        llama_vid("ask")


@pytest.mark.parametrize("command", ["ask", "convert"])
def test_help_has_an_example(llama_vid, command):
    result = llama_vid(command, "--help")
    assert result.returncode == 0
    assert f"llama-vid {command}" in result.stdout.replace("\n", " ")

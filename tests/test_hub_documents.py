"""
What documents say runs: every code block behind the line `<!-- runnable -->` is executed, the blocks of a document in
their order and in one process, so that later ones may use what earlier ones made. They find `clip.mp4`, `film.mkv`,
`film.srt`, `films/` and `recipes/`, and a local Hub in place of the Hub.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from local_hub import UNASKED
from small_videos import pictures

from llama_vid.data.clips import write_clip
from llama_vid.session import TINY_CHECKPOINT

pytest_plugins = ["local_hub"]

ROOT = Path(__file__).resolve().parents[1]
RUNNABLE = re.compile(r"^ *<!-- runnable -->\n+( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "recipes/README.md")}
MODEL = "someone/llama-vid-tiny"
# What documents write for names of one's own.
NAMES = {"path/or/hub-id": MODEL, "your-name/": "someone/"}

PROGRAM = """
import json, subprocess, sys
for language, code in json.loads(sys.argv[1]):
    print(code, flush=True)
    if language == "bash":
        subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True)
    else:
        exec(compile(code, "<document>", "exec"), globals())
"""


def runnable_blocks(text: str) -> list[tuple[str, str]]:
    """Language and code of each."""
    blocks = []
    for indent, language, code in RUNNABLE.findall(text):
        for name, meant in NAMES.items():
            code = code.replace(name, meant)
        blocks.append((language, re.sub(f"^{indent}", "", code, flags=re.MULTILINE)))
    assert len(blocks) == text.count("<!-- runnable -->")
    assert {language for language, _ in blocks} <= {"python", "bash"}
    return blocks


@pytest.fixture(scope="module")
def work(hub, tmp_path_factory) -> Path:
    """A folder with everything that the documents speak of; the model is on the Hub, an adapter for it too."""
    work = tmp_path_factory.mktemp("documents")
    folder = shutil.copytree(TINY_CHECKPOINT, work / "path" / "to" / "checkpoint")
    result = hub.llama_vid("publish", folder, MODEL, before=UNASKED)
    assert result.returncode == 0, result.stderr
    write_clip(work / "clip.mp4", pictures(16), fps=4)
    write_clip(work / "film.mkv", pictures(24), fps=4)
    (work / "film.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nHere is the letter.\n")
    (work / "films").mkdir()
    shutil.copy(work / "film.mkv", work / "films")
    shutil.copytree(ROOT / "recipes", work / "recipes")
    return work


def run_blocks(hub, work: Path, text: str) -> None:
    program = work / "program.py"
    program.write_text(PROGRAM)
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # with `llama-vid`
    result = hub.run("-P", program, json.dumps(runnable_blocks(text)), cwd=work, PATH=tools)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if runnable_blocks(text)])
def test_documents_run(hub, work, name):
    run_blocks(hub, work, TEXTS[name])


def test_cards_run(hub, work):
    text = hub.repos[MODEL].files()["README.md"].decode()
    assert len(runnable_blocks(text)) == 5
    run_blocks(hub, work, text)


def test_cards_of_adapters_run(hub, work):
    adapter = work / "adapter"
    make = f"""{UNASKED}
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor
import llama_vid
model = AutoModelForImageTextToText.from_pretrained("{MODEL}")
lora = LoraConfig(r=2, target_modules=r"model\\.language_model\\..*\\.q_proj")
get_peft_model(model, lora).save_pretrained("{adapter}")
AutoProcessor.from_pretrained("{MODEL}").save_pretrained("{adapter}")
llama_vid.publish("{adapter}", "someone/adapter")
"""
    result = hub.run("-c", make)
    assert result.returncode == 0, result.stderr
    text = hub.repos["someone/adapter"].files()["README.md"].decode()
    assert len(runnable_blocks(text)) == 3
    run_blocks(hub, work, text)

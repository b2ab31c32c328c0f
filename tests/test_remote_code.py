"""A checkpoint carries its code: it loads, answers and is saved again where this package is not installed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from remote_code_script import AUTO_CLASSES, MAX_NEW_TOKENS, PROMPT, QUESTION, encode, logits
from safetensors.torch import load_file
from small_checkpoint import UNTRAINED
from small_videos import pictures

import llama_vid.modeling
from llama_vid.data.clips import write_clip
from llama_vid.modeling import LlamaVidForConditionalGeneration, LlamaVidProcessor

SCRIPT = Path(__file__).with_name("remote_code_script.py")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def package():
    """Processor and model as the installed package loads them."""
    processor = LlamaVidProcessor.from_pretrained(UNTRAINED)
    return processor, LlamaVidForConditionalGeneration.from_pretrained(UNTRAINED)


@pytest.fixture(scope="module")
def work(tmp_path_factory, package) -> Path:
    """A folder with an export of the embedded checkpoint, with code that is broken, a picture and a clip."""
    work = tmp_path_factory.mktemp("remote-code")
    for part in package:
        part.save_pretrained(work / "export")
    write_clip(work / "clip.mp4", pictures(16), fps=4)
    Image.fromarray(next(pictures(1))).save(work / "picture.png")

    for name in ("removed", "changed", "export-that-raises"):
        shutil.copytree(work / "export", work / name)
    (work / "removed" / "modeling_llama_vid.py").unlink()
    changed = work / "changed" / "modeling_llama_vid_visual.py"
    changed.write_text(changed.read_text().replace("class LlamaVidVisualModel(", "class Renamed("))
    for path in (work / "export-that-raises").glob("*.py"):
        path.write_text("raise RuntimeError('the code of the checkpoint ran')")
    return work


@pytest.fixture(scope="module")
def run(version, work, tmp_path_factory):
    """Runs a scenario of the script in a process of its own, without network, and returns its report."""

    def run_scenario(scenario: str) -> dict:
        home = tmp_path_factory.mktemp("huggingface")
        repository = home / "hub" / "models--someone--llama-vid-tiny"
        shutil.copytree(work / "export", repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        own_copy = shutil.copytree(work, tmp_path_factory.mktemp("work") / "work")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": version}
        result = subprocess.run(
            [sys.executable, str(SCRIPT), scenario, str(own_copy)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return {**json.loads((own_copy / "report.json").read_text()), "work": own_copy}

    return run_scenario


@pytest.fixture(scope="module")
def report(run) -> dict:
    return run("without_the_package")


def test_the_wanted_version_ran(version, report):
    if version:
        assert report["transformers"].startswith("5.10.")
    else:
        assert report["transformers"] == transformers.__version__


def test_an_export_holds_the_code_and_names_it(work):
    copied = {path.name for path in (work / "export").glob("*.py")}
    code = Path(llama_vid.modeling.__file__).parent
    assert copied == {path.name for path in code.glob("*.py")} - {"__init__.py"}

    named = json.loads((work / "export" / "config.json").read_text())["auto_map"]
    named |= json.loads((work / "export" / "processor_config.json").read_text())["auto_map"]
    assert set(named) == {cls.__name__ for cls in AUTO_CLASSES} - {"AutoVideoProcessor"}


def test_every_auto_class_loads_from_a_folder(report):
    for name, found in report["classes"].items():
        assert found.startswith("transformers_modules."), name
    assert {name: found.rpartition(".")[2] for name, found in report["classes"].items()} == {
        "AutoConfig": "LlamaVidConfig",
        "AutoProcessor": "LlamaVidProcessor",
        "AutoVideoProcessor": "LlamaVidVideoProcessor",
        "AutoModelForImageTextToText": "LlamaVidForConditionalGeneration",
        "AutoModelForMultimodalLM": "LlamaVidForConditionalGeneration",
        "AutoModel": "LlamaVidModel",
    }


def test_loading_and_saving_warn_of_nothing(report):
    assert report["loading_warnings"] == []
    assert report["errors"] == []


def test_logits_are_those_of_the_package(report, work, package):
    files = {"image": str(work / "picture.png"), "video": str(work / "clip.mp4")}
    for kind, expected in logits(*package, files).items():
        found = load_file(report["work"] / "logits.safetensors")[kind]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_saved_again_and_loaded_gives_identical_logits(report):
    assert report["saved_again_difference"] == 0
    names = [{path.name for path in (report["work"] / folder).iterdir()} for folder in ("export", "saved-again")]
    assert names[0] == names[1]


def test_pipelines_answer_as_generate_does(report, work, package):
    processor, model = package
    inputs = encode(processor, {"image": str(work / "picture.png"), "video": str(work / "clip.mp4")})
    inputs["videos"] = processor(text=PROMPT, videos=str(work / "clip.mp4"), return_tensors="pt")
    for name, prompt in inputs.items():
        output = model.generate(**prompt, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        # A pipeline decodes both, which keeps the space between them.
        question, both = processor.batch_decode([prompt["input_ids"][0], output[0]], skip_special_tokens=True)
        assert report["answers"][name] == both.removeprefix(question), name


def test_errors_say_what_is_wrong_with_the_code(report):
    broken = report["broken"]
    assert "trust_remote_code=True" in broken["untrusted"]
    assert "does not appear to have a file named modeling_llama_vid.py" in broken["removed"]
    assert broken["changed"].startswith("ImportError: cannot import name 'LlamaVidVisualModel'")


def test_a_downloaded_repository_loads_without_network(run, package):
    processor, model = package
    report = run("from_the_hub")

    assert report["model"] == type(model).__name__
    assert report["instruction"] == processor.qformer_tokenizer(QUESTION)["input_ids"]
    assert report["warnings"] == []


def test_installed_classes_win_over_the_code_of_a_checkpoint(run):
    for module in run("with_the_package")["modules"]:
        assert module.startswith("llama_vid.modeling.")

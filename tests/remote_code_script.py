"""
What a program that only has transformers does with a checkpoint: test_remote_code.py runs this in processes of its own,
with one version of transformers or another, on a folder that it leaves a `report.json` in.
"""

import json
import logging
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoVideoProcessor,
    pipeline,
)

MODEL_CLASSES = [AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModel]
AUTO_CLASSES = [AutoConfig, AutoProcessor, AutoVideoProcessor, *MODEL_CLASSES]
QUESTION = "What is moving?"
PROMPT = f"USER: <video>\n{QUESTION} ASSISTANT:"
MAX_NEW_TOKENS = 8


class LoggedWarnings(logging.Handler):
    """Collects what transformers, and the code it loads, logs as a warning or worse."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.records = []
        for name in (None, "transformers"):  # the latter does not propagate
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord):
        self.records.append(f"{record.levelname}: {record.getMessage()}")

    def take(self) -> list[str]:
        """What came since the last call."""
        taken, self.records = self.records, []
        return taken


def chat(kind: str, path: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": kind, "path": path}, {"type": "text", "text": QUESTION}]}]


def encode(processor, files: dict[str, str]) -> dict[str, dict]:
    """The model's inputs for a chat about each of the files, `{"image": path, "video": path}`."""
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    return {kind: processor.apply_chat_template(chat(kind, path), **options) for kind, path in files.items()}


@torch.no_grad()
def logits(processor, model, files: dict[str, str]) -> dict[str, torch.Tensor]:
    return {kind: model(**inputs).logits for kind, inputs in encode(processor, files).items()}


def load(folder: str):
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    return processor, AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)


def answers(folder: str, files: dict[str, str]) -> dict[str, str]:
    """What both pipelines answer."""
    options = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "return_full_text": False}
    ask = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
    texts = {kind: ask(text=chat(kind, path), **options)[0]["generated_text"] for kind, path in files.items()}
    ask = pipeline("any-to-any", model=folder, trust_remote_code=True)
    texts["videos"] = ask(PROMPT, videos=files["video"], **options)[0]["generated_text"]
    return texts


def error_of(folder: Path, **kwargs) -> str:
    try:
        AutoModelForImageTextToText.from_pretrained(folder, **kwargs)
    except Exception as error:  # of whatever kind: the test reads it
        return f"{type(error).__name__}: {error}"
    return ""


def without_the_package(work: Path) -> dict:
    """`work` holds `export`, `removed`, `changed`, the clip and the picture; `saved-again` and logits are written."""
    sys.modules["llama_vid"] = None  # from now on as if it were not installed
    export, again = str(work / "export"), str(work / "saved-again")
    files = {"image": str(work / "picture.png"), "video": str(work / "clip.mp4")}
    warnings = LoggedWarnings()

    loaded = {cls.__name__: cls.from_pretrained(export, trust_remote_code=True) for cls in AUTO_CLASSES}
    report = {"classes": {name: f"{type(item).__module__}.{type(item).__name__}" for name, item in loaded.items()}}
    processor, model = load(export)
    model.save_pretrained(again)
    processor.save_pretrained(again)
    processor_again, model_again = load(again)
    report["loading_warnings"] = warnings.take()

    first, second = logits(processor, model, files), logits(processor_again, model_again, files)
    report["saved_again_difference"] = max(float((first[kind] - second[kind]).abs().max()) for kind in files)
    report["answers"] = answers(export, files)
    report["errors"] = [record for record in warnings.take() if not record.startswith("WARNING")]
    report["broken"] = {
        "untrusted": error_of(work / "export"),
        "removed": error_of(work / "removed", trust_remote_code=True),
        "changed": error_of(work / "changed", trust_remote_code=True),
    }
    save_file(first, work / "logits.safetensors")
    return report


def from_the_hub(work: Path) -> dict:
    """A repository that was downloaded whole, and the network is gone."""
    sys.modules["llama_vid"] = None
    warnings = LoggedWarnings()
    processor, model = load("someone/llama-vid-tiny")
    return {
        "model": type(model).__name__,
        "instruction": processor.qformer_tokenizer(QUESTION)["input_ids"],
        "warnings": [record for record in warnings.take() if "A new version of the following files" not in record],
    }


def with_the_package(work: Path) -> dict:
    """`work` holds `export-that-raises`, whose code must not run."""
    import llama_vid.modeling  # noqa: F401  (registers the classes)

    loaded = [cls.from_pretrained(work / "export-that-raises") for cls in AUTO_CLASSES]
    return {"modules": [type(item).__module__ for item in loaded]}


if __name__ == "__main__":
    scenarios = {function.__name__: function for function in (without_the_package, from_the_hub, with_the_package)}
    folder = Path(sys.argv[2])
    report = {"transformers": transformers.__version__, **scenarios[sys.argv[1]](folder)}
    (folder / "report.json").write_text(json.dumps(report))

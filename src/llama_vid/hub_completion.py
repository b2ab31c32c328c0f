"""
One whole model of an adapter, or of trained modules, and their base. `publish` runs this file in a process of its own:
loading a model changes torch's default type for all threads, one of which may be training, and waits under ZeRO-3 for
all other processes. The arguments are the folder, an empty folder for the model, and a file for the report: as JSON,
what went wrong, if anything did.
"""

import json
import sys
from pathlib import Path

from transformers import AutoModelForImageTextToText, PreTrainedModel

from llama_vid.training.trained_modules import load_trained_modules, read_trained_modules


def completed(folder: Path) -> PreTrainedModel:
    """The whole model of a folder with an adapter or trained modules."""
    from peft import PeftModel

    if read_trained_modules(folder) is not None:
        return load_trained_modules(folder)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base, revision = config["base_model_name_or_path"], config.get("revision") or "main"
    if read_trained_modules(base) is not None:
        model = load_trained_modules(base)
    else:
        model = AutoModelForImageTextToText.from_pretrained(base, revision=revision, dtype="auto")
    return PeftModel.from_pretrained(model, folder).merge_and_unload(safe_merge=True)


if __name__ == "__main__":
    report = {}
    try:
        completed(Path(sys.argv[1])).save_pretrained(sys.argv[2], max_shard_size="5GB")
    except Exception as error:  # of whatever kind: the process that started this one says it
        report = {"error": f"{type(error).__name__}: {error}"}
    Path(sys.argv[3]).write_text(json.dumps(report), encoding="utf-8")

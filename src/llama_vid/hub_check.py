"""
What a stranger does with a repository: load it with transformers alone and ask about a video. `publish` runs this file
in a process of its own, where this package is not to be had, on the folder that it is about to upload (and, of an
adapter, its base's), and names a file for the report: as JSON, the answer or what went wrong.
"""

import json
import sys
from pathlib import Path

QUESTION = "What is moving?"


def ask(folder: str, base: str | None = None) -> str:
    """
    The answer about two frames of noise; it means nothing, but nothing of the way to it may be missing. `base` is the
    folder of the model that an adapter is for.
    """
    sys.modules["llama_vid"] = None  # as if it were not installed
    import numpy as np
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model, loading = AutoModelForImageTextToText.from_pretrained(
        base or folder, trust_remote_code=True, dtype="auto", output_loading_info=True
    )
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if loading[problem]:
            names = sorted(map(str, loading[problem]))
            raise ValueError(
                f"{problem.replace('_', ' ')} in the weights: {', '.join(names[:5])} ({len(names)} in all)"
            )
    if base is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder).eval()

    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    parts = [{"type": "video", "video": frames}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        # However the checkpoint samples videos, and whichever part of them it looks at: there is something in these.
        do_sample_frames=False,
        video_metadata={"times": [0.0, 1e6]},
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device, model.dtype)
    output = model.generate(
        **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    if not all(torch.isfinite(logits).all() for logits in output.logits):
        raise ValueError("the logits are not finite")
    return processor.decode(output.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
    try:
        report = {"answer": ask(*sys.argv[1:-1])}
    except Exception as error:  # of whatever kind: the process that started this one says it
        report = {"error": f"{type(error).__name__}: {error}"}
    Path(sys.argv[-1]).write_text(json.dumps(report), encoding="utf-8")

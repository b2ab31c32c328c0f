"""
The model card: `model_card.md` filled with what the files beside it say. What they do not say is left out.

An evaluation is told in `evaluation.json`, a list of objects with `name` (what was measured), `dataset` (on which
data), `metric` (how, such as `exact_match`), `value` (a number), `source` (the script, report or URL that it comes
from) and, where there is one, `baseline` (the number of what it is compared with) and `samples` (on how many).

What only its makers know is told in `about.json`, an object with any of `summary` (what it is, in Markdown), `question`
(one that it understands, for the examples), `evaluation` (how the figures and their baselines came about) and `use`
(what it is for, and what not).
"""

import json
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from importlib.resources import files as package_files
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open
from transformers import AutoConfig

from .hub_provenance import is_hub_id
from .training.module_names import VISUAL_MODULES
from .whole_files import read_json_object

# Of cards that may be written anew. Whoever edits a card, in a folder or on the Hub, deletes the line.
MARKER = (
    "<!-- Written by `llama-vid publish`, which writes it anew each time. To keep a changed card, delete this line. -->"
)
# Of the drafts that TRL and PEFT write beside a model, by what only they have.
DRAFTS = ("- trl\n", "[More Information Needed]")

ABOUT = ("summary", "question", "evaluation", "use")
TAGS = ["llama-vid", "video", "vision-language-model"]
TASK = "video-text-to-text"
PARTS = {  # of the model, by the first names of their tensors
    "visual encoder": (("model.vision_tower.",), "vision_config"),
    "text decoder": (("model.qformer", "model.query_tokens."), "qformer_config"),
    "context attention": (("model.context_attention.",), None),
    "content projector": (("model.multi_modal_projector.",), None),
    "language model": (("model.language_model.", "lm_head."), "text_config"),
}
# A matrix of a layer of the language model, which is what LoRA goes on; embeddings are in no layer.
PROJECTION = re.compile(r"model\.language_model\..*\.\d+\.(?:.*\.)?(\w+)\.weight")


def is_written_by_hand(text: str) -> bool:
    """Whether a card is neither ours nor a trainer's draft."""
    return MARKER not in text and not any(mark in text for mark in DRAFTS)


def render_card(
    files: Mapping[str, Path],
    repo_id: str,
    *,
    steps: Sequence[dict[str, Any]] = (),
    base_model: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] | None = None,
) -> str:
    """
    The text of a card.

    Args:
        files (`Mapping[str, Path]`): The files of the repository by name: a checkpoint, or an adapter.
        repo_id (`str`): Where they will be, `owner/name`.
        steps (`Sequence[dict]`): What led to the checkpoint, see `provenance.json`.
        base_model (`str`, *optional*): Hub id of the model that an adapter is for, or was merged into.
        license (`str`, *optional*): The Hub's name of a licence; by default that of the weights it began with.
        datasets (`Sequence[str]`, *optional*): Hub ids of what it was trained on.

    Returns:
        `str`: Markdown with metadata.

    Raises:
        ValueError: another licence than that of the weights it began with, or an `evaluation.json` or `about.json` not
            as above.
    """
    adapter = "adapter_config.json" in files
    name = repo_id.rpartition("/")[2]
    license = license_of(steps, license)
    evaluation = read_evaluation(files.get("evaluation.json"))
    about = read_about(files.get("about.json"))
    bases, relation = _bases(steps, base_model, adapter)
    metadata = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag=TASK,
        tags=TAGS,
        license=license,
        base_model=bases,
        base_model_relation=relation,
        datasets=list(datasets) if datasets else None,
        model_name=name if evaluation else None,
        metrics=sorted({row["metric"] for row in evaluation}) or None,
        eval_results=[_result(row) for row in evaluation] or None,
    )
    needed = ("frame_seq_length", "image_seq_length", "video_processor")
    processor = read_json_object(files["processor_config.json"], *needed)
    frame_tokens = processor["frame_seq_length"]
    sees, film, frames = _sampling(processor["video_processor"])
    known = [step["step"] for step in steps]
    values = {
        "name": name,
        "repo_id": repo_id,
        "adapter": adapter,
        "base_model": base_model,
        "base_revision": _revision(files["adapter_config.json"]) if adapter else None,
        "license": license,
        "frame_tokens": frame_tokens,
        "image_tokens": f"{processor['image_seq_length']:,}",
        "sees": sees,
        "film": film,
        "film_tokens": "-" if frames is None else f"{frame_tokens * frames:,}",
        "untrained": known == ["composition"],
        "about": about,
        "question_in_python": json.dumps(about.get("question", "What is moving?"), ensure_ascii=False),
        "question_in_shell": shlex.quote(about.get("question", "Who finds the letter?")),
        "composed_of": [_parts(step) for step in steps if step["step"] == "composition"],
        "converted_from": [step["source"] for step in steps if step["step"] == "conversion" and "license" in step],
        "training": _table(_training_rows([step for step in steps if step["step"] == "training"])),
        "trained_length": max((step.get("max_length") or 0 for step in steps), default=0),
        "curve_steps": _curve_steps(files),
        **_evaluated(evaluation),
        "versions": _versions(steps, files).items(),
        "marker": MARKER,
        **({} if adapter else _architecture(files)),
    }
    template = (package_files("llama_vid") / "model_card.md").read_text(encoding="utf-8")
    card = ModelCard.from_template(metadata, template_str=template, **values)
    # What is left out leaves its empty lines behind.
    return re.sub(r"\n{3,}", "\n\n", str(card)) + "\n"


def _sampling(settings: Mapping[str, Any]) -> tuple[str, str, int | None]:
    """What is seen of a video, a film of which the cost is told, and its frames."""
    if not settings.get("do_sample_frames", True):
        return "every frame", "all frames", None
    number, most, fps = settings.get("num_frames"), settings.get("max_frames"), settings.get("fps") or 1
    if number:
        number = min(number, most or number)
        return f"{number} frames of a video", f"{number} frames", number
    rate = f"{fps:g} frame{'s' if fps != 1 else ''} a second"
    if most and most < 3600 * fps:
        return f"{rate}, but no more than {most:,} frames", f"{most:,} frames", most
    return rate, f"an hour at {rate}", round(3600 * fps)


def read_evaluation(path: Path | None) -> list[dict[str, Any]]:
    """The rows of an `evaluation.json`, none without a file. Raises ValueError for one that is not as above."""
    if path is None:
        return []
    rows = _read(path)
    needed = {"name", "dataset", "metric", "value", "source"}
    keys = ", ".join(sorted(needed))
    if not isinstance(rows, list):
        raise ValueError(f"`{path.name}` must be a list of objects with {keys} (and baseline, samples), got {rows!r}.")
    for row in rows:
        if not isinstance(row, dict) or not needed <= set(row) <= needed | {"baseline", "samples"}:
            raise ValueError(
                f"`{path.name}` must be a list of objects with {keys} (and baseline, samples), got {row!r}."
            )
        if not all(isinstance(row[key], str) for key in needed - {"value"}):
            raise ValueError(f"`{path.name}`: name, dataset, metric and source are texts, got {row!r}.")
        numbers = [row[key] for key in ("value", "baseline", "samples") if row.get(key) is not None]
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(f"`{path.name}`: value, baseline and samples are numbers, got {row!r}.")
    return rows


def read_about(path: Path | None) -> dict[str, str]:
    """The texts of an `about.json`, none without a file. Raises ValueError for one that is not as above."""
    if path is None:
        return {}
    texts = _read(path)
    if not isinstance(texts, dict) or not set(texts) <= set(ABOUT):
        raise ValueError(f"`{path.name}` must be an object with any of {', '.join(ABOUT)}, got {texts!r}.")
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"`{path.name}`: each is a text, got {texts!r}.")
    return texts


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _revision(adapter_config: Path) -> str | None:
    """Of an adapter's base, if it is not the one that everybody gets."""
    revision = _read(adapter_config).get("revision")
    return None if revision == "main" else revision


def license_of(steps: Sequence[dict], license: str | None) -> str | None:
    """That of the weights' origin, or the one given. Raises ValueError if they are two."""
    inherited = next((step["license"] for step in steps if "license" in step), None)
    if inherited is not None and license not in (None, inherited):
        raise ValueError(
            f"`license={license!r}`, but the weights come from a checkpoint under {inherited}: leave it out."
        )
    return inherited or license


def _bases(steps: Sequence[dict], base_model: str | None, adapter: bool) -> tuple[list[str] | str | None, str | None]:
    """Hub ids of what the model was made of, and how it relates to them."""
    if base_model is not None:
        return base_model, "adapter" if adapter else "finetune"
    relation = None
    for step in reversed(steps):
        relation = "finetune" if step["step"] == "training" else relation
        named = {"training": ["base_model"], "conversion": ["source"]}.get(step["step"], [])
        ids = [step[key] for key in named if step.get(key)] + list(step.get("parts", {}).values())
        if ids := [name for name in ids if is_hub_id(name)]:
            return ids if len(ids) > 1 else ids[0], relation
    return None, None


def _result(row: dict) -> EvalResult:
    url = row["source"] if row["source"].startswith(("http://", "https://")) else None
    return EvalResult(
        task_type=TASK,
        dataset_type=re.sub(r"[^\w./-]+", "-", row["dataset"]),
        dataset_name=row["dataset"],
        metric_type=row["metric"],
        metric_name=row["name"],
        metric_value=row["value"],
        source_name=url,
        source_url=url,
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown, without the columns that are empty."""
    if not rows:
        return ""
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    lines = [columns, ["---"] * len(columns), *([_cell(row[name]) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _evaluation_row(row: dict) -> dict[str, Any]:
    return {
        "task": row["name"],
        "data": row["dataset"],
        "samples": row.get("samples"),
        "metric": row["metric"],
        "value": f"**{row['value']:.6g}**",
        "baseline": None if row.get("baseline") is None else f"{row['baseline']:.6g}",
        "source": row["source"],
    }


def _evaluated(rows: Sequence[dict]) -> dict[str, str]:
    """The table of an evaluation, and in words what its rows have in common."""
    table = [_evaluation_row(row) for row in rows]
    metrics, sources = ({row[key] for row in rows} for key in ("metric", "source"))
    if len(rows) < 2 or len(metrics) > 1 or len(sources) > 1:
        return {"evaluation": _table(table)}
    short = [{key: cell for key, cell in row.items() if key not in ("metric", "source")} for row in table]
    return {"evaluation": _table(short), "evaluated_by": f"All are {metrics.pop()}, from {sources.pop()}."}


def _parts(step: dict) -> str:
    """What a model was assembled from, such as `` `lmsys/vicuna-7b-v1.5` (language model) ``."""
    words = {"vision_tower": "visual encoder", "qformer": "text decoder", "language_model": "language model"}
    named = defaultdict(list)
    for part, word in words.items():
        if part in step["parts"]:
            named[step["parts"][part]].append(word)
    return ", ".join(f"`{name}` ({' and '.join(parts)})" for name, parts in named.items())


def _training_rows(steps: Sequence[dict]) -> list[dict[str, Any]]:
    """A row for each stage. Long lists of modules are told once."""
    rows = [_training_row(step) for step in steps]
    return [
        {**row, "trained": "as above"} if above and row["trained"] == above["trained"] else row
        for above, row in zip([None, *rows], rows, strict=False)
    ]


def _training_row(step: dict) -> dict[str, Any]:
    """What is known of a stage."""
    modules = ", ".join(step.get("modules") or [])
    lora = step.get("lora")
    data = [
        source["name"] + (f" (weight {source['weight']:g})" if source.get("weight", 1) != 1 else "")
        for source in step.get("datasets") or []
    ]
    return {
        "stage": step.get("stage"),
        "began with": step.get("base_model"),
        "trained": f"{modules} (LoRA, rank {lora['r']}, on the language model)" if lora else modules,
        "data": ", ".join(data),
        "tokens at most": step.get("max_length"),
        "steps": step.get("steps"),
        "epochs": step.get("epochs"),
        "batch": step.get("batch_size"),
        "optimizer": step.get("optimizer"),
        "learning rate": step.get("learning_rate"),
        "last logged loss": step.get("loss"),
    }


def _curve_steps(files: Mapping[str, Path]) -> int | None:
    """Where the loss curve beside the checkpoint ends."""
    if "loss_curve.json" not in files or "loss_curve.png" not in files:
        return None
    points = read_json_object(files["loss_curve.json"]).get("loss")
    if not points:
        return None
    return points[-1][0]


def _versions(steps: Sequence[dict], files: Mapping[str, Path]) -> dict[str, str]:
    """Of the last step that tells them, else what the files themselves say they were saved with."""
    known = [step["versions"] for step in steps if step.get("versions")]
    if known:
        return known[-1]
    written = {"config.json": ("transformers", "transformers_version"), "adapter_config.json": ("peft", "peft_version")}
    found = {package: _read(files[name]).get(key) for name, (package, key) in written.items() if name in files}
    return {package: version for package, version in found.items() if version is not None}


def _architecture(files: Mapping[str, Path]) -> dict[str, Any]:
    """What only a whole model tells: its parts, their sizes, and how long a prompt may be."""
    config = AutoConfig.from_pretrained(files["config.json"].parent)
    counts, dtypes, modules, projections = Counter(), Counter(), set(), set()
    for path in (path for name, path in files.items() if name.endswith(".safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                tensor = tensors.get_slice(name)
                part = next((part for part, (starts, _) in PARTS.items() if name.startswith(starts)), "other")
                counts[part] += prod(tensor.get_shape())
                dtypes[tensor.get_dtype()] += prod(tensor.get_shape())
                modules.add(name.split(".")[1])
                if (match := PROJECTION.fullmatch(name)) and len(tensor.get_shape()) == 2:
                    projections.add(match[1])
    kinds = {
        part: "-" if field is None else f"`{getattr(config, field).model_type}`" for part, (_, field) in PARTS.items()
    }
    kinds["visual encoder"] += f", {config.vision_config.image_size} px"
    parts = [
        {"name": part, "kind": kinds.get(part, ""), "parameters": f"{counts[part]:,}"} for part in (*PARTS, "other")
    ]
    return {
        "parts": [part for part in parts if part["parameters"] != "0"],
        "dtypes": ", ".join(dtype for dtype, _ in dtypes.most_common()),
        "all_parameters": f"{counts.total():,}",
        "context_length": f"{config.context_length:,}" if config.context_length else None,
        "visual_modules": [name for name in VISUAL_MODULES if name in modules],
        "projections": sorted(projections),
    }

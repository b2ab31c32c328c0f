"""What is left of a training beside its weights: the loss curve, and how many samples were skipped."""

import json
import logging
from pathlib import Path

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback

from llama_vid.data.collator import LlamaVidDataCollator
from llama_vid.data.records import check_skipped_share
from llama_vid.whole_files import whole_file, write_text

logger = logging.getLogger(__name__)

# What evaluations call the share of right answers; behind it, and a kind of questions, those of that kind.
SHARES = "eval_exact_match"


class LossCurveCallback(TrainerCallback):
    """Writes `loss_curve.json` and `loss_curve.png` into the output folder, with the shares of right answers."""

    def on_train_end(self, args, state, control, **kwargs):
        """Write both."""
        if not state.is_world_process_zero:
            return
        shares = dict.fromkeys(name for entry in state.log_history for name in entry if name.startswith(SHARES))
        points = {
            name: [(entry["step"], entry[name]) for entry in state.log_history if name in entry]
            for name in ("loss", "eval_loss", *shares)
        }
        folder = Path(args.output_dir)
        write_text(folder / "loss_curve.json", json.dumps(points, indent=1))
        plot_curves(points, folder / "loss_curve.png")


def plot_curves(points: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Loss over steps as a picture, and the share of right answers on an axis of its own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.25)
    for name in ("loss", "eval_loss"):
        _plot(axes, name, points[name])
    if SHARES in points:
        right = axes.twinx()
        right.set(ylabel="exact match", ylim=(-0.02, 1.02))
        _plot(right, SHARES, points[SHARES], color="tab:green")
    figure.legend(frameon=False, loc="outside upper right", ncols=3)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def _plot(axes, name: str, curve: list[tuple[int, float]], **style) -> None:
    if curve:
        axes.plot(*zip(*curve, strict=True), label=name, marker="o" if len(curve) < 30 else None, markersize=3, **style)


class SkippedSamplesCallback(TrainerCallback):
    """Says at the end how many samples all processes skipped, and ends the training with an error for too many."""

    def __init__(self, collator: LlamaVidDataCollator) -> None:
        self.collator = collator

    def on_train_end(self, args, state, control, **kwargs):
        """Say it. Raises BadSampleError in every process if they are too many, however few were seen."""
        counts = torch.tensor([self.collator.num_skipped, self.collator.num_seen], device=args.device)
        skipped, seen = reduce(counts, "sum").tolist()
        if skipped and state.is_world_process_zero:
            logger.warning("%d of %d samples were skipped: the log says which and why.", skipped, seen)
        check_skipped_share(skipped, seen, self.collator.max_skipped_share)

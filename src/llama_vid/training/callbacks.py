"""What is left of a training beside its weights: the loss curve, and how many samples were skipped."""

import json
import logging
from pathlib import Path

from transformers import TrainerCallback

from llama_vid.data.collator import LlamaVidDataCollator

logger = logging.getLogger(__name__)


class LossCurveCallback(TrainerCallback):
    """Writes `loss_curve.json` and `loss_curve.png` into the output folder."""

    def on_train_end(self, args, state, control, **kwargs):
        """Write both."""
        if not state.is_world_process_zero:
            return
        points = {
            name: [(entry["step"], entry[name]) for entry in state.log_history if name in entry]
            for name in ("loss", "eval_loss")
        }
        folder = Path(args.output_dir)
        partial = folder / ".loss_curve.json"
        partial.write_text(json.dumps(points, indent=1), encoding="utf-8")
        partial.replace(folder / "loss_curve.json")
        plot_curves(points, folder / "loss_curve.png")


def plot_curves(points: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Loss over steps as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in points.items():
        if curve:
            axes.plot(*zip(*curve, strict=True), label=name, marker="o" if len(curve) < 30 else None, markersize=3)
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    partial = path.with_suffix(".partial")
    figure.savefig(partial, dpi=120, format="png")
    partial.replace(path)


class SkippedSamplesCallback(TrainerCallback):
    """Says at the end how many samples were skipped."""

    def __init__(self, collator: LlamaVidDataCollator) -> None:
        self.collator = collator

    def on_train_end(self, args, state, control, **kwargs):
        """Say it."""
        if self.collator.num_skipped:
            logger.warning(
                "%d of %d samples were skipped: the log says which and why.",
                self.collator.num_skipped,
                self.collator.num_seen,
            )

"""A training's part in publishing: it records what it was, and `push_to_hub` leaves on the Hub what `publish` would."""

import json
import logging
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, SchedulerType
from transformers.training_args import OptimizerNames
from trl import ModelConfig, SFTConfig

from .hub import open_repository, publish, upload
from .hub_files import DRAFT, check_contents
from .hub_provenance import is_hub_id, provenance_of, public_name, versions, write_provenance
from .hub_repository import repository
from .training.arguments import LlamaVidScriptArguments
from .training.module_names import LANGUAGE_MODULES, VISUAL_MODULES
from .training.trained_modules import whole_base
from .whole_files import link_or_copy, write_text

logger = logging.getLogger(__name__)


class HubCallback(TrainerCallback):
    """
    Writes `provenance.json` into every checkpoint and into `output_dir`, and does in the way of [`publish`] what
    `push_to_hub`, `hub_model_id`, `hub_strategy`, `hub_revision`, `hub_private_repo`, `hub_always_push` and `hub_token`
    say:

    - `end`: the result;
    - `every_save`: also each checkpoint, in the background, as what the repository holds until the next one;
    - `checkpoint`, `all_checkpoints`: with it all that resuming takes, in `last-checkpoint` or folders of their own.

    `Trainer` would upload training_args.bin, a pickle that holds the token, and a card that knows nothing of the model:
    it is told not to push, so this must be made before the trainer is. A checkpoint that cannot be pushed is an error
    in the log; the result is pushed by [`~HubCallback.finish`], which raises.

    Args:
        script_args (`LlamaVidScriptArguments`): The stage and its data.
        training_args (`SFTConfig`): TRL's; `push_to_hub` and `hub_token` are taken off it.
        model_args (`ModelConfig`): TRL's.

    Raises:
        PermissionError, ConnectionError, ValueError: if nothing could be pushed in the end, as [`publish`].
    """

    def __init__(self, script_args: LlamaVidScriptArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
        self.script_args, self.model_args = script_args, model_args
        self.output_dir = Path(training_args.output_dir)
        self.repo_id: str | None = None
        self._steps: list[dict[str, Any]] = []
        self._is_base_asked = True
        self._modules: list[str] = []
        # One after another, or an older checkpoint might be the last one to arrive.
        self._pushes = ThreadPoolExecutor(max_workers=1)
        self._job: Future | None = None
        self._options = {
            "token": training_args.hub_token,
            "private": training_args.hub_private_repo,
            "revision": training_args.hub_revision,
        }
        pushes, training_args.push_to_hub, training_args.hub_token = training_args.push_to_hub, False, None
        if pushes and training_args.process_index == 0:
            base = model_args.model_name_or_path
            if model_args.use_peft and base is not None and not is_hub_id(whole_base(base, None)[0]):
                raise ValueError(
                    f"`push_to_hub` of an adapter for `{base}`, which nobody else has: publish the base first, and "
                    "write its repo id as `model_name_or_path`."
                )
            self.repo_id = open_repository(
                training_args.hub_model_id or self.output_dir.resolve().name, **self._options
            )

    def on_train_begin(self, args, state, control, model: nn.Module, **kwargs) -> None:
        """Read what led to the model, and what of it trains."""
        if state.is_world_process_zero:
            base = self.model_args.model_name_or_path
            try:
                self._steps = provenance_of(base, self.model_args.model_revision, self._options["token"])
            except LocalEntryNotFoundError:
                self._is_base_asked = False
                logger.warning("The Hub cannot be asked now what led to %s; `publish` will ask it.", base)
            trains = {
                part for name, weight in model.named_parameters() if weight.requires_grad for part in name.split(".")
            }
            self._modules = [name for name in (*VISUAL_MODULES, *LANGUAGE_MODULES) if name in trains]

    def on_save(self, args, state, control, **kwargs) -> None:
        """Complete the checkpoint, and push it."""
        if not state.is_world_process_zero:
            return
        checkpoint = self.output_dir / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        write_provenance(checkpoint, [*self._steps, self._step(args, state)])
        is_busy = self._job is not None and not self._job.done() and not args.hub_always_push
        if self.repo_id is not None and args.hub_strategy != HubStrategy.END and not is_busy:
            where = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
            message = f"Training in progress, step {state.global_step}"
            try:
                copy = self._copy(checkpoint)
            except OSError as error:  # the training goes on, and the result is pushed in the end
                logger.error("%s was not pushed: %s", message, error)
            else:
                self._job = self._pushes.submit(self._push, copy, message, where.get(args.hub_strategy))

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Record the training."""
        if state.is_world_process_zero:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            is_best = args.load_best_model_at_end and state.best_global_step
            step = self._step(args, state, state.best_global_step if is_best else None)
            write_provenance(self.output_dir, [*self._steps, step])

    def finish(self) -> None:
        """Publish what is in `output_dir`, if that was asked for, when everything has been saved there."""
        if self.repo_id is not None:
            self._pushes.shutdown()  # when all of them are through
            print(publish(self.output_dir, self.repo_id, **self._options))

    def _copy(self, checkpoint: Path) -> TemporaryDirectory:
        """A copy to push from, as the trainer may delete the checkpoint before all of it has been sent."""
        prefix, place = f".{self.output_dir.resolve().name}-", self.output_dir.resolve().parent
        if self._job is None:  # then what is there is of a run that was killed
            for left in place.glob(f"{prefix}{PREFIX_CHECKPOINT_DIR}-*.push"):
                shutil.rmtree(left)
        copy = TemporaryDirectory(dir=place, prefix=f"{prefix}{checkpoint.name}.", suffix=".push")
        shutil.copytree(checkpoint, copy.name, copy_function=link_or_copy, dirs_exist_ok=True)
        return copy

    def _push(self, copy: TemporaryDirectory, message: str, where: str | None) -> None:
        """Push a checkpoint: the model, and `where` the whole with what resuming takes."""
        folder = Path(copy.name)
        try:
            with copy, repository(folder, self.repo_id, token=self._options["token"]) as found:
                files = dict(found.files)
                if where is not None:
                    _forget_best_checkpoint(folder / TRAINER_STATE_NAME)
                    left_out = (TRAINING_ARGS_NAME, DRAFT)
                    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in left_out]
                    whole = {path.relative_to(folder).as_posix(): path for path in paths}
                    check_contents({name: path for name, path in whole.items() if name not in files})
                    files |= {f"{where}/{name}": path for name, path in whole.items()}
                upload(files, self.repo_id, message, **self._options)
        except Exception as error:  # of whatever kind: the training goes on, and the result is pushed in the end
            logger.error("%s was not pushed: %s", message, error)

    def _step(self, args: SFTConfig, state, steps: int | None = None) -> dict[str, Any]:
        """What was done in so many `steps`, or until now."""
        steps = state.global_step if steps is None else steps
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry and entry["step"] <= steps]
        base, lora = self.model_args.model_name_or_path, self.model_args.use_peft
        return {
            "step": "training",
            "stage": self.script_args.stage,
            "base_model": base if is_hub_id(base) else None,
            **({} if self._is_base_asked else {"unasked_revision": self.model_args.model_revision}),
            "modules": self._modules,
            "lora": {"r": self.model_args.lora_r, "alpha": self.model_args.lora_alpha} if lora else None,
            "datasets": [
                {"name": public_name(source.path), "format": source.format, "weight": source.weight}
                for source in self.script_args.train_datasets
            ],
            "steps": steps,
            "epochs": round((state.epoch or 0) * steps / max(1, state.global_step), 2),
            "batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "optimizer": "muon, adamw" if self.script_args.use_muon else OptimizerNames(args.optim).value,
            "learning_rate": args.learning_rate,
            "lr_scheduler": SchedulerType(args.lr_scheduler_type).value,
            "max_length": args.max_length,
            "loss": round(losses[-1], 4) if losses else None,
            "versions": versions("llama-vid", "transformers", "trl", "torch", *(["peft"] if lora else [])),
        }


def _forget_best_checkpoint(path: Path) -> None:
    """It is named by its place on this machine, where nobody else resumes."""
    state = json.loads(path.read_text(encoding="utf-8"))
    if state.get("best_model_checkpoint") is not None:
        # A new file in its place: it may be a second name of the trainer's own.
        write_text(path, json.dumps({**state, "best_model_checkpoint": None}, indent=2) + "\n")

"""TRL's `SFTTrainer`, with answers in its evaluations, and checkpoints of trained modules alone."""

from contextlib import nullcontext
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput
from trl import SFTTrainer

from llama_vid.training.answers_alone import answers_alone
from llama_vid.training.evaluation import answer_accuracy
from llama_vid.training.precision import in_dtype
from llama_vid.training.trained_modules import (
    TrainedModules,
    put_trained_modules,
    read_trained_modules,
    save_trained_modules,
    whole,
)


class LlamaVidTrainer(SFTTrainer):
    """
    [`SFTTrainer`], unchanged where the arguments below are left out, but for this: a checkpoint is complete when, and
    only when, it has its `trainer_state.json`; a batch is moved to the device when its step comes; and a step of
    training on a CPU leaves out what [`answers_alone`] names.

    Args:
        *args, **kwargs: Those of `SFTTrainer`, with a [`LlamaVidDataCollator`].
        eval_answers (`int`, *optional*, defaults to 0):
            How many samples, spread evenly over the evaluation's, are answered in each evaluation. Its metrics get
            `eval_exact_match`, and one for each kind of question (see [`generate_answers`]).
        trained_modules (`TrainedModules`, *optional*):
            What is saved of the weights, instead of all; for models that are not PEFT's.
        save_dtype (`torch.dtype`, *optional*):
            What weights are saved in, instead of what they are held in; not in checkpoints while training, or a resumed
            one would go on from rounded weights.
    """

    def __init__(
        self,
        *args,
        eval_answers: int = 0,
        trained_modules: TrainedModules | None = None,
        save_dtype: torch.dtype | None = None,
        **kwargs,
    ):
        self.eval_answers = eval_answers
        self.trained_modules = trained_modules
        self.save_dtype = save_dtype
        self._frozen: dict[str, torch.Tensor] = {}
        super().__init__(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, **kwargs):
        """As in TRL, and without what a CPU would compute for nothing."""
        wants_logits = return_outputs or self.label_smoother is not None or self.compute_loss_func is not None
        is_plain = self.args.device.type == "cpu" and not wants_logits and not self.args.torch_compile
        context = nullcontext(inputs)
        if is_plain and model.training:
            whole_model = self.accelerator.unwrap_model(model)
            if isinstance(whole_model, PeftModel):
                whole_model = whole_model.get_base_model()
            context = answers_alone(whole_model.base_model, inputs)
        with context as inputs:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        """As in transformers, with the answers: here they reach the log and the choice of the best model."""
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.eval_answers:
            rows = dataloader.dataset
            count = min(self.eval_answers, len(rows))
            with self.accelerator.autocast():  # which is around `forward`, and not around PEFT's `generate`
                shares = answer_accuracy(
                    self.model,
                    self.processing_class,
                    rows.select([i * len(rows) // count for i in range(count)]),
                    batch_size=self.args.per_device_eval_batch_size,
                    chat_template=self.data_collator.chat_template,
                )
            output.metrics.update({f"{metric_key_prefix}_{name}": share for name, share in shares.items()})
        return output

    def _get_dataloader(self, *args, **kwargs) -> DataLoader:
        # The trainer holds the batches of all accumulation steps at a time; with videos they would fill the device.
        placement, self.accelerator.device_placement = self.accelerator.device_placement, False
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.accelerator.device_placement = placement

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in transformers."""
        # Here, as in older versions the first process alone comes to `_save`.
        gathers = is_deepspeed_zero3_enabled() and isinstance(self.model, PeftModel)
        self._frozen = _frozen_parts(self.model) if gathers else {}
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        output_dir = self.args.output_dir if output_dir is None else output_dir
        is_checkpoint = Path(output_dir).name == self._checkpoint_name()
        if self._frozen:
            state_dict = {**(state_dict or {}), **self._frozen}
        if self.save_dtype is not None and self.args.should_save and not is_checkpoint:
            state_dict = in_dtype(self.model.state_dict() if state_dict is None else state_dict, self.save_dtype)
        if self.is_fsdp_enabled and self.accelerator.is_fsdp2:
            _named_as_before(self.model)
        if self.trained_modules is None:
            super()._save(output_dir, state_dict)
            return
        super()._save(output_dir, state_dict={})  # everything but the weights
        if self.args.should_save:
            if state_dict is not None and not state_dict:
                raise ValueError(
                    "`save_only_trained` is true, and ZeRO-3 did not gather the weights: set "
                    "stage3_gather_16bit_weights_on_model_save to true in DeepSpeed's configuration."
                )
            model = self.accelerator.unwrap_model(self.model)
            save_trained_modules(model, output_dir, self.trained_modules, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # FSDP and DeepSpeed have their own files in checkpoints, with all weights.
        if self.is_fsdp_enabled or read_trained_modules(resume_from_checkpoint) is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            put_trained_modules(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        has_own_files = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if has_own_files or read_trained_modules(self.state.best_model_checkpoint) is None:
            super()._load_best_model()
        else:
            put_trained_modules(self.model, self.state.best_model_checkpoint)

    def _checkpoint_name(self) -> str:
        return f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        if self.args.should_save:  # no longer complete, if it is there from before
            (Path(self.args.output_dir) / self._checkpoint_name() / TRAINER_STATE_NAME).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        # The last files before the trainer's state, which the first process must not write before all have theirs.
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()


def _named_as_before(model: nn.Module) -> None:
    """FSDP2 gives a model a class of torch's, whose files transformers would save as the model's code."""
    sharded = type(model)
    own = next(kind for kind in sharded.__mro__ if not kind.__module__.startswith("torch."))
    sharded.__module__, sharded.__name__ = own.__module__, own.__name__


def _frozen_parts(model: PeftModel) -> dict[str, torch.Tensor]:
    """
    What is frozen in modules that an adapter holds whole: PEFT saves it, and with ZeRO-3 transformers gathers only what
    trains. For all processes at once.
    """
    parts = {}
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name and not parameter.requires_grad:
            with whole(parameter):
                parts[name] = parameter.detach().cpu().clone()
    return parts

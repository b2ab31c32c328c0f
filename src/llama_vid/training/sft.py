"""Supervised fine-tuning of every stage: `llama-vid train --config recipes/….yaml`, on TRL's `SFTTrainer`."""

import logging
from collections.abc import Sequence

import torch
from peft import get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_quantization_config

from llama_vid.data.collator import LlamaVidDataCollator
from llama_vid.data.mixture import load_mixture
from llama_vid.modeling.modeling_llama_vid_visual import freeze_what_is_not_read
from llama_vid.training.arguments import LlamaVidScriptArguments
from llama_vid.training.callbacks import LossCurveCallback, SkippedSamplesCallback
from llama_vid.training.stages import choose_modules, lora_config, parameter_groups, set_trainable, trainable_table

logger = logging.getLogger(__name__)


def train(arguments: Sequence[str] | None = None) -> SFTTrainer:
    """
    Train as a YAML file and command-line arguments say.

    Args:
        arguments (`Sequence[str]`, *optional*): `--config recipe.yaml` and arguments that override it; those of the
            process by default.

    Raises:
        ValueError: an unknown key or module, data that cannot be read, nothing to resume from …
    """
    parser = TrlParser((LlamaVidScriptArguments, SFTConfig, ModelConfig))
    return run(*parser.parse_args_and_config(None if arguments is None else list(arguments)))


def run(script_args: LlamaVidScriptArguments, training_args: SFTConfig, model_args: ModelConfig) -> SFTTrainer:
    """
    Train one stage and save model (or adapter), processor and loss curve to `training_args.output_dir`.

    Args:
        script_args (`LlamaVidScriptArguments`): The stage and its data.
        training_args (`SFTConfig`): TRL's. `max_length` bounds samples, visual tokens included.
        model_args (`ModelConfig`): TRL's: the checkpoint, its dtype, LoRA, quantisation.

    Returns:
        `SFTTrainer`, when it has finished.
    """
    trainer = build_trainer(script_args, training_args, model_args)
    trainer.accelerator.print(trainable_table(trainer.model))
    trainer.train(resume_from_checkpoint=_checkpoint(training_args))
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return trainer


def build_trainer(
    script_args: LlamaVidScriptArguments, training_args: SFTConfig, model_args: ModelConfig
) -> SFTTrainer:
    """The trainer of [`run`], ready to train."""
    model, processor = load(training_args, model_args)
    train_modules = choose_modules(model, script_args.stage, script_args.train_modules)
    if model_args.use_peft:
        config = lora_config(model, train_modules, model_args)
        model = get_peft_model(model, config)
        freeze_what_is_not_read(model)
    else:
        set_trainable(model, train_modules)

    collator = LlamaVidDataCollator(
        processor,
        chat_template=script_args.chat_template or ("plain" if script_args.stage == 1 else None),
        max_length=training_args.max_length,
        on_bad_sample=script_args.on_bad_sample,
        max_skipped_share=script_args.max_skipped_share,
        pad_to_multiple_of=training_args.pad_to_multiple_of,
    )
    # The collator reads the chats itself.
    training_args.dataset_kwargs = {**(training_args.dataset_kwargs or {}), "skip_prepare_dataset": True}
    training_args.remove_unused_columns = False

    optimizer = None
    if script_args.module_learning_rates:
        cls, options = SFTTrainer.get_optimizer_cls_and_kwargs(training_args, model)
        rates = (script_args.module_learning_rates, training_args.learning_rate, training_args.weight_decay)
        optimizer = (cls, {**options, "params": parameter_groups(model, *rates)})
    evaluates = script_args.eval_datasets and training_args.eval_strategy != "no"
    return SFTTrainer(
        model=model,
        args=training_args,
        data_collator=collator,
        train_dataset=load_mixture(script_args.train_datasets, seed=training_args.seed),
        eval_dataset=load_mixture(script_args.eval_datasets, seed=training_args.seed) if evaluates else None,
        processing_class=processor,
        callbacks=[LossCurveCallback(), SkippedSamplesCallback(collator)],
        optimizer_cls_and_kwargs=optimizer,
    )


def load(training_args: SFTConfig, model_args: ModelConfig):
    """Model and processor of `model_name_or_path`. Raises ValueError if there is none."""
    if model_args.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is missing: name a checkpoint that `llama-vid create` or a stage made.")
    dtype = model_args.dtype if model_args.dtype in (None, "auto") else getattr(torch, model_args.dtype)
    options = {"revision": model_args.model_revision, "trust_remote_code": training_args.trust_remote_code}
    model = AutoModelForImageTextToText.from_pretrained(
        model_args.model_name_or_path,
        dtype=dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=get_quantization_config(model_args),
        **options,
    )
    return model, AutoProcessor.from_pretrained(model_args.model_name_or_path, **options)


def _checkpoint(training_args: SFTConfig) -> str | None:
    """Where to go on from. `resume_from_checkpoint: true` is the last complete checkpoint, and there must be one."""
    resume = training_args.resume_from_checkpoint
    if resume in (None, False, "false", "False"):
        return None
    if resume not in (True, "true", "True"):
        return resume
    found = get_last_checkpoint(training_args.output_dir)
    if found is None:
        raise ValueError(
            f"`resume_from_checkpoint` is true, but {training_args.output_dir} holds no checkpoint: train without it."
        )
    return found

"""Supervised fine-tuning of every stage: `llama-vid train --config recipes/….yaml`, on TRL's `SFTTrainer`."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import get_peft_model
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig, set_seed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_enabled
from trl import ModelConfig, SFTConfig, TrlParser, get_quantization_config

from llama_vid.composition_language import answer_end, stretch_context, with_end
from llama_vid.data.collator import LlamaVidDataCollator
from llama_vid.data.mixture import check_lengths, load_mixture
from llama_vid.data.records import check_skipped_share
from llama_vid.hub_callback import HubCallback
from llama_vid.modeling import LlamaVidForConditionalGeneration, LlamaVidProcessor
from llama_vid.modeling.chat_templates_llama_vid import CHAT_TEMPLATES
from llama_vid.modeling.modeling_llama_vid_visual import freeze_what_is_not_read
from llama_vid.modeling.video_features_llama_vid import encoder_fingerprint
from llama_vid.training.arguments import LlamaVidScriptArguments, check_arguments
from llama_vid.training.callbacks import LossCurveCallback, SkippedSamplesCallback
from llama_vid.training.checkpoints import checkpoint_to_resume
from llama_vid.training.muon import MuonWithAdamW
from llama_vid.training.precision import HALF, hold_in_float32
from llama_vid.training.stages import choose_modules, lora_config, parameter_groups, set_trainable, trainable_table
from llama_vid.training.trained_modules import (
    TrainedModules,
    load_trained_modules,
    modules_over_base,
    read_trained_modules,
    whole_base,
)
from llama_vid.training.trainer import LlamaVidTrainer

logger = logging.getLogger(__name__)

# Sampling strategies of transformers that need to know samples' lengths.
BY_LENGTH = ("group_by_length", "batch_rebalance")


def train(arguments: Sequence[str] | None = None) -> LlamaVidTrainer:
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


def run(script_args: LlamaVidScriptArguments, training_args: SFTConfig, model_args: ModelConfig) -> LlamaVidTrainer:
    """
    Train one stage and save model (or adapter), processor and loss curve to `training_args.output_dir`.

    Args:
        script_args (`LlamaVidScriptArguments`): The stage and its data.
        training_args (`SFTConfig`): TRL's. `max_length` bounds samples, visual tokens included.
        model_args (`ModelConfig`): TRL's: the checkpoint, its dtype, LoRA, quantisation.

    Returns:
        `LlamaVidTrainer`, when it has finished.

    Raises:
        ValueError: arguments that contradict each other, data that cannot be read, nothing to resume from …
        BadSampleError: a sample that cannot be trained on, or too many that were skipped; the model is not saved then.
    """
    check_arguments(script_args, training_args, model_args)
    checkpoint = checkpoint_to_resume(training_args)
    hub = HubCallback(script_args, training_args, model_args)  # takes pushing over from the trainer
    trainer = build_trainer(script_args, training_args, model_args)
    trainer.add_callback(hub)
    trainer.accelerator.print(trainable_table(trainer.model))
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_fsdp_enabled:  # checkpoints may be in shares, but a model is one
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    hub.finish()
    return trainer


def build_trainer(
    script_args: LlamaVidScriptArguments, training_args: SFTConfig, model_args: ModelConfig
) -> LlamaVidTrainer:
    """The trainer of [`run`], ready to train."""
    model, processor, encoder = load(script_args, training_args, model_args)
    dtype = model.dtype
    train_modules = choose_modules(model, script_args.stage, script_args.train_modules)
    if model_args.use_peft:
        config = lora_config(model, train_modules, model_args)
        config.revision = whole_base(model_args.model_name_or_path, model_args.model_revision)[1]
        over_base = modules_over_base(model_args.model_name_or_path)
        if missing := sorted(over_base.difference(config.modules_to_save)):
            raise ValueError(
                f"{model_args.model_name_or_path} holds {', '.join(sorted(over_base))} alone, and an adapter that is "
                f"loaded over its base would lack {', '.join(missing)}: train them too, or start from a whole model "
                "(`load_trained_modules(…).save_pretrained(…)`)."
            )
        set_seed(training_args.seed)  # adapters begin at random
        # As in TRL: ZeRO-3 gathers parameters of one type only. Its optimizer has float32 weights of its own.
        is_zero3 = training_args.deepspeed_plugin is not None and training_args.deepspeed_plugin.zero_stage == 3
        model = get_peft_model(model, config, autocast_adapter_dtype=not is_zero3)
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
        encoder=encoder,
    )
    # The collator reads the chats itself.
    training_args.dataset_kwargs = {**(training_args.dataset_kwargs or {}), "skip_prepare_dataset": True}
    training_args.remove_unused_columns = False

    optimizer = None
    if script_args.module_learning_rates or script_args.use_muon:
        cls, options = LlamaVidTrainer.get_optimizer_cls_and_kwargs(training_args, model)
        rates = (script_args.module_learning_rates, training_args.learning_rate, training_args.weight_decay)
        groups = parameter_groups(model, *rates, use_muon=script_args.use_muon)
        optimizer = (MuonWithAdamW if script_args.use_muon else cls, {**options, "params": groups})
    load_data = partial(
        load_mixture,
        seed=training_args.seed,
        on_bad_sample=script_args.on_bad_sample,
        max_skipped_share=script_args.max_skipped_share,
    )
    train_dataset = load_data(script_args.train_datasets, streaming=script_args.streaming, endless=True)
    evaluates = script_args.eval_datasets and training_args.eval_strategy != "no"
    if script_args.eval_datasets and not evaluates:
        logger.warning("`eval_datasets` are not used, as `eval_strategy` is no: set it to steps or epoch.")
    eval_dataset = load_data(script_args.eval_datasets) if evaluates else None
    if eval_dataset is not None and script_args.on_bad_sample == "skip":
        eval_dataset = without_bad_samples(eval_dataset, collator)
    strategy = training_args.train_sampling_strategy
    if strategy in BY_LENGTH:
        # Streams come as they come, and evaluations in order, or grouped.
        for dataset in (train_dataset, eval_dataset if strategy == "group_by_length" else None):
            if isinstance(dataset, Dataset):
                check_lengths(dataset, strategy)
    trainer = LlamaVidTrainer(
        model=model,
        args=training_args,
        data_collator=collator,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        callbacks=[LossCurveCallback(), SkippedSamplesCallback(collator)],
        optimizer_cls_and_kwargs=optimizer,
        eval_answers=script_args.eval_answers,
        trained_modules=TrainedModules(train_modules, model_args.model_name_or_path, model_args.model_revision)
        if script_args.save_only_trained
        else None,
        save_dtype=dtype if dtype in HALF else None,
    )
    if script_args.use_muon and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError(
            "`use_muon` is true, but Muon needs whole matrices, and FSDP and DeepSpeed split them: use DDP, or AdamW."
        )
    # DeepSpeed's optimizer has float32 weights of its own; FSDP 1 takes one type only, and accelerate casts its shares.
    is_fsdp1 = trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2
    if not (trainer.is_deepspeed_enabled or is_fsdp1):
        hold_in_float32(trainer.model)  # after TRL has cast to bfloat16 what trains over quantized weights
    return trainer


def without_bad_samples(dataset: Dataset, collator: LlamaVidDataCollator) -> Dataset:
    """
    What each evaluation is of: looked through once, as skipped samples would count as a loss of zero. Raises ValueError
    if nothing is left, and BadSampleError if too many are skipped.
    """
    rows = tqdm(dataset, desc="eval_datasets", unit="sample", leave=False, disable=not PartialState().is_main_process)
    good = [place for place, row in enumerate(rows) if collator.is_good(row)]
    if not good:
        raise ValueError(f"`eval_datasets` has no good record among {len(dataset)}: the log above says why.")
    if skipped := len(dataset) - len(good):
        logger.warning("Skipped %d of %d samples of `eval_datasets`.", skipped, len(dataset))
        check_skipped_share(skipped, len(dataset), collator.max_skipped_share)
    return dataset.select(good)


def load(script_args: LlamaVidScriptArguments, training_args: SFTConfig, model_args: ModelConfig):
    """
    Model and processor of `model_name_or_path`, and the encoder that features must be of, where the tower is here as it
    is stored. Raises ValueError if there is none, or it cannot be trained so.
    """
    if model_args.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is missing: name a checkpoint that `llama-vid create` or a stage made.")
    options = {"revision": model_args.model_revision, "trust_remote_code": training_args.trust_remote_code}
    name = model_args.model_name_or_path
    config = load_config(script_args, model_args, options)
    stored_dtype = config.dtype
    dtype = stored_dtype if model_args.dtype in (None, "auto") else getattr(torch, model_args.dtype)
    if dtype in HALF and not (training_args.bf16 or training_args.fp16):
        raise ValueError(
            f"`dtype` is {dtype}, but neither `bf16` nor `fp16` is true: what trains is held in float32 and needs one "
            "of them beside weights in 16 bits. Set one, or `dtype` to float32."
        )
    load_model = AutoModelForImageTextToText.from_pretrained
    if read_trained_modules(name) is not None:
        load_model = load_trained_modules
    model = load_model(
        name,
        config=config,
        dtype=dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=get_quantization_config(replace(model_args, dtype=str(dtype).removeprefix("torch."))),
        **options,
    )
    processor = load_processor(model, script_args, training_args, model_args, options)
    # ZeRO-3 shares the weights; with FSDP one process may be the only one to have them.
    tower, is_shared = model.model.vision_tower, is_deepspeed_zero3_enabled() or is_fsdp_enabled()
    is_stored = all(weight.dtype == stored_dtype for weight in tower.parameters())
    encoder = encoder_fingerprint(tower, model.config) if is_stored and not is_shared else None
    return model, processor, encoder


def load_processor(
    model: LlamaVidForConditionalGeneration,
    script_args: LlamaVidScriptArguments,
    training_args: SFTConfig,
    model_args: ModelConfig,
    options: dict,
) -> LlamaVidProcessor:
    """
    The processor, which speaks as the model is taught, and the model's generations end as taught answers do. Raises
    ValueError if taught ones have no end, or it cannot be kept.
    """
    name = model_args.model_name_or_path
    has_template = script_args.chat_template is not None and script_args.stage != 1
    if has_template:  # what is saved speaks as it was taught
        options = {**options, "chat_template": script_args.chat_template}
    processor = AutoProcessor.from_pretrained(name, **options)
    ends = {}
    if training_args.eos_token is not None:  # as TRL does, which refuses one that the tokenizer does not know
        processor.tokenizer.eos_token = training_args.eos_token
        ends["eos_token"] = processor.tokenizer.get_vocab().get(training_args.eos_token)
    if has_template:
        ends["chat_template"] = answer_end(processor)
        is_of_chats = script_args.chat_template not in ("plain", CHAT_TEMPLATES["plain"])  # captions just stop
        if is_of_chats and all(end is None for end in ends.values()):
            raise ValueError(
                "No special token ends an answer in `chat_template`, so that generation would not know where to stop: "
                f"the tokenizer of {name} does not have what the template writes there. Choose one whose answers end "
                f"with a special token that it has, such as vicuna_v1 ({processor.tokenizer.eos_token})."
            )
    for source, end in ends.items():
        known = with_end(model.generation_config.eos_token_id, None)
        model.generation_config.eos_token_id = with_end(known, end)
        if model_args.use_peft and model.generation_config.eos_token_id != known:
            raise ValueError(
                f"Answers end with {processor.tokenizer.decode(end)!r} by `{source}`, which {name} does not know as "
                "an end, and an adapter stores none: add it to `eos_token_id` in the base's generation_config.json, "
                "or create the base with a template that has it (`llama-vid create --chat-template`)."
            )
    if script_args.context_length is not None:
        processor.tokenizer.model_max_length = script_args.context_length
    return processor


def load_config(script_args: LlamaVidScriptArguments, model_args: ModelConfig, options: dict) -> PreTrainedConfig:
    """
    The model's configuration, with its context stretched. Raises ValueError if it cannot be, or cannot be kept, or if
    the checkpoint is an adapter.
    """
    folder = Path(model_args.model_name_or_path)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is an adapter, and adapters are not trained on: merge it first, with merge_adapter.py of "
            "recipes/README.md, Adapters, and set `model_name_or_path` to the merged model."
        )
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, **options)
    stretch_context(config.text_config, script_args.context_length, script_args.rope_scaling)
    if model_args.use_peft:
        base, revision = whole_base(model_args.model_name_or_path, model_args.model_revision)
        stored = AutoConfig.from_pretrained(base, **{**options, "revision": revision}).context_length
        if stored != config.context_length:
            raise ValueError(
                f"`context_length` is {config.context_length}, but that of {base} is {stored}, and an adapter stores "
                "no configuration: stretch the base first, with `llama-vid create --context` or, once it is trained, "
                "with stretch_context.py of recipes/README.md, Adapters."
            )
    return config

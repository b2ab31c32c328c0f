"""
What each process of test_distributed.py runs: `llama-vid train` with a recipe, in chunks of two frames, so that short
clips have several. It makes sure of the engine, and writes what it saw, or that too many samples were bad:
`distributed_worker.py ENGINE RECIPE RESULTS`.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from llama_vid.data.collator import BadSampleError
from llama_vid.training import sft
from llama_vid.training.trainer import LlamaVidTrainer

TYPES = {"ddp": "MULTI_CPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}


def watch(trainer: LlamaVidTrainer) -> list[dict[str, int]]:
    """For each forward pass in training: images, frames, features, and calls of the visual encoder and projector."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    model.frames_per_chunk = 2
    passes = []

    def begin(module, args, kwargs):
        names = {"images": "pixel_values", "frames": "pixel_values_videos", "features": "video_features"}
        seen = {kind: len(kwargs[name]) if name in kwargs else 0 for kind, name in names.items()}
        passes.append({**seen, "encoded": 0, "projected": 0, "training": module.training})

    def count(name: str):
        return lambda *_: passes[-1].update({name: passes[-1][name] + 1})

    model.register_forward_pre_hook(begin, with_kwargs=True)
    model.model.vision_tower.register_forward_hook(count("encoded"))
    model.model.multi_modal_projector.register_forward_pre_hook(count("projected"))
    return passes


def check(trainer: LlamaVidTrainer, engine: str) -> None:
    """Accelerate may train otherwise than it was told, without a word."""
    accelerator, parameters = trainer.accelerator, list(trainer.model.parameters())
    assert accelerator.num_processes == torch.distributed.get_world_size() == 2
    assert accelerator.distributed_type.value == TYPES[engine]
    assert accelerator.device.type == "cpu"
    assert torch.distributed.get_backend() == "gloo"
    if engine == "ddp":
        assert isinstance(trainer.model_wrapped, torch.nn.parallel.DistributedDataParallel)
    elif engine == "fsdp2":
        assert accelerator.is_fsdp2
        assert all(isinstance(parameter, DTensor) and parameter.placements[0].is_shard() for parameter in parameters)
        layers = [module for module in trainer.model.modules() if type(module).__name__.startswith("FSDP")]
        assert len(layers) > 10  # the model, its head, and each layer
    else:
        assert trainer.deepspeed.zero_optimization_stage() == int(engine[-1])
        if engine == "zero3":
            assert all(parameter.ds_tensor.numel() <= (parameter.ds_numel + 1) // 2 for parameter in parameters)
            assert not any(parameter.numel() for parameter in parameters)  # none is whole between steps


def main(engine: str, recipe: str, results: str) -> None:
    """Train and write."""
    build_trainer = sft.build_trainer
    passes = []

    def build(script_args, training_args, model_args) -> LlamaVidTrainer:
        if training_args.deepspeed_plugin is not None:
            # Or each process would keep every weight of such a small model as a whole.
            settings = training_args.deepspeed_plugin.deepspeed_config["zero_optimization"]
            settings["stage3_param_persistence_threshold"] = 0
        trainer = build_trainer(script_args, training_args, model_args)
        passes.append(watch(trainer))
        return trainer

    if engine == "fsdp2":
        # Accelerate shards where it finds accelerators only. On a CPU each process would train for itself.
        PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
    sft.build_trainer = build
    try:
        trainer = sft.train(["--config", recipe])
        check(trainer, engine)
        found = {"passes": passes[0], "log": trainer.state.log_history}
    except BadSampleError as error:
        found = {"error": str(error)}
    state = PartialState()
    Path(f"{results}-{state.process_index}.json").write_text(json.dumps(found))
    state.wait_for_everyone()  # or one would hang up while another still saves
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

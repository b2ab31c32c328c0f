"""The names of the modules that may train, and of those that do in each stage."""

from llama_vid.modeling.modeling_llama_vid_visual import VISUAL_MODULES

LANGUAGE_MODULES = ("language_model", "lm_head")

# The paper's table of stages. Of those that a configuration does not have (a vision projection, context tokens), none
# train.
STAGE_MODULES = {
    1: ("qformer_vision_proj", "context_attention", "multi_modal_projector"),
    2: (*VISUAL_MODULES, *LANGUAGE_MODULES),
    3: (*VISUAL_MODULES, *LANGUAGE_MODULES),
}

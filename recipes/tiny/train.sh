#!/usr/bin/env bash
# Everything from nothing to a checkpoint that answers: the commands of README.md, in their order.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1 # each of two processes has one core
tiny=recipes/tiny
both() {
  accelerate launch --config_file $tiny/two_processes.yaml "$@"
}
stage() {
  both "$(which llama-vid)" train --config "$tiny/$1.yaml"
}

# The vision tower takes longest; data need no model and follow the language model.
python $tiny/pretrain_vision.py --output models/tiny/instructblip &
vision=$!
python $tiny/pretrain_language.py --output models/tiny/language-model
python $tiny/make_data.py "train*"
wait $vision
llama-vid create models/tiny/untrained --vision-tower models/tiny/instructblip --qformer models/tiny/instructblip \
  --language-model models/tiny/language-model --config-overrides '{"image_grid_size": 1}'
both "$(which llama-vid)" features data/tiny/videos/train*.mp4 --output data/tiny/features --model models/tiny/untrained

stage stage1
stage stage2-images
stage stage2-simple
stage stage2-short
stage stage2
stage stage3-scenes
stage stage3

python $tiny/make_data.py "test*"
both "$(which llama-vid)" features data/tiny/videos/test_films*.mp4 --output data/tiny/features \
  --model models/tiny/untrained
both $tiny/evaluate.py --model runs/tiny/stage3

#!/usr/bin/env bash
# Trains the embedded models from nothing:  tools/train_embedded.sh [--smoke] [DIRECTORY]
#
# Everything lands in DIRECTORY (default: build/embedded), and what is finished there is not done again, so
# an interrupted run goes on where it stopped. --smoke does all of it with a few steps, to see that it runs.
# The models end up in DIRECTORY/embedded; copy that over modelscope_i2v/embedded to ship them.
set -euo pipefail

smoke=
if [ "${1:-}" = --smoke ]; then smoke=yes; shift; fi
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-build/embedded${smoke:+-smoke}}
mkdir -p "$work"
cd "$work"
export PYTHONPATH="$(dirname "$here")${PYTHONPATH:+:$PYTHONPATH}"
export MODELSCOPE_I2V_SHARED=$PWD/embedded  # the models there share their towers and autoencoder
python=${PYTHON:-python3}

step() {  # step FILE COMMAND…: unless FILE is there
    if [ -e "$1" ]; then return; fi
    echo "== ${*:2}"
    "${@:2}"
}
train() {  # train NAME [FAMILY that it completes]
    local less=()
    if [ "$smoke" ]; then
        less=(--set steps=1 --set warmup=0 --set batch_size=2 --set frames=2 --set log_every=1)
    fi
    step "runs/$1/model/unet.safetensors" \
        "$python" -m modelscope_i2v train "$here/embedded/configs/$1.json" --resume "${less[@]}"
    if [ "${2:-}" ]; then cp "runs/$1/model/unet.safetensors" "embedded/$2/unet.safetensors"; fi
}

few() { if [ "$smoke" ]; then echo "$@"; fi; }  # options of the smoke run alone

step embedded/autoencoder.safetensors "$python" -m tools.embedded.autoencoder \
    --output embedded/autoencoder.safetensors $(few --steps 2 --batch 2 --pool 4 --no-compile)
step embedded/open_clip.safetensors "$python" -m tools.embedded.clip \
    --output embedded/open_clip.safetensors $(few --steps 2 --batch 4 --pool 8)
step embedded/picture.png "$python" -m tools.embedded.models --output embedded
step clips "$python" -m tools.embedded.cache --model embedded/i2vgen-xl --output clips $(few --clips 2)
step red "$python" -m tools.embedded.cache --model embedded/i2vgen-xl --output red \
    --colour red --clips 500 $(few --clips 2)
for half in pairs one-way cameras; do
    step "$half" "$python" -m tools.embedded.cache --model embedded/i2vgen-xl --output "$half" \
        --half "$half" --clips 1500 $(few --clips 2)
done
step degraded "$python" -m tools.embedded.cache --model embedded/video-to-video --output degraded \
    $(few --clips 2)
train text-to-video-1
train text-to-video-2
train text-to-video-3
train text-to-video-4
train text-to-video-5
train text-to-video-6
train text-to-video-7 text-to-video-synthesis
train i2vgen-xl-1
train i2vgen-xl-2
train i2vgen-xl-3 i2vgen-xl
train image-to-video-1
train image-to-video-2
train image-to-video-3 image-to-video
train video-to-video video-to-video
for family in text-to-video-synthesis image-to-video i2vgen-xl video-to-video; do
    step "evaluation/$family/report.json" "$python" -m modelscope_i2v evaluate "embedded/$family" \
        --output "evaluation/$family" $(few --clips 2 --num-inference-steps 2)
done

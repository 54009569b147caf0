#!/usr/bin/env bash
# A virtual environment with everything that `oclbn bench --against` can time: peers.sh FOLDER. About 2 GB.
# PyTorch is the build for processors. oclbn itself is not needed there.
set -euo pipefail
folder=${1:?usage: peers.sh FOLDER}
python3 -m venv "$folder"
"$folder/bin/python" -m pip install -q torch --index-url https://download.pytorch.org/whl/cpu
"$folder/bin/python" -m pip install -q numpy 'pyopencl[pocl]' mako tinygrad onnxruntime onnx onednn-cpu-gomp
echo "oclbn bench --peer-python $folder/bin/python --against torch,numpy,pyopencl,tinygrad,onnxruntime,onednn,onednn-blocked"

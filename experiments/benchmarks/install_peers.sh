#!/bin/sh
# Makes a virtual environment with this project and the libraries that it is compared with.
#
#     experiments/benchmarks/install_peers.sh FOLDER
#
# Environment variables:
#   PYTHON  the interpreter to make it with; python3 by default.
#   TORCH   what pip is asked for as torch; torch==2.13.0 by default. Where that name is a build
#           for CUDA and a smaller CPU build is wanted, add the index that has one, such as
#           TORCH="torch==2.13.0 --index-url URL".
#
# Afterwards, from the repository's root: FOLDER/bin/python -m experiments.benchmarks.throughput
# --peers. It takes some minutes and about 3 GB; made again on the same folder it only adds what
# is missing.

set -eu

if [ $# -ne 1 ]; then
    echo "usage: $0 FOLDER (where to make the virtual environment)" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
"${PYTHON:-python3}" -m venv "$1"
pip() { "$folder/bin/python" -m pip --quiet "$@"; }
folder=$(cd "$1" && pwd)

echo "torch" >&2
# Unquoted: the variable may hold options beside the name.
# shellcheck disable=SC2086
pip install ${TORCH:-torch==2.13.0}

echo "this project" >&2
pip install -e "$root[test]"

# The peers ask for torchvision, which they do not need for attacks and which would replace torch's
# build by the one it was made for. So each comes alone, after what it really imports.
echo "foolbox, torchattacks, adv-lib, pyautoattack, torch-pruning" >&2
pip install eagerpy GitPython requests scipy tqdm
# visdom, which adv-lib imports, is built with pkg_resources, gone from setuptools 81.
pip install "setuptools<81" wheel
pip install --no-build-isolation visdom
pip install --no-deps foolbox torchattacks adv-lib pyautoattack torch-pruning
# What Brendel & Bethge in foolbox imports when it is called.
pip install --no-deps numba llvmlite

"$folder/bin/python" -c "import adv_lib, foolbox, pyautoattack, torch, torch_pruning, torchattacks"

#!/usr/bin/env bash
# The GPU's bench and tests in one call, on a machine with CUDA, Python 3.11 or newer, torch and transformers.
#
#   bench/gpu.sh [arguments of bench.gpu]   tables to $OUT/gpu.md (default bench/results), then the tests marked gpu
#   bench/gpu.sh --no-tests [of bench.gpu]  the tables only
#   bench/gpu.sh --tests [of pytest]        the tests only
#   bench/gpu.sh --wheels                   on a machine with a network: fills bench/wheels for one without
#
# Pure-Python packages that are missing come from $WHEELS (default bench/wheels) and go to a folder that is removed
# again; nothing is installed into the system. PYTHON names the interpreter; else it is the first that finds torch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wheels=${WHEELS:-bench/wheels}
# A package, and the module by which to see whether it is there.
packages=(
    hydra-core:hydra omegaconf:omegaconf antlr4-python3-runtime:antlr4 math-verify:math_verify
    latex2sympy2-extended:latex2sympy2_extended sympy:sympy mpmath:mpmath rich:rich markdown-it-py:markdown_it
    mdurl:mdurl pygments:pygments packaging:packaging pytest:pytest pluggy:pluggy iniconfig:iniconfig
)

fail() {
    echo "bench/gpu.sh: $1" >&2
    exit 1
}

find_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} python3 python3.12 python3.13 python3.11 python; do
        if "$name" -c 'import sys, importlib.util as u
sys.exit(sys.version_info < (3, 11) or not u.find_spec("torch") or not u.find_spec("transformers"))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    fail "no Python 3.11 or newer with torch and transformers was found; name one: PYTHON=/path/to/python bench/gpu.sh"
}

fill_wheels() {
    mkdir -p "$wheels"
    echo '*' >"$wheels/.gitignore"
    # wheel and not download: antlr4-python3-runtime comes as source only. What these need comes along.
    "${PYTHON:-python3}" -m pip wheel --quiet --constraint constraints.txt --wheel-dir "$wheels" \
        hydra-core omegaconf 'math-verify[antlr4_9_3]' rich pytest
    ls "$wheels"
}

install_missing() {
    local entry missing=()
    for entry in "${packages[@]}"; do
        "$python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec(sys.argv[1]))' "${entry##*:}" ||
            missing+=("${entry%%:*}")
    done
    [[ ${#missing[@]} -eq 0 ]] && return
    [[ -d $wheels ]] ||
        fail "missing: ${missing[*]}; run bench/gpu.sh --wheels where there is a network, and bring $wheels"
    echo "from $wheels: ${missing[*]}"
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
        --root-user-action ignore --find-links "$wheels" --target "$site" "${missing[@]}" ||
        fail "the wheels of ${missing[*]} could not be installed; run bench/gpu.sh --wheels where there is a network"
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
}

if [[ ${1:-} == --wheels ]]; then
    fill_wheels
    exit
fi

python=$(find_python)
if [[ ${GRPO_GPU_TESTS_ON_CPU:-} != 1 ]]; then
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
        fail "torch sees no CUDA device; try it with GRPO_GPU_TESTS_ON_CPU=1 bench/gpu.sh --device cpu --quick"
fi
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
install_missing

status=0
tests=()
case ${1:-} in
    --tests)
        shift
        tests=("$@")
        ;;
    --no-tests)
        shift
        "$python" -m bench.gpu --out "${OUT:-bench/results}/gpu.md" "$@"
        exit
        ;;
    *)
        "$python" -m bench.gpu --out "${OUT:-bench/results}/gpu.md" "$@" || status=$?
        ;;
esac
# The grader's tests need no GPU, and packages that may not be here.
"$python" -m pytest tests/contract --ignore tests/contract/test_grader.py -m gpu -q -p no:cacheprovider \
    ${tests[@]+"${tests[@]}"} || status=$?
exit "$status"

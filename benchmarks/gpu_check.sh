#!/usr/bin/env bash
# Builds, tests and times the CUDA kernels on a machine with a card, offline, correctness first:
#
#   benchmarks/gpu_check.sh OUTDIR [STAGE...]    all stages unless named
#
#   build    the library and its kernels, by nvcc for this card; with Python, the package
#   test     the kernels against the CPU's bits
#   python   tests of the package, on the card
#   time     training steps, evaluations and texts beside the CPU
#   torch    the modules for PyTorch beside torch.nn's
#   report   report.json and report.md of what has run
#
# Takes nvcc, cmake and a C++20 compiler. The package also takes a Python 3.11 or later (PYTHON, by
# default python3) with scikit-build-core, pybind11, numpy, safetensors, tqdm, pytest and pytest-xdist;
# without them the stages python, torch and report are left out, and say so. torch takes PyTorch with
# CUDA. No network.
#
# After a stage that fails the others go on, but for the build's, and the exit status is 1: time on
# a card is rare.
#
# The time limit of each stage is in seconds, for all to take less than nine minutes: BUILD_LIMIT,
# TEST_LIMIT, PYTHON_LIMIT, TIME_LIMIT, TORCH_LIMIT.
#
# REHEARSE=1: without a card, by the emulator and with tiny sizes; torch on the CPU.
set -euo pipefail
all=(build test python time torch report)
if [ $# -eq 0 ]; then
  echo "usage: benchmarks/gpu_check.sh OUTDIR [STAGE...]    stages: ${all[*]}" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$PWD/build/gpu
stages=("$@")
[ $# -gt 0 ] || stages=("${all[@]}")
for stage in "${stages[@]}"; do
  [[ " ${all[*]} " == *" $stage "* ]] || { echo "there is no stage $stage: ${all[*]}" >&2; exit 2; }
done
python=${PYTHON:-python3}
say() { printf '==> [%d s] %s\n' "$SECONDS" "$*"; }
# has MODULE...: whether Python has them all
has() {
  local module
  for module in "$@"; do "$python" -c "import $module" 2> /dev/null || { missing=$module; return 1; }; done
}
needs=(numpy safetensors tqdm pytest xdist pybind11 scikit_build_core)
package() { has "${needs[@]}" && export PYTHONPATH=$work/site; }

if [ -n "${REHEARSE:-}" ]; then
  card=OFF cases=200 tier_cases=200 seconds=0.1 sizes=tiny tiers="T1 T2 T3 T4" torch_on=cpu
  device=(--device emulated --emulated "$work/cuda" -k lstm) suites=(operators states)
else
  card=ON cases=1 tier_cases=10 seconds=1 sizes='' tiers="T1 T3 T4" torch_on=cuda
  device=(--device cuda) suites=(operators states features)
  command -v nvcc > /dev/null || { echo "nvcc is missing: add the toolkit's bin to PATH" >&2; exit 1; }
  nvidia-smi > "$out/card.txt" 2>&1 || { echo "there is no card, or no driver: see card.txt" >&2; exit 1; }
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. ')
  [ "$capability" -lt 90 ] || tiers="$tiers T2"  # has clusters
  [ "$capability" != 90 ] || capability=90a
fi
options=(-DCHARRNN_CUDA="$card" -DCHARRNN_ISAS=RUNNABLE "-DCMAKE_CUDA_ARCHITECTURES=${capability:-80}-real")

# The package in site/, which has the library for C++ too; without Python, the library alone.
build() {
  local prefix=$work/prefix targets=(test_kernels time_device)
  if package; then
    local settings=() option
    for option in "${options[@]}"; do settings+=(-C "cmake.define.${option#-D}"); done
    rm -rf "$work/site"
    "$python" -m pip install --no-index --no-build-isolation --no-deps --target "$work/site" \
      "${settings[@]}" -C build-dir="$work/package" .
    prefix=$work/site/charrnn_fast
    [ $card = ON ] || targets+=(emulated_device)
  else
    cmake -S . -B "$work/library" -DCHARRNN_PYTHON=OFF "${options[@]}"
    cmake --build "$work/library" --parallel
    cmake --install "$work/library" --prefix "$prefix"
  fi
  cmake -S tests/cuda -B "$work/cuda" -DON_A_CARD=$card -DCMAKE_PREFIX_PATH="$prefix" \
    -DPython_EXECUTABLE="$(command -v "$python" || true)"
  cmake --build "$work/cuda" --parallel --target "${targets[@]}"
}

# limited SECONDS LOG COMMAND...: the command's output goes to the log, its end is shown if it fails
limited() {
  local limit=$1 log=$2
  shift 2
  timeout "$limit" "$@" > "$log" 2>&1 || { tail -n 20 "$log" >&2; fail "$log"; return; }
  tail -n 1 "$log"
}
# fail LOG: the stage has failed; nothing goes on without the build
failed=()
fail() {
  echo "$stage failed: see $1" >&2
  failed+=("$stage")
  [ "$stage" != build ] || exit 1
}

export -f build package has
export work python card
for stage in "${stages[@]}"; do
  say "$stage"
  case $stage in
    build)
      limited "${BUILD_LIMIT:-270}" "$out/build.log" bash -euo pipefail -c \
        "$(declare -p needs options); build" ;;
    test)
      # the set whose sums along rows are the kernels'
      CHARRNN_ISA=x86-64-v3 limited "${TEST_LIMIT:-70}" "$out/test.log" bash -euo pipefail -c "
        $work/cuda/test_kernels 0 $cases 0
        for tier in $tiers; do
          echo \$tier
          $work/cuda/test_kernels 0 $tier_cases 0 \$tier
          $work/cuda/test_kernels 0 $tier_cases 1 \$tier 3 2
        done
      " ;;
    python)
      package || { say "left out: $python has no $missing"; continue; }
      tests=("${suites[@]/#/tests/test_}")
      CHARRNN_ISA=x86-64-v3 limited "${PYTHON_LIMIT:-70}" "$out/python.log" "$python" -m pytest -q -n 4 \
        -p no:cacheprovider "${device[@]}" "${tests[@]/%/.py}" ;;
    time)
      timeout "${TIME_LIMIT:-70}" "$work/cuda/time_device" "$seconds" $sizes > "$out/time.jsonl" ||
        fail "$out/time.jsonl"
      cat "$out/time.jsonl" ;;
    torch)
      package && has torch || { say "left out: $python has no $missing"; continue; }
      if [ $card = ON ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        say "left out: this PyTorch finds no card"
        continue
      fi
      timeout "${TORCH_LIMIT:-50}" "$python" benchmarks/gpu/torch_on_card.py "$torch_on" "$seconds" \
        > "$out/torch.jsonl" || { tail -n 3 "$out/torch.jsonl" >&2; fail "$out/torch.jsonl"; }
      wc -l < "$out/torch.jsonl" ;;
    report)
      command -v "$python" > /dev/null || { say "left out: there is no $python"; continue; }
      "$python" benchmarks/gpu/report.py "$out"
      echo "$out/report.md" ;;
  esac
done
if [ ${#failed[@]} -gt 0 ]; then
  say "failed: ${failed[*]}"
  exit 1
fi
say "done"

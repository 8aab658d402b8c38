#!/usr/bin/env bash
# Builds, tests and times the CUDA kernels on a machine with a card, offline, correctness first:
#
#   benchmarks/gpu_check.sh OUTDIR [STAGE...]    stages: build, test, time; all of them unless named
#
# Takes nvcc, cmake and a C++20 compiler; neither Python nor a network. OUTDIR receives card.txt,
# build.log, test.log and time.jsonl. The time limit of each stage is in seconds, for all to take
# less than nine minutes: BUILD_LIMIT, TEST_LIMIT, TIME_LIMIT.
#
# REHEARSE=1: without a card, by the emulator and with tiny sizes.
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "usage: benchmarks/gpu_check.sh OUTDIR [build] [test] [time]" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=build/gpu
stages=("$@")
[ $# -gt 0 ] || stages=(build test time)
say() { printf '==> [%d s] %s\n' "$SECONDS" "$*"; }

if [ -n "${REHEARSE:-}" ]; then
  card=OFF cases=200 tier_cases=200 seconds=0.1 sizes=tiny tiers="T1 T2 T3 T4"
else
  card=ON cases=1 tier_cases=10 seconds=1 sizes= tiers="T1 T3 T4"
  command -v nvcc > /dev/null || { echo "nvcc is missing: add the toolkit's bin to PATH" >&2; exit 1; }
  nvidia-smi > "$out/card.txt" 2>&1 || { echo "there is no card, or no driver: see card.txt" >&2; exit 1; }
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)
  [ "${capability%%.*}" -lt 9 ] || tiers="$tiers T2"  # has clusters
fi

for stage in "${stages[@]}"; do
  say "$stage"
  case $stage in
    build)
      # the library without Python, for this machine's processor; then the kernels for its card
      timeout "${BUILD_LIMIT:-300}" bash -euo pipefail -c "
        cmake -S . -B $work/library -DCHARRNN_PYTHON=OFF -DCHARRNN_ISAS=RUNNABLE
        cmake --build $work/library --parallel
        cmake --install $work/library --prefix $work/prefix
        cmake -S tests/cuda -B $work/cuda -DON_A_CARD=$card -DCMAKE_PREFIX_PATH=$PWD/$work/prefix
        cmake --build $work/cuda --parallel --target test_kernels time_device
      " > "$out/build.log" 2>&1 || { tail -n 20 "$out/build.log" >&2; exit 1; } ;;
    test)
      # the set whose sums along rows are the kernels'
      CHARRNN_ISA=x86-64-v3 timeout "${TEST_LIMIT:-120}" bash -euo pipefail -c "
        $work/cuda/test_kernels 0 $cases 0
        for tier in $tiers; do
          echo \$tier
          $work/cuda/test_kernels 0 $tier_cases 0 \$tier
          $work/cuda/test_kernels 0 $tier_cases 1 \$tier 3 2
        done
      " > "$out/test.log" 2>&1 ||
        { tail -n 20 "$out/test.log" >&2; echo "results differ from the CPU's: see test.log" >&2; exit 1; }
      tail -n 1 "$out/test.log" ;;
    time)
      timeout "${TIME_LIMIT:-110}" "$work/cuda/time_device" "$seconds" $sizes > "$out/time.jsonl"
      cat "$out/time.jsonl" ;;
    *)
      echo "there is no stage $stage: build, test, time" >&2
      exit 2 ;;
  esac
done
say "done"

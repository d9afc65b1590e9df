#!/usr/bin/env bash
# Cross-compiles the torch-free kernels for arm64 and checks them under qemu's user emulation.
# Installs the compiler and the emulator where they are missing and this user may.
set -euo pipefail
cd "$(dirname "$0")/../.."

cxx=aarch64-linux-gnu-g++
qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)
if ! command -v $cxx >/dev/null || [ -z "$qemu" ]; then
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "test-arm64 needs $cxx and qemu-aarch64 (Debian: g++-aarch64-linux-gnu qemu-user-static)" >&2
    exit 1
  fi
  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q \
    --no-install-recommends g++-aarch64-linux-gnu qemu-user-static
  qemu=$(command -v qemu-aarch64-static)
fi

out=build/arm64
mkdir -p $out
common="-std=c++20 -O2 -fopenmp -fno-math-errno -fno-trapping-math -Wall -Wno-psabi -Wno-unknown-pragmas -Icsrc -MMD"
{
  # One rule per object, so that make builds in parallel and only what changed.
  objects=""
  rule() {  # rule OBJECT SOURCE FLAGS
    objects="$objects $1"
    printf '%s: %s\n\t%s %s %s -c %s -o %s\n' "$1" "$2" "$cxx" "$common" "$3" "$2" "$1"
  }
  for target in generic neon; do
    flags="-DLANEWISE_TARGET=$target"
    [ $target = generic ] && flags="$flags -DLANEWISE_LANES=4"
    [ $target = neon ] && flags="$flags -march=armv8.2-a+fp16"
    for source in csrc/*/kernel*.cpp csrc/dispatch/table.cpp; do
      rule "$out/$target-$(echo "${source%.cpp}" | tr / -).o" "$source" "$flags"
    done
  done
  for source in csrc/dispatch/cpu.cpp csrc/dispatch/scratch.cpp tests/arm64/check.cpp; do
    rule "$out/$(basename "$source" .cpp).o" "$source" ""
  done
  rule $out/choose.o csrc/dispatch/choose.cpp "'-DLANEWISE_TARGETS=X(generic) X(neon)'"
  printf '%s/check: %s\n\t%s -static -fopenmp $^ -o $@\n' "$out" "$objects" "$cxx"
  printf -- '-include %s/*.d\n' "$out"
} >$out/rules.mk
make -s -j"$(nproc)" -f $out/rules.mk $out/check
"$qemu" $out/check

#!/bin/bash
# jaxlib 0.10.2 (0.12.0.1 has the same lines): xla::ffi::ThreadPool::Schedule(F&&) looks as if it took any
# callable, but a named one does not compile. F is then deduced as a reference, and the body forms
# `F*`, a pointer to a reference. Callables that are handed to several threads are usually named.
# A temporary, such as std::function<void()>(task), compiles.
#
# Seen with g++ 12.2:
#   a temporary: compiles
#   a named callable: error: forming pointer to reference type
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-deps --disable-pip-version-check --target "$folder/site" jaxlib==0.10.2
include=$(dirname "$(find "$folder/site" -path '*xla/ffi/api/ffi.h')")/../../..

source_of() {
    cat <<CC
#include <functional>
#include "xla/ffi/api/ffi.h"
void Run(xla::ffi::ThreadPool pool) {
  auto task = [] {};
  pool.Schedule($1);
}
CC
}

source_of 'std::function<void()>(task)' > "$folder/temporary.cc"
source_of 'task' > "$folder/named.cc"
g++ -std=c++17 -w -fsyntax-only -I "$include" "$folder/temporary.cc"
echo "a temporary: compiles"
if g++ -std=c++17 -w -fsyntax-only -I "$include" "$folder/named.cc" 2> "$folder/said"; then
    echo "a named callable: compiles"
    exit 1
fi
grep -o -m 1 'error: forming pointer to reference type' "$folder/said" | sed 's/^/a named callable: /'

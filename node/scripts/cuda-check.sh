#!/usr/bin/env bash
# Runs every model of a folder on a GPU, compares with what transformers recorded, and prints a table (in Markdown):
#
#   node/scripts/cuda-check.sh BINARY [FOLDER] >table.md
#
# BINARY is a surf-node that was built with the feature `cuda`; FOLDER, `tests/fixtures` unless it is given, holds models with
# an `expected.safetensors` each, and GGUF files with a `.expected.safetensors` beside them. DEVICE says what computes, `cuda:0` unless
# it is set. Each model runs with all weights on the device, with hardly any, and in bfloat16; the last may differ by 20 %,
# since activations of eight bits are felt in small quantised models. Fails if anything differs by more than it may.
set -euo pipefail

fail() {
    echo "cuda-check: $*" >&2
    exit 1
}

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    fail "usage: cuda-check.sh BINARY [FOLDER]"
fi
binary=$(command -v "$1") || fail "$1 is no program"
fixtures=${2:-$(dirname "${BASH_SOURCE[0]}")/../../tests/fixtures}
[ -d "$fixtures" ] || fail "$fixtures is no folder"
fixtures=$(cd "$fixtures" && pwd)
device=${DEVICE:-cuda:0}
work=$(mktemp -d)
node=

stop() {
    if [ -n "$node" ]; then
        kill "$node" 2>/dev/null || true
        wait "$node" 2>/dev/null || true
        node=
    fi
}
trap 'stop; rm -rf "$work"' EXIT

# The value of field $1 in the JSON object on stdin.
field() {
    sed -n "s/.*\"$1\":\"\{0,1\}\([^,}\"]*\).*/\1/p" | head -n 1
}

# A node that computes in $1 with $2 of memory. Sets `rpc`.
start() {
    "$binary" join --json --no-mdns --listen 127.0.0.1:0 --transfer 127.0.0.1:0 --rpc 127.0.0.1:0 \
        --data-dir "$work/data" --device "$device" --dtype "$1" --memory "$2" >"$work/ready" 2>"$work/log" &
    node=$!
    local tries
    for tries in $(seq 600); do
        rpc=$(field rpc <"$work/ready")
        [ -z "$rpc" ] || return 0
        kill -0 "$node" 2>/dev/null || break
        sleep 0.1
    done
    cat "$work/log" >&2
    fail "the node did not start (looked $tries times)"
}

# What to publish, and what was recorded of it: two lines for each model.
models() {
    local record model
    find "$fixtures" -name expected.safetensors | sort | while read -r record; do
        model=$(dirname "$record")
        # Some records were made again, in f32 throughout.
        if [ -f "$fixtures/$(basename "$model").f32.expected.safetensors" ]; then
            record=$fixtures/$(basename "$model").f32.expected.safetensors
        fi
        printf '%s\n%s\n' "$model" "$record"
    done
    find "$fixtures" -name '*.gguf' | sort | while read -r model; do
        record=${model%.gguf}.expected.safetensors
        if [ -f "$record" ]; then
            printf '%s\n%s\n' "$model" "$record"
        fi
    done
}

# One line of the table for each model, computed in $1 with $2 of memory, of which errors up to $3 pass.
check_all() {
    local model record id checked
    start "$1" "$2"
    while read -r model && read -r record; do
        id=$("$binary" --rpc "$rpc" --json publish "$model" 2>"$work/error" | field model) || true
        checked=
        if [ -n "$id" ]; then
            checked=$("$binary" --rpc "$rpc" --json check "$id" "$record" --tolerance "$3" 2>"$work/error") || true
        fi
        if [ "$(printf '%s' "$checked" | field pass)" != true ]; then
            failed=$((failed + 1))
        fi
        if [ -z "$checked" ]; then
            printf '| %s | %s | %s | %s | | | |\n' "${model#"$fixtures/"}" "$1" "$2" "$(head -n 1 "$work/error")"
            continue
        fi
        printf '| %s | %s | %s |' "${model#"$fixtures/"}" "$1" "$2"
        for name in pass max_rel_err argmax_agree greedy_agree; do
            printf ' %s |' "$(printf '%s' "$checked" | field "$name")"
        done
        printf '\n'
    done < <(models)
    stop
}

failed=0
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
printf '\n| model | dtype | memory | pass | error | same best | same text |\n| --- | --- | --- | --- | --- | --- | --- |\n'
check_all auto 4GiB 0.001
check_all auto 64KiB 0.001
check_all bf16 4GiB 0.2
[ "$failed" = 0 ] || fail "$failed of the checks above failed"

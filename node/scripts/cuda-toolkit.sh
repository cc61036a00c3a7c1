#!/usr/bin/env bash
# Puts CUDA's compiler, headers and libraries into a folder, from NVIDIA's packages on PyPI, so that this program can be
# built with the feature `cuda` on a machine that has neither CUDA nor a GPU:
#
#   node/scripts/cuda-toolkit.sh DIR
#   . DIR/env
#   cargo build --release --locked --features cuda
#
# Needs Linux, a C++ compiler and python3 with pip; no root. Downloads some 0.7 GB, which take 1.2 GB in DIR. Run again, it
# downloads nothing that is there. CUDA_COMPUTE_CAP says for which GPUs to compile: 90 (H100, H200) unless it is set
# (80: A100; 86: RTX 30; 89: RTX 40, L4; 100: B200; 120: RTX 50).
#
# The driver's library cannot be had this way, and is not needed to build: a stub stands in for it when linking. With
# DIR/stubs in LD_LIBRARY_PATH the program also starts without a driver, and finds no GPU.
set -euo pipefail

packages=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-cccl==13.0.85
    nvidia-cuda-runtime==13.0.96
    nvidia-cublas==13.0.2.14
    nvidia-curand==10.4.0.35
    nvidia-cuda-nvrtc==13.0.88
)

fail() {
    echo "cuda-toolkit: $*" >&2
    exit 1
}

need() {
    command -v "$1" >/dev/null || fail "$1 is not installed; $2"
}

# CUDA's packages, as pip unpacks them. What they were is noted, so that another list is not mistaken for them.
install_packages() {
    local wanted
    wanted=$(printf '%s\n' "${packages[@]}")
    if [ -f "$dir/packages" ] && [ "$(cat "$dir/packages")" = "$wanted" ]; then
        echo "cuda-toolkit: the packages are in $dir already" >&2
        return
    fi
    echo "cuda-toolkit: downloading ${#packages[@]} packages, some 0.7 GB, into $dir" >&2
    rm -rf "$dir/nvidia"
    python3 -m pip install --progress-bar off --disable-pip-version-check --no-deps --upgrade --target "$dir" "${packages[@]}" >&2 ||
        fail "pip could not install CUDA's packages; what it says is above"
    printf '%s\n' "$wanted" >"$dir/packages"
}

# What a linker looks for: a folder called lib64, and each library without the number behind its name.
link_libraries() {
    [ -e "$home/lib64" ] || ln -s lib "$home/lib64"
    local library name
    for library in "$home"/lib/lib*.so.*; do
        name=${library##*/}
        ln -sf "$name" "$home/lib/${name%%.so.*}.so"
    done
}

# Every function that the driver's header names, each of which says that there is no device.
make_stub() {
    local header=$home/include/cuda.h
    [ -f "$header" ] || fail "$header is missing; remove $dir and try again"
    mkdir -p "$dir/stubs"
    {
        echo '/* Stands in for the driver when linking. 100 is CUDA_ERROR_NO_DEVICE. */'
        grep -o '\bcu[A-Z][A-Za-z0-9_]*' "$header" | sort -u | sed 's/.*/int &(void) { return 100; }/'
    } >"$dir/stubs/cuda.c"
    cc -w -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$dir/stubs/libcuda.so" "$dir/stubs/cuda.c" ||
        fail "cc could not compile a stand-in for the driver's library"
    ln -sf libcuda.so "$dir/stubs/libcuda.so.1"
}

write_env() {
    cat >"$dir/env" <<END
export CUDA_HOME='$home'
export CUDA_COMPUTE_CAP="\${CUDA_COMPUTE_CAP:-90}"
export LIBRARY_PATH='$home/lib:$dir/stubs'"\${LIBRARY_PATH:+:\$LIBRARY_PATH}"
export PATH='$home/bin':"\$PATH"
END
}

if [ $# -ne 1 ] || [ "${1#-}" != "$1" ]; then
    fail "usage: cuda-toolkit.sh DIR"
fi
[ "$(uname -s)" = Linux ] || fail "these packages are for Linux"
need python3 "pip, which downloads CUDA's packages, is written in it"
python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip; install it (Debian: apt install python3-pip)"
need cc "it compiles the stand-in for the driver's library"
need c++ "nvcc hands it the part of the kernels that is not for the GPU"

mkdir -p "$1" || fail "$1 cannot be made"
dir=$(cd "$1" && pwd)
case $dir in *"'"*) fail "$dir has a quote in its name, which the lines to export could not hold" ;; esac
home=$dir/nvidia/cu13

install_packages
link_libraries
make_stub
write_env
"$home/bin/nvcc" --version >/dev/null || fail "$home/bin/nvcc does not run"

echo "cuda-toolkit: ready; before building:  . $dir/env" >&2
cat "$dir/env"

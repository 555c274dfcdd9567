# What building needs besides Rust. Sourced by deploy/dev.sh and tests/run.sh; works on its own with any POSIX shell.
# shellcheck shell=sh

# Installs Debian packages if that is possible here; otherwise says what to do.
install_packages() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing $*" >&2
        apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
    else
        echo "please install: $* (on Debian: sudo apt-get install $*)" >&2
        return 1
    fi
}

# rusqlite generates its bindings of SQLite's session extension with bindgen, which loads libclang.
has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    # libclang-cpp.so, which comes with other tools, is another library.
    for found in /usr/lib/llvm-*/lib/libclang.so* /usr/lib/llvm-*/lib/libclang-[0-9]*.so* /usr/lib/*/libclang.so* \
        /usr/lib/*/libclang-[0-9]*.so* /usr/lib/libclang.so* /usr/lib64/libclang.so* \
        /usr/local/opt/llvm/lib/libclang.dylib /opt/homebrew/opt/llvm/lib/libclang.dylib \
        /Library/Developer/CommandLineTools/usr/lib/libclang.dylib; do
        [ -e "$found" ] && return 0
    done
    return 1
}

# Rust, a C compiler (SQLite and zstd are built from source) and libclang.
need_build_tools() {
    if ! command -v cargo >/dev/null 2>&1; then
        echo "Rust is missing: install it with rustup (https://rustup.rs), at least the rust-version of Cargo.toml" >&2
        return 1
    fi
    command -v cc >/dev/null 2>&1 || install_packages gcc libc6-dev || return 1
    has_libclang || install_packages libclang-dev || return 1
}

# The parts of a cross build (sourced by build.sh): each function prints the folder of one, made once and kept in $cache under
# a name that tells its version. Whatever is fetched is checked against pins.sh.

cache=${PIKELET_CACHE:-$HOME/.cache/pikelet}/cross
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/pins.sh"
. "$here/fetch.sh"
# zig's own
export ZIG_GLOBAL_CACHE_DIR=$cache/zig
# no path of this machine in the program, so that it is the same bytes wherever it is built
remap=--remap-path-prefix=$cache=/cross

# registry_remaps: a crate's files are called by its own name, whatever the registry's folder is called here
registry_remaps() {
  local registry
  for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do printf ' --remap-path-prefix=%s/=' "$registry"; done
}

# tools: zig as the C compiler and linker, and cargo-zigbuild
tools() { kept "tools-$(sha256sum <"$here/requirements.txt" | cut -c 1-12)" make_tools; }
make_tools() {
  python3 -m pip --version >/dev/null 2>&1 || "$here/../tests/scripts/setup.sh" python3-pip
  python3 -m pip install --quiet --target "$1" --no-deps --only-binary :all: --require-hashes -r "$here/requirements.txt"
}

# rust_src: the source of the standard library, with what it depends on
rust_src() { kept "rust-src-$rust_src_version" make_rust_src; }
make_rust_src() {
  cd "$1"
  fetch "$rust_src_suite" "$rust_src_sha256" "rust-src_${rust_src_version}_all.deb" download "rust-src=$rust_src_version"
  dpkg-deb --fsys-tarfile rust-src_*.deb | tar -x --strip-components 4 "./usr/src/rustc-$rust/library"
  rm rust-src_*.deb
}

# std TARGET: a sysroot with the standard library for TARGET: the toolchain's own, or one that is built
std() {
  local own
  own=$(rustc --print sysroot)
  if compgen -G "$own/lib/rustlib/$1/lib/libstd-*.rlib" >/dev/null; then echo "$own"; return; fi
  [ "$(rustc --version | cut -d ' ' -f 2)" = "$rust" ] ||
    fail "$(rustc --version) has no standard library for $1: run rustup target add $1, or use Rust $rust"
  kept "std-$rust_src_version-abort-small-mapped/$1" make_std "$1"
}
# Without unwinding and backtraces: the program aborts when it panics, and the tables would be a sixth of it. Sorting, and
# writing numbers, is the smaller way.
make_std() {
  local target=$1 dir=$2 source
  source=$(rust_src)
  mkdir -p "$dir/build/src" "$dir/lib/rustlib/$target/lib"
  cd "$dir/build"
  echo '#![no_std]' >src/lib.rs
  printf '[package]\nname = "empty"\nedition = "2024"\n[profile.release]\npanic = "abort"\n' >Cargo.toml
  # __CARGO_TESTS_ONLY_SRC_ROOT: how cargo's own tests say where the source is
  RUSTC_BOOTSTRAP=1 __CARGO_TESTS_ONLY_SRC_ROOT=$source/library CARGO_TARGET_DIR=target \
    RUSTFLAGS="-Cembed-bitcode=yes -Cforce-unwind-tables=no $remap$(registry_remaps) --remap-path-prefix=$source=/rustc" \
    cargo build --release --target "$target" -Zbuild-std=std,panic_abort -Zbuild-std-features=optimize_for_size
  mv "target/$target/release/deps/"*.rlib "$dir/lib/rustlib/$target/lib/"
  rm -r "$dir/build" "$dir/lib/rustlib/$target/lib"/libempty-*
}

# seccomp TARGET: a static libseccomp
seccomp() { kept "libseccomp-$seccomp_version-$(basename "$tools")/$1" make_seccomp "$1"; }
make_seccomp() {
  local target=$1 dir=$2
  command -v gperf >/dev/null && command -v make >/dev/null || "$here/../tests/scripts/setup.sh" gperf make
  mkdir "$dir/build"
  cd "$dir/build"
  fetch "$seccomp_suite" "$seccomp_sha256" "libseccomp_$seccomp.orig.tar.gz" source --download-only "libseccomp=$seccomp_version"
  tar -x --strip-components 1 -f "libseccomp_$seccomp.orig.tar.gz"
  ./configure --host="$(zig_target "$target")" --enable-static --disable-shared --disable-python \
    CC="$(zig_cc "$target")" AR="$tools/ziglang/zig ar" RANLIB="$tools/ziglang/zig ranlib" CFLAGS=-Os
  make -C include
  make -C src libseccomp.la
  cp src/.libs/libseccomp.a "$dir/"
  rm -r "$dir/build"
}

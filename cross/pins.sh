# What a cross build is made of besides Cargo.lock and requirements.txt (sourced): Debian's versions, and sha256 of the files.
# To change one: put the new version here, run cross/build.sh, and take over the sum it says after comparing it with Debian's.

# the standard library's source, of the compiler's own version
rust=1.95.0
rust_src_suite=trixie-backports
rust_src_version='1.95.0+dfsg1-2~bpo13+1'
rust_src_sha256=7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b

seccomp_suite=trixie
seccomp=2.6.0
seccomp_version=2.6.0-2
seccomp_sha256=83b6085232d1588c379dc9b9cae47bb37407cf262e6e74993c61ba72d2a784dc

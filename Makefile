# One entry for everything: `make demo`, `make test`, `make guest`, `make bench`, `make fuzz`, `make endurance`, `make lint`,
# `make fmt`; for boards `make cross TARGET=...`, `make cross-all`, `make deb`, `make image`, `make boards`.

CACHE ?= $(if $(PIKELET_CACHE),$(PIKELET_CACHE),$(HOME)/.cache/pikelet)
ifdef CI
export CARGO_TARGET_DIR = $(CACHE)/target
# for one build, at another path each time, it would only take room
export CARGO_INCREMENTAL = 0
endif
export PATH := $(HOME)/.cargo/bin:/usr/local/go/bin:$(PATH)

# At a fixed address: else every shim relocates, and so owns, half a MiB of its pod's memory.
RELEASE = cargo rustc --release --bin pikelet -- -C relocation-model=static

.PHONY: bench boards conformance cluster cluster-down cross cross-all deb demo endurance fuzz guest image test lint fmt setup

setup:
	@tests/scripts/setup.sh

lint: setup
	cargo fmt --check
	tests/scripts/crates.sh
	cargo clippy --all-targets --test bench --test bench_containers -- -D warnings
	tests/fuzz.sh check
	tests/scripts/links.sh

fmt:
	cargo fmt

# what is big to build first, then what mostly waits side by side
test: setup
	cargo fmt --check
	tests/scripts/crates.sh
	cargo clippy --quiet --lib --bins -- -D warnings
	tests/fuzz.sh check
	tests/scripts/links.sh
	cargo test
	cargo build
	tests/scripts/controlplane.sh conformance
	static=$$(tests/scripts/static.sh) && export static && \
	  tests/together.sh 'tests/cluster.sh --part 1/2' 'PIKELET_BIN=$$static tests/cluster.sh --part 2/2' \
	  'tests/demo.sh "$$static" && tests/systemd.sh && tests/flash.sh && tests/guest.sh && tests/cross.sh --short && tests/conformance.sh --short'
	tests/bench.sh --short
	tests/fuzz.sh 20

demo: setup
	$(RELEASE)
	tests/demo.sh $${CARGO_TARGET_DIR:-target}/release/pikelet

# what touches cgroups, on cgroup version 2 in an emulated machine
guest: setup
	tests/guest.sh

# what is released is measured; elsewhere than on x86_64 it is the machine's own build
bench: setup
	if [ "$$(uname -m)" = x86_64 ]; then cross/build.sh x86_64-unknown-linux-musl; else $(RELEASE); fi
	tests/bench.sh

# ten minutes of each target
fuzz: setup
	tests/fuzz.sh 600

# Kubernetes' own tests of a node; FOCUS=, SKIP=, NODES= as tests/conformance.sh says
conformance: setup
	cargo build
	tests/conformance.sh

# what takes long: two hours in all
endurance: setup
	cargo build
	tests/endurance.sh

# a static binary; without TARGET the one of 64-bit boards
TARGET ?= aarch64-unknown-linux-musl
cross: setup
	cross/build.sh $(TARGET)

cross-all: setup
	cross/build.sh all

# Debian packages of them, in target/deb
deb: setup
	systemd/deb/all.sh

# an image to write to SD cards, in target/images: BOARD=rpi, rpi5, rpi2 or rpi0, VARIANT=appliance or debian; needs
# `make cross` of the board's TARGET before (images/README.md), and no root
BOARD ?= rpi
VARIANT ?= appliance
image: setup
	images/build.sh $(BOARD) $(VARIANT)

# 32-bit boards; the images as emulated boards, that of the Pi 3 with 20 power cuts, and with a node of this machine in one
# cluster; the one with Debian's system; what is in images beyond that
boards: setup
	cargo build
	tests/boards.sh
	cross/build.sh aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf arm-unknown-linux-musleabihf
	tests/board.sh 20
	tests/image_debian.sh
	for board in rpi2 rpi0; do tests/board32.sh $$board || exit 1; done
	for board in rpi5 rpi2 rpi0; do tests/image.sh $$board || exit 1; done
	tests/image.sh rpi5 debian

cluster: setup
	cargo build
	tests/scripts/cluster.sh up 2

cluster-down:
	tests/scripts/cluster.sh down

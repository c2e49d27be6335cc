#!/usr/bin/env bash
# A Debian package of one program.
#
#   systemd/deb/build.sh ARCHITECTURE PROGRAM FOLDER [REVISION]     e.g. arm64 .../pikelet target/deb
#
# Prints size, sha256 and name of the file in FOLDER. The same program makes the same bytes. DEB_COMPRESS=none is quicker.
set -euo pipefail
architecture=$1 program=$(realpath "$2") out=$(realpath "$3") revision=${4:-1}
cd "$(dirname "$0")/../.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)-$revision

# emulated ARCHITECTURE PROGRAM ARGUMENT...: what it says, on a machine of another kind too
emulated() {
  local architecture=$1; shift
  case $architecture in
  "$(dpkg --print-architecture)") "$@" ;;
  amd64) qemu-x86_64-static "$@" ;;
  arm64) qemu-aarch64-static "$@" ;;
  armhf) qemu-arm-static "$@" ;;
  *) echo "deb: no way to run a program for $architecture" >&2; return 1 ;;
  esac
}
pikelet() { emulated "$architecture" "$program" "$@"; }

if [ "$architecture" != "$(dpkg --print-architecture)" ]; then tests/scripts/setup.sh qemu-user-static; fi
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
# file MODE PATH: from standard input
file() { install -D -m "$1" /dev/stdin "$root/$2"; }

install -D "$program" "$root/usr/bin/pikelet"
sed 's,/usr/local/bin/,/usr/bin/,' systemd/pikelet.service | file 644 usr/lib/systemd/system/pikelet.service
# a token may be written into it
file 600 etc/pikelet/config.yaml <systemd/deb/config.yaml
chmod 700 "$root/etc/pikelet"
pikelet completion bash | file 644 usr/share/bash-completion/completions/pikelet
pikelet completion zsh | file 644 usr/share/zsh/vendor-completions/_pikelet
pikelet completion fish | file 644 usr/share/fish/vendor_completions.d/pikelet.fish
mkdir -p "$root/usr/share/man/man1"
pikelet man --dir "$root/usr/share/man/man1"
gzip -9n "$root"/usr/share/man/man1/*
gzip -9nc README.md | file 644 usr/share/doc/pikelet/README.md.gz
# what README leads to
for page in SECURITY.md CONTRIBUTING.md CHANGELOG.md docs/*.md docs/*/*.md images/*.md images/pikelet.yaml cross/*.md; do
  file 644 "usr/share/doc/pikelet/$page" <"$page"
done
file 644 usr/share/doc/pikelet/copyright <LICENSE

for script in postinst prerm postrm; do file 755 "DEBIAN/$script" <"systemd/deb/$script"; done
echo /etc/pikelet/config.yaml | file 644 DEBIAN/conffiles
(cd "$root" && find usr etc -type f -print0 | sort -z | xargs -0 md5sum) | file 644 DEBIAN/md5sums
file 644 DEBIAN/control <<CONTROL
Package: pikelet
Version: $version
Architecture: $architecture
Maintainer: The pikelet authors
Section: admin
Priority: optional
Installed-Size: $(du -k -s --apparent-size "$root" | cut -f 1)
Recommends: ca-certificates
Suggests: apparmor, nfs-common
Description: Kubernetes node agent for single-board computers
 Kubelet, container runtime, image store and pod network in one program
 that needs no other: no containerd and no network plugins. Joins clusters
 of k3s and kubeadm, or runs static pods with none.
CONTROL
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.toml)
export SOURCE_DATE_EPOCH
# settings a person keeps secrets in
chmod 600 "$root/etc/pikelet/config.yaml"
file=$out/pikelet_${version}_$architecture.deb
dpkg-deb --root-owner-group -Z"${DEB_COMPRESS:-xz}" --build "$root" "$file" >/dev/null
printf '%s %s %s\n' "$(stat -c %s "$file")" "$(sha256sum <"$file" | cut -d ' ' -f 1)" "$file"

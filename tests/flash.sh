#!/usr/bin/env bash
# `pikelet flash`: images to files and to loop devices. Prints a line per case, and `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")"
. harness/common.sh
. harness/check.sh
bin=$(pikelet_bin) || exit 1
programs mkfs.vfat:dosfstools mkfs.ext4:e2fsprogs mcopy:mtools sfdisk:fdisk zstd:zstd
dir=$(mktemp -d /tmp/pikelet-flash.XXXXXX)
loop=
cleanup() {
  umount "$dir/mounted" 2>/dev/null
  [ -z "$loop" ] || losetup -d "$loop"
  rm -rf "$dir"
}
trap cleanup EXIT

# a small image of the appliance's form
truncate -s 40M "$dir/boot"
mkfs.vfat -F 32 -n PIKELET "$dir/boot" >/dev/null
echo '# of the image' >"$dir/pikelet.yaml"
mcopy -i "$dir/boot" "$dir/pikelet.yaml" ::
head -c 1M /dev/urandom >"$dir/data"
mcopy -i "$dir/boot" "$dir/data" ::
truncate -s 42M "$dir/card.img"
printf 'label: dos\nstart=1MiB, size=40MiB, type=c\nstart=41MiB, type=83\n' | sfdisk -q "$dir/card.img"
dd if="$dir/boot" of="$dir/card.img" bs=1M seek=1 conv=notrunc status=none
truncate -s 1M "$dir/second"
mkfs.ext4 -q -O ^has_journal "$dir/second"
dd if="$dir/second" of="$dir/card.img" bs=1M seek=41 conv=notrunc status=none
zstd -q "$dir/card.img" -o "$dir/card.img.zst"
gzip -k "$dir/card.img"

flash() { "$bin" flash "$@" >"$dir/said" 2>&1; }
said() { grep -qF -- "$1" "$dir/said"; }
unsaid() { ! said "$1"; }
refused() { ! flash "$@"; }
fresh() { rm -f "$dir/to"; truncate -s 64M "$dir/to"; }
same() { cmp -s -n 44040192 "$dir/card.img" "$dir/to"; }
setting() { mtype -i "$dir/to@@1M" ::pikelet.yaml | tr -d '\r' | found -F -- "$1"; }

# of several parts, as pzstd and others make them, with one to skip before
split -b 20M "$dir/card.img" "$dir/part."
printf '\x5a\x2a\x4d\x18\x03\x00\x00\x00abc' >"$dir/card.parts.zst"
for part in "$dir"/part.*; do zstd -qc "$part" >>"$dir/card.parts.zst"; gzip -c "$part" >>"$dir/card.parts.gz"; done
for form in img img.zst img.gz parts.zst parts.gz; do
  fresh
  check "card.$form is written, whole" flash --yes "$dir/card.$form" "$dir/to"
  check "  byte for byte" same
  check "  and says so" said "44.0MB written to"
done
cp "$dir/card.img.zst" "$dir/flipped.zst"
printf '\xff\xff' | dd of="$dir/flipped.zst" bs=1 seek=$(($(stat -c %s "$dir/flipped.zst") / 2)) conv=notrunc status=none
xz -0kc "$dir/card.img" >"$dir/card.img.xz"
fresh
check "an image with a wrong checksum is refused" refused --yes "$dir/flipped.zst" "$dir/to"
fresh
check "  one compressed in another way too" refused --yes "$dir/card.img.xz" "$dir/to"
check "  with its reason" said 'no image of a disk'
check "  before anything is written" cmp -s -n 44040192 /dev/zero "$dir/to"
fresh
check "settings are filled in" flash --yes --server https://s:6443 --token abcdef.0123456789abcdef --node-name pi \
  --node-label room=kitchen --address 192.168.1.20/24 --gateway 192.168.1.1 "$dir/card.img" "$dir/to"
check "  the server" setting https://s:6443
check "  the address" setting '192.168.1.20/24'
check "  and the other files are as they were" cmp -s "$dir/data" <(mtype -i "$dir/to@@1M" ::data)
fresh
check "a wrong setting is refused" refused --yes --server https://s:6443 --node-name NO_NAME "$dir/card.img" "$dir/to"
check "  with its reason" said 'node name "no_name"'
check "  before anything is written" cmp -s -n 44040192 /dev/zero "$dir/to"
printf 'server: s\nwifi: {ssid: a}\n' >"$dir/own.yaml"
check "  so is a settings file with one" refused --yes --settings "$dir/own.yaml" "$dir/card.img" "$dir/to"
check "  with its reason" said 'this image has no WiFi'
# the root of Debian's system is between the two partitions
cp "$dir/card.img" "$dir/debian.img"
truncate -s 43M "$dir/debian.img"
printf 'label: dos\nstart=1MiB, size=40MiB, type=c\nstart=41MiB, size=1MiB, type=83\nstart=42MiB, type=83\n' |
  sfdisk -q "$dir/debian.img"
printf 'server: https://s:6443\ntoken: abcdef.0123456789abcdef\nwifi: {ssid: a, password: "12345678"}\n' >"$dir/own.yaml"
check "  which one with Debian's system has" flash --yes --settings "$dir/own.yaml" "$dir/debian.img" "$dir/to"
check "  and is told of" setting 'ssid: a'
fresh
echo 'upgradeTimeout: 5m' >>"$dir/own.yaml"
check "  it has no upgrades" refused --yes --settings "$dir/own.yaml" "$dir/debian.img" "$dir/to"
check "  with its reason" said 'this image is not upgraded by pikelet: use apt'
umask 077; echo abcdef.0123456789abcdef >"$dir/token"; umask 022
for way in file variable input; do
  fresh
  case $way in
  file) check "a token from a file" flash --yes --server https://s:6443 --token-file "$dir/token" "$dir/card.img" "$dir/to" ;;
  variable) K3S_TOKEN=$(cat "$dir/token") check "  from the environment" flash --yes --server https://s:6443 "$dir/card.img" "$dir/to" ;;
  input) check "  from standard input" flash --yes --server https://s:6443 --token-file - "$dir/card.img" "$dir/to" <"$dir/token" ;;
  esac
  check "  is on the card" setting abcdef.0123456789abcdef
done
fresh
# asked COMMAND: it is run while a person is asked, who then says yes
asked() {
  python3 - "$bin" "$dir" "$1" >"$dir/said" <<'PYTHON'
import os, pty, subprocess, sys, select, time
program, folder, command = sys.argv[1:]
pid, terminal = pty.fork()
if pid == 0:
    os.execv(program, [program, "flash", "-t", "abcdef.0123456789abcdef", "-s", "https://s:6443", folder + "/card.img", folder + "/link"])
said, deadline = b"", time.monotonic() + 60
while b"[yes/no]" not in said and time.monotonic() < deadline:
    if select.select([terminal], [], [], 1)[0]:
        said += os.read(terminal, 4096)
print(open(f"/proc/{pid}/cmdline").read().replace("\0", " "))
subprocess.run(["sh", "-c", command], check=True)
os.write(terminal, b"yes\n")
while True:
    try:
        said += os.read(terminal, 4096)
    except OSError:
        break
print(said.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
PYTHON
}
truncate -s 64M "$dir/another"; ln -s to "$dir/link"
check "what was asked about is written, whatever its name means by then" asked "ln -sfn another '$dir/link'"
check "  byte for byte" cmp -s -n 1048576 "$dir/card.img" "$dir/to"
check "  and the other is as it was" cmp -s -n 44040192 /dev/zero "$dir/another"
check "  and the process list has no token" unsaid abcdef.0123456789abcdef
check "  but its flag" said '-t ***********************'
rm "$dir/another" "$dir/link"; fresh
check "what is no disk is refused" refused --yes "$dir/card.img" /dev/null
check "  with its reason" said 'is no disk'
check "nobody to ask: nothing is written" refused "$dir/card.img" "$dir/to" </dev/null
check "  and it says what to do" said '--yes'
check "  and the card is as it was" cmp -s -n 44040192 /dev/zero "$dir/to"
cp "$dir/card.img.zst" "$dir/cut.img.zst"; truncate -s -1000 "$dir/cut.img.zst"
check "a cut image is an error" refused --yes "$dir/cut.img.zst" "$dir/to"

if loop=$(losetup -f --show -P "$dir/to" 2>/dev/null); then
  check "a card is written" flash --yes "$dir/card.img.zst" "$loop"
  check "  byte for byte" same
  mkdir "$dir/mounted"
  part=/sys/class/block/${loop##*/}p2/dev
  if [ -e "$part" ]; then
    # by its number: not every machine has a udev that makes its device
    mknod "$dir/part" b $(tr : ' ' <"$part")
  else
    say "this kernel knows no partitions of cards: a file system on the whole card stands for them"
    mkfs.ext4 -q -F "$loop"
    ln -s "$loop" "$dir/part"
  fi
  mount -t ext4 "$dir/part" "$dir/mounted"
  check "one that is in use is refused" refused --yes "$dir/card.img" "$loop"
  check "  with who uses it" said 'is in use'
  umount "$dir/mounted"
  truncate -s 20M "$dir/small"
  small=$(losetup -f --show "$dir/small")
  check "one that is too small is an error" refused --yes "$dir/card.img" "$small"
  check "  which says so" said 'of the card'
  losetup -d "$small"
else
  loop=
  say "loop devices are not to be had here: writing to devices was not tested"
fi
system=$(findmnt -no SOURCE / | grep '^/dev/') &&
  check "the system's own disk is refused" refused --yes "$dir/card.img" "$system"
verdict

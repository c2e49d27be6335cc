# A board's card, and who reads it: its firmware, and a person's computer (sourced; the script has set work, a folder).

# new_card IMAGE: as it is written to a card, of a size that cards have, which is that of the image no more
new_card() {
  card=$work/card.img
  cp --sparse=always "$1" "$card"
  truncate -s 1G "$card"
  boot=$card@@1M
}

# firmware DEVICE_TREE: what the Raspberry Pi's reads from the card at each start, by config.txt and what that includes
firmware() {
  local config prefix name
  rm -rf "$work/firmware"; mkdir "$work/firmware"
  config=$(mtype -i "$boot" ::config.txt | tr -d '\r')
  for name in $(sed -n 's/^include //p' <<<"$config"); do config+=$'\n'$(mtype -i "$boot" "::$name" | tr -d '\r'); done
  prefix=$(sed -n 's/^os_prefix=//p' <<<"$config" | tail -n 1)
  mcopy -i "$boot" "::$prefix$(sed -n 's/^kernel=//p' <<<"$config")" "$work/firmware/kernel"
  mcopy -i "$boot" "::$prefix$(sed -n 's/^initramfs \([^ ]*\) .*/\1/p' <<<"$config")" "$work/firmware/initramfs"
  mcopy -i "$boot" "::$prefix$1.dtb" "$work/firmware/dtb"
  mcopy -i "$boot" "::${prefix}cmdline.txt" "$work/firmware/cmdline.txt"
}

# settings TEXT: written as a person does, on another computer
settings() { printf '%s\n' "$1" >"$work/pikelet.yaml"; mcopy -D o -i "$boot" "$work/pikelet.yaml" ::pikelet.yaml; }

# fsck_clean FILE: nothing is wrong once the journal was replayed
fsck_clean() { e2fsck -E journal_only -y "$1" >"$work/logs/fsck" 2>&1; e2fsck -fn "$1" >>"$work/logs/fsck" 2>&1; }

# small_image FOLDER FILE: an image whose FAT partition has the folder only, without the firmware, which upgrades leave alone
small_image() {
  truncate -s 40M "$2.boot"
  mkfs.vfat -F 32 -n NEW "$2.boot" >/dev/null
  mcopy -s -i "$2.boot" "$1" ::
  truncate -s 41M "$2"
  printf 'label: dos\nstart=1MiB, size=40MiB, type=c\n' | sfdisk -q "$2"
  dd if="$2.boot" of="$2" bs=1M seek=1 conv=notrunc,sparse status=none
  rm "$2.boot"
}

# The root of VARIANT=debian (sourced by images/build.sh): Debian's packages, unpacked, and what their maintainers' scripts
# would have done of what a board needs. None of these scripts is run, as they are for another processor and for root; so
# an ordinary user makes the same bytes. Owners are set where the file system is made.

# closure FILE: a folder with the packages FILE names, Debian's essential ones, and all that these need, unpacked, with
# dpkg's list of them
closure() {
  local names empty=$cache/no-status
  sources
  updated "$suite"
  : >"$empty"
  mapfile -t names < <(sed 's/#.*//' "$1" | awk 'NF')
  names=(-o "Dir::State::status=$empty" -o APT::Install-Recommends=false -y install '?essential' "${names[@]}")
  kept "debian-$({ apt_get "$suite/arm64" --print-uris "${names[@]}"; declare -f installed add_package; } | sha256sum | cut -c 1-16)" \
    installed "${names[@]}"
}

# installed ARGUMENT... DIR: as apt-get would, and dpkg, but for the scripts
installed() {
  local dir=${*: -1} debs deb
  debs=$dir/debs
  mkdir -p "$debs/partial" "$dir/var/lib/dpkg/info"
  apt_get "$suite/arm64" -o Dir::Cache::archives="$debs" -o Debug::NoLocking=true --download-only "${@:1:$#-1}"
  # links such as /bin first
  dpkg-deb -x "$debs"/base-files_*.deb "$dir"
  echo 1 >"$dir/var/lib/dpkg/info/format"
  for deb in "$debs"/*.deb; do add_package "$dir" "$deb"; done
  rm -r "$debs"
}

# add_package ROOT DEB: unpacked, and dpkg told that it is installed
add_package() {
  local root=$1 deb=$2 control name file
  control=$(mktemp -d)
  dpkg-deb -e "$deb" "$control"
  dpkg-deb -x "$deb" "$root"
  name=$(sed -n 's/^Package: //p' "$control/control")
  ! grep -qx 'Multi-Arch: same' "$control/control" || name+=:arm64
  for file in "$control"/*; do
    case ${file##*/} in
    control) ;;
    *) cp "$file" "$root/var/lib/dpkg/info/$name.${file##*/}" ;;
    esac
  done
  dpkg-deb --fsys-tarfile "$deb" | tar -t | sed 's,^\.,,; s,/$,,; s,^$,/.,' >"$root/var/lib/dpkg/info/$name.list"
  {
    sed '1a Status: install ok installed' "$control/control"
    if [ -s "$control/conffiles" ]; then
      echo Conffiles:
      # one that is to go is in no package
      awk '/^\// { print $1 }' "$control/conffiles" | while read -r file; do
        [ ! -f "$root$file" ] || echo " $file $(md5sum <"$root$file" | cut -d ' ' -f 1)"
      done
    fi
    echo
  } >>"$root/var/lib/dpkg/status"
  rm -r "$control"
}

# users ROOT: those of every Debian, and those that packages ask for
users() {
  local root=$1
  cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
  cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
  sed -i '/^root:/s,:[^:]*$,:/bin/bash,' "$root/etc/passwd"
  sed -i 's/^\([^:]*\):\*:/\1:x:/' "$root"/etc/{passwd,group}
  # `u!` is younger than some machines that build this; the group of ssh-agent is named by a script only
  { cat "$root"/usr/lib/sysusers.d/*.conf; echo 'g _ssh -'; } | sed 's/^u!/u/' | systemd-sysusers --root="$root" -
  # nobody has a password
  rm -f "$root"/etc/{passwd,group,shadow,gshadow}- "$root"/etc/{shadow,gshadow,.pwd.lock}
  awk -F: '{ print $1 ":*:20000:0:99999:7:::" }' "$root/etc/passwd" >"$root/etc/shadow"
  awk -F: '{ print $1 ":*::" }' "$root/etc/group" >"$root/etc/gshadow"
  chmod 640 "$root"/etc/{shadow,gshadow}
}

# logins ROOT: who may log in; there are no passwords
logins() {
  local kind
  for kind in auth account password session session-noninteractive; do
    case $kind in
    auth | password) echo "${kind} required pam_deny.so" ;;
    account) echo "account required pam_unix.so" ;;
    *) echo "session required pam_unix.so" ;;
    esac >"$1/etc/pam.d/common-$kind"
  done
  cp "$1/usr/share/openssh/sshd_config" "$1/etc/ssh/sshd_config"
}

# debian_files DIR: the FAT partition's: one system, which the firmware finds without being told where
debian_files() {
  mkdir -p "$1"
  gzip -n -9 <"$vmlinuz" >"$1/kernel8.img"
  cp "$work/initrd.zst" "$1/"
  device_trees "$1"
  versions "$1/image.txt"
  sed 's/ pikelet\.set=a/ net.ifnames=0/' "images/$board.cmdline.txt" >"$1/cmdline.txt"
  sed '/^# which of two systems/d; /^include choice/d' "images/$board.config.txt" >"$1/config.txt"
  { sed '/^# How long a system/,/^$/d; s/: Ethernet; this image has no WiFi/: Ethernet/; s/, with a port if it is not 123//' images/pikelet.yaml
    cat images/debian/pikelet.yaml; } >"$1/pikelet.yaml"
}

# debian_root: $work/system.squashfs
debian_root() {
  local root=$work/system deb
  cp -a "$(closure images/debian/packages)" "$root"
  mkdir "$work/deb"
  read -r _ _ deb < <(DEB_COMPRESS=none systemd/deb/build.sh arm64 "$bin" "$work/deb")
  add_package "$root" "$deb"
  # the kernel is the card's, and newer ones come with newer images
  cp -r "$packages/usr/lib/modules" "$root/usr/lib/"
  rm -f "$root/usr/lib/modules/$kernel"/{build,source,vmlinuz}
  users "$root"
  logins "$root"
  cp "$root/usr/share/libc-bin/nsswitch.conf" "$root/etc/nsswitch.conf"
  cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
  (cd "$root/usr/share/ca-certificates" && ls mozilla/*.crt) >"$root/etc/ca-certificates.conf"
  ln -s mawk "$root/usr/bin/awk"
  ln -s which.debianutils "$root/usr/bin/which"
  cp "$root/usr/share/base-files/dot.bashrc" "$root/root/.bashrc"
  cp "$root/usr/share/base-files/dot.profile" "$root/root/.profile"
  cp "$root/usr/share/base-files/profile" "$root/etc/profile"
  mkdir -p "$root/boot" "$root/var/lib/pikelet" "$root/etc/apt/sources.list.d"
  # where systemd goes at its end (src/init/debian/off.rs)
  mkdir "$root/oldroot"
  ln -s usr/bin/pikelet "$root/shutdown"
  cp -r images/debian/files/. "$root/"
  ln -sf ../run/systemd/resolve/resolv.conf "$root/etc/resolv.conf"
  ln -sf /usr/share/zoneinfo/UTC "$root/etc/localtime"
  systemctl --root="$root" enable systemd-networkd systemd-networkd-wait-online systemd-resolved systemd-timesyncd pikelet-card
  # the consoles show how the board is
  systemctl --root="$root" mask getty.target
  # as dpkg leaves it to be: see etc/dpkg/dpkg.cfg.d/pikelet
  rm -rf "$root"/usr/share/{man,info,locale}/* "$root"/var/{cache,log}/*
  find "$root/usr/share/doc" ! -type d ! -name copyright -delete
  find "$root/usr/share/doc" -type d -empty -delete
  echo "$made" >"$root/etc/pikelet/made"
  find "$root" -exec touch -h -d "@$made" {} +
  # what is done once after an update of /usr was done here, or is not needed
  touch -d "@$((made + 1))" "$root/etc/.updated" "$root/var/.updated"
  owners "$root" >"$work/owners"
  mksquashfs "$root" "$work/system.squashfs" -quiet -no-progress -no-xattrs -comp zstd -Xcompression-level 15 -b 256K \
    -pf "$work/owners" >/dev/null
}

# owners ROOT: all is root's, but for what is a group's, as mksquashfs wants it (its -all-root would allow no exceptions).
# The topmost folder's owner is that of the overlay's.
owners() {
  local path mode group
  gid() { awk -F: -v name="$1" '$1 == name { print $3 }' "$2/etc/group"; }
  {
    find "$1" -mindepth 1 -type l -printf '"%P" m 777 0 0\n'
    find "$1" -mindepth 1 ! -type l -printf '"%P" m %m 0 0\n'
    while read -r path mode group; do
      [ ! -e "$1/$path" ] || echo "\"$path\" m $mode 0 $(gid "$group" "$1")"
    done <<LIST
etc/shadow 640 shadow
etc/gshadow 640 shadow
usr/bin/chage 2755 shadow
usr/bin/expiry 2755 shadow
usr/sbin/unix_chkpwd 2755 shadow
usr/bin/ssh-agent 2755 _ssh
usr/lib/dbus-1.0/dbus-daemon-launch-helper 4754 messagebus
var/local 2775 staff
LIST
    # the last word on a path counts
  } | awk -F'"' '{ last[$2] = $0 } END { for (path in last) print last[path] }'
}

# Modules of a kernel that is not this machine's (sourced).

# pack_modules KERNEL RELEASE ROOT MODULE...: those of the folder KERNEL, and what they need, into ROOT/modules as an
# initramfs loads them: uncompressed, with their order in a file. Built-in ones are passed over.
pack_modules() {
  local kernel=$1 release=$2 root=$3 module step; shift 3
  mkdir -p "$root/modules"
  for module; do modprobe -d "$kernel" -S "$release" --show-depends "$module"; done |
    awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r step; do
    case $step in
    *.xz) xz -dc "$step" >"$root/modules/$(basename "$step" .xz)" ;;
    *) cp "$step" "$root/modules/" ;;
    esac
    basename "$step" .xz >>"$root/modules/order"
  done
}

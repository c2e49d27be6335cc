# Modules of a kernel that is not this machine's (sourced).

# pack_modules KERNEL RELEASE FOLDER MODULE...: those below the root KERNEL, and what they need, into FOLDER as an initramfs
# loads them: uncompressed, with their order in a file. Built-in ones are passed over; what the kernel has not is an error.
pack_modules() {
  local kernel=$1 release=$2 folder=$3 module step; shift 3
  mkdir -p "$folder"
  for module; do
    modprobe -d "$kernel" -S "$release" --show-depends "$module" || fail "kernel $release has no module $module"
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r step; do
    case $step in
    *.xz) xz -dc "$step" >"$folder/$(basename "$step" .xz)" ;;
    *) cp "$step" "$folder/" ;;
    esac
    basename "$step" .xz >>"$folder/order"
  done
}

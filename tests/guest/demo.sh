# A static pod from a manifest folder, its image from a registry: `make demo`.
tests/demo.sh "$PIKELET_BIN"

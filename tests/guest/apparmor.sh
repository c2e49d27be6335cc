# Debian's kernel enforces AppArmor.
"${tests[node_apparmor]}" --color never --nocapture 2>&1 | tee /run/apparmor.log
[ "${PIPESTATUS[0]}" = 0 ] && ! grep -q skipped /run/apparmor.log

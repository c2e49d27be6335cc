# What hostile containers try, with cgroup version 2: `PIKELET_ESCAPE_TRIES` races each, as the machine is slow.
PIKELET_ESCAPE_TRIES=${PIKELET_ESCAPE_TRIES:-10} "${tests[node_escape]}" --color never --test-threads 1

# The tests that run real containers, as they are.
for test in node_runtime node_cgroups; do
  "${tests[$test]}" --color never --test-threads 2 || exit
done

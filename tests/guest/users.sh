# User namespaces of pods: ID-mapped mounts of every file system there is here.
"${tests[node_users]}" --color never --nocapture --test-threads 1

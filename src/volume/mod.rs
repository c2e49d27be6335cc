//! Volumes: one file per kind, and the atomic writer. Knows nothing of containers.

//! The link to a control plane: client, Node object, lease, events, objects pods refer to. Knows nothing of containers.

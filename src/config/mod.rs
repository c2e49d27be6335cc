//! The settings of an agent: file, flags, defaults, validation. Option names are kubelet's or k3s's where they exist.

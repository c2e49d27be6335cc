//! What the agent serves: its own root-only socket for the commands of this machine.

pub mod local;

//! Desired state to actual: manager, worker, status, backoff, environment, static pods.

pub mod table;

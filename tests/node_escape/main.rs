//! What hostile containers, images and neighbours try, on a real machine: each test is an exploit, and passes when it
//! fails. Needs root, `/bin/busybox` (a static one) and gcc for the hostile program (`enemy.c`); says so and passes without
//! doing anything where one is missing. `PIKELET_ESCAPE_TRIES` is how often races are run (1000 finds more than the default).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "../harness/node.rs"]
#[allow(dead_code)]
mod node;

mod cgroups;
mod devices;
mod environment;
mod images;
mod leaks;
mod neighbours;
mod program;
mod ptrace;
mod runc;
mod scene;
mod trees;
mod volumes;

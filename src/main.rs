//! The `pikelet` program: chooses the role before any thread exists.

fn main() {}

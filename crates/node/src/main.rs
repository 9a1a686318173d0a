//! The `replikit` program.

fn main() {}

//! The Larder operator.

fn main() {}

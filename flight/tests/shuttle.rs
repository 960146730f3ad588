//! Thousands of schedules of those who read, wait, leave and come.
fn main() {}

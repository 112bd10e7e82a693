//! The agent's executable; see the library.

fn main() {}

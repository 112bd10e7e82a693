//! What no peer and no operator should do: garbage on every port, missing files and rights.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod garbage;
mod missing;
mod reused;

//! What the project's own commands are made of: set-up, stages of the test run, tidy checks, disk images, virtual machines.
//!
//! Depends on no crate of the workspace, so that `cargo xtask` is there in seconds on a fresh machine and works while the
//! house itself does not compile. The end-to-end tests use its machines and images too.
#![expect(clippy::print_stdout, reason = "talking to the person at the terminal is what these commands are for")]

pub mod demo;
pub mod images;
pub mod interrupt;
pub mod judges;
pub mod junit;
pub mod licences;
pub mod mounted;
pub mod process;
pub mod qemu;
pub mod runner;
pub mod setup;
pub mod stages;
pub mod tally;
pub mod tidy;
pub mod watched;
pub mod workspace;

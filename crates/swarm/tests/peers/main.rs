//! What peers promise each other: with real endpoints on loopback, and with faults on a network in memory.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has failed")]

mod faults;
mod hydrating;
mod passing_on;
mod reading;
mod rights;
mod simulation;
mod world;

//! The host's file system and the simulated one do the same while there is power.

use medium::{Host, Simulated, conformance};

#[test]
fn the_hosts_file_system_conforms() {
    let directory = tempfile::tempdir().expect("a directory");
    conformance::check(&Host, &directory.path().join("medium"));
}

#[test]
fn the_simulated_file_system_conforms() {
    for seed in 0..20 {
        conformance::check(&Simulated::new(seed), "/medium".as_ref());
    }
}

#[test]
fn keeping_moments_changes_nothing() {
    let medium = Simulated::new(1);
    medium.keep_moments();
    conformance::check(&medium, "/medium".as_ref());
    assert!(medium.take_moments().len() > 100);
}

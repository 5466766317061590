//! Definitions of instances, which come with snapshots from anybody.

use ganeti::Definition;

/// A definition that is taken is written again as it was understood.
pub(crate) fn definition(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(definition) = Definition::decode(text) else { return false };
    // An argument of Ganeti's command line cannot begin as an option, or hold two values.
    for word in [&definition.name, &definition.os, &definition.hypervisor] {
        assert!(!word.starts_with('-') && !word.contains([',', '=', ' ', '\0', '\n']), "{word:?}");
    }
    assert!(definition.nics.len() <= 64 && definition.disks.len() <= 64 && definition.tags.len() <= 64);
    assert!(definition.tags.iter().all(|tag| !tag.contains(',')));
    let machine = definition.to_machine();
    // What is written may be longer than what was read, as it says what was left out.
    assert!(machine.description.len() > 65_536 || Definition::of_machine(&machine).ok() == Some(definition));
    true
}

pub(crate) fn definition_seeds() -> Vec<Vec<u8>> {
    let whole = include_bytes!("../../plugins/ganeti/golden/definition-v1.json").to_vec();
    let small = br#"{"version":1,"name":"a","os":"b","hypervisor":"kvm"}"#.to_vec();
    vec![whole, small]
}

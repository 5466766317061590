//! What people and programs give as text: names, paths, references, sizes, ids and URIs.

use capture::NbdUri;
use types::{ByteSize, ChunkId, MAX_DISK_BYTES, Name, ObjectPath, Reference, VolumeId};

pub(crate) fn name(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let name = text.parse::<Name>();
    if let Ok(name) = &name {
        assert!(name.as_str() == text && !text.contains('/') && !text.starts_with('.'), "safe as a file name");
    }
    let path = text.parse::<ObjectPath>();
    if let Ok(path) = &path {
        assert_eq!(path.to_string().parse().as_ref(), Ok(path));
    }
    let reference = text.parse::<Reference>();
    if let Ok(reference) = &reference {
        assert_eq!(reference.to_string().parse().as_ref(), Ok(reference));
    }
    let size = text.parse::<ByteSize>();
    if let Ok(size) = size
        && size.0 <= MAX_DISK_BYTES
    {
        // What is shown can be read, and is near enough.
        let shown: ByteSize = size.to_string().parse().expect("a size that was shown");
        assert!(shown.0.abs_diff(size.0) <= size.0 / 10, "{size} of {}", size.0);
    }
    let ids = (text.parse::<ChunkId>(), text.parse::<VolumeId>());
    if let Ok(id) = ids.0 {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
    name.is_ok() || path.is_ok() || reference.is_ok() || size.is_ok() || ids.0.is_ok() || ids.1.is_ok()
}

pub(crate) fn name_seeds() -> Vec<Vec<u8>> {
    let long = "ab".repeat(32);
    ["web-01", "b/o@7", "index.example.org:7070/alice/vms", "[::1]:1/a/b", "1.5GiB", "10 TiB", "4096", &long]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

pub(crate) fn nbd_uri(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(uri) = text.parse::<NbdUri>() else { return false };
    assert!(NbdUri::is_meant(text));
    assert_eq!(uri.to_string().parse(), Ok(uri));
    true
}

pub(crate) fn nbd_uri_seeds() -> Vec<Vec<u8>> {
    ["nbd://example.org/a%20disk", "nbd://[::1]:10810", "nbd+unix:///disk?socket=/run/brant.sock", "nbds://h/"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

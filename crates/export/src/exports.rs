//! Which devices can be reached under which names.

use std::fmt::Debug;
use std::sync::Arc;

use volume::BlockDevice;

/// The devices that a server offers. Called from the connections' threads; may block for a short time.
pub trait Exports: Send + Sync + Debug {
    /// The device of a name: always the same one for as long as anyone uses it, so that all connections share its
    /// lock. `None` if there is none.
    fn open(&self, name: &str) -> Option<Arc<dyn BlockDevice>>;

    /// The names that may be told to clients.
    fn list(&self) -> Vec<String>;

    /// Says that nobody waits for answers any more, so that requests that could wait for very long end.
    fn abandon(&self) {}

    /// The name that connections are counted and closed under; differs where one device answers to several names.
    fn resolve<'a>(&'a self, name: &'a str) -> &'a str {
        name
    }
}

/// One device under one name, and under the empty name.
#[derive(Clone, Debug)]
pub struct SingleExport {
    name: String,
    device: Arc<dyn BlockDevice>,
}

impl SingleExport {
    /// Offers a device under a name.
    #[must_use]
    pub fn new(name: impl Into<String>, device: Arc<dyn BlockDevice>) -> SingleExport {
        SingleExport { name: name.into(), device }
    }
}

impl Exports for SingleExport {
    fn open(&self, name: &str) -> Option<Arc<dyn BlockDevice>> {
        (name.is_empty() || name == self.name).then(|| Arc::clone(&self.device))
    }

    fn list(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn abandon(&self) {
        self.device.abandon();
    }

    fn resolve<'a>(&'a self, name: &'a str) -> &'a str {
        if name.is_empty() { &self.name } else { name }
    }
}

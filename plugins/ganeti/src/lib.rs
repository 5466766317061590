//! Ganeti's disks on brant: an ExtStorage provider as a thin translator to the node's API, its installation, snapshots of
//! an instance's disks, and instances that are made from them, here and in other clusters.
//!
//! Ganeti's `noded` runs one script per call, as root, with everything in the environment; each script is one line that
//! runs `brant ganeti provider SCRIPT`. The contract is Ganeti's `storage/extstorage.py`; `docs/ganeti.md` says what an
//! administrator sees of it.
//!
//! Invariants: nothing is kept here, a disk is a volume of the node under Ganeti's name for it, and what is known of it
//! beside that are labels of the volume ([`label`]). Every call ends within a set time, whatever the node does.
//!
//! A volume is at one node. The brant nodes of a Ganeti cluster are members of one cluster of brant's: a disk that is attached at another
//! node is used from there, and comes there when that node opens it alone.

mod call;
mod create;
mod definition;
mod group;
mod install;
pub mod label;
mod luxi;
mod origin;
mod orphans;
mod parameters;
mod policy;
mod provider;
mod replica;
mod session;

pub use call::{Call, CallError, Script};
pub use create::{Plan, Wishes, advice, plan};
pub use definition::{Definition, DefinitionError, Found};
pub use group::snapshot_instance;
pub use install::{InstallError, Installation, LOG_DIRECTORY, PROVIDER_DIRECTORY, install, uninstall};
pub use luxi::{Luxi, LuxiError};
pub use origin::{Origin, OriginError};
pub use orphans::{Orphan, orphans};
pub use parameters::{ParameterError, Parameters};
pub use session::{Settings, run};

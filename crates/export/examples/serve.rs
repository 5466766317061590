//! Serves one volume of a new store by NBD until its input ends; what the speed of the path from socket to disk is
//! measured with.
//!
//! `serve SOCKET DIRECTORY SIZE_MIB [sealed]`: `sealed` fills the volume with data that does not compress, seals it and
//! serves a clone, so that every read comes from the store.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use export::{Listen, NbdOptions, NbdServer, SingleExport};
use store::{LocalOptions, LocalStore, NoSource};
use tokio::runtime::Runtime;
use types::Progress;
use volume::{BlockDevice, Durability, Volume, VolumeOptions, Volumes};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Fallible<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: serve SOCKET DIRECTORY SIZE_MIB [sealed]");
    let (socket, directory): (PathBuf, PathBuf) = (next()?.into(), next()?.into());
    let size_bytes = next()?.parse::<u64>()? << 20;
    let sealed = next().is_ok_and(|word| word == "sealed");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let volume = make(&runtime, &directory, size_bytes, sealed)?;
    let exports = Arc::new(SingleExport::new("disk", volume));
    let server = NbdServer::start(Listen::Unix(socket), exports, runtime.handle().clone(), NbdOptions::default())?;
    eprintln!("{}", server.uri("disk"));
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.stop(Duration::from_secs(1));
    Ok(())
}

fn make(runtime: &Runtime, directory: &Path, size_bytes: u64, sealed: bool) -> Fallible<Arc<Volume>> {
    std::fs::create_dir_all(directory.join("volumes"))?;
    let store = LocalStore::open(directory.join("store"), LocalOptions::default())?;
    let volumes = Volumes::open(&directory.join("volumes"), store, Arc::new(NoSource), VolumeOptions::default())?;
    let volume = volumes.create(&"disk".parse()?, size_bytes)?;
    if !sealed {
        return Ok(volume);
    }
    let mut data = vec![0; 1 << 20];
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for offset in (0..size_bytes).step_by(1 << 20) {
        for word in data.chunks_exact_mut(8) {
            // Marsaglia's xorshift64.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        volume.write(offset, &data, Durability::Process)?;
    }
    let frozen = volumes.freeze(&[volume], |_| Vec::new())?;
    let base = runtime.block_on(volumes.seal(frozen[0].id(), &Progress::default()))?;
    Ok(volumes.clone_tree(&"clone".parse()?, base)?)
}

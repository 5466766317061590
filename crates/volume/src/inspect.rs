//! Telling what a disk consists of and what it lacks, without fetching anything.

use std::ops::ControlFlow;

use format::tree::{self, Found};
use types::SECTOR_BYTES;

use crate::base::{CHUNK, Missing};
use crate::device::{DeviceError, Extent, ExtentKind};
use crate::stack::{From, Stack, absent_node};

/// How many chunks of the tree one request for extents looks at: a caller asks again for what follows.
const MOST_CHUNKS: usize = 1 << 16;

/// Extents in the making: neighbours of one kind are one.
struct Extents {
    extents: Vec<Extent>,
    limit: usize,
    chunks: usize,
}

impl Extents {
    fn push(&mut self, length: u64, kind: ExtentKind) -> ControlFlow<()> {
        if length == 0 {
            return ControlFlow::Continue(());
        }
        let full = self.extents.len() >= self.limit;
        match self.extents.last_mut() {
            Some(last) if last.kind == kind => last.length += length,
            _ if full => return ControlFlow::Break(()),
            _ => self.extents.push(Extent { length, kind }),
        }
        ControlFlow::Continue(())
    }
}

impl Stack {
    /// See [`crate::BlockDevice::extents`].
    pub(crate) fn extents(&self, offset: u64, length: u64, limit: usize) -> Result<Vec<Extent>, DeviceError> {
        self.check_range(offset, length)?;
        self.check_layers()?;
        let mut found = Extents { extents: Vec::new(), limit: limit.max(1), chunks: 0 };
        let end = (offset + length) / SECTOR_BYTES;
        let mut sector = offset / SECTOR_BYTES;
        while sector < end {
            let (from, next) = self.find(sector, end);
            let bytes = (next - sector) * SECTOR_BYTES;
            let flow = match from {
                From::Journal(..) => found.push(bytes, ExtentKind::Written),
                From::Zero => found.push(bytes, ExtentKind::Zero),
                From::Tree => self.tree_extents(sector * SECTOR_BYTES, next * SECTOR_BYTES, &mut found)?,
            };
            if flow.is_break() {
                break;
            }
            sector = next;
        }
        Ok(found.extents)
    }

    fn tree_extents(&self, start: u64, end: u64, found: &mut Extents) -> Result<ControlFlow<()>, DeviceError> {
        let mut position = start;
        let chunks = start / CHUNK..end.div_ceil(CHUNK);
        for item in tree::walk(&self.nodes, self.shape, self.base.root, chunks) {
            let (range, kind) = match item {
                Ok(Found::Node { .. }) => continue,
                Ok(Found::Absent(node)) => {
                    let chunks = node.position.chunks();
                    (chunks.start.saturating_mul(CHUNK)..chunks.end.saturating_mul(CHUNK), ExtentKind::Absent)
                }
                Ok(Found::Chunk { index, id }) => {
                    let here = self.context.store.contains(&id.into(), &self.base.domains)?;
                    let kind = if here { ExtentKind::Local } else { ExtentKind::Absent };
                    (index * CHUNK..(index + 1) * CHUNK, kind)
                }
                Err(error) => return absent_node(error).map(|_| ControlFlow::Break(())),
            };
            let (from, to) = (range.start.clamp(position, end), range.end.min(end));
            if found.push(from - position, ExtentKind::Hole).is_break() || found.push(to - from, kind).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            position = to;
            found.chunks += 1;
            if found.chunks >= MOST_CHUNKS {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(found.push(end - position, ExtentKind::Hole))
    }

    /// Counts what the tree lacks. What written sectors cover is counted too.
    pub(crate) fn missing(&self) -> Result<Missing, DeviceError> {
        let mut missing = Missing::default();
        if self.base.origin.is_none() {
            return Ok(missing);
        }
        for item in tree::walk(&self.nodes, self.shape, self.base.root, 0..self.shape.chunks()) {
            match item {
                Ok(Found::Node { .. }) => {}
                Ok(Found::Absent(_)) => missing.nodes += 1,
                Ok(Found::Chunk { index, id }) => {
                    if !self.context.store.contains(&id.into(), &self.base.domains)? {
                        missing.chunks += 1;
                        missing.bytes += CHUNK.min(self.base.size_bytes - index * CHUNK);
                    }
                }
                Err(error) => drop(absent_node(error)?),
            }
        }
        Ok(missing)
    }
}

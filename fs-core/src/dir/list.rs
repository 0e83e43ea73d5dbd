//! Reading a directory from a position on. See [`cookie`] for what a position is.
//!
//! In hash order a stretch is the names of one leaf, or of several that share a hash across
//! their border: exactly those with hashes from the leaf's first to the next leaf's first. The
//! last stretch is remembered, because a listing comes in many small requests.

use std::ops::ControlFlow;
use std::sync::Arc;

use ext4_format::dirent::DirBlock;
use ext4_format::hash::HashVersion;
use ext4_format::inode::{FileType, flag};
use ext4_format::{FileBlock, Ino, What};
use jbd2::Buffer;

use super::blocks::Role;
use super::find::is_bad_index;
use super::{Dir, cookie};
use crate::error::{Error, Result};
use crate::inode::{Core, Listed, Listing};

/// A name that is read.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// The inode it names.
    pub ino: Ino,
    /// The recorded type, where there is one.
    pub kind: Option<FileType>,
    /// The name.
    pub name: &'a [u8],
    /// Where to read on after it.
    pub next: u64,
}

/// Most leaves that may share one hash: 100 000 names and more, far beyond any accident.
const MAX_JOINED: usize = 4096;

impl Dir<'_> {
    /// Gives the names from `position` on, until there are no more or `emit` breaks; the item it
    /// breaks at counts as not given. A listing starts at 0 and goes on at [`Item::next`].
    pub fn list(&self, position: u64, emit: &mut dyn FnMut(&Item<'_>) -> ControlFlow<()>) -> Result<()> {
        let hashed = {
            let core = self.inode.core.read();
            self.settings.indexed
                && !self.folds(&core)
                && (core.disk.has(flag::INDEX) || self.block_count(&core) <= 1)
        };
        // Byte offsets lie below every major hash but the first.
        let index_is_bad = || position > cookie::FIRST && self.inode.dir.index_is_bad();
        if !hashed || (cookie::major(position) == 0 && index_is_bad()) {
            return self.list_linear(position, emit);
        }
        let kind = Some(FileType::Directory);
        if position == cookie::DOT {
            let dot = Item { ino: self.inode.ino, kind, name: b".", next: cookie::FIRST };
            if emit(&dot).is_break() {
                return Ok(());
            }
        }
        let mut position = position.max(cookie::FIRST);
        let mut above = position <= cookie::DOTDOT;
        while position < cookie::END {
            let listing = match self.listing(position) {
                // A bad index leaves the entries themselves readable.
                Err(Error::Corrupt(c)) if is_bad_index(&c) && cookie::major(position) == 0 => {
                    self.inode.dir.set_index_is_bad();
                    return self.list_linear(position.max(AFTER_DOT), emit);
                }
                other => other?,
            };
            let start = listing.entries.partition_point(|e| e.position < position);
            let entries = &listing.entries[start..];
            let before = entries.partition_point(|e| above && e.position < cookie::DOTDOT);
            if self.give(&listing, &entries[..before], emit).is_break() {
                return Ok(());
            }
            if above && listing.to > cookie::DOTDOT {
                above = false;
                let dotdot = Item { ino: self.parent()?, kind, name: b"..", next: cookie::DOTDOT + 1 };
                if emit(&dotdot).is_break() {
                    return Ok(());
                }
            }
            if self.give(&listing, &entries[before..], emit).is_break() {
                return Ok(());
            }
            position = listing.to;
        }
        self.inode.dir.forget();
        Ok(())
    }

    fn give(
        &self,
        listing: &Listing,
        entries: &[Listed],
        emit: &mut dyn FnMut(&Item<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        entries.iter().try_for_each(|entry| {
            let (next, name) = (entry.position + 1, listing.name(entry));
            emit(&Item { ino: entry.ino, kind: entry.kind, name, next })
        })
    }

    fn list_linear(&self, position: u64, emit: &mut dyn FnMut(&Item<'_>) -> ControlFlow<()>) -> Result<()> {
        let block_size = self.block_size() as u64;
        let first = u32::try_from(position / block_size).unwrap_or(u32::MAX);
        for at in first.. {
            let at = FileBlock(at);
            let (buffer, format) = {
                let core = self.inode.core.read();
                if at.0 >= self.block_count(&core) {
                    break;
                }
                if at.0 == first || Self::read_ahead_due(at) {
                    self.read_ahead(&core, at);
                }
                self.read_any(&core, at)?
            };
            let Some(format) = format else { continue };
            let base = u64::from(at.0) * block_size;
            let data = buffer.data();
            for entry in DirBlock::new(&data, format).entries() {
                let entry = entry.map_err(|c| self.corrupt(&buffer, c))?;
                let offset = base + entry.at.offset as u64;
                let Some(ino) = entry.ino.filter(|_| offset >= position) else { continue };
                let next = offset + entry.rec_len as u64;
                let item = Item { ino, kind: entry.file_type(), name: entry.name, next };
                if emit(&item).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The stretch around `position`.
    fn listing(&self, position: u64) -> Result<Arc<Listing>> {
        if let Some(listing) = self.inode.dir.listing(position) {
            return Ok(listing);
        }
        let core = self.inode.core.read();
        if position == cookie::FIRST {
            self.read_ahead(&core, FileBlock(0));
        }
        let listing = Arc::new(if self.is_indexed(&core) {
            self.read_stretch(&core, position)?
        } else {
            let buffer = self.read(&core, FileBlock(0), Role::Leaf)?;
            let mut names = Collector::default();
            self.collect(&buffer, self.settings.hash_version(), &mut names)?;
            names.finish(cookie::FIRST, cookie::END)
        });
        self.inode.dir.remember(listing.clone());
        Ok(listing)
    }

    fn read_stretch(&self, core: &Core, position: u64) -> Result<Listing> {
        let mut path = self.probe_hash(core, cookie::major(position))?;
        // A leaf that continues a hash begins, for us, with the hash after it.
        let from = cookie::start_of(path.start.saturating_add(1) & !1);
        let mut names = Collector::default();
        for _ in 0..MAX_JOINED {
            let buffer = self.read(core, path.leaf, Role::Leaf)?;
            self.collect(&buffer, path.version, &mut names)?;
            let to = match self.next_start(&path)? {
                Some(start) if start & 1 == 1 => {
                    self.next_leaf(core, &mut path)?;
                    continue;
                }
                Some(start) => cookie::start_of(start),
                None => cookie::END,
            };
            if to <= position {
                return Err(self.damaged(What::HtreeBlock, "hash order", to, position));
            }
            return Ok(names.finish(from, to));
        }
        Err(self.damaged(What::HtreeBlock, "leaves of one hash", MAX_JOINED as u64, 0))
    }

    fn collect(&self, buffer: &Buffer, version: HashVersion, into: &mut Collector) -> Result<()> {
        let data = buffer.data();
        for entry in DirBlock::new(&data, self.settings.format).entries() {
            let entry = entry.map_err(|c| self.corrupt(buffer, c))?;
            let Some(ino) = entry.ino else { continue };
            if matches!(entry.name, b"." | b"..") {
                continue;
            }
            let position = cookie::of(self.hash(version, entry.name)?, entry.name);
            into.add(position, ino, entry.file_type(), entry.name);
        }
        Ok(())
    }
}

/// The byte offset behind the record of `.`.
const AFTER_DOT: u64 = 12;

#[derive(Default)]
struct Collector {
    entries: Vec<Listed>,
    names: Vec<u8>,
}

impl Collector {
    fn add(&mut self, position: u64, ino: Ino, kind: Option<FileType>, name: &[u8]) {
        let at = self.names.len() as u32;
        self.names.extend_from_slice(name);
        self.entries.push(Listed { position, ino, kind, name: (at, name.len() as u8) });
    }

    /// Brings the names into reading order and tells equal positions apart.
    fn finish(mut self, from: u64, to: u64) -> Listing {
        let names = &self.names;
        let name = |e: &Listed| &names[e.name.0 as usize..e.name.0 as usize + usize::from(e.name.1)];
        self.entries.retain(|e| e.position >= from);
        self.entries.sort_unstable_by(|a, b| a.position.cmp(&b.position).then_with(|| name(a).cmp(name(b))));
        let mut free = from;
        for entry in &mut self.entries {
            entry.position = entry.position.max(free);
            free = entry.position + 1;
        }
        Listing { from, to, entries: self.entries, names: self.names }
    }
}

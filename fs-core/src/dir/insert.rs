//! Adding an entry: finding out where it would go, making room there, putting it in.

use ext4_format::dirent::{DirBlock, DirBlockMut, NewEntry, Placement, Slot};
use ext4_format::inode::FileType;
use ext4_format::{FileBlock, Ino, What};
use jbd2::{Buffer, Handle};

use super::Dir;
use super::blocks::Role;
use super::index::Path;
use crate::error::{Error, Posix, Result};
use crate::inode::Core;

/// Where a name that does not exist yet would go.
#[derive(Clone, Debug)]
pub struct Room {
    pub(super) place: Place,
    credits: u32,
}

#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Into a leaf as it is.
    Here(Spot),
    /// Into a new block at the end of a linear directory.
    Append,
    /// The only block is full: the directory gets an index first.
    Convert(Buffer),
    /// The leaf is full: it is split first.
    Split(Path),
}

/// The place for the name it was made for. It stays true while the directory's lock is held and
/// nothing changes the leaf.
#[derive(Clone, Debug)]
pub struct Spot {
    leaf: Buffer,
    slot: Slot,
}

impl Room {
    /// Blocks that [`Dir::make_room`] and [`Dir::insert`] may change.
    #[must_use]
    pub fn credits(&self) -> u32 {
        self.credits
    }
}

impl Dir<'_> {
    /// Where `name` would go.
    ///
    /// # Errors
    /// `Exists` when it is there already, `NotSupported` in a case-insensitive directory.
    pub fn room(&self, name: &[u8]) -> Result<Room> {
        let core = self.inode.core.read();
        if self.folds(&core) {
            let is_there = self.find_linear(&core, name)?.is_some();
            return Err(if is_there { Posix::Exists } else { Posix::NotSupported }.into());
        }
        let place = if self.is_indexed(&core) {
            self.place_indexed(&core, name)?
        } else {
            self.place_linear(&core, name)?
        };
        let credits = match &place {
            Place::Here(_) => 1,
            Place::Append => self.growth_credits(&core, 1),
            // The old block; should one half still be too full, a leaf is split as well.
            Place::Convert(_) => 1 + self.growth_credits(&core, 2) + self.second_split_credits(&core),
            Place::Split(path) => {
                self.split_credits(&core, path.frames.len()) + self.second_split_credits(&core)
            }
        };
        Ok(Room { place, credits })
    }

    /// Makes the room that [`Dir::room`] found wanting. The names stay the same.
    ///
    /// # Errors
    /// `NoSpace` when the volume or the index is full; nothing has changed then.
    pub fn make_room(&self, handle: &Handle<'_>, room: Room, name: &[u8]) -> Result<Spot> {
        match room.place {
            Place::Here(spot) => return Ok(spot),
            Place::Append => {
                let leaf = self.append_leaf(handle)?;
                return self.spot_in(&leaf, name)?.ok_or_else(|| self.no_room(name));
            }
            Place::Convert(buffer) => self.convert(handle, &buffer)?,
            Place::Split(path) => self.split(handle, path)?,
        }
        // In blocks of 1 KiB half a block may still be too small for a long name.
        for last in [false, true] {
            let path = {
                let core = self.inode.core.read();
                let (_, path) = self.probe(&core, name)?;
                let buffer = self.read(&core, path.leaf, Role::Leaf)?;
                if let Some(spot) = self.spot_in(&buffer, name)? {
                    return Ok(spot);
                }
                path
            };
            if !last {
                self.split(handle, path)?;
            }
        }
        Err(Error::NoSpace)
    }

    /// Puts `name` where room was made.
    pub fn insert(
        &self,
        handle: &Handle<'_>,
        spot: &Spot,
        name: &[u8],
        ino: Ino,
        kind: FileType,
    ) -> Result<()> {
        self.inode.dir.changed();
        let entry = NewEntry { ino, file_type: kind, name };
        let format = self.settings.format;
        let put = self.edit_leaf(handle, &spot.leaf, |bytes| {
            DirBlockMut::new(bytes, format).insert_at(spot.slot, &entry)
        })?;
        match put {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(self.no_room(name)),
            Err(c) => Err(self.corrupt(&spot.leaf, c)),
        }
    }

    fn place_indexed(&self, core: &Core, name: &[u8]) -> Result<Place> {
        let (hash, path) = self.probe(core, name)?;
        let buffer = self.read(core, path.leaf, Role::Leaf)?;
        let spot = self.spot_in(&buffer, name)?;
        if self.next_start(&path)? == Some(hash.major | 1) {
            let mut ahead = path.clone();
            if self.next_leaf(core, &mut ahead)?
                && self.find_below(core, &mut ahead, hash.major, name)?.is_some()
            {
                return Err(Posix::Exists.into());
            }
        }
        Ok(spot.map_or(Place::Split(path), Place::Here))
    }

    fn place_linear(&self, core: &Core, name: &[u8]) -> Result<Place> {
        let count = self.block_count(core);
        if count == 0 {
            return Err(self.damaged(What::DirBlock, "i_size", core.size, self.block_size() as u64));
        }
        let mut here = None;
        let mut last = None;
        for at in (0..count).map(FileBlock) {
            if at.0 > 0 && Self::read_ahead_due(at) {
                self.read_ahead(core, at);
            }
            let buffer = self.read(core, at, Role::Leaf)?;
            let spot = self.spot_in(&buffer, name)?;
            here = here.or(spot);
            last = Some(buffer);
        }
        Ok(match (here, last) {
            (Some(spot), _) => Place::Here(spot),
            (None, Some(only)) if count == 1 && self.settings.indexed => Place::Convert(only),
            _ => Place::Append,
        })
    }

    /// The place for `name` in this leaf; `Exists` when it is there already.
    fn spot_in(&self, leaf: &Buffer, name: &[u8]) -> Result<Option<Spot>> {
        let placement = DirBlock::new(&leaf.data(), self.settings.format).place(name);
        match placement.map_err(|c| self.corrupt(leaf, c))? {
            Placement::Taken => Err(Posix::Exists.into()),
            Placement::Free(slot) => Ok(Some(Spot { leaf: leaf.clone(), slot })),
            Placement::Full => Ok(None),
        }
    }

    fn no_room(&self, name: &[u8]) -> Error {
        self.damaged(What::DirBlock, "room", 0, name.len() as u64)
    }

    /// What a second split may cost where the first cannot be trusted to make enough room.
    fn second_split_credits(&self, core: &Core) -> u32 {
        if self.block_size() < 2048 { self.split_credits(core, 3) } else { 0 }
    }
}

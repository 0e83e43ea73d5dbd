//! Moving names.
//!
//! Locks: the volume's rename lock when two directories are involved, so that no directory above
//! either can move; then both directories, an ancestor before its descendant, else by number;
//! then what is moved and what is replaced, directories first. Under them everything is looked
//! up and refused that can be, room is made for the new name, and only then the first name moves.

use std::sync::Arc;

use ext4_format::inode::FileType;
use ext4_format::{Corruption, Ino, What};
use jbd2::{Credits, Handle};
use smallvec::SmallVec;

use super::create::{Content, Wanted};
use super::names::{DROP_LINK_CREDITS, GROWTH_REVOKES, check_name};
use crate::data::By;
use crate::dir::{Dir, Found, Room};
use crate::error::{Posix, Result};
use crate::fs::Filesystem;
use crate::inode::Inode;
use crate::locks::WriteGuard;
use crate::node::{Dir as DirNode, Held, Hold, Node};
use crate::tx;
use crate::types::Credentials;

/// How `renameat2(2)` is asked to behave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RenameFlags {
    /// Refuse to replace.
    pub no_replace: bool,
    /// Swap the two names, which must both exist.
    pub exchange: bool,
    /// Leave a whiteout (a character device 0/0) behind.
    pub whiteout: bool,
}

impl RenameFlags {
    /// From the bits of renameat2(2); `None` for bits that do not exist.
    #[must_use]
    pub fn from_bits(bits: u32) -> Option<RenameFlags> {
        let has = |bit| bits & bit != 0;
        let flags = RenameFlags { no_replace: has(1), exchange: has(2), whiteout: has(4) };
        (bits <= 7).then_some(flags)
    }
}

/// The deepest that a directory can lie: what is longer is a loop.
const MAX_DEPTH: usize = 1 << 20;

/// Handles that are to be dropped when no lock is held any more.
#[derive(Default)]
struct Moved<'a> {
    /// What was replaced.
    replaced: Option<Hold<'a>>,
    /// What has moved, and a whiteout.
    _others: SmallVec<[Hold<'a>; 2]>,
}

/// One of the two names.
struct End<'a> {
    parent: &'a Arc<Inode>,
    dir: Dir<'a>,
    name: &'a [u8],
}

impl DirNode {
    /// Makes what is `name` here the child `new_name` of `new_parent`, replacing what is there as rename(2)
    /// demands; gives what was replaced.
    ///
    /// # Errors
    /// Those of [`crate::Dir::rename_as`].
    pub fn rename(
        &self,
        name: impl AsRef<[u8]>,
        new_parent: &DirNode,
        new_name: impl AsRef<[u8]>,
        flags: RenameFlags,
    ) -> Result<Option<Node>> {
        self.rename_as(&Credentials::root(), name, new_parent, new_name, flags)
    }

    /// The same by somebody else, to whom a whiteout belongs and who may not take the blocks that are set
    /// aside.
    ///
    /// # Errors
    /// `NotFound`; `Exists` with `no_replace`; `Invalid` for contradictory flags and for moving a
    /// directory into itself; `NotDirectory`, `IsDirectory`, `NotEmpty` by what would be
    /// replaced; `TooManyLinks`, `NotPermitted` when inode flags forbid it, `NoSpace`.
    pub fn rename_as(
        &self,
        caller: &Credentials,
        name: impl AsRef<[u8]>,
        new_parent: &DirNode,
        new_name: impl AsRef<[u8]>,
        flags: RenameFlags,
    ) -> Result<Option<Node>> {
        self.same_filesystem(new_parent)?;
        let (from, to) = ((self.inode(), name.as_ref()), (new_parent.inode(), new_name.as_ref()));
        let replaced = self.filesystem().move_name(caller, from, to, flags)?;
        Ok(replaced.map(|replaced| replaced.keep(self.filesystem())))
    }
}

impl Filesystem {
    fn move_name(
        &self,
        caller: &Credentials,
        (parent, name): (&Arc<Inode>, &[u8]),
        (new_parent, new_name): (&Arc<Inode>, &[u8]),
        flags: RenameFlags,
    ) -> Result<Option<Hold<'_>>> {
        self.vol.writable()?;
        check_name(name)?;
        check_name(new_name)?;
        if flags.exchange && (flags.no_replace || flags.whiteout) {
            return Err(Posix::Invalid.into());
        }
        if self.vol.opts.auto_da_alloc && !flags.exchange {
            self.settle_replacement((parent, name), (new_parent, new_name))?;
        }
        let moved = self.with_retry(|| {
            let _topology = (parent.ino != new_parent.ino).then(|| self.renaming.lock());
            let _locks = self.lock_parents(parent, new_parent)?;
            let from = End { parent, dir: self.dir(parent, caller), name };
            let to = End { parent: new_parent, dir: self.dir(new_parent, caller), name: new_name };
            if flags.exchange { self.exchange(&from, &to) } else { self.replace(caller, &from, &to, flags) }
        })?;
        Ok(moved.replaced)
    }

    /// Writes out the data of a file that is about to replace another: whoever writes a new
    /// version aside and renames it finds the old one or the new one after a crash.
    fn settle_replacement(&self, from: (&Arc<Inode>, &[u8]), to: (&Arc<Inode>, &[u8])) -> Result<()> {
        if self.data.is_idle() {
            return Ok(());
        }
        let find = |(parent, name): (&Arc<Inode>, &[u8])| {
            let _lock = parent.lock.read();
            self.entries(parent).find(name)
        };
        let Some(source) = find(from)? else { return Ok(()) };
        let Some(source) = self.inodes.peek(source.ino) else { return Ok(()) };
        let source = Held::new(self, source);
        if source.is_file() && !self.data.is_settled(&source) && find(to)?.is_some() {
            // A failure is kept for the file's fsync.
            let _ = self.data.flush(&source, 0..u64::MAX);
            self.data.convert(&source, By::Fsync)?;
        }
        Ok(())
    }

    /// Moves the name.
    fn replace(
        &self,
        caller: &Credentials,
        from: &End<'_>,
        to: &End<'_>,
        flags: RenameFlags,
    ) -> Result<Moved<'_>> {
        self.alive(from.parent)?;
        self.alive(to.parent)?;
        let found = from.dir.find(from.name)?.ok_or(Posix::NotFound)?;
        let source = self.child(from.parent, &found)?;
        let old = to.dir.find(to.name)?;
        if old.is_some() && flags.no_replace {
            return Err(Posix::Exists.into());
        }
        let target = old.as_ref().map(|old| self.child_or_parent(to.parent, from.parent, old)).transpose()?;
        self.refuse_loops(from, to, &source, target.as_ref().map(|target| &***target), Posix::NotEmpty)?;
        if target.as_ref().is_some_and(|target| target.ino == source.ino) {
            return Ok(Moved::default());
        }
        self.may_remove(from.parent, &source)?;
        let crosses = from.parent.ino != to.parent.ino;
        match &target {
            None if source.is_dir() && crosses => self.may_add(to.parent, FileType::Directory)?,
            None => self.may_add(to.parent, FileType::Regular)?,
            Some(target) => {
                self.may_remove(to.parent, target)?;
                match (source.is_dir(), target.is_dir()) {
                    (true, false) => return Err(Posix::NotDirectory.into()),
                    (false, true) => return Err(Posix::IsDirectory.into()),
                    _ => {}
                }
            }
        }
        let locks = lock_children(&source, target.as_deref());
        if let Some(target) = target.as_ref().filter(|t| t.is_dir())
            && !self.entries(target).is_empty()?
        {
            return Err(Posix::NotEmpty.into());
        }
        let room = match &target {
            Some(_) => None,
            None => Some(to.dir.room(to.name)?),
        };
        // Both entries, `..`, the records of both directories and of what moves.
        let mut credits = 6 + DROP_LINK_CREDITS + room.as_ref().map_or(0, Room::credits);
        let whiteout = Wanted {
            kind: FileType::CharDevice,
            mode: FileType::CharDevice.mode_bits(),
            content: Content::Device(0, 0),
        };
        let inherited = match flags.whiteout {
            true => Some(self.inherited(caller, from.parent, &whiteout)?),
            false => None,
        };
        credits += inherited.as_ref().map_or(0, |inherited| self.child_credits(inherited, &whiteout));
        // Declared before the journal handle, so that it is dropped after it.
        let mut left_behind = None;
        let tx = tx::start(&self.vol.journal, Credits { blocks: credits, revokes: GROWTH_REVOKES })?;
        let now = self.vol.now();
        let spot = room.map(|room| to.dir.make_room(&tx, room, to.name)).transpose()?;
        let whiteout = inherited
            .map(|inherited| self.new_child(&tx, caller, from.parent, &whiteout, &inherited))
            .transpose()?
            .map(|child| left_behind.insert(Held::new(self, child)).ino);
        // Making room may have moved the old entry.
        let found = from.dir.find(from.name)?.ok_or_else(|| self.vanished(from.parent, found.ino))?;
        let moves_dotdot = source.is_dir() && crosses;
        if moves_dotdot {
            self.entries(&source).set_parent(&tx, to.parent.ino)?;
        }
        match (spot, &old) {
            (Some(spot), _) => to.dir.insert(&tx, &spot, to.name, source.ino, source.kind)?,
            (None, Some(old)) => to.dir.repoint(&tx, old, source.ino, source.kind)?,
            (None, None) => {}
        }
        match whiteout {
            Some(ino) => from.dir.repoint(&tx, &found, ino, FileType::CharDevice)?,
            None => from.dir.remove(&tx, &found)?,
        }
        self.touch(&tx, &source, &mut source.core.write(), now)?;
        if let Some(target) = &target {
            self.drop_link(&tx, target, now)?;
        }
        let lost = i32::from(target.as_ref().is_some_and(|t| t.is_dir()));
        let moved = i32::from(moves_dotdot);
        if crosses {
            self.entries_changed(&tx, from.parent, -moved, now)?;
            self.entries_changed(&tx, to.parent, moved - lost, now)?;
        } else {
            self.entries_changed(&tx, from.parent, -lost, now)?;
        }
        self.finish_names(tx, &[from.parent, to.parent])?;
        drop(locks);
        Ok(Moved { replaced: target, _others: [Some(source), left_behind].into_iter().flatten().collect() })
    }

    fn exchange(&self, from: &End<'_>, to: &End<'_>) -> Result<Moved<'_>> {
        self.alive(from.parent)?;
        self.alive(to.parent)?;
        let first = from.dir.find(from.name)?.ok_or(Posix::NotFound)?;
        let second = to.dir.find(to.name)?.ok_or(Posix::NotFound)?;
        let source = self.child_or_parent(from.parent, to.parent, &first)?;
        let target = self.child_or_parent(to.parent, from.parent, &second)?;
        self.refuse_loops(from, to, &source, Some(&target), Posix::Invalid)?;
        if source.ino == target.ino {
            return Ok(Moved::default());
        }
        self.may_remove(from.parent, &source)?;
        self.may_remove(to.parent, &target)?;
        let crosses = from.parent.ino != to.parent.ino;
        let gained = i32::from(source.is_dir()) - i32::from(target.is_dir());
        if crosses && gained != 0 {
            let grows = if gained > 0 { to.parent } else { from.parent };
            self.may_add(grows, FileType::Directory)?;
        }
        let locks = lock_children(&source, Some(&target));
        // Both entries, both `..`, four records.
        let tx = tx::start(&self.vol.journal, Credits::blocks(8))?;
        let now = self.vol.now();
        if crosses {
            self.reparent(&tx, &source, to.parent)?;
            self.reparent(&tx, &target, from.parent)?;
        }
        from.dir.repoint(&tx, &first, target.ino, target.kind)?;
        to.dir.repoint(&tx, &second, source.ino, source.kind)?;
        self.touch(&tx, &source, &mut source.core.write(), now)?;
        self.touch(&tx, &target, &mut target.core.write(), now)?;
        if crosses {
            self.entries_changed(&tx, from.parent, -gained, now)?;
            self.entries_changed(&tx, to.parent, gained, now)?;
        } else {
            self.entries_changed(&tx, from.parent, 0, now)?;
        }
        self.finish_names(tx, &[from.parent, to.parent])?;
        drop(locks);
        Ok(Moved { replaced: None, _others: [source, target].into_iter().collect() })
    }

    fn reparent(&self, handle: &Handle<'_>, child: &Inode, parent: &Inode) -> Result<()> {
        if !child.is_dir() {
            return Ok(());
        }
        self.entries(child).set_parent(handle, parent.ino)
    }

    /// The inode of an entry which, when the two directories differ, may be the other directory:
    /// that is refused as a loop, and is not damage.
    fn child_or_parent(&self, parent: &Inode, other: &Arc<Inode>, found: &Found) -> Result<Hold<'_>> {
        if found.ino == other.ino && other.ino != parent.ino {
            return Ok(Held::new(self, self.inodes.hold(other)));
        }
        self.child(parent, found)
    }

    /// Refuses to move a directory below itself (`Invalid`) and to replace or move away one that
    /// the other end lies in (`above`).
    fn refuse_loops(
        &self,
        from: &End<'_>,
        to: &End<'_>,
        source: &Inode,
        target: Option<&Inode>,
        above: Posix,
    ) -> Result<()> {
        if from.parent.ino == to.parent.ino {
            return Ok(());
        }
        if source.is_dir() && self.lies_in(to.parent, source.ino)? {
            return Err(Posix::Invalid.into());
        }
        match target {
            Some(target) if target.is_dir() && self.lies_in(from.parent, target.ino)? => Err(above.into()),
            _ => Ok(()),
        }
    }

    /// Whether `inode` is the directory `above` or lies in it. The caller holds the rename lock,
    /// so no `..` on the way changes.
    fn lies_in(&self, inode: &Arc<Inode>, above: Ino) -> Result<bool> {
        let mut at = Held::new(self, self.inodes.hold(inode));
        for _ in 0..MAX_DEPTH {
            if at.ino == above {
                return Ok(true);
            }
            if at.ino == Ino::ROOT {
                return Ok(false);
            }
            let parent = self.entries(&at).parent()?;
            at = self.directory(parent)?;
        }
        let c = Corruption::new(What::DirBlock, "a loop of directories", MAX_DEPTH as u64, 0);
        Err(self.vol.corrupt(c.in_inode(inode.ino)))
    }

    fn lock_parents<'l>(&self, a: &'l Arc<Inode>, b: &'l Arc<Inode>) -> Result<Locks<'l>> {
        if a.ino == b.ino {
            return Ok((a.lock.write(), None));
        }
        let a_first = if self.lies_in(b, a.ino)? {
            true
        } else if self.lies_in(a, b.ino)? {
            false
        } else {
            a.ino < b.ino
        };
        let (first, second) = if a_first { (a, b) } else { (b, a) };
        Ok((first.lock.write(), Some(second.lock.write_ordered())))
    }

    fn vanished(&self, parent: &Inode, ino: Ino) -> crate::error::Error {
        let c = Corruption::new(What::DirBlock, "entry lost in a split", ino.get().into(), 0);
        self.vol.corrupt(c.in_inode(parent.ino))
    }
}

type Locks<'l> = (WriteGuard<'l, ()>, Option<WriteGuard<'l, ()>>);

/// Locks what is moved and what is replaced: directories before others, then by number. They are
/// no ancestors of each other.
fn lock_children<'l>(source: &'l Inode, target: Option<&'l Arc<Inode>>) -> Locks<'l> {
    let Some(target) = target else { return (source.lock.write_ordered(), None) };
    let key = |inode: &Inode| (!inode.is_dir(), inode.ino);
    let (first, second) = if key(source) < key(target) { (source, &**target) } else { (&**target, source) };
    (first.lock.write_ordered(), Some(second.lock.write_ordered()))
}

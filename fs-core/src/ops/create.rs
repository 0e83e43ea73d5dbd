//! Making a file of any type under a new name: what `mknod`, `mkdir` and `symlink` share.
//!
//! Everything that can fail comes before the name: room in the directory, the inode, its block,
//! its attributes. What fails behind the allocation of the inode turns it into an orphan, which
//! goes the way of all orphans.

use std::sync::Arc;

use ext4_format::dirent::DirBlockMut;
use ext4_format::inode::mode::{S_IALLUGO, S_ISGID};
use ext4_format::inode::{BLOCK_AREA, FileType, Inode as DiskInode, InodeLayout, MAX_FAST_SYMLINK, flag};
use ext4_format::{FileBlock, Ino};
use jbd2::{Buffer, Credits, Handle};

use super::names::{DROP_LINK_CREDITS, GROWTH_REVOKES, check_name};
use crate::alloc::{ALLOC_INODE_CREDITS, InodeKind};
use crate::error::{Error, Posix, Result};
use crate::extent::{self, AllocHow, MapRoot, Mapping};
use crate::fs::Filesystem;
use crate::inode::Inode;
use crate::node::{Dir, Held, Hold, Node};
use crate::tx;
use crate::types::Credentials;
use crate::xattr::acl::{self, Inherited};

/// A file to be made.
pub(super) struct Wanted<'a> {
    pub kind: FileType,
    /// Type and permissions asked for.
    pub mode: u16,
    pub content: Content<'a>,
}

/// What a new file holds from the start.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    /// Nothing: regular files, pipes, sockets.
    Nothing,
    /// A device's major and minor number.
    Device(u32, u32),
    /// The dots.
    Directory,
    /// A symbolic link's target.
    Target(&'a [u8]),
}

impl Content<'_> {
    /// Whether it takes a block of its own.
    fn needs_block(&self) -> bool {
        match self {
            Content::Nothing | Content::Device(..) => false,
            Content::Directory => true,
            Content::Target(target) => target.len() > MAX_FAST_SYMLINK,
        }
    }
}

impl Dir {
    /// Makes a file of type and permissions `mode`.
    pub(super) fn make(
        &self,
        caller: &Credentials,
        name: &[u8],
        mode: u16,
        content: Content<'_>,
    ) -> Result<Node> {
        let fs = self.filesystem();
        fs.vol.writable()?;
        check_name(name)?;
        let kind = FileType::from_mode(mode).ok_or(Posix::Invalid)?;
        let wanted = Wanted { kind, mode, content };
        let made = fs.with_retry(|| fs.create_in(caller, self.inode(), name, &wanted))?;
        Ok(made.keep(fs))
    }
}

impl Filesystem {
    fn create_in(
        &self,
        caller: &Credentials,
        parent: &Inode,
        name: &[u8],
        wanted: &Wanted<'_>,
    ) -> Result<Hold<'_>> {
        let _lock = parent.lock.write();
        self.alive(parent)?;
        let dir = self.dir(parent, caller);
        let room = dir.room(name)?;
        self.may_add(parent, wanted.kind)?;
        let inherited = self.inherited(caller, parent, wanted)?;
        let credits = room.credits() + 1 + self.child_credits(&inherited, wanted);
        // Declared before the journal handle, so that it is dropped after it.
        let child;
        let tx = tx::start(&self.vol.journal, Credits { blocks: credits, revokes: GROWTH_REVOKES })?;
        let spot = dir.make_room(&tx, room, name)?;
        child = Held::new(self, self.new_child(&tx, caller, parent, wanted, &inherited)?);
        if let Err(error) = dir.insert(&tx, &spot, name, child.ino, child.kind) {
            self.abandon(&tx, &child)?;
            return Err(error);
        }
        self.entries_changed(&tx, parent, i32::from(child.is_dir()), self.vol.now())?;
        self.finish_names(tx, &[parent])?;
        Ok(child)
    }

    /// What a new child of `parent` inherits.
    pub(super) fn inherited(
        &self,
        caller: &Credentials,
        parent: &Inode,
        wanted: &Wanted<'_>,
    ) -> Result<Inherited> {
        Ok(acl::inherit(self.default_acl(parent)?, wanted.kind, wanted.mode, caller.umask))
    }

    /// Blocks that [`Filesystem::new_child`] may change, giving it up included.
    pub(super) fn child_credits(&self, inherited: &Inherited, wanted: &Wanted<'_>) -> u32 {
        let block = match wanted.content.needs_block() {
            true => 1 + extent::allocate_credits(&MapRoot::empty_tree(), 1),
            false => 0,
        };
        ALLOC_INODE_CREDITS + 1 + block + self.inherited_credits(inherited) + DROP_LINK_CREDITS
    }

    /// Makes an inode with all it holds, to be given a name in `parent`; gives a handle of it.
    pub(super) fn new_child(
        &self,
        handle: &Handle<'_>,
        caller: &Credentials,
        parent: &Inode,
        wanted: &Wanted<'_>,
        inherited: &Inherited,
    ) -> Result<Arc<Inode>> {
        let top_level = parent.ino == Ino::ROOT || parent.core.read().disk.has(flag::TOPDIR);
        let kind = match wanted.kind {
            FileType::Directory => InodeKind::Directory { top_level },
            _ => InodeKind::Other,
        };
        let ino = self.alloc.alloc_inode(handle, parent.ino, kind)?;
        let disk = self.new_record(caller, parent, wanted, inherited.mode);
        let child = match self.inodes.create(handle, ino, disk) {
            Ok(child) => child,
            Err(error) => {
                self.alloc.free_inode(handle, ino, wanted.kind == FileType::Directory)?;
                return Err(error);
            }
        };
        let filled = self
            .fill(handle, caller, parent, &child, wanted.content)
            .and_then(|()| self.inherit_acls(handle, caller, &child, inherited));
        match filled {
            Ok(()) => Ok(child),
            Err(error) => {
                let abandoned = self.abandon(handle, &child);
                self.release_later(child);
                abandoned.and(Err(error))
            }
        }
    }

    /// Makes an inode that got no name an orphan, to be deleted when nobody holds it.
    fn abandon(&self, handle: &Handle<'_>, child: &Inode) -> Result<()> {
        let mut core = child.core.write();
        core.disk.links = 0;
        self.orphans.add(handle, child, &mut core)?;
        self.inodes.store(handle, child, &mut core)
    }

    fn new_record(&self, caller: &Credentials, parent: &Inode, wanted: &Wanted<'_>, mode: u16) -> DiskInode {
        let &Wanted { kind, content, .. } = wanted;
        let (above_gid, above_mode, above_flags, above_project) = {
            let core = parent.core.read();
            (core.disk.gid, core.disk.mode, core.disk.flags, core.disk.project)
        };
        let mut mode = kind.mode_bits() | mode & S_IALLUGO;
        let sets_gid = above_mode & S_ISGID != 0;
        let group_from_above = sets_gid || self.vol.opts.bsd_groups;
        if sets_gid && kind == FileType::Directory {
            mode |= S_ISGID;
        }
        let (extents, want_extra) = {
            let sb = self.vol.sb.lock();
            (sb.incompat().has(ext4_format::features::Incompat::EXTENTS), sb.want_extra_isize())
        };
        let extra_isize = self.vol.inode_layout.extra_isize(want_extra);
        let now = self.vol.now();
        let mut disk = DiskInode {
            mode,
            uid: caller.uid,
            gid: if group_from_above { above_gid } else { caller.gid },
            size: 0,
            atime: now,
            ctime: now,
            mtime: now,
            crtime: InodeLayout::has_crtime(extra_isize).then_some(now),
            dtime: 0,
            links: if kind == FileType::Directory { 2 } else { 1 },
            blocks: 0,
            flags: inherited_flags(above_flags, kind),
            version: 1,
            generation: self.vol.env.chance.next_u64() as u32,
            file_acl: ext4_format::BlockNo(0),
            project: if above_flags & flag::PROJINHERIT != 0 { above_project } else { 0 },
            block: [0; BLOCK_AREA],
            extra_isize,
        };
        let mapped = matches!(kind, FileType::Regular) || content.needs_block();
        match content {
            Content::Device(major, minor) => disk.set_device(major, minor),
            Content::Target(target) => {
                disk.size = target.len() as u64;
                if !content.needs_block() {
                    disk.block[..target.len()].copy_from_slice(target);
                }
            }
            Content::Nothing | Content::Directory => {}
        }
        if mapped && extents {
            disk.flags |= flag::EXTENTS;
            disk.block = MapRoot::empty_tree().block;
        }
        disk
    }

    /// Gives a new directory or long symbolic link its block.
    fn fill(
        &self,
        handle: &Handle<'_>,
        caller: &Credentials,
        parent: &Inode,
        child: &Arc<Inode>,
        content: Content<'_>,
    ) -> Result<()> {
        if !content.needs_block() {
            return Ok(());
        }
        let buffer = self.first_block(handle, caller, child)?;
        let mut bytes = handle.write(&buffer)?;
        match content {
            Content::Directory => {
                let _ = DirBlockMut::init_first(&mut bytes, self.dirs.format, child.ino, parent.ino);
                self.vol.csum.set_dir_block(&mut bytes, child.ino, child.generation);
            }
            Content::Target(target) => bytes[..target.len()].copy_from_slice(target),
            Content::Nothing | Content::Device(..) => {}
        }
        drop(bytes);
        let mut core = child.core.write();
        if child.is_dir() {
            core.size = self.vol.block_size().into();
            core.disk.size = core.size;
        }
        self.inodes.store(handle, child, &mut core)
    }

    fn first_block(&self, handle: &Handle<'_>, caller: &Credentials, child: &Inode) -> Result<Buffer> {
        let mut core = child.core.write();
        let how = AllocHow { unwritten: false, depth: self.depth(caller), reserved: None };
        let ctx = self.map_ctx(child);
        match extent::allocate(&ctx, handle, &mut core.map, FileBlock(0), 1, how)?.mapping {
            Mapping::Written(block) => Ok(handle.create(block)?),
            Mapping::Hole | Mapping::Unwritten(_) => Err(Error::NoSpace),
        }
    }
}

/// The flags that a child of `kind` takes from its directory.
fn inherited_flags(above: u32, kind: FileType) -> u32 {
    let flags = above & flag::INHERITED;
    match kind {
        FileType::Directory => flags,
        FileType::Regular => flags & !(flag::DIRSYNC | flag::CASEFOLD | flag::PROJINHERIT),
        _ => flags & (flag::NODUMP | flag::NOATIME),
    }
}

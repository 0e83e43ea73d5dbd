//! Names for inode numbers: the paths of what is about to be reported.
//!
//! They are looked up before anything is repaired, so that a file that is about to go is told by its name.
//! The walk follows the tree as it stands on disk, believes nothing of it, and reads no more blocks than the
//! volume has.

use std::collections::{HashMap, HashSet, VecDeque};

use ext4_format::dirent::{DirBlock, DirFormat};
use ext4_format::inode::{BLOCK_AREA, FileType, Inode, flag};
use ext4_format::{BlockNo, Ino};

use crate::context::Context;
use crate::pass1::{self, inline};

/// More inodes than this stay without a path: each takes memory.
const MOST: usize = 1000;

/// A directory that names something, and the name.
type Named = HashMap<u32, (u32, String)>;

/// Paths of inodes, as far as the directories lead to them.
pub fn of(ctx: &Context, inodes: impl IntoIterator<Item = Ino>) -> HashMap<u32, String> {
    let wanted: HashSet<u32> = inodes.into_iter().map(Ino::get).take(MOST).collect();
    if wanted.is_empty() {
        return HashMap::new();
    }
    let mut walk = Walk { ctx, wanted, named: Named::new(), budget: ctx.geometry.blocks_count };
    walk.tree();
    let Walk { wanted, named, .. } = walk;
    wanted.into_iter().filter_map(|ino| Some((ino, path(ino, &named)?))).collect()
}

/// Takes an entry: inode, name, type code.
type Visit<'v> = dyn FnMut(&mut Walk<'_>, Ino, &[u8], u8) + 'v;

struct Walk<'c> {
    ctx: &'c Context,
    wanted: HashSet<u32>,
    /// Of directories, and of what is wanted.
    named: Named,
    /// Blocks that may still be read.
    budget: u64,
}

impl Walk<'_> {
    fn tree(&mut self) {
        let root = Ino::ROOT.get();
        let (mut queue, mut seen) = (VecDeque::from([root]), HashSet::from([root]));
        let mut missing = self.wanted.iter().filter(|ino| **ino != root).count();
        while let Some(dir) = queue.pop_front().filter(|_| missing > 0 && self.budget > 0) {
            self.entries(dir, &mut |walk, ino, name, kind| {
                let is_dir = match FileType::from_dirent(kind) {
                    Some(kind) => kind == FileType::Directory,
                    None => walk.ctx.read_inode(ino).is_ok_and(|inode| inode.is_dir()),
                };
                let wanted = walk.wanted.contains(&ino.get());
                if (is_dir || wanted) && !walk.named.contains_key(&ino.get()) && ino != Ino::ROOT {
                    let name = String::from_utf8_lossy(name).into_owned();
                    walk.named.insert(ino.get(), (dir, name));
                    missing -= usize::from(wanted);
                }
                if is_dir && seen.insert(ino.get()) {
                    queue.push_back(ino.get());
                }
            });
        }
    }

    /// Shows the entries of a directory: inode, name, type code.
    fn entries(&mut self, dir: u32, visit: &mut Visit<'_>) {
        let ctx = self.ctx;
        let Some(record) = Ino::new(dir).and_then(|ino| ctx.read_record(ino).ok()) else { return };
        let inode = Inode::decode_damaged(&record, &ctx.layout);
        if !inode.is_dir() {
            return;
        }
        let format = DirFormat { tail: false, ..DirFormat::new(&ctx.sb, inode.flags) };
        let mut show = |walk: &mut Self, bytes: &[u8]| {
            for entry in DirBlock::new(bytes, format).entries().map_while(Result::ok) {
                let Some(ino) = entry.ino.filter(|ino| ino.get() <= ctx.geometry.inodes_count) else {
                    continue;
                };
                if entry.name != b"." && entry.name != b".." {
                    visit(walk, ino, entry.name, entry.type_code);
                }
            }
        };
        if inode.has(flag::INLINE_DATA) {
            show(self, &inode.block[4..BLOCK_AREA]);
            show(self, &record[inline::rest(ctx, &record, &inode).unwrap_or_default()]);
            return;
        }
        for extent in pass1::extents_of(ctx, &inode) {
            for ahead in 0..u64::from(extent.len) {
                if self.budget == 0 {
                    return;
                }
                self.budget -= 1;
                let Ok(bytes) = ctx.disk.read(BlockNo(extent.start.0 + ahead)) else { return };
                show(self, &bytes);
            }
        }
    }
}

fn path(ino: u32, named: &Named) -> Option<String> {
    let mut parts = Vec::new();
    let mut at = ino;
    // No deeper than there are names: a loop ends here.
    while at != Ino::ROOT.get() && parts.len() <= named.len() {
        let (parent, name) = named.get(&at)?;
        parts.push(name.as_str());
        at = *parent;
    }
    parts.reverse();
    Some(format!("/{}", parts.join("/")))
}

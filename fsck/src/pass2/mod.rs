//! Pass 2: every directory, its blocks, entries and index.
//!
//! A directory is judged as a whole: what its entries say is counted only when nothing is left to ask. The
//! scan runs over directories in parallel as a dry run; what needs a question is looked at again by the
//! prompter.

mod block;
mod htree;

use std::sync::Mutex;

use ext4_format::dirent::DirFormat;
use ext4_format::inode::{Inode, flag};
use ext4_format::{BlockNo, FileBlock, Ino};

use crate::alloc;
use crate::context::{Context, lock};
use crate::encryption;
use crate::error::{Error, Result};
use crate::parallel;
use crate::pass1;
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, DryRun, Prompter};

/// A directory under check.
pub struct Directory {
    /// Its inode number.
    pub ino: Ino,
    /// Its inode.
    pub inode: Inode,
    /// How its blocks look.
    pub format: DirFormat,
    /// The policy of an encrypted one.
    pub policy: Option<Vec<u8>>,
}

/// What the entries of one directory say.
#[derive(Debug, Default)]
pub struct Said {
    /// Every inode named, once for each name, `.` and `..` left out.
    pub names: Vec<Ino>,
    /// Subdirectories named.
    pub children: std::collections::HashSet<Ino>,
    /// What `..` names.
    pub dotdot: u32,
    /// The names so far, to find duplicates.
    pub seen: Seen,
    /// Numbers that new names for duplicates had so far.
    pub renamed: usize,
}

/// The names of one directory, as numbers. Where all of them together would take too much memory they are
/// looked at in parts: those whose number leaves one remainder are remembered in one walk, the others in
/// further walks.
#[derive(Debug)]
pub struct Seen {
    numbers: std::collections::HashSet<u64>,
    part: u64,
    parts: u64,
}

impl Default for Seen {
    fn default() -> Seen {
        Seen { numbers: std::collections::HashSet::new(), part: 0, parts: 1 }
    }
}

impl Seen {
    /// Parts for a directory of `bytes`, when `most` names may be remembered.
    fn for_size(bytes: u64, most: u64) -> Seen {
        Seen { parts: bytes / LEAST_ENTRY / most + 1, ..Seen::default() }
    }

    /// Remembers a name of this part; false when it is there already.
    pub fn insert(&mut self, number: u64) -> bool {
        number % self.parts != self.part || self.numbers.insert(number)
    }

    /// Goes on to the next part; false after the last.
    fn next_part(&mut self) -> bool {
        self.numbers.clear();
        self.part += 1;
        self.part < self.parts
    }
}

/// Bytes that a directory spends on a name on average, at least.
const LEAST_ENTRY: u64 = 16;

/// Directories whose blocks are asked for together.
const DIRS_TOGETHER: usize = 16;

/// Bytes of a directory that are read at a time: directories can be large, and their blocks are neighbours.
const READ_AT_ONCE: u32 = 1 << 20;

/// Runs the pass.
pub fn run(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    let dirs: Vec<Ino> = lock(&ctx.found.dirs).keys().filter_map(|&ino| Ino::new(ino)).collect();
    let suspects: Mutex<Vec<Ino>> = Mutex::default();
    let total = dirs.len() as u64;
    prompter.progress(2, 0, total)?;
    let together: Vec<_> = dirs.chunks(DIRS_TOGETHER).collect();
    parallel::for_each(
        ctx.options.thread_count(),
        together.len() as u64,
        &mut |done| prompter.progress(2, total.min(done * DIRS_TOGETHER as u64), total),
        || (),
        |(), at| {
            let inodes = together[at as usize].iter().map(|&ino| Ok((ino, ctx.read_record(ino)?)));
            let inodes = inodes.collect::<Result<Vec<_>>>()?;
            inodes.iter().for_each(|(_, record)| announce(ctx, record));
            for (ino, record) in inodes {
                let mut said = Said::default();
                match check(ctx, &mut DryRun, ino, record, &mut said) {
                    Ok(()) if count(ctx, ino, &said, true) => {}
                    Ok(()) | Err(Error::Suspect) => lock(&suspects).push(ino),
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        },
    )?;
    let mut suspects = suspects.into_inner().unwrap_or_default();
    suspects.sort_unstable();
    prompter.learn_paths(ctx, suspects.iter().copied());
    for ino in suspects {
        let mut said = Said::default();
        check(ctx, prompter, ino, ctx.read_record(ino)?, &mut said)?;
        count(ctx, ino, &said, false);
    }
    Ok(())
}

/// Asks for the first blocks of a directory that is read soon.
fn announce(ctx: &Context, record: &[u8]) {
    let inode = Inode::decode_damaged(record, &ctx.layout);
    if inode.has(flag::INLINE_DATA) {
        return;
    }
    let mut left = READ_AT_ONCE / ctx.geometry.block_size;
    for extent in pass1::extents_of(ctx, &inode) {
        let count = extent.len.min(left);
        ctx.disk.will_need(extent.start, count.into());
        left -= count;
        if left == 0 {
            break;
        }
    }
}

/// Counts what a directory says. With `only_if_first`, nothing is counted when a subdirectory already has a
/// parent, which needs a question; true when it was counted.
fn count(ctx: &Context, ino: Ino, said: &Said, only_if_first: bool) -> bool {
    let mut dirs = lock(&ctx.found.dirs);
    if only_if_first {
        let parent_of = |child: &Ino| dirs.get(&child.get()).map_or(0, |dir| dir.parent);
        if said.children.iter().any(|child| parent_of(child) != 0) {
            return false;
        }
    }
    for child in &said.children {
        if let Some(dir) = dirs.get_mut(&child.get())
            && dir.parent == 0
        {
            dir.parent = ino.get();
        }
    }
    if let Some(dir) = dirs.get_mut(&ino.get()) {
        dir.dotdot = said.dotdot;
    }
    drop(dirs);
    // A directory's own `.` is a link, and each `..` is a link to the parent it names.
    ctx.found.inodes.add_names(ino, 1);
    if let Some(parent) = Ino::new(said.dotdot) {
        ctx.found.inodes.add_names(parent, 1);
    }
    said.names.iter().for_each(|name| ctx.found.inodes.add_names(*name, 1));
    true
}

fn check(ctx: &Context, ask: &mut dyn Ask, ino: Ino, record: Vec<u8>, said: &mut Said) -> Result<()> {
    let inode = Inode::decode_damaged(&record, &ctx.layout);
    let format = DirFormat::new(&ctx.sb, inode.flags);
    let policy = if inode.has(flag::ENCRYPT) { encryption::policy(ctx, ino)? } else { None };
    let inline = inode.has(flag::INLINE_DATA);
    let dir = Directory { ino, inode, format, policy };
    if inline {
        return block::check_inline(ctx, ask, &dir, record, said);
    }
    let mut index = htree::Index::new(&dir);
    let extents = pass1::extents_of(ctx, &dir.inode);
    let mapped: u64 = extents.iter().map(|extent| u64::from(extent.len)).sum();
    said.seen = Seen::for_size(mapped * u64::from(ctx.geometry.block_size), ctx.names_kept);
    let blocks = dir.inode.size / u64::from(ctx.geometry.block_size);
    let mut next = 0;
    let mut buf = Vec::new();
    for extent in &extents {
        let first = u64::from(extent.first.0);
        fill_holes(ctx, ask, &dir, next..first.min(blocks))?;
        let mut at = 0;
        while at < extent.len {
            let count = (extent.len - at).min(READ_AT_ONCE / ctx.geometry.block_size);
            if !ctx.spend_dir(count.into()) {
                return Ok(());
            }
            buf.resize(count as usize * ctx.disk.block_size(), 0);
            let start = BlockNo(extent.start.0 + u64::from(at));
            ctx.disk.read_into(start, &mut buf)?;
            for (ahead, bytes) in buf.chunks_exact_mut(ctx.disk.block_size()).enumerate() {
                let place = Place {
                    file_block: FileBlock(extent.first.0 + at + ahead as u32),
                    block: BlockNo(start.0 + ahead as u64),
                };
                block::check(ctx, ask, &dir, place, bytes, &mut index, said)?;
            }
            at += count;
        }
        next = extent.end();
    }
    fill_holes(ctx, ask, &dir, next..blocks)?;
    index.finish(ctx, ask, &dir)?;
    while said.seen.next_part() {
        for extent in &extents {
            for ahead in 0..extent.len {
                let block = BlockNo(extent.start.0 + u64::from(ahead));
                let file_block = FileBlock(extent.first.0 + ahead);
                block::check_names(ctx, ask, &dir, Place { file_block, block }, said)?;
            }
        }
    }
    Ok(())
}

/// Where a block of a directory lies.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its number in the directory.
    pub file_block: FileBlock,
    /// Its number on the device.
    pub block: BlockNo,
}

/// Blocks added to one directory in one round.
const MAX_FILLED: usize = 4096;

/// A directory has no holes: each gets an empty block.
fn fill_holes(ctx: &Context, ask: &mut dyn Ask, dir: &Directory, holes: std::ops::Range<u64>) -> Result<()> {
    for at in holes.take(MAX_FILLED) {
        if ask.ask(Problem::of(Code::DirHole, dir.ino).values(at, 0_u32))? {
            alloc::append_dir_block(ctx, dir.ino, at as u32)?;
        }
    }
    Ok(())
}

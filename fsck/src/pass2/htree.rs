//! The index of one directory: its blocks are met in file order, and judged together when all have been seen.

use std::collections::HashMap;

use ext4_format::dirent::{self, DirEntry};
use ext4_format::hash::{HashVersion, name_hash};
use ext4_format::htree::{self, DxEntry, Kind, max_levels};
use ext4_format::inode::flag;

use super::{Directory, Place};
use crate::context::{Context, lock};
use crate::error::Result;
use crate::problem::{Code, Problem};
use crate::prompt::Ask;

/// What a block of a directory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Entries.
    Leaf,
    /// Block 0 of an indexed directory.
    Root,
    /// Another index block.
    Node,
}

/// The index of one directory as far as it has been seen.
pub struct Index {
    indexed: bool,
    /// Nothing more is said about a broken index.
    broken: bool,
    version: Option<HashVersion>,
    levels: u8,
    nodes: HashMap<u32, Vec<DxEntry>>,
    /// Smallest and largest hash in each leaf; none for an empty one.
    leaves: HashMap<u32, Option<(u32, u32)>>,
}

impl Index {
    /// The index that the directory's flag promises.
    pub fn new(dir: &Directory) -> Index {
        Index { indexed: dir.inode.has(flag::INDEX), ..Index::none() }
    }

    /// No index.
    pub fn none() -> Index {
        Index {
            indexed: false,
            broken: false,
            version: None,
            levels: 0,
            nodes: HashMap::new(),
            leaves: HashMap::new(),
        }
    }

    /// Says what a block is and reads it if it belongs to the index.
    pub fn classify(
        &mut self,
        ctx: &Context,
        ask: &mut dyn Ask,
        dir: &Directory,
        place: Place,
        bytes: &mut [u8],
    ) -> Result<Shape> {
        if !self.indexed {
            return Ok(Shape::Leaf);
        }
        let tail = dir.format.tail;
        let at = place.file_block.0;
        let kind = if at == 0 { Kind::Root } else { Kind::Node };
        let size = bytes.len();
        let rec_len =
            |at: usize| dirent::decode_rec_len(u16::from_le_bytes([bytes[at], bytes[at + 1]]), size);
        let looks_like_node = bytes[..4] == [0; 4] && rec_len(4) == size && bytes[6] == 0;
        let parsed = htree::Index::parse(bytes, kind, tail);
        let index = match (kind, parsed) {
            (Kind::Node, _) if !looks_like_node => {
                self.leaves.insert(at, None);
                return Ok(Shape::Leaf);
            }
            // Without checksums an empty leaf looks like a node, but for its limit.
            (Kind::Node, Err(_)) if !tail => {
                self.leaves.insert(at, None);
                return Ok(Shape::Leaf);
            }
            (_, Err(corruption)) => {
                let code = if at == 0 { Code::IndexRoot } else { Code::IndexNode };
                let problem = Problem::of(code, dir.ino).named(corruption.field).values(at, 0_u32);
                self.give_up(ctx, ask, dir, problem)?;
                let leaf = at == 0 && (!tail || dirent::has_tail(bytes)) && rec_len(16) != size - 12;
                return Ok(match at {
                    0 if leaf => Shape::Leaf,
                    0 => Shape::Root,
                    _ => Shape::Node,
                });
            }
            (_, Ok(index)) => index,
        };
        let entries: Vec<DxEntry> = index.entries().collect();
        let shape = if at == 0 { Shape::Root } else { Shape::Node };
        if let Some(info) = index.info() {
            let version = HashVersion::from_raw(info.hash_version).filter(|version| {
                let siphash = *version == HashVersion::SipHash;
                info.hash_version < 3 || siphash == dir.format.hashed && siphash
            });
            self.version = version.map(|version| version.with_unsigned(ctx.sb.hash_unsigned()));
            self.levels = info.indirect_levels;
            let problem = if version.is_none() {
                Some(Problem::of(Code::IndexHash, dir.ino).values(info.hash_version, 0_u32))
            } else if info.indirect_levels >= max_levels(ctx.layout.large_dir) {
                Some(Problem::of(Code::IndexDepth, dir.ino).values(info.indirect_levels, 0_u32))
            } else if info.unused_flags & 1 != 0 {
                Some(Problem::of(Code::IndexRoot, dir.ino).named("unused_flags"))
            } else {
                None
            };
            if let Some(problem) = problem {
                self.give_up(ctx, ask, dir, problem)?;
                return Ok(shape);
            }
        }
        let generation = dir.inode.generation;
        if ctx.csum.verify_htree_block(bytes, kind.entries_offset(), dir.ino, generation).is_err()
            && ask.ask(Problem::of(Code::IndexChecksum, dir.ino).values(at, 0_u32))?
        {
            ctx.csum.set_htree_block(bytes, kind.entries_offset(), dir.ino, generation);
            ctx.disk.write(place.block, bytes)?;
        }
        self.nodes.insert(at, entries);
        Ok(shape)
    }

    /// Notes the hash of a name in a leaf.
    pub fn name(&mut self, ctx: &Context, dir: &Directory, place: Place, entry: &DirEntry<'_>) {
        if !self.indexed || self.broken {
            return;
        }
        let hash = match self.version {
            Some(HashVersion::SipHash) => entry.stored_hash.map(|(major, _)| major & !1),
            Some(version) => {
                let name = ctx.folded(dir.inode.flags, entry.name);
                name_hash(version, ctx.sb.hash_seed(), &name).map(|hash| hash.major)
            }
            None => None,
        };
        if let (Some(hash), Some(leaf)) = (hash, self.leaves.get_mut(&place.file_block.0)) {
            *leaf = Some(leaf.map_or((hash, hash), |(low, high)| (low.min(hash), high.max(hash))));
        }
    }

    /// Judges the whole, once every block was seen.
    pub fn finish(&mut self, ctx: &Context, ask: &mut dyn Ask, dir: &Directory) -> Result<()> {
        if !self.indexed || self.broken {
            return Ok(());
        }
        let Some(root) = self.nodes.get(&0).cloned() else {
            let problem = Problem::of(Code::IndexRoot, dir.ino).named("missing");
            return self.give_up(ctx, ask, dir, problem);
        };
        let mut named: HashMap<u32, u32> = HashMap::new();
        let wrong = self.prompter(dir, &root, self.levels, 0, u32::MAX, &mut named).or_else(|| {
            let mut all: Vec<u32> = self.leaves.keys().chain(self.nodes.keys()).copied().collect();
            all.sort_unstable();
            all.into_iter().filter(|&at| at != 0).find_map(|at| {
                let times = named.get(&at).copied().unwrap_or(0);
                (times != 1).then(|| Problem::of(Code::IndexReference, dir.ino).values(at, times))
            })
        });
        match wrong {
            Some(problem) => self.give_up(ctx, ask, dir, problem),
            None => Ok(()),
        }
    }

    /// Checks what the entries of one index block lead to. Depth is bounded by `levels`, breadth because each
    /// block may be named once.
    fn prompter(
        &self,
        dir: &Directory,
        entries: &[DxEntry],
        levels: u8,
        low: u32,
        high: u32,
        named: &mut HashMap<u32, u32>,
    ) -> Option<Problem> {
        let mut last = low;
        for (i, entry) in entries.iter().enumerate() {
            let at = entry.block.0;
            let times = named.entry(at).or_default();
            *times += 1;
            if *times > 1 {
                return Some(Problem::of(Code::IndexReference, dir.ino).values(at, *times));
            }
            let from = if i == 0 { low } else { entry.hash };
            let to = entries.get(i + 1).map_or(high, |next| next.hash);
            if from & !1 < last & !1 || from & !1 > to | 1 {
                return Some(Problem::of(Code::IndexUnordered, dir.ino).values(at, 0_u32));
            }
            last = from;
            if levels > 0 {
                let Some(children) = self.nodes.get(&at).filter(|_| at != 0) else {
                    return Some(Problem::of(Code::IndexReference, dir.ino).values(at, 0_u32));
                };
                if let Some(problem) = self.prompter(dir, children, levels - 1, from, to, named) {
                    return Some(problem);
                }
                continue;
            }
            match self.leaves.get(&at) {
                None => return Some(Problem::of(Code::IndexReference, dir.ino).values(at, 0_u32)),
                Some(None) => {}
                Some(Some((least, most))) => {
                    let above = to != u32::MAX && (*most > to & !1 || (*most == to & !1 && to & 1 == 0));
                    if *least < from & !1 || above {
                        return Some(Problem::of(Code::IndexOrder, dir.ino).values(at, 0_u32));
                    }
                }
            }
        }
        None
    }

    fn give_up(&mut self, ctx: &Context, ask: &mut dyn Ask, dir: &Directory, problem: Problem) -> Result<()> {
        if ask.ask(problem)? {
            lock(&ctx.found.rebuild).push(dir.ino);
        }
        self.broken = true;
        Ok(())
    }
}

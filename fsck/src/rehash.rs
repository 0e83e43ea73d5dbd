//! Directories made anew: an index that is wrong (or wanted, `-D`) is built again from the entries.
//!
//! First the directory becomes a linear one in place, which needs nothing and is always right. Then, if it
//! has more than one block and the volume has indexes, its entries are sorted by hash, packed and indexed.

use ext4_format::dirent::{DirBlock, DirBlockMut, DirFormat, NewEntry, decode_rec_len, has_tail};
use ext4_format::extent::Extent;
use ext4_format::features::Compat;
use ext4_format::hash::{Hash, HashVersion, name_hash};
use ext4_format::htree::{DxEntry, INFO_LEN, Index, IndexMut, Kind, RootInfo, RootShape, max_levels};
use ext4_format::inode::{FileType, flag};
use ext4_format::{BlockNo, FileBlock, Ino};

use crate::alloc;
use crate::context::{Context, lock};
use crate::error::Result;
use crate::pass1;
use crate::prompt::Prompter;

/// Rebuilds what the passes asked for.
pub fn run(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    let mut all: Vec<Ino> = lock(&ctx.found.rebuild).drain(..).collect();
    all.sort_unstable();
    all.dedup();
    let total = all.len() as u64;
    for (done, ino) in all.into_iter().enumerate() {
        prompter.progress(4, done as u64, total)?;
        rebuild(ctx, ino)?;
    }
    Ok(())
}

/// Packs a directory and gives it an index when it is worth one.
///
/// # Errors
/// The device's.
pub fn rebuild(ctx: &Context, ino: Ino) -> Result<()> {
    let inode = ctx.read_inode(ino)?;
    if !inode.is_dir() || inode.has(flag::INLINE_DATA) {
        return Ok(());
    }
    linearize(ctx, ino)?;
    build(ctx, ino)
}

/// Makes an indexed directory a linear one: index blocks become empty blocks.
pub fn linearize(ctx: &Context, ino: Ino) -> Result<()> {
    let mut inode = ctx.read_inode(ino)?;
    let format = DirFormat::new(&ctx.sb, inode.flags);
    if !inode.has(flag::INDEX) {
        return Ok(());
    }
    let parent =
        lock(&ctx.found.dirs).get(&ino.get()).and_then(|dir| Ino::new(dir.dotdot)).unwrap_or(Ino::ROOT);
    for extent in pass1::extents_of(ctx, &inode) {
        for ahead in 0..extent.len {
            let block = BlockNo(extent.start.0 + u64::from(ahead));
            let mut bytes = ctx.disk.read(block)?;
            let at = extent.first.0 + ahead;
            // The kernel leaves a stale tail in a root that was a leaf once, so only the records tell.
            let root = at == 0 && hides_all(&bytes, 16);
            let node = at > 0
                && hides_all(&bytes, 4)
                && (format.tail || Index::parse(&bytes, Kind::Node, false).is_ok());
            if root || (at == 0 && format.tail && !has_tail(&bytes)) {
                let _ = DirBlockMut::init_first(&mut bytes, format, ino, parent);
            } else if node || (format.tail && !has_tail(&bytes)) {
                let _ = DirBlockMut::init(&mut bytes, format);
            } else {
                continue;
            }
            ctx.csum.set_dir_block(&mut bytes, ino, inode.generation);
            ctx.disk.write(block, &bytes)?;
        }
    }
    inode.flags &= !flag::INDEX;
    ctx.write_inode(ino, &inode)
}

/// Whether the record whose length stands at `at` reaches to the end of the block: 16 is a root's `..`, 4 a
/// node's only record.
#[must_use]
pub fn hides_all(bytes: &[u8], at: usize) -> bool {
    let start = at - 4;
    let rec_len = decode_rec_len(u16::from_le_bytes([bytes[at], bytes[at + 1]]), bytes.len());
    start + rec_len == bytes.len()
}

struct Entry {
    hash: Hash,
    name: Vec<u8>,
    ino: Ino,
    kind: FileType,
}

/// Packs a linear directory and gives it an index when it has more than one block.
fn build(ctx: &Context, ino: Ino) -> Result<()> {
    let mut inode = ctx.read_inode(ino)?;
    let format = DirFormat::new(&ctx.sb, inode.flags);
    let raw_version = match ctx.sb.hash_version() {
        version @ 0..=2 => version,
        _ => 1,
    };
    let version = HashVersion::from_raw(raw_version)
        .unwrap_or(HashVersion::HalfMd4)
        .with_unsigned(ctx.sb.hash_unsigned());
    // The hashes of encrypted and casefolded names need a key: such directories stay linear.
    if !ctx.sb.compat().has(Compat::DIR_INDEX) || format.hashed {
        return Ok(());
    }
    let extents = pass1::extents_of(ctx, &inode);
    let mut entries = Vec::new();
    let mut parent = Ino::ROOT;
    for extent in &extents {
        for ahead in 0..u64::from(extent.len) {
            let bytes = ctx.disk.read(BlockNo(extent.start.0 + ahead))?;
            for entry in DirBlock::new(&bytes, format).entries().map_while(std::result::Result::ok) {
                let Some(target) = entry.ino else { continue };
                match entry.name {
                    b"." => {}
                    b".." => parent = target,
                    name => entries.push(Entry {
                        hash: name_hash(version, ctx.sb.hash_seed(), &ctx.folded(inode.flags, name))
                            .unwrap_or_default(),
                        name: name.to_vec(),
                        ino: target,
                        kind: entry.file_type().unwrap_or(FileType::Regular),
                    }),
                }
            }
        }
    }
    let blocks: u64 = extents.iter().map(|extent| u64::from(extent.len)).sum();
    if blocks < 2 {
        return Ok(());
    }
    entries.sort_by(|a, b| (a.hash, &a.name).cmp(&(b.hash, &b.name)));
    let Some(images) = images(ctx, ino, parent, format, raw_version, &entries) else { return Ok(()) };
    let indexed = images.len() > 1;
    if images.len() as u64 > blocks {
        return Ok(());
    }
    let mut places =
        extents.iter().flat_map(|e| (0..u64::from(e.len)).map(|ahead| BlockNo(e.start.0 + ahead)));
    let mut kept: Vec<Extent> = Vec::new();
    for (at, (kind, mut bytes)) in images.into_iter().enumerate() {
        let Some(block) = places.next() else { break };
        match kind {
            Some(kind) => ctx.csum.set_htree_block(&mut bytes, kind.entries_offset(), ino, inode.generation),
            None => ctx.csum.set_dir_block(&mut bytes, ino, inode.generation),
        }
        ctx.disk.write(block, &bytes)?;
        let one = Extent { first: FileBlock(at as u32), len: 1, start: block, unwritten: false };
        match kept.last_mut() {
            Some(last) if last.joins(&one) => last.len += 1,
            _ => kept.push(one),
        }
    }
    for spare in places {
        if ctx.geometry.cluster_ratio == 1 {
            ctx.found.blocks.release(spare, 1);
        }
    }
    inode.size =
        kept.iter().map(|extent| u64::from(extent.len)).sum::<u64>() * u64::from(ctx.geometry.block_size);
    if indexed {
        inode.flags |= flag::INDEX;
    }
    alloc::set_extents(ctx, ino, &mut inode, &kept)?;
    ctx.write_inode(ino, &inode)
}

type Image = (Option<Kind>, Vec<u8>);

/// The blocks of the directory in order: root, nodes, leaves; or one linear block when all fits.
fn images(
    ctx: &Context,
    ino: Ino,
    parent: Ino,
    format: DirFormat,
    version: u8,
    entries: &[Entry],
) -> Option<Vec<Image>> {
    let size = ctx.disk.block_size();
    let new = |entry: &'_ Entry| -> (Ino, FileType) { (entry.ino, entry.kind) };
    let whole = 24 + entries.iter().map(|entry| format.entry_size(entry.name.len())).sum::<usize>();
    if whole <= format.usable(size) {
        let mut bytes = vec![0; size];
        let mut block = DirBlockMut::init_first(&mut bytes, format, ino, parent);
        for entry in entries {
            let (target, kind) = new(entry);
            block.insert(&NewEntry { ino: target, file_type: kind, name: &entry.name }).ok()??;
        }
        return Some(vec![(None, bytes)]);
    }
    let mut leaves: Vec<(u32, Vec<u8>)> = Vec::new();
    let mut rest = entries;
    let mut last_hash = None;
    while !rest.is_empty() {
        let mut bytes = vec![0; size];
        let mut block = DirBlockMut::init(&mut bytes, format);
        let taken = block.fill(rest.iter().map(|entry| NewEntry {
            ino: entry.ino,
            file_type: entry.kind,
            name: &entry.name,
        }));
        if taken == 0 {
            return None;
        }
        let first = rest[0].hash.major;
        let continued = u32::from(last_hash == Some(first));
        leaves.push((first | continued, bytes));
        last_hash = rest.get(taken - 1).map(|entry| entry.hash.major);
        rest = &rest[taken..];
    }
    index_over(ctx, ino, parent, format, version, leaves)
}

fn index_over(
    ctx: &Context,
    ino: Ino,
    parent: Ino,
    format: DirFormat,
    version: u8,
    leaves: Vec<(u32, Vec<u8>)>,
) -> Option<Vec<Image>> {
    let size = ctx.disk.block_size();
    let (in_root, in_node) = (Kind::Root.limit(size, format.tail), Kind::Node.limit(size, format.tail));
    // How many nodes each level needs, from the leaves upwards.
    let mut counts = vec![leaves.len()];
    while counts.last().is_some_and(|&count| count > in_root) {
        counts.push(counts.last()?.div_ceil(in_node));
    }
    let levels = counts.len() - 1;
    if levels >= usize::from(max_levels(ctx.layout.large_dir)) {
        return None;
    }
    let shape = RootShape { itself: ino, parent, filetype: format.filetype, tail: format.tail };
    let info = RootInfo {
        hash_version: version,
        info_length: INFO_LEN,
        indirect_levels: levels as u8,
        unused_flags: 0,
    };
    // Blocks are numbered root first, then the levels downwards.
    let mut first_of = vec![0_u32; counts.len()];
    let mut next = 1;
    for level in (0..counts.len()).rev() {
        first_of[level] = next;
        next += counts[level] as u32;
    }
    let mut hashes: Vec<u32> = leaves.iter().map(|leaf| leaf.0).collect();
    let mut levels_up: Vec<Vec<Image>> = vec![leaves.into_iter().map(|(_, bytes)| (None, bytes)).collect()];
    for level in 1..counts.len() {
        let mut nodes = Vec::new();
        let mut above = Vec::new();
        for (part, chunk) in hashes.chunks(in_node).enumerate() {
            let child = |at: usize| FileBlock(first_of[level - 1] + (part * in_node + at) as u32);
            let mut bytes = vec![0; size];
            let mut node = IndexMut::init_node(&mut bytes, format.tail, child(0));
            for (at, &hash) in chunk.iter().enumerate().skip(1) {
                if !node.insert(at, DxEntry { hash, block: child(at) }) {
                    return None;
                }
            }
            above.push(chunk[0]);
            nodes.push((Some(Kind::Node), bytes));
        }
        hashes = above;
        levels_up.push(nodes);
    }
    let mut bytes = vec![0; size];
    let top = first_of[counts.len() - 1];
    let mut root = IndexMut::init_root(&mut bytes, &shape, info, FileBlock(top));
    for (at, &hash) in hashes.iter().enumerate().skip(1) {
        if !root.insert(at, DxEntry { hash, block: FileBlock(top + at as u32) }) {
            return None;
        }
    }
    let mut all = vec![(Some(Kind::Root), bytes)];
    all.extend(levels_up.into_iter().rev().flatten());
    Some(all)
}

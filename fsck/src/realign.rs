//! Files of a volume with larger clusters whose extents break the rules of allocation: a cluster of the file
//! lies in one cluster of the device, at the same place in it, and no other shares that. What breaks them
//! moves to clusters of its own.

use std::collections::HashMap;

use ext4_format::extent::Extent;
use ext4_format::{BlockNo, FileBlock, Ino};

use crate::alloc;
use crate::context::{Context, lock};
use crate::error::Result;
use crate::pass1;
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, Prompter};

/// One block of a file: its number there, its place on the device, and whether it was never written.
type Piece = (u32, u64, bool);

/// Moves what pass 1 found.
///
/// # Errors
/// The device's.
pub fn run(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    for ino in std::mem::take(&mut *lock(&ctx.found.to_realign)) {
        let clusters = clusters(ctx, ino)?;
        let misplaced = misplaced(ctx, &clusters);
        let needed = misplaced.iter().filter(|misplaced| **misplaced).count() as u64;
        // A tree of its own takes a block for every few hundred extents.
        if needed + clusters.len() as u64 / 64 + 8 > ctx.found.blocks.free_count() {
            prompter.ask(Problem::of(Code::NoRoom, ino))?;
            continue;
        }
        move_clusters(ctx, ino, clusters, &misplaced)?;
    }
    Ok(())
}

/// The blocks of a file, by its clusters.
fn clusters(ctx: &Context, ino: Ino) -> Result<Vec<Vec<Piece>>> {
    let mut clusters: Vec<Vec<Piece>> = Vec::new();
    let mut at = None;
    for extent in pass1::extents_of(ctx, &ctx.read_inode(ino)?) {
        for ahead in 0..extent.len {
            let block = extent.first.0 + ahead;
            let cluster = block / ctx.geometry.cluster_ratio;
            if at != Some(cluster) {
                at = Some(cluster);
                clusters.push(Vec::new());
            }
            if let Some(pieces) = clusters.last_mut() {
                pieces.push((block, extent.start.0 + u64::from(ahead), extent.unwritten));
            }
        }
    }
    Ok(clusters)
}

/// Which clusters of a file cannot stay: the first that lies well on a cluster of the device keeps it.
fn misplaced(ctx: &Context, clusters: &[Vec<Piece>]) -> Vec<bool> {
    let ratio = u64::from(ctx.geometry.cluster_ratio);
    let mut taken: HashMap<u64, usize> = HashMap::new();
    for (number, pieces) in clusters.iter().enumerate() {
        let base = pieces[0].1 - (pieces[0].1 - u64::from(ctx.geometry.first_data_block)) % ratio;
        if pieces.iter().all(|piece| piece.1 == base + u64::from(piece.0) % ratio) {
            taken.entry(base).or_insert(number);
        }
    }
    let kept: std::collections::HashSet<usize> = taken.into_values().collect();
    (0..clusters.len()).map(|number| !kept.contains(&number)).collect()
}

fn move_clusters(ctx: &Context, ino: Ino, clusters: Vec<Vec<Piece>>, misplaced: &[bool]) -> Result<()> {
    let ratio = ctx.geometry.cluster_ratio;
    let mut all: Vec<Extent> = Vec::new();
    for (pieces, misplaced) in clusters.into_iter().zip(misplaced) {
        let new = if *misplaced { Some(alloc::cluster(ctx, BlockNo(pieces[0].1))?) } else { None };
        for (block, place, unwritten) in pieces {
            let start = match new {
                Some(new) => {
                    let start = BlockNo(new.0 + u64::from(block % ratio));
                    ctx.disk.write(start, &ctx.disk.read(BlockNo(place))?)?;
                    start
                }
                None => BlockNo(place),
            };
            let one = Extent { first: FileBlock(block), len: 1, start, unwritten };
            match all.last_mut() {
                Some(last) if last.joins(&one) => last.len += 1,
                _ => all.push(one),
            }
        }
    }
    let mut inode = ctx.read_inode(ino)?;
    alloc::set_extents(ctx, ino, &mut inode, &all)?;
    ctx.write_inode(ino, &inode)
}

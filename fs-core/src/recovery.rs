//! Where the journal lies, and whether its log may be replayed.
//!
//! A log and its inode are bytes from the disk like all others: they could have recovery write over the
//! volume's own metadata, over what lies behind the volume on its device, or over the superblock that
//! gives these bounds. So the volume is looked at as the replay would leave it, and a contradiction is
//! refused before anything is written.

use blockdev::BlockDevice;
use ext4_format::superblock::SuperBlock;
use ext4_format::{BlockNo, Corruption, FileBlock, What, locate};
use jbd2::recovery::Overlay;
use jbd2::{LogExtent, LogLocation};

use crate::error::{Error, Result};

/// The runs of the journal's blocks; `None` without a journal. They are read without the help of anything
/// that the log may yet have to repair: the journal's inode never changes.
///
/// # Errors
/// A damaged inode or map, and those of the device.
pub fn locate(dev: &dyn BlockDevice, sb: &SuperBlock) -> Result<Option<LogLocation>> {
    let Some(ino) = sb.journal_ino() else { return Ok(None) };
    let mut read = |block| read_block(dev, sb, block);
    let inode = locate::inode(sb, ino, &mut read)?;
    let runs = locate::runs(sb, &inode, Some(ino), &mut read)?;
    let extents = runs.iter().map(|r| LogExtent { first: r.first.0, len: r.len, start: r.start }).collect();
    let log = LogLocation { extents };
    log.check(dev, sb.block_size())?;
    Ok(Some(log))
}

/// Judges what a replay would leave: `sb` is the superblock then, `block_size` the volume's until now. The
/// journal lies where it did, apart from the volume's metadata, and nothing outside the volume is written.
///
/// # Errors
/// The contradiction, and the device's.
pub fn judge(replayed: &Overlay, block_size: u32, sb: &SuperBlock, log: &LogLocation) -> Result<()> {
    if sb.block_size() != block_size {
        let c = Corruption::new(What::SuperBlock, "block size", sb.block_size().into(), block_size.into());
        return Err(c.into());
    }
    let first = u64::from(sb.raw().first_data_block.get());
    replayed.replay().confine(first..sb.blocks_count().0)?;
    if locate(replayed, sb)?.as_ref() != Some(log) {
        let ino = sb.journal_ino().map_or(0, |ino| ino.get());
        return Err(Corruption::new(What::JournalSuperBlock, "place", ino.into(), 0).into());
    }
    apart_from_metadata(replayed, sb, log)
}

/// Refuses a journal that lies on the volume's own metadata, as the kernel does.
///
/// # Errors
/// The block that both claim, and the device's.
pub fn apart_from_metadata(dev: &dyn BlockDevice, sb: &SuperBlock, log: &LogLocation) -> Result<()> {
    let run = |e: &LogExtent| locate::Run { first: FileBlock(e.first), len: e.len, start: e.start };
    let runs: Vec<locate::Run> = log.extents.iter().map(run).collect();
    locate::apart_from_metadata(sb, &runs, &mut |block| read_block(dev, sb, block))
}

fn read_block(dev: &dyn BlockDevice, sb: &SuperBlock, block: BlockNo) -> Result<Vec<u8>> {
    let size = sb.block_size();
    let mut bytes = vec![0; size as usize];
    dev.read_at(block.0.saturating_mul(size.into()), &mut bytes)?;
    Ok::<_, Error>(bytes)
}

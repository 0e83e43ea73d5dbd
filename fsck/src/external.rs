//! A journal on a device of its own: found, recognised by its number, and replayed.
//!
//! The replay knows one device. It is given the volume with the journal's device behind its end, so that a
//! log block is a block like any other, and what the log wants written home lies where it always lies.

use std::path::PathBuf;
use std::sync::Arc;

use blockdev::{BlockDevice, Direct, OpenOptions};
use ext4_format::BlockNo;
use ext4_format::features::Incompat;
use ext4_format::jbd2 as format;
use ext4_format::superblock::{MAGIC, RawSuperBlock, SUPERBLOCK_LEN, SUPERBLOCK_OFFSET};
use jbd2::recovery::{LogExtent, LogLocation};
use zerocopy::FromBytes;

use crate::context::{Context, lock};
use crate::error::{Error, Result};
use crate::journal::Outcome;
use crate::overlay::Overlay;
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, Prompter};
use crate::replay;

/// Checks and replays the journal of a volume that has it on another device.
///
/// # Errors
/// [`Error::Journal`] without that device, for a device that is another one, and for a log that cannot be
/// replayed.
pub fn check(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<Outcome> {
    let uuid = ctx.sb.raw().journal_uuid;
    let path = match &ctx.options.journal {
        Some(path) => path.clone(),
        None => by_uuid(&uuid).ok_or_else(|| {
            prompter.say("The journal lies on another device, which is not here (name it with -j).");
            Error::JournalDevice("it was not found".to_owned())
        })?,
    };
    let how = OpenOptions {
        read_only: !ctx.options.may_write(),
        offset: 0,
        direct: Direct::Never,
        exclusive: ctx.options.may_write(),
        mounted: false,
    };
    let device = blockdev::open(&path, &how).map_err(|error| Error::JournalDevice(error.to_string()))?;
    recognise(&*device, &uuid)?;
    let device: Arc<dyn BlockDevice> = match prompter.overlaid {
        true => Arc::new(Overlay::new(device, &ctx.options.scratch_folder())?),
        false => device,
    };
    let block_size = u64::from(ctx.geometry.block_size);
    let seam = ctx.disk.size().next_multiple_of(block_size);
    let both: Arc<dyn BlockDevice> =
        Arc::new(Joined { volume: Arc::clone(ctx.disk.device()), journal: device, seam });
    // Behind its own superblock stands that of the log, which counts blocks from the start of the device.
    let base = seam / block_size;
    let own = 1024 / block_size as u32 + 1;
    let first = BlockNo(base + u64::from(own));
    let mut bytes = vec![0; block_size as usize];
    both.read_at(first.0 * block_size, &mut bytes)?;
    let parsed =
        bytes.first_chunk().ok_or("length").and_then(|b| format::SuperBlock::parse(b).map_err(|c| c.field));
    let log = parsed.map_err(|why| Error::JournalDevice(format!("{}: {why}", path.display())))?;
    let blocks = both.geometry().size / block_size - base;
    if log.block_size() != ctx.geometry.block_size
        || u64::from(log.len_blocks()) > blocks
        || log.len_blocks() <= own + 1
    {
        return Err(Error::JournalDevice(format!("{}: size", path.display())));
    }
    // The replay wants the superblock first; what stands in front of it on the device is no part of the log.
    let extents = vec![
        LogExtent { first: 0, len: 1, start: first },
        LogExtent { first: 1, len: own, start: BlockNo(base) },
        LogExtent { first: own + 1, len: log.len_blocks() - own - 1, start: BlockNo(first.0 + 1) },
    ];
    // The overlay of an earlier look took with it that the log is empty now.
    let seen = prompter.overlaid && !ctx.sb.incompat().has(Incompat::RECOVER);
    if log.start().is_none() || seen {
        lock(&ctx.next_sb).set_needs_recovery(false);
        return Ok(Outcome::AsItWas);
    }
    if !ctx.options.may_write() && !prompter.overlaid {
        prompter.ask(Problem::new(Code::JournalSkipped))?;
        return Ok(Outcome::AsItWas);
    }
    replay::run(ctx, prompter, &both, &LogLocation { extents })
}

/// The device of a journal, by the names that udev keeps.
fn by_uuid(uuid: &[u8; 16]) -> Option<PathBuf> {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    let path = PathBuf::from("/dev/disk/by-uuid").join(parts.join("-"));
    path.exists().then_some(path)
}

/// Whether a device is the journal with this number.
fn recognise(device: &dyn BlockDevice, uuid: &[u8; 16]) -> Result<()> {
    let mut bytes = [0; SUPERBLOCK_LEN];
    device.read_at(SUPERBLOCK_OFFSET, &mut bytes)?;
    let raw = RawSuperBlock::read_from_bytes(&bytes[..]).ok();
    let raw = raw.filter(|raw| {
        raw.magic.get() == MAGIC && Incompat(raw.feature_incompat.get()).has(Incompat::JOURNAL_DEV)
    });
    match raw {
        None => Err(Error::JournalDevice("the one named holds no journal".to_owned())),
        Some(raw) if raw.uuid != *uuid => {
            Err(Error::JournalDevice("the one named is another volume's journal".to_owned()))
        }
        Some(_) => Ok(()),
    }
}

/// A volume, and the device of its journal behind it.
struct Joined {
    volume: Arc<dyn BlockDevice>,
    journal: Arc<dyn BlockDevice>,
    /// Where the journal's device begins, in bytes.
    seam: u64,
}

impl Joined {
    fn part(&self, offset: u64) -> (&dyn BlockDevice, u64) {
        match offset.checked_sub(self.seam) {
            Some(offset) => (&*self.journal, offset),
            None => (&*self.volume, offset),
        }
    }
}

impl BlockDevice for Joined {
    fn geometry(&self) -> blockdev::DeviceGeometry {
        let volume = self.volume.geometry();
        blockdev::DeviceGeometry { size: self.seam + self.journal.geometry().size, ..volume }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> blockdev::Result<()> {
        let (device, offset) = self.part(offset);
        device.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> blockdev::Result<()> {
        let (device, offset) = self.part(offset);
        device.write_at(offset, buf)
    }

    fn flush(&self) -> blockdev::Result<()> {
        self.volume.flush()?;
        self.journal.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> blockdev::Result<()> {
        let (device, offset) = self.part(offset);
        device.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> blockdev::Result<()> {
        let (device, offset) = self.part(offset);
        device.write_zeroes(offset, len)
    }
}

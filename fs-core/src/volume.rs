//! The mounted volume as every part above sees it: device, journal, geometry, checksums, the
//! superblock and whether writing is still allowed. It knows no inode and allocates nothing.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use blockdev::{BlockDevice, Env};
use ext4_format::csum::Csum;
use ext4_format::geometry::Geometry;
use ext4_format::inode::{InodeLayout, Time};
use ext4_format::superblock::{ErrorEntry, OnError, SUPERBLOCK_LEN, SUPERBLOCK_OFFSET, State, SuperBlock};
use ext4_format::{BlockNo, Corruption, Fault};
use jbd2::{Buffer, Handle, Journal};
use tracing::{error, warn};

use crate::error::{Error, Result};
use crate::locks::{Rank, RankedMutex};
use crate::types::{ErrorPolicy, MountOptions};

/// Target of the messages about the volume as a whole, which the kernel's ext4 logs in the same words.
pub const VOLUME_EVENTS: &str = "rext4-fs";

/// ext4's numbers, in its error record: for a wrong checksum, and for what contradicts the format otherwise.
const EFSBADCRC: u8 = 4;
const EFSCORRUPTED: u8 = 5;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Mode {
    Writable,
    /// The caller's mount is read-only for now; the volume says that it is clean.
    Suspended,
    ReadOnly,
    ShutDown,
}

/// Says whether a suspended volume may be written again.
pub type MayResume = Box<dyn Fn() -> bool + Send + Sync>;

/// A mounted volume.
pub struct Volume {
    /// Where file data is read and written.
    pub dev: Arc<dyn BlockDevice>,
    /// Where everything else is.
    pub journal: Arc<Journal>,
    /// Where things lie.
    pub geo: Geometry,
    /// Checksum formulas with this volume's seed.
    pub csum: Csum,
    /// How its inodes are laid out.
    pub inode_layout: InodeLayout,
    /// How it was mounted.
    pub opts: MountOptions,
    /// Time, chance, threads.
    pub env: Env,
    /// Whether it was marked clean, or needed no more than its journal, when it was mounted.
    pub was_valid: bool,
    /// The superblock. Guarded by its own leaf lock; written through [`Volume::edit_super`].
    pub sb: RankedMutex<SuperBlock>,
    mode: AtomicU8,
    may_resume: OnceLock<MayResume>,
}

impl Volume {
    /// Puts a volume together from its checked superblock and an open journal.
    #[must_use]
    pub fn new(
        dev: Arc<dyn BlockDevice>,
        journal: Arc<Journal>,
        sb: SuperBlock,
        opts: MountOptions,
        env: Env,
    ) -> Volume {
        let mode = match (opts.read_only, opts.recover_on_device) {
            (false, _) => Mode::Writable,
            (true, true) => Mode::Suspended,
            (true, false) => Mode::ReadOnly,
        };
        Volume {
            dev,
            journal,
            geo: Geometry::new(&sb),
            csum: Csum::new(&sb),
            inode_layout: InodeLayout::new(&sb),
            opts,
            env,
            was_valid: sb.state().has(State::VALID),
            sb: RankedMutex::new(Rank::Leaf, sb),
            mode: AtomicU8::new(mode as u8),
            may_resume: OnceLock::new(),
        }
    }

    /// The volume's UUID as it is written.
    #[must_use]
    pub fn uuid(&self) -> String {
        let hex: String = self.sb.lock().uuid().iter().map(|byte| format!("{byte:02x}")).collect();
        [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &hex[part]).join("-")
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.geo.block_size
    }

    /// The time of day.
    #[must_use]
    pub fn now(&self) -> Time {
        let now = self.env.clock.now();
        self.storable(Time { sec: now.sec, nsec: now.nsec })
    }

    /// The timestamp that an inode of this volume keeps of `time`.
    #[must_use]
    pub fn storable(&self, time: Time) -> Time {
        self.inode_layout.storable(time)
    }

    /// Refuses when the volume must not be changed (any more).
    pub fn writable(&self) -> Result<()> {
        match self.mode.load(Ordering::Acquire) {
            m if m == Mode::Writable as u8 => Ok(()),
            m if m == Mode::Suspended as u8 && self.may_resume.get().is_some_and(|may| may()) => {
                self.change_mode(Mode::Suspended, Mode::Writable);
                self.writable()
            }
            m if m == Mode::ShutDown as u8 => Err(Error::ShutDown),
            _ => Err(Error::ReadOnly),
        }
    }

    /// Refuses when nothing at all may be changed, not even to end what was begun before a suspension.
    pub fn changeable(&self) -> Result<()> {
        match self.mode.load(Ordering::Acquire) {
            m if m == Mode::Writable as u8 || m == Mode::Suspended as u8 => Ok(()),
            m if m == Mode::ShutDown as u8 => Err(Error::ShutDown),
            _ => Err(Error::ReadOnly),
        }
    }

    /// Whether the volume is writable at this time; a suspended one is not.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.mode.load(Ordering::Acquire) == Mode::Writable as u8
    }

    /// Has a suspended volume ask `may_resume` before it refuses a change. Takes effect once.
    pub fn set_may_resume(&self, may_resume: MayResume) {
        let _ = self.may_resume.set(may_resume);
    }

    /// Refuses changes until the volume may be written again.
    pub fn suspend(&self) {
        self.change_mode(Mode::Writable, Mode::Suspended);
    }

    /// Allows changes of a suspended volume again.
    pub fn resume(&self) {
        self.change_mode(Mode::Suspended, Mode::Writable);
    }

    fn change_mode(&self, from: Mode, to: Mode) {
        let _ = self.mode.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Refuses after a shutdown, when not even reading is allowed.
    pub fn alive(&self) -> Result<()> {
        match self.mode.load(Ordering::Acquire) {
            m if m == Mode::ShutDown as u8 => Err(Error::ShutDown),
            _ => Ok(()),
        }
    }

    /// Refuses every change from here on.
    pub fn make_read_only(&self) {
        self.change_mode(Mode::Writable, Mode::ReadOnly);
        self.change_mode(Mode::Suspended, Mode::ReadOnly);
    }

    /// Refuses everything from here on.
    pub fn shut_down(&self) {
        self.mode.store(Mode::ShutDown as u8, Ordering::Release);
    }

    /// The metadata block `block`, verified by `verify` when it comes from the device. A damaged
    /// block is recorded as the volume's error policy says.
    pub fn read_meta(
        &self,
        block: BlockNo,
        verify: impl FnOnce(&[u8]) -> std::result::Result<(), Corruption>,
    ) -> Result<Buffer> {
        match self.journal.read(block, verify) {
            Err(jbd2::Error::Corrupt(c)) => Err(self.corrupt(c.at_block(block))),
            other => Ok(other?),
        }
    }

    /// Changes the superblock within `handle` (one credit).
    pub fn edit_super(&self, handle: &Handle<'_>, edit: impl FnOnce(&mut SuperBlock)) -> Result<()> {
        let (block, offset) = self.super_place();
        let buffer = self.journal.read(block, |_| Ok(()))?;
        let mut bytes = handle.write(&buffer)?;
        let mut sb = self.sb.lock();
        edit(&mut sb);
        if let Some(place) = bytes.get_mut(offset..offset + SUPERBLOCK_LEN) {
            place.copy_from_slice(&sb.encode());
        }
        Ok(())
    }

    /// Writes the superblock past the journal and flushes: only while no transaction is live
    /// (mount, unmount) or when the journal is no longer to be trusted (after an error).
    pub fn write_super_directly(&self, edit: impl FnOnce(&mut SuperBlock)) -> Result<()> {
        let bytes = {
            let mut sb = self.sb.lock();
            edit(&mut sb);
            sb.encode()
        };
        self.dev.write_at(SUPERBLOCK_OFFSET, &bytes)?;
        self.dev.flush()?;
        Ok(())
    }

    /// Block of the primary superblock and its byte offset in it.
    #[must_use]
    pub fn super_place(&self) -> (BlockNo, usize) {
        let size = u64::from(self.block_size());
        (BlockNo(SUPERBLOCK_OFFSET / size), (SUPERBLOCK_OFFSET % size) as usize)
    }

    /// Takes note of damage: logs it, records it in the superblock, and stops what the error
    /// policy says. Returns the error to hand up.
    pub fn corrupt(&self, corruption: Corruption) -> Error {
        error!("{}", in_kernel_words(&corruption));
        let policy = self.opts.errors.unwrap_or_else(|| match self.sb.lock().on_error() {
            OnError::Continue => ErrorPolicy::Continue,
            // To end the server is for whoever mounts to ask for, not for the image.
            OnError::ReadOnly | OnError::Panic => ErrorPolicy::RemountReadOnly,
        });
        if self.writable().is_ok() {
            let entry = ErrorEntry {
                time: self.now().sec.max(0) as u64,
                func: corruption.field,
                line: 0,
                ino: corruption.place.ino.map_or(0, |ino| ino.get()),
                block: corruption.place.block.map_or(0, |block| block.0),
                code: match corruption.fault {
                    Fault::Checksum => EFSBADCRC,
                    Fault::Structure => EFSCORRUPTED,
                },
            };
            let recorded = self.write_super_directly(|sb| sb.record_error(&entry));
            if let Err(error) = recorded {
                error!(%error, "the error could not be recorded in the superblock");
            }
        }
        match policy {
            ErrorPolicy::Continue => {}
            ErrorPolicy::RemountReadOnly => {
                warn!(target: VOLUME_EVENTS, "Remounting filesystem read-only");
                // First: an fsync that finds the volume read-only asks the journal why.
                self.journal.abort(jbd2::Error::Corrupt(corruption.clone()));
                self.make_read_only();
            }
            ErrorPolicy::Panic => {
                error!("errors=panic: ending the process");
                std::process::abort();
            }
        }
        Error::Corrupt(corruption)
    }
}

/// `inode #12: block 33: ...`, as the kernel begins its lines.
fn in_kernel_words(corruption: &Corruption) -> String {
    let place = &corruption.place;
    let inode = place.ino.map(|ino| format!("inode #{ino}: ")).unwrap_or_default();
    let block = place.block.map(|block| format!("block {block}: ")).unwrap_or_default();
    let what = Corruption { place: Default::default(), ..corruption.clone() };
    format!("{inode}{block}{what}; run fsck.rext4 on the unmounted volume")
}

//! The multi-mount protection block: who has the volume mounted, proven by a sequence that moves.
//!
//! A mount reads the sequence, waits, and reads it again; a change means that somebody else is alive.
//! Source: kernel documentation, ext4 "Multiple Mount Protection".

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::corruption::{Corruption, What};
use crate::csum::Csum;

/// `mmp_magic`: "MMP".
pub const MAGIC: u32 = 0x004d_4d50;
/// The sequence of a volume nobody has mounted.
pub const SEQ_CLEAN: u32 = 0xff4d_4d50;
/// The sequence while a checker works on the volume.
pub const SEQ_FSCK: u32 = 0xe24d_4d50;
/// The largest sequence of a mounted volume.
pub const SEQ_MAX: u32 = 0xe24d_4d4f;

/// The block's first 1024 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are the format's own, `mmp_` taken off")]
pub struct Mmp {
    pub magic: U32,
    pub seq: U32,
    /// Seconds since 1970 of the last update.
    pub time: U64,
    pub nodename: [u8; 64],
    pub bdevname: [u8; 32],
    /// Seconds a newcomer must wait at least.
    pub check_interval: U16,
    pub pad1: U16,
    pub pad2: [U32; 226],
    pub checksum: U32,
}

const _: () = assert!(size_of::<Mmp>() == 1024);

impl Mmp {
    /// The block of a volume nobody has mounted.
    #[must_use]
    pub fn clean(check_interval: u16, time: u64) -> Mmp {
        let mut mmp = Mmp::new_zeroed();
        mmp.magic = U32::new(MAGIC);
        mmp.seq = U32::new(SEQ_CLEAN);
        mmp.time = U64::new(time);
        mmp.check_interval = U16::new(check_interval);
        mmp
    }

    /// Reads the block: magic and sum.
    pub fn decode(block: &[u8], csum: &Csum) -> Result<Mmp, Corruption> {
        let (mmp, _) = Mmp::read_from_prefix(block)
            .map_err(|_| Corruption::new(What::Mmp, "length", block.len() as u64, 1024))?;
        if mmp.magic.get() != MAGIC {
            return Err(Corruption::new(What::Mmp, "mmp_magic", mmp.magic.get().into(), MAGIC.into()));
        }
        csum.verify_mmp(block)?;
        Ok(mmp)
    }

    /// Writes the block's first 1024 bytes with their sum.
    ///
    /// # Panics
    /// If `block` is shorter than 1024 bytes.
    pub fn encode_into(&self, block: &mut [u8], csum: &Csum) {
        block[..1024].copy_from_slice(self.as_bytes());
        csum.set_mmp(block);
    }
}

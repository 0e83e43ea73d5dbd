//! Every checksum of ext4 and jbd2: what is covered, in which order, from which seed.
//!
//! Three regimes, chosen by the superblock: nothing, crc16 over group descriptors (`uninit_bg`), or crc32c
//! over all metadata (`metadata_csum`). Setting does nothing and verifying succeeds where the regime does
//! not cover the structure. Source: kernel documentation, ext4 "Checksums" and "Journal (jbd2)".

use crate::corruption::{Corruption, What};
use crate::crc::{crc16, crc32c};
use crate::group_desc::GroupDesc;
use crate::inode::{BASE_SIZE, CHECKSUM_HI_OFFSET, CHECKSUM_LO_OFFSET, GENERATION_OFFSET};
use crate::num::{BlockNo, GroupNo, Ino, Tid};
use crate::superblock::SuperBlock;
use crate::{dirent, orphan};

/// Bytes of an extent block's tail (the checksum alone).
const EXTENT_TAIL_LEN: usize = 4;
const DESC_CSUM: usize = 0x1e;
const XATTR_CSUM: usize = 0x10;
const MMP_CSUM: usize = 0x3fc;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Regime {
    None,
    Crc16,
    Crc32c,
}

/// The checksum formulas of one volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Csum {
    regime: Regime,
    seed: u32,
    uuid: [u8; 16],
    block_bitmap_len: usize,
    inode_bitmap_len: usize,
    desc_size: usize,
}

impl Csum {
    /// The formulas a superblock asks for.
    #[must_use]
    pub fn new(sb: &SuperBlock) -> Csum {
        use crate::features::{Incompat, RoCompat};
        let regime = if sb.ro_compat().has(RoCompat::METADATA_CSUM) {
            Regime::Crc32c
        } else if sb.ro_compat().has(RoCompat::GDT_CSUM) {
            Regime::Crc16
        } else {
            Regime::None
        };
        let seed = if sb.incompat().has(Incompat::CSUM_SEED) {
            sb.raw().checksum_seed.get()
        } else {
            crc32c(!0, &sb.uuid())
        };
        Csum {
            regime,
            seed,
            uuid: sb.uuid(),
            block_bitmap_len: (sb.clusters_per_group() / 8) as usize,
            inode_bitmap_len: (sb.inodes_per_group() / 8) as usize,
            desc_size: sb.desc_size(),
        }
    }

    /// Whether metadata carries crc32c sums (directory, extent and index blocks then have tails).
    #[must_use]
    pub fn metadata(&self) -> bool {
        self.regime == Regime::Crc32c
    }

    /// Whether group descriptors carry a sum, which is what makes their uninit flags meaningful.
    #[must_use]
    pub fn group_descs(&self) -> bool {
        self.regime != Regime::None
    }

    /// The seed of the volume's crc32c sums.
    #[must_use]
    pub fn seed(&self) -> u32 {
        self.seed
    }

    fn owner_seed(&self, ino: Ino, generation: u32) -> u32 {
        crc32c(crc32c(self.seed, &ino.get().to_le_bytes()), &generation.to_le_bytes())
    }

    // Group descriptors and bitmaps.

    /// The sum of a group descriptor of `desc_size` bytes, `None` when the volume has none.
    #[must_use]
    pub fn group_desc(&self, bytes: &[u8], group: GroupNo) -> Option<u16> {
        let before = bytes.get(..DESC_CSUM)?;
        let after = bytes.get(DESC_CSUM + 2..self.desc_size)?;
        let group = group.0.to_le_bytes();
        match self.regime {
            Regime::None => None,
            Regime::Crc16 => {
                Some([&group[..], before, after].iter().fold(crc16(!0, &self.uuid), |s, part| crc16(s, part)))
            }
            Regime::Crc32c => {
                let sum = [&group[..], before, &[0; 2], after].iter().fold(self.seed, |s, p| crc32c(s, p));
                Some(sum as u16)
            }
        }
    }

    /// Writes a group descriptor's sum into its bytes.
    pub fn set_group_desc(&self, bytes: &mut [u8], group: GroupNo) {
        let sum = self.group_desc(bytes, group).unwrap_or(0);
        if let Some(at) = bytes.get_mut(DESC_CSUM..DESC_CSUM + 2) {
            at.copy_from_slice(&sum.to_le_bytes());
        }
    }

    /// Checks a group descriptor's sum.
    pub fn verify_group_desc(&self, bytes: &[u8], group: GroupNo) -> Result<(), Corruption> {
        let Some(expected) = self.group_desc(bytes, group) else { return Ok(()) };
        let found = u16::from_le_bytes([bytes[DESC_CSUM], bytes[DESC_CSUM + 1]]);
        same(What::GroupDesc, u32::from(found), u32::from(expected)).map_err(|c| c.in_group(group))
    }

    /// The sum of a block bitmap, `None` without `metadata_csum`. Only the group's own bits are covered.
    #[must_use]
    pub fn block_bitmap(&self, bytes: &[u8]) -> Option<u32> {
        self.bitmap(bytes, self.block_bitmap_len)
    }

    /// The sum of an inode bitmap, `None` without `metadata_csum`. Only the group's own bits are covered.
    #[must_use]
    pub fn inode_bitmap(&self, bytes: &[u8]) -> Option<u32> {
        self.bitmap(bytes, self.inode_bitmap_len)
    }

    fn bitmap(&self, bytes: &[u8], len: usize) -> Option<u32> {
        self.metadata().then(|| crc32c(self.seed, bytes.get(..len).unwrap_or(bytes)))
    }

    /// Stores a block bitmap's sum in its descriptor (whose own sum must be set afterwards).
    pub fn set_block_bitmap(&self, bytes: &[u8], desc: &mut GroupDesc) {
        desc.block_bitmap_csum = self.block_bitmap(bytes).unwrap_or(0);
    }

    /// Stores an inode bitmap's sum in its descriptor (whose own sum must be set afterwards).
    pub fn set_inode_bitmap(&self, bytes: &[u8], desc: &mut GroupDesc) {
        desc.inode_bitmap_csum = self.inode_bitmap(bytes).unwrap_or(0);
    }

    /// Checks a block bitmap against its descriptor. Descriptors of 32 bytes keep 16 bits of the sum.
    pub fn verify_block_bitmap(&self, bytes: &[u8], desc: &GroupDesc) -> Result<(), Corruption> {
        let Some(sum) = self.block_bitmap(bytes) else { return Ok(()) };
        self.same_bitmap(What::BlockBitmap, desc.block_bitmap_csum, sum)
    }

    /// Checks an inode bitmap against its descriptor. Descriptors of 32 bytes keep 16 bits of the sum.
    pub fn verify_inode_bitmap(&self, bytes: &[u8], desc: &GroupDesc) -> Result<(), Corruption> {
        let Some(sum) = self.inode_bitmap(bytes) else { return Ok(()) };
        self.same_bitmap(What::InodeBitmap, desc.inode_bitmap_csum, sum)
    }

    fn same_bitmap(&self, what: What, found: u32, sum: u32) -> Result<(), Corruption> {
        let mask = if self.desc_size >= 64 { !0 } else { 0xffff };
        same(what, found & mask, sum & mask)
    }

    // Inodes and what they own. The generation is part of the seed, so it must be set before.

    /// The sum of an inode's bytes (whole `inode_size`), with its generation read from them.
    /// Inodes too small for `i_checksum_hi` keep the low 16 bits.
    #[must_use]
    pub fn inode(&self, bytes: &[u8], ino: Ino) -> Option<u32> {
        if !self.metadata() || bytes.len() < 128 {
            return None;
        }
        let seed = self.owner_seed(ino, u32_at(bytes, GENERATION_OFFSET)?);
        let sum = crc32c(seed, &bytes[..CHECKSUM_LO_OFFSET]);
        let sum = crc32c(sum, &[0; 2]);
        if !inode_has_csum_hi(bytes) {
            return Some(crc32c(sum, &bytes[CHECKSUM_LO_OFFSET + 2..]) & 0xffff);
        }
        let sum = crc32c(sum, &bytes[CHECKSUM_LO_OFFSET + 2..CHECKSUM_HI_OFFSET]);
        let sum = crc32c(sum, &[0; 2]);
        Some(crc32c(sum, &bytes[CHECKSUM_HI_OFFSET + 2..]))
    }

    /// Writes an inode's sum into its bytes.
    pub fn set_inode(&self, bytes: &mut [u8], ino: Ino) {
        let Some(sum) = self.inode(bytes, ino) else { return };
        let [a, b, c, d] = sum.to_le_bytes();
        bytes[CHECKSUM_LO_OFFSET..CHECKSUM_LO_OFFSET + 2].copy_from_slice(&[a, b]);
        if inode_has_csum_hi(bytes) {
            bytes[CHECKSUM_HI_OFFSET..CHECKSUM_HI_OFFSET + 2].copy_from_slice(&[c, d]);
        }
    }

    /// Checks an inode's sum.
    pub fn verify_inode(&self, bytes: &[u8], ino: Ino) -> Result<(), Corruption> {
        let Some(expected) = self.inode(bytes, ino) else { return Ok(()) };
        let lo = u32::from(u16_at(bytes, CHECKSUM_LO_OFFSET).unwrap_or(0));
        let hi = if inode_has_csum_hi(bytes) { u16_at(bytes, CHECKSUM_HI_OFFSET).unwrap_or(0) } else { 0 };
        same(What::Inode, lo | u32::from(hi) << 16, expected).map_err(|c| c.in_inode(ino))
    }

    /// Writes an extent block's sum into its tail, which stands after the `eh_max` entries.
    pub fn set_extent_block(&self, bytes: &mut [u8], ino: Ino, generation: u32) {
        if let Some(at) = extent_tail(bytes) {
            self.set_owned(bytes, at, at, ino, generation);
        }
    }

    /// Checks an extent block's sum.
    pub fn verify_extent_block(&self, bytes: &[u8], ino: Ino, generation: u32) -> Result<(), Corruption> {
        if !self.metadata() {
            return Ok(());
        }
        let at = extent_tail(bytes).ok_or_else(|| {
            Corruption::new(What::ExtentNode, "eh_max", 0, bytes.len() as u64).in_inode(ino)
        })?;
        self.verify_owned(What::ExtentNode, bytes, at, at, ino, generation)
    }

    /// Writes a linear directory block's sum into the last four bytes of its tail.
    pub fn set_dir_block(&self, bytes: &mut [u8], ino: Ino, generation: u32) {
        if let Some(covered) = bytes.len().checked_sub(dirent::TAIL_SIZE) {
            self.set_owned(bytes, covered, covered + 8, ino, generation);
        }
    }

    /// Checks a linear directory block's sum. The verifier checks the form of the
    /// tail.
    pub fn verify_dir_block(&self, bytes: &[u8], ino: Ino, generation: u32) -> Result<(), Corruption> {
        match bytes.len().checked_sub(dirent::TAIL_SIZE) {
            Some(covered) => self.verify_owned(What::DirBlock, bytes, covered, covered + 8, ino, generation),
            None => Err(Corruption::new(What::DirBlock, "length", bytes.len() as u64, 1024).in_inode(ino)),
        }
    }

    fn set_owned(&self, bytes: &mut [u8], covered: usize, at: usize, ino: Ino, generation: u32) {
        if self.metadata() {
            let sum = crc32c(self.owner_seed(ino, generation), &bytes[..covered]);
            bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }

    fn verify_owned(
        &self,
        what: What,
        bytes: &[u8],
        covered: usize,
        at: usize,
        ino: Ino,
        generation: u32,
    ) -> Result<(), Corruption> {
        if !self.metadata() {
            return Ok(());
        }
        let expected = crc32c(self.owner_seed(ino, generation), &bytes[..covered]);
        same(what, u32_at(bytes, at).unwrap_or(0), expected).map_err(|c| c.in_inode(ino))
    }

    /// The sum of an htree root or index block. `count_offset` is where the limit and count stand (0x20 in
    /// a root with 8 bytes of info, 8 in an index block); the sum covers the entries in use and the first
    /// half of the tail, which stands after the `limit` entries.
    fn htree_block(
        &self,
        bytes: &[u8],
        count_offset: usize,
        ino: Ino,
        generation: u32,
    ) -> Option<(usize, u32)> {
        let limit = usize::from(u16_at(bytes, count_offset)?);
        let count = usize::from(u16_at(bytes, count_offset + 2)?);
        let tail = count_offset + limit * 8;
        if count > limit {
            return None;
        }
        let used = bytes.get(..count_offset + count * 8)?;
        let reserved = bytes.get(tail..tail + 4)?;
        bytes.get(tail + 4..tail + 8)?;
        let sum =
            [used, reserved, &[0; 4]].iter().fold(self.owner_seed(ino, generation), |s, p| crc32c(s, p));
        Some((tail + 4, sum))
    }

    /// Writes an htree root's or index block's sum into its tail.
    pub fn set_htree_block(&self, bytes: &mut [u8], count_offset: usize, ino: Ino, generation: u32) {
        if !self.metadata() {
            return;
        }
        if let Some((at, sum)) = self.htree_block(bytes, count_offset, ino, generation) {
            bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }

    /// Checks an htree root's or index block's sum.
    pub fn verify_htree_block(
        &self,
        bytes: &[u8],
        count_offset: usize,
        ino: Ino,
        generation: u32,
    ) -> Result<(), Corruption> {
        if !self.metadata() {
            return Ok(());
        }
        let (at, expected) = self.htree_block(bytes, count_offset, ino, generation).ok_or_else(|| {
            let limit = u64::from(u16_at(bytes, count_offset).unwrap_or(0));
            Corruption::new(What::HtreeBlock, "limit", limit, (bytes.len() / 8) as u64).in_inode(ino)
        })?;
        same(What::HtreeBlock, u32_at(bytes, at).unwrap_or(0), expected).map_err(|c| c.in_inode(ino))
    }

    // Blocks that carry their own number in the sum.

    /// The sum of an xattr block.
    fn xattr_block(&self, bytes: &[u8], block: BlockNo) -> Option<u32> {
        let before = bytes.get(..XATTR_CSUM)?;
        let after = bytes.get(XATTR_CSUM + 4..)?;
        let number = block.0.to_le_bytes();
        Some([&number[..], before, &[0; 4], after].iter().fold(self.seed, |s, p| crc32c(s, p)))
    }

    /// Writes an xattr block's sum into its header.
    pub fn set_xattr_block(&self, bytes: &mut [u8], block: BlockNo) {
        if !self.metadata() {
            return;
        }
        if let Some(sum) = self.xattr_block(bytes, block) {
            bytes[XATTR_CSUM..XATTR_CSUM + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }

    /// Checks an xattr block's sum.
    pub fn verify_xattr_block(&self, bytes: &[u8], block: BlockNo) -> Result<(), Corruption> {
        if !self.metadata() {
            return Ok(());
        }
        let expected = self.xattr_block(bytes, block).ok_or_else(|| {
            Corruption::new(What::Xattr, "length", bytes.len() as u64, 1024).at_block(block)
        })?;
        same(What::Xattr, u32_at(bytes, XATTR_CSUM).unwrap_or(0), expected).map_err(|c| c.at_block(block))
    }

    /// The hash of a value kept in an inode of its own (`ea_inode`). It is a crc32c under every regime.
    #[must_use]
    pub fn ea_inode_value(&self, value: &[u8]) -> u32 {
        crc32c(self.seed, value)
    }

    /// The sum of an orphan file block.
    fn orphan_block(&self, bytes: &[u8], block: BlockNo, ino: Ino, generation: u32) -> Option<(usize, u32)> {
        let covered = bytes.len().checked_sub(orphan::TAIL_SIZE)?;
        let sum = crc32c(self.owner_seed(ino, generation), &block.0.to_le_bytes());
        Some((covered + 4, crc32c(sum, &bytes[..covered])))
    }

    /// Writes an orphan file block's sum into its tail. `ino` and `generation` are the orphan file's.
    pub fn set_orphan_block(&self, bytes: &mut [u8], block: BlockNo, ino: Ino, generation: u32) {
        if !self.metadata() {
            return;
        }
        if let Some((at, sum)) = self.orphan_block(bytes, block, ino, generation) {
            bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }

    /// Checks an orphan file block's sum. `ino` and `generation` are the orphan file's.
    pub fn verify_orphan_block(
        &self,
        bytes: &[u8],
        block: BlockNo,
        ino: Ino,
        generation: u32,
    ) -> Result<(), Corruption> {
        if !self.metadata() {
            return Ok(());
        }
        let (at, expected) = self.orphan_block(bytes, block, ino, generation).ok_or_else(|| {
            Corruption::new(What::OrphanFile, "length", bytes.len() as u64, 1024).at_block(block)
        })?;
        same(What::OrphanFile, u32_at(bytes, at).unwrap_or(0), expected)
            .map_err(|c| c.in_inode(ino).at_block(block))
    }

    /// Writes the multi-mount protection block's sum (its first 1024 bytes).
    pub fn set_mmp(&self, bytes: &mut [u8]) {
        if self.metadata() && bytes.len() >= MMP_CSUM + 4 {
            let sum = crc32c(self.seed, &bytes[..MMP_CSUM]);
            bytes[MMP_CSUM..MMP_CSUM + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }

    /// Checks the multi-mount protection block's sum.
    pub fn verify_mmp(&self, bytes: &[u8]) -> Result<(), Corruption> {
        if !self.metadata() {
            return Ok(());
        }
        let covered = bytes
            .get(..MMP_CSUM)
            .ok_or_else(|| Corruption::new(What::Mmp, "length", bytes.len() as u64, 1024))?;
        same(What::Mmp, u32_at(bytes, MMP_CSUM).unwrap_or(0), crc32c(self.seed, covered))
    }
}

/// The checksum formulas of one journal (jbd2 `CSUM_V2` and `CSUM_V3`), seeded by the journal's UUID. All
/// stored sums are big-endian.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalCsum {
    seed: u32,
}

impl JournalCsum {
    /// The formulas of the journal with this UUID.
    #[must_use]
    pub fn new(uuid: &[u8; 16]) -> JournalCsum {
        JournalCsum { seed: crc32c(!0, uuid) }
    }

    /// The sum of a journal superblock's 1024 bytes, seeded with all ones.
    #[must_use]
    pub fn superblock(bytes: &[u8; 1024]) -> u32 {
        const AT: usize = 0xfc;
        [&bytes[..AT], &[0; 4], &bytes[AT + 4..]].iter().fold(!0, |sum, part| crc32c(sum, part))
    }

    /// The sum of a descriptor or revoke block, which stands in its last four bytes.
    #[must_use]
    pub fn block_tail(&self, bytes: &[u8]) -> u32 {
        let covered = bytes.len().saturating_sub(4);
        crc32c(crc32c(self.seed, &bytes[..covered]), &[0; 4])
    }

    /// The sum of one logged block, as it stands in the log (escaped). A v2 tag keeps the low 16 bits.
    #[must_use]
    pub fn tag(&self, sequence: Tid, logged: &[u8]) -> u32 {
        crc32c(crc32c(self.seed, &sequence.0.to_be_bytes()), logged)
    }

    /// The sum of a commit block, which stands in `h_chksum[0]`.
    #[must_use]
    pub fn commit(&self, bytes: &[u8]) -> u32 {
        const AT: usize = 0x10;
        let at = AT.min(bytes.len());
        let after = (AT + 4).min(bytes.len());
        [&bytes[..at], &[0; 4], &bytes[after..]].iter().fold(self.seed, |sum, part| crc32c(sum, part))
    }
}

fn inode_has_csum_hi(bytes: &[u8]) -> bool {
    bytes.len() > 128 && u16_at(bytes, BASE_SIZE).is_some_and(|extra| extra >= 4)
}

/// Where the tail of an extent block stands, if its `eh_max` leaves room for one.
fn extent_tail(bytes: &[u8]) -> Option<usize> {
    let at = 12 + 12 * usize::from(u16_at(bytes, 4)?);
    (at + EXTENT_TAIL_LEN <= bytes.len()).then_some(at)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn same(what: What, found: u32, expected: u32) -> Result<(), Corruption> {
    if found == expected { Ok(()) } else { Err(Corruption::checksum(what, found, expected)) }
}

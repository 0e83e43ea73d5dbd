//! What a device already holds, by the magic numbers of common formats. A guess for a person to read: no harm
//! is done by a wrong one but a question too many.

use blockdev::BlockDevice;
use ext4_format::features::{Compat, Incompat};
use ext4_format::superblock::{SUPERBLOCK_LEN, SUPERBLOCK_OFFSET, SuperBlock};

/// Byte offset, magic, and what it means.
const MAGICS: &[(u64, &[u8], &str)] = &[
    (0, b"XFSB", "an xfs filesystem"),
    (65600, b"_BHRfS_M", "a btrfs filesystem"),
    (4096 - 10, b"SWAPSPACE2", "a swap area"),
    (4096 - 10, b"SWAP-SPACE", "a swap area"),
    (0, b"LUKS\xba\xbe", "a LUKS encrypted volume"),
    (512, b"LABELONE", "an LVM physical volume"),
    (3, b"NTFS    ", "an ntfs filesystem"),
    (3, b"EXFAT   ", "an exfat filesystem"),
    (54, b"FAT1", "a vfat filesystem"),
    (82, b"FAT32", "a vfat filesystem"),
    (32769, b"CD001", "an iso9660 filesystem"),
    (0, b"hsqs", "a squashfs filesystem"),
    (1024, b"\x10\x20\xf5\xf2", "an f2fs filesystem"),
    (1024, b"\xe2\xe1\xf5\xe0", "an erofs filesystem"),
    (65588, b"ReIsEr", "a reiserfs filesystem"),
    (4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "a bcachefs filesystem"),
    (4096, b"\xfc\x4e\x2b\xa9", "a Linux RAID member"),
    (512, b"EFI PART", "a GPT partition table"),
];

/// Says what the device holds, or `None` when nothing is recognised.
///
/// # Errors
/// The device failed.
pub fn probe(device: &dyn BlockDevice) -> blockdev::Result<Option<String>> {
    let size = device.geometry().size;
    let read = |at: u64, bytes: &mut [u8]| -> blockdev::Result<bool> {
        if at + bytes.len() as u64 > size {
            return Ok(false);
        }
        device.read_at(at, bytes).map(|()| true)
    };
    let mut superblock = [0; SUPERBLOCK_LEN];
    if read(SUPERBLOCK_OFFSET, &mut superblock)?
        && let Some(found) = ext_filesystem(&superblock)
    {
        return Ok(Some(found));
    }
    for (at, magic, what) in MAGICS {
        let mut bytes = vec![0; magic.len()];
        if read(*at, &mut bytes)? && bytes == *magic {
            return Ok(Some((*what).to_owned()));
        }
    }
    let mut sector = [0; 512];
    if read(0, &mut sector)? && sector[510..] == [0x55, 0xaa] && is_partition_table(&sector) {
        return Ok(Some("a DOS partition table".to_owned()));
    }
    Ok(None)
}

fn ext_filesystem(bytes: &[u8; SUPERBLOCK_LEN]) -> Option<String> {
    // A damaged superblock is still somebody's filesystem.
    if !ext4_format::superblock::has_magic(bytes) {
        return None;
    }
    let Ok(sb) = SuperBlock::parse(bytes) else { return Some("a damaged ext2/3/4 filesystem".to_owned()) };
    let kind = if sb.incompat().has(Incompat::EXTENTS) {
        "ext4"
    } else if sb.compat().has(Compat::HAS_JOURNAL) {
        "ext3"
    } else {
        "ext2"
    };
    let mut text = format!("an {kind} filesystem");
    if !sb.volume_name().is_empty() {
        text += &format!(" labelled '{}'", String::from_utf8_lossy(sb.volume_name()));
    }
    if !sb.last_mounted().is_empty() {
        text += &format!(", last mounted on {}", String::from_utf8_lossy(sb.last_mounted()));
    }
    Some(text)
}

/// A boot sector without partitions ends in the same two bytes; an entry in use has a type and a length.
fn is_partition_table(sector: &[u8; 512]) -> bool {
    sector[446..510]
        .chunks_exact(16)
        .any(|entry| entry[4] != 0 && entry[0] & 0x7f == 0 && entry[12..16].iter().any(|byte| *byte != 0))
}

//! Superblocks, descriptors and journal superblocks from an attacker: refused, or safe to calculate with.

mod common;

use common::sound;
use ext4_format::csum::Csum;
use ext4_format::geometry::Geometry;
use ext4_format::group_desc::GroupDesc;
use ext4_format::mmp::Mmp;
use ext4_format::superblock::{RawSuperBlock, SuperBlock};
use ext4_format::{BlockNo, GroupNo, Ino, jbd2, verify};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

/// Values that sit at the edges of shifts, products and quotients.
fn edgy() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        (0..32u32).prop_map(|bit| 1 << bit),
        (0..32u32).prop_map(|bit| (1 << bit) - 1),
        Just(u32::MAX),
        0..64u32,
    ]
}

fn calculate(sb: &SuperBlock, numbers: &[u32]) {
    let geometry = Geometry::new(sb);
    let csum = Csum::new(sb);
    let _ = sb.access();
    let _ = (sb.want_extra_isize(), sb.free_blocks(), sb.mmp_block(), sb.journal_backup());
    assert!(geometry.group_count > 0 && geometry.desc_blocks > 0);
    for n in numbers {
        let block = BlockNo(u64::from(*n) << (n % 17));
        if let Some((group, index)) = geometry.locate_block(block) {
            assert!(group.0 < geometry.group_count && index < geometry.blocks_in_group(group));
            assert_eq!(geometry.group_first_block(group).0 + u64::from(index), block.0);
        }
        if let Some(location) = Ino::new(*n).and_then(|ino| geometry.inode_location(ino)) {
            assert!(location.byte + geometry.inode_size <= geometry.block_size as usize);
            assert!(location.table_block < geometry.inode_table_blocks());
            assert_eq!(geometry.inode_at(location.group, location.index), Ino::new(*n));
        }
        let group = GroupNo(n % geometry.group_count);
        let (_, byte) = geometry.descriptor(group);
        assert!(byte + geometry.desc_size <= geometry.block_size as usize);
        let _ = (geometry.head(group), geometry.flex_group(group), geometry.clusters_in_group(group));
        let mut bytes = vec![0; geometry.desc_size];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = n.to_le_bytes()[at % 4];
        }
        let _ = verify::group_desc(&bytes, &csum, &geometry, group);
        let desc = GroupDesc::decode(&bytes).unwrap();
        let mut bitmap = vec![0; geometry.block_size as usize];
        geometry.fill_uninit_block_bitmap(group, &desc, &mut bitmap);
        let _ = verify::block_bitmap(&bitmap, &csum, &geometry, group, &desc);
        geometry.fill_uninit_inode_bitmap(&mut bitmap);
        let _ = verify::inode_bitmap(&bitmap, &csum, &geometry, group, &desc);
    }
}

#[test]
fn the_base_of_the_attack_is_sound() {
    calculate(&SuperBlock::from_raw(sound()).unwrap(), &[1, 12, 8193, 307_199, u32::MAX]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_damaged_superblock_is_refused_or_safe(
        changes in prop::collection::vec((0..256usize, edgy()), 1..5),
        numbers in prop::collection::vec(edgy(), 8),
    ) {
        let mut raw = sound();
        for (word, value) in changes {
            // The first words and the feature words hold the arithmetic: they are hit more often.
            let word = if word >= 192 { (word - 192) % 28 } else { word };
            raw.as_mut_bytes()[word * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
        if let Ok(sb) = SuperBlock::from_raw(raw) {
            calculate(&sb, &numbers);
            let bytes = sb.encode();
            prop_assert!(SuperBlock::parse(&bytes).is_ok() || sb.raw().checksum_type != 1);
            prop_assert_eq!(SuperBlock::from_raw(RawSuperBlock::read_from_bytes(&bytes).unwrap()).unwrap().encode(), bytes);
        }
    }

    #[test]
    fn a_damaged_journal_superblock_is_refused_or_safe(
        changes in prop::collection::vec((0..64usize, edgy()), 0..5),
    ) {
        let mut bytes = jbd2::SuperBlock::new(4096, 16384, 0, [3; 16]).encode();
        for (word, value) in changes {
            bytes[word * 4..][..4].copy_from_slice(&value.to_be_bytes());
        }
        if let Ok(sb) = jbd2::SuperBlock::parse(&bytes) {
            prop_assert!(sb.first() > 0 && sb.first() < sb.end() && sb.end() <= sb.len_blocks());
            prop_assert!(sb.start().is_none_or(|start| (sb.first()..sb.end()).contains(&start)));
            prop_assert!(sb.format().tags_per_block(sb.block_size() as usize) > 0);
            prop_assert_eq!(sb.encode(), bytes);
        }
    }

    #[test]
    fn random_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
        let sb = SuperBlock::from_raw(sound()).unwrap();
        let _ = Mmp::decode(&bytes, &Csum::new(&sb));
        let _ = GroupDesc::decode(&bytes);
        if let Some(Ok(bytes)) = bytes.get(..1024).map(<&[u8; 1024]>::try_from) {
            let _ = SuperBlock::parse(bytes);
            let _ = jbd2::SuperBlock::parse(bytes);
        }
    }
}

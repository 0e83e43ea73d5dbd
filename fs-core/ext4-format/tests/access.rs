//! Every feature bit, known or not, leads to the access its row promises.

mod common;

use common::sound;
use ext4_format::features::{Access, Support, TABLE, Word};
use ext4_format::superblock::SuperBlock;
use zerocopy::little_endian::{U16, U32};

fn judged(word: Word, mask: u32) -> Access {
    let mut raw = sound();
    let field = match word {
        Word::Compat => &mut raw.feature_compat,
        Word::RoCompat => &mut raw.feature_ro_compat,
        Word::Incompat => &mut raw.feature_incompat,
    };
    *field = U32::new(field.get() | mask);
    raw.journal_inum = U32::new(8);
    raw.encoding = U16::new(1);
    // A cluster of several blocks is what the arithmetic of this one feature needs.
    if word == Word::RoCompat && mask == 0x200 {
        raw.first_data_block = U32::new(0);
        raw.log_cluster_size = U32::new(4);
        raw.clusters_per_group = U32::new(512);
    }
    SuperBlock::from_raw(raw).unwrap().access()
}

#[test]
fn known_features_get_what_their_row_says() {
    for feature in TABLE {
        let name = feature.name.to_owned();
        let expected = match feature.support {
            Support::ReadWrite => Access::ReadWrite,
            Support::ReadOnly => Access::ReadOnly { because: vec![name] },
            Support::Refused => Access::Refused { names: vec![name] },
        };
        assert_eq!(judged(feature.word, feature.mask), expected, "{}", feature.name);
    }
}

#[test]
fn unknown_features_follow_their_word() {
    assert_eq!(judged(Word::Compat, 1 << 31), Access::ReadWrite);
    assert_eq!(judged(Word::RoCompat, 1 << 31), Access::ReadOnly { because: vec!["FEATURE_R31".into()] });
    assert_eq!(judged(Word::Incompat, 1 << 31), Access::Refused { names: vec!["FEATURE_I31".into()] });
}

#[test]
fn an_unknown_encoding_is_refused_by_name() {
    let mut raw = sound();
    raw.feature_incompat = U32::new(raw.feature_incompat.get() | 0x20000);
    raw.encoding = U16::new(7);
    let access = SuperBlock::from_raw(raw).unwrap().access();
    assert_eq!(access, Access::Refused { names: vec!["casefold with encoding 7".into()] });
}

#[test]
fn an_external_journal_is_refused_by_name() {
    let mut raw = sound();
    raw.feature_compat = U32::new(4);
    raw.journal_dev = U32::new(0x801);
    let access = SuperBlock::from_raw(raw).unwrap().access();
    assert_eq!(access, Access::Refused { names: vec!["external journal".into()] });
}

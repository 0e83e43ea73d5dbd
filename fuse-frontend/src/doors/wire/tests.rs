//! Hostile messages: cut short, with lying lengths, or made of noise.

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::abi::{self, InHeader, opcode};
use super::*;

/// A message of /dev/fuse.
fn message(opcode: u32, extlen: u16, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let header = InHeader {
        len: (size_of::<InHeader>() + body.len()) as u32,
        opcode,
        unique: 7,
        nodeid: 1,
        total_extlen: extlen,
        ..InHeader::default()
    };
    [header.as_bytes(), &body].concat()
}

fn parsed(message: &[u8], capabilities: u64) -> Result<Request<'_>, Malformed> {
    let (header, body) = split_header(message)?;
    Request::parse(header, Body::joined(body), capabilities)
}

/// One well-formed message of every operation that carries more than its header.
fn samples() -> Vec<Vec<u8>> {
    let create = abi::CreateIn::default();
    let write = abi::WriteIn { size: 5, ..abi::WriteIn::default() };
    let setxattr = abi::SetxattrIn { size: 3, ..abi::SetxattrIn::default() };
    let forget = abi::BatchForgetIn { count: 2, dummy: 0 };
    let one = abi::ForgetOne { nodeid: 3, nlookup: 1 };
    let ioctl = abi::IoctlIn { in_size: 4, ..abi::IoctlIn::default() };
    vec![
        message(opcode::LOOKUP, 0, &[b"name\0"]),
        message(opcode::FORGET, 0, &[abi::ForgetIn::default().as_bytes()]),
        message(opcode::BATCH_FORGET, 0, &[forget.as_bytes(), one.as_bytes(), one.as_bytes()]),
        message(opcode::GETATTR, 0, &[abi::GetattrIn::default().as_bytes()]),
        message(opcode::STATX, 0, &[abi::StatxIn::default().as_bytes()]),
        message(opcode::SETATTR, 0, &[abi::SetattrIn::default().as_bytes()]),
        message(opcode::SYMLINK, 0, &[b"name\0target\0"]),
        message(opcode::MKNOD, 0, &[abi::MknodIn::default().as_bytes(), b"name\0"]),
        message(opcode::MKDIR, 0, &[abi::MkdirIn::default().as_bytes(), b"name\0"]),
        message(opcode::UNLINK, 0, &[b"name\0"]),
        message(opcode::RMDIR, 0, &[b"name\0"]),
        message(opcode::RENAME, 0, &[abi::RenameIn::default().as_bytes(), b"a\0b\0"]),
        message(opcode::RENAME2, 0, &[abi::Rename2In::default().as_bytes(), b"a\0b\0"]),
        message(opcode::LINK, 0, &[abi::LinkIn::default().as_bytes(), b"name\0"]),
        message(opcode::OPEN, 0, &[abi::OpenIn::default().as_bytes()]),
        message(opcode::CREATE, 0, &[create.as_bytes(), b"name\0"]),
        message(opcode::TMPFILE, 0, &[create.as_bytes(), b"\0"]),
        message(opcode::READ, 0, &[abi::ReadIn::default().as_bytes()]),
        message(opcode::WRITE, 0, &[write.as_bytes(), b"bytes"]),
        message(opcode::RELEASE, 0, &[abi::ReleaseIn::default().as_bytes()]),
        message(opcode::FSYNC, 0, &[abi::FsyncIn::default().as_bytes()]),
        message(opcode::FSYNCDIR, 0, &[abi::FsyncIn::default().as_bytes()]),
        message(opcode::READDIR, 0, &[abi::ReadIn::default().as_bytes()]),
        message(opcode::READDIRPLUS, 0, &[abi::ReadIn::default().as_bytes()]),
        message(opcode::SETXATTR, 0, &[setxattr.as_bytes(), b"user.n\0abc"]),
        message(opcode::GETXATTR, 0, &[abi::GetxattrIn::default().as_bytes(), b"user.n\0"]),
        message(opcode::LISTXATTR, 0, &[abi::GetxattrIn::default().as_bytes()]),
        message(opcode::REMOVEXATTR, 0, &[b"user.n\0"]),
        message(opcode::IOCTL, 0, &[ioctl.as_bytes(), b"abcd"]),
        message(opcode::BMAP, 0, &[abi::BmapIn::default().as_bytes()]),
        message(opcode::FALLOCATE, 0, &[abi::FallocateIn::default().as_bytes()]),
        message(opcode::LSEEK, 0, &[abi::LseekIn::default().as_bytes()]),
        message(opcode::COPY_FILE_RANGE, 0, &[abi::CopyFileRangeIn::default().as_bytes()]),
        message(opcode::COPY_FILE_RANGE_64, 0, &[abi::CopyFileRangeIn::default().as_bytes()]),
        message(opcode::INIT, 0, &[abi::InitIn::default().as_bytes()]),
    ]
}

#[test]
fn whole_messages_are_understood_and_cut_ones_refused() {
    for message in samples() {
        let request = parsed(&message, abi::init::SETXATTR_EXT).expect("a whole message");
        assert!(!matches!(request.operation, Operation::Unknown(_)));
        for len in 0..message.len() {
            assert!(parsed(&message[..len], abi::init::SETXATTR_EXT).is_err(), "the header knows the length");
            // A header that lies along: every operation here needs all of its bytes.
            let mut cut = message[..len].to_vec();
            if len >= size_of::<InHeader>() {
                cut[..4].copy_from_slice(&(len as u32).to_ne_bytes());
                assert!(parsed(&cut, abi::init::SETXATTR_EXT).is_err(), "{:?} at {len}", request.operation);
            }
        }
    }
}

#[test]
fn a_ring_has_the_structure_apart() {
    let write = abi::WriteIn { size: 3, offset: 9, ..abi::WriteIn::default() };
    let mut fixed = [0xee; 128];
    fixed[..size_of::<abi::WriteIn>()].copy_from_slice(write.as_bytes());
    let header = InHeader { opcode: opcode::WRITE, ..InHeader::default() };
    let request = Request::parse(header, Body::split(&fixed, b"abc"), 0).unwrap();
    let Operation::Write { how, data } = request.operation else { panic!("not a WRITE") };
    assert_eq!((how.offset, data), (9, &b"abc"[..]));
    let header = InHeader { opcode: opcode::LOOKUP, ..InHeader::default() };
    let request = Request::parse(header, Body::split(&fixed, b"name\0"), 0).unwrap();
    assert!(matches!(request.operation, Operation::Lookup(b"name")));
    assert!(Request::parse(header, Body::split(&fixed, b"name"), 0).is_err());
}

#[test]
fn attributes_have_a_short_and_a_long_form() {
    let short = abi::SetxattrInShort { size: 2, flags: 1 };
    let sent = message(opcode::SETXATTR, 0, &[short.as_bytes(), b"user.n\0ab"]);
    let Operation::Setxattr { name, value, flags, kill_sgid } = parsed(&sent, 0).unwrap().operation else {
        panic!("not a SETXATTR")
    };
    assert_eq!((name, value, flags, kill_sgid), (&b"user.n"[..], &b"ab"[..], 1, None));
}

fn labelled(size: u32, count: u32, value_size: u32) -> Vec<u8> {
    let context = abi::SecurityContext { size: value_size, padding: 0 };
    let mut extension = [context.as_bytes(), b"security.selinux\0label\0"].concat();
    extension.resize(extension.len().next_multiple_of(8), 0);
    let header = abi::ExtHeader { size, kind: count };
    let create = abi::CreateIn::default();
    message(opcode::CREATE, 6, &[create.as_bytes(), b"name\0", header.as_bytes(), &extension])
}

#[test]
fn labels_come_behind_the_name() {
    let sent = labelled(40, 1, 6);
    let Operation::Create { new, .. } = parsed(&sent, 0).unwrap().operation else { panic!("not a CREATE") };
    assert_eq!(new.labels, [Label { name: b"security.selinux", value: b"label\0" }]);
    // Unknown extensions are passed over; sizes and counts that lie are refused.
    let sent = labelled(40, 32, 6);
    let Operation::Create { new, .. } = parsed(&sent, 0).unwrap().operation else { panic!("not a CREATE") };
    assert!(new.labels.is_empty());
    for (size, count, value) in [(7, 1, 6), (48, 1, 6), (40, 2, 6), (40, 1, 600), (u32::MAX, 1, u32::MAX)] {
        assert!(parsed(&labelled(size, count, value), 0).is_err(), "{size} {count} {value}");
    }
}

#[test]
fn a_batch_that_lies_about_its_length_allocates_nothing_for_it() {
    let forget = abi::BatchForgetIn { count: u32::MAX, dummy: 0 };
    assert!(parsed(&message(opcode::BATCH_FORGET, 0, &[forget.as_bytes()]), 0).is_err());
}

#[test]
fn a_listing_stops_at_its_limit() {
    let mut buf = [0; 128];
    let mut reply = Reply::new(&mut buf);
    let entry = abi::Dirent { ino: 2, off: 1, namelen: 3, kind: 4 };
    assert!(reply.entry(&[], &entry, b"abc", 40));
    assert_eq!(reply.len(), 32);
    assert!(!reply.entry(&[], &entry, b"abc", 63));
    assert!(reply.entry(&[], &entry, b"abc", 64));
    assert!(!reply.entry(&[0; 128], &entry, b"abc", 1000));
    assert_eq!(reply.len(), 64);
}

proptest! {
    #[test]
    fn noise_never_panics(
        op in 0u32..60,
        extlen in 0u16..4,
        capabilities: u64,
        body in proptest::collection::vec(any::<u8>(), 0..300),
        payload in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = parsed(&message(op, extlen, &[&body]), capabilities);
        let header = InHeader { opcode: op, total_extlen: extlen, ..InHeader::default() };
        let _ = Request::parse(header, Body::split(&body, &payload), capabilities);
        let _ = parsed(&body, capabilities);
    }

    #[test]
    fn a_changed_byte_never_panics(index in 0usize..34, at in 0usize..200, byte: u8) {
        let all = samples();
        let mut sent = all[index % all.len()].clone();
        let at = at % sent.len();
        sent[at] = byte;
        let _ = parsed(&sent, abi::init::SETXATTR_EXT);
    }
}

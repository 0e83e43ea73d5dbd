//! One block of a directory: its shape and its entries.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;

use ext4_format::casefold;
use ext4_format::dirent::{self, DirBlock, DirBlockMut, DirEntry, DirFormat, NewEntry};
use ext4_format::inode::{BLOCK_OFFSET, FileType, flag};
use ext4_format::{Ino, What};

use super::htree::{Index, Shape};
use super::{Directory, Place, Said};
use crate::context::{Context, lock};
use crate::encryption;
use crate::error::Result;
use crate::map::Use;
use crate::pass1::inline;
use crate::pass3;
use crate::problem::{Code, Problem};
use crate::prompt::Ask;

/// Checks one block, which the caller has read; it is written back when something was repaired.
pub fn check(
    ctx: &Context,
    ask: &mut dyn Ask,
    dir: &Directory,
    place: Place,
    bytes: &mut [u8],
    index: &mut Index,
    said: &mut Said,
) -> Result<()> {
    let generation = dir.inode.generation;
    let shape = index.classify(ctx, ask, dir, place, bytes)?;
    // The entries of an index block end where the index begins; it has no tail of a linear block.
    let format = match shape {
        Shape::Leaf => dir.format,
        Shape::Root | Shape::Node => DirFormat { tail: false, ..dir.format },
    };
    let mut dirty = false;
    if shape == Shape::Leaf && format.tail {
        if !dirent::has_tail(bytes) {
            if ask.ask(Problem::of(Code::DirBlockNoTail, dir.ino).at(place.block))? {
                make_tail(bytes, dir.format);
                dirty = true;
            } else {
                return Ok(());
            }
        } else if ctx.csum.verify_dir_block(bytes, dir.ino, generation).is_err() {
            dirty |= ask.ask(Problem::of(Code::DirBlockChecksum, dir.ino).at(place.block))?;
        }
    }
    if shape != Shape::Node {
        dirty |= check_entries(ctx, ask, dir, place, bytes, format, said, index)?;
    }
    if dirty {
        match shape {
            Shape::Leaf => ctx.csum.set_dir_block(bytes, dir.ino, generation),
            Shape::Root => {
                ctx.csum.set_htree_block(bytes, ext4_format::htree::ROOT_ENTRIES, dir.ino, generation);
            }
            Shape::Node => {}
        }
        ctx.disk.write(place.block, bytes)?;
    }
    Ok(())
}

/// Makes room for the checksum tail: the last record gives up its end, or what does not fit goes. Where
/// records are damaged the tail takes the end of the block as it is.
fn make_tail(bytes: &mut [u8], format: DirFormat) {
    let all = DirBlock::new(bytes, DirFormat { tail: false, ..format }).entries();
    let kept: std::result::Result<Vec<_>, _> = all.collect();
    let Ok(kept) = kept else { return dirent::put_tail(bytes) };
    let kept: Vec<(Vec<u8>, Ino, u8)> = kept
        .into_iter()
        .filter_map(|entry| Some((entry.name.to_vec(), entry.ino?, entry.type_code)))
        .collect();
    let mut block = DirBlockMut::init(bytes, format);
    block.fill(kept.iter().map(|(name, ino, code)| NewEntry {
        ino: *ino,
        file_type: FileType::from_dirent(*code).unwrap_or(FileType::Regular),
        name,
    }));
}

#[allow(clippy::too_many_arguments, reason = "the state of one block's check")]
fn check_entries(
    ctx: &Context,
    ask: &mut dyn Ask,
    dir: &Directory,
    place: Place,
    bytes: &mut [u8],
    format: DirFormat,
    said: &mut Said,
    index: &mut Index,
) -> Result<bool> {
    // A volume that records no types may have lost the feature: what stands there is no part of the length.
    let (stated, format) = (format, DirFormat { filetype: true, ..format });
    let mut dirty = false;
    let mut at = 0;
    let mut count = 0;
    while at < format.usable(bytes.len()) {
        let entry = match DirBlock::new(bytes, format).entries_from(at).next() {
            None => break,
            Some(Ok(entry)) => entry,
            Some(Err(corruption)) => {
                debug_assert_eq!(corruption.what, What::DirBlock);
                let problem = Problem::of(Code::DirBlockDamaged, dir.ino).at(place.block);
                if !ask.ask(problem.named(corruption.field).values(at as u64, 0_u32))? {
                    return Ok(dirty);
                }
                dirty = true;
                if salvage(bytes, at, format, ctx.geometry.inodes_count) {
                    continue;
                }
                break;
            }
        };
        let (offset, rec_len) = (entry.at.offset, entry.rec_len);
        let first_block = place.file_block.0 == 0;
        if first_block && count < 2 && dir.format.entry_size(entry.name.len()) <= rec_len {
            let end = offset + dirent::HEADER + count + 1;
            let dots = entry.ino.is_some() && entry.name == &b".."[..count + 1];
            let problem = Problem::of(Code::DotTerminator, dir.ino).named(entry.name);
            if dots && bytes[end] != 0 && ask.ask(problem)? {
                bytes[end] = 0;
                dirty = true;
                continue;
            }
        }
        let verdict = if first_block && count < 2 {
            check_dots(ctx, ask, dir, &entry, count, said)?
        } else {
            check_entry(ctx, ask, dir, &entry, said)?
        };
        if verdict == Verdict::Fine && !(first_block && count < 2) && entry.ino.is_some() {
            index.name(ctx, dir, place, &entry);
        }
        dirty |= apply(bytes, offset, stated, verdict);
        // A new record may have been put in front of the rest of this one.
        let now = DirBlock::new(bytes, format).entries_from(offset).next();
        at = offset + now.and_then(std::result::Result::ok).map_or(rec_len, |entry| entry.rec_len);
        count += 1;
    }
    Ok(dirty)
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Verdict {
    /// It stays as it is.
    Fine,
    /// Its inode number becomes zero.
    Clear,
    /// Its file type is set.
    Type(u8),
    /// Its inode number is set.
    Target(Ino),
    /// It gets another name of the same length.
    Rename(Vec<u8>),
    /// It becomes `.` or `..` with this target.
    Dot(usize, Ino),
}

fn apply(bytes: &mut [u8], offset: usize, format: DirFormat, verdict: Verdict) -> bool {
    match verdict {
        Verdict::Fine => return false,
        Verdict::Clear => bytes[offset..offset + 4].fill(0),
        Verdict::Type(code) => bytes[offset + 7] = code,
        Verdict::Target(ino) => bytes[offset..offset + 4].copy_from_slice(&ino.get().to_le_bytes()),
        Verdict::Rename(name) => {
            bytes[offset + 6] = name.len() as u8;
            bytes[offset + 8..offset + 8 + name.len()].copy_from_slice(&name);
        }
        Verdict::Dot(count, ino) => {
            let rec_len = dirent::decode_rec_len(
                u16::from_le_bytes([bytes[offset + 4], bytes[offset + 5]]),
                bytes.len(),
            );
            bytes[offset..offset + 4].copy_from_slice(&ino.get().to_le_bytes());
            bytes[offset + 6] = count as u8 + 1;
            bytes[offset + 7] = if format.filetype { FileType::Directory.dirent_code() } else { 0 };
            bytes[offset + 8..offset + 12].copy_from_slice(&[b'.', if count == 1 { b'.' } else { 0 }, 0, 0]);
            // What a dot of more than 12 bytes covered are the other records, or becomes a free one.
            if count == 0 && rec_len >= 24 {
                let rest = rec_len - 12;
                let len = bytes.len();
                bytes[offset + 4..offset + 6].copy_from_slice(&12_u16.to_le_bytes());
                let covered = || DirBlock::new(bytes, format).entries_from(offset + 12);
                let dotdot =
                    covered().next().is_some_and(|entry| entry.is_ok_and(|entry| entry.name == b".."));
                if dotdot && covered().all(|entry| entry.is_ok()) {
                    return true;
                }
                bytes[offset + 12..offset + 24].fill(0);
                bytes[offset + 16..offset + 18]
                    .copy_from_slice(&dirent::encode_rec_len(rest, len).to_le_bytes());
            }
        }
    }
    true
}

/// Makes a damaged record at `at` a free one that reaches to the next record that makes sense, or to the end.
/// False when there is no record to go on with. Inodes go up to `last`.
fn salvage(bytes: &mut [u8], at: usize, format: DirFormat, last: u32) -> bool {
    let (len, usable) = (bytes.len(), format.usable(bytes.len()));
    let rest = usable - at;
    if rest < 12 {
        // Too short for a record of its own: the one in front takes it.
        let front = DirBlock::new(bytes, format)
            .entries()
            .map_while(std::result::Result::ok)
            .last()
            .map_or(0, |entry| entry.at.offset);
        let rec_len = dirent::encode_rec_len(usable - front, len);
        bytes[front + 4..front + 6].copy_from_slice(&rec_len.to_le_bytes());
        return false;
    }
    if close_gap(bytes, at, format) || restore_length(bytes, at, format, last) {
        return true;
    }
    // Good records up to the end of the block, or so many that they are none by chance.
    let goes_on = |start: usize| {
        let mut good = 0;
        for entry in DirBlock::new(bytes, format).entries_from(start) {
            let Ok(entry) = entry else { return false };
            let named = entry.ino.is_some_and(|ino| ino.get() <= last)
                && FileType::from_dirent(entry.type_code).is_some()
                && !entry.name.iter().any(|&byte| byte == 0 || byte == b'/');
            good += usize::from(named);
            if good >= CONVINCING && format.filetype {
                return true;
            }
        }
        true
    };
    // A record whose name makes sense only has a wrong length.
    let kept = kept_size(&bytes[at..usable], format);
    let next =
        (at + kept.unwrap_or(12)..usable).step_by(4).find(|&start| usable - start >= 12 && goes_on(start));
    let end = next.unwrap_or(usable);
    let sound =
        |bytes: &[u8]| DirBlock::new(bytes, format).entries_from(at).next().is_some_and(|e| e.is_ok());
    let rec_len = dirent::encode_rec_len(end - at, len).to_le_bytes();
    bytes[at + 4..at + 6].copy_from_slice(&rec_len);
    if kept.is_none() || !sound(bytes) {
        bytes[at..at + 12].fill(0);
        bytes[at + 4..at + 6].copy_from_slice(&rec_len);
    }
    // An area that ends at an odd place has no room for a record that makes sense: the walk ends here.
    sound(bytes)
}

/// Records with names and types in a row that are taken for such.
const CONVINCING: usize = 3;

/// Eight bytes in front of good records are too few for a record, and its name would be the next one's
/// number: the good ones move down, and the last of them takes what comes free.
fn close_gap(bytes: &mut [u8], at: usize, format: DirFormat) -> bool {
    let (len, usable) = (bytes.len(), format.usable(bytes.len()));
    let stated = dirent::decode_rec_len(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]), len);
    let after = at + dirent::HEADER;
    if stated != dirent::HEADER || after >= usable {
        return false;
    }
    let mut last = after;
    for entry in DirBlock::new(bytes, format).entries_from(after) {
        match entry {
            Ok(entry) => last = entry.at.offset,
            Err(_) => return false,
        }
    }
    bytes.copy_within(after..usable, at);
    let last = last - dirent::HEADER;
    bytes[last + 4..last + 6].copy_from_slice(&dirent::encode_rec_len(usable - last, len).to_le_bytes());
    true
}

/// A record with a good length and a name that does not fit into it gets the name that stands there, up to the
/// first zero.
fn restore_length(bytes: &mut [u8], at: usize, format: DirFormat, last: u32) -> bool {
    let (len, usable) = (bytes.len(), format.usable(bytes.len()));
    let word = |from: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[from + i]));
    let rec_len = dirent::decode_rec_len(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]), len);
    let fits = rec_len.is_multiple_of(4) && rec_len >= 12 && at + rec_len <= usable;
    if !fits || !(1..=last).contains(&word(at)) || FileType::from_dirent(bytes[at + 7]).is_none() {
        return false;
    }
    let area = &bytes[at + dirent::HEADER..at + rec_len.min(dirent::HEADER + dirent::MAX_NAME)];
    let name = area.iter().position(|&byte| byte == 0).map_or(area, |end| &area[..end]);
    let follows = DirBlock::new(bytes, format).entries_from(at + rec_len).next();
    if name.is_empty() || name.contains(&b'/') || follows.is_some_and(|next| next.is_err()) {
        return false;
    }
    let name_len = name.len() as u8;
    let changed = bytes[at + 6] != name_len;
    bytes[at + 6] = name_len;
    changed
}

/// The bytes that a record needs, when it names something by a name that may be one.
fn kept_size(rest: &[u8], format: DirFormat) -> Option<usize> {
    let len = usize::from(rest[6]);
    let name = rest.get(dirent::HEADER..dirent::HEADER + len).filter(|name| !name.is_empty())?;
    let size = format.entry_size(len);
    let sound = rest[..4] != [0; 4] && size <= rest.len() && !name.iter().any(|&b| b == 0 || b == b'/');
    sound.then_some(size)
}

/// The first two records of a directory.
fn check_dots(
    ctx: &Context,
    ask: &mut dyn Ask,
    dir: &Directory,
    entry: &DirEntry<'_>,
    count: usize,
    said: &mut Said,
) -> Result<Verdict> {
    let (wanted, missing) =
        if count == 0 { (&b"."[..], Code::DotMissing) } else { (&b".."[..], Code::DotDotMissing) };
    let parent = lock(&ctx.found.dirs).get(&dir.ino.get()).and_then(|dir| Ino::new(dir.parent));
    let target = if count == 0 { dir.ino } else { parent.unwrap_or(Ino::ROOT) };
    if entry.ino.is_none() || entry.name != wanted {
        let lost = entry.ino.is_some();
        if ask.ask(Problem::of(missing, dir.ino))? {
            if count == 1 {
                said.dotdot = target.get();
            }
            return Ok(Verdict::Dot(count, target));
        }
        return if lost { check_entry(ctx, ask, dir, entry, said) } else { Ok(Verdict::Fine) };
    }
    let found = entry.ino.map_or(0, Ino::get);
    if count == 0 {
        if found != dir.ino.get()
            && ask.ask(Problem::of(Code::DotInode, dir.ino).values(found, dir.ino.get()))?
        {
            return Ok(Verdict::Target(dir.ino));
        }
        let long = Problem::of(Code::DotLength, dir.ino).values(entry.rec_len as u64, 12_u32);
        if entry.rec_len > 24 && ask.ask(long)? {
            return Ok(Verdict::Dot(0, dir.ino));
        }
    } else {
        said.dotdot = found;
        if found > ctx.geometry.inodes_count
            && ask.ask(Problem::of(Code::DotDotZero, dir.ino).values(found, 0_u32))?
        {
            said.dotdot = target.get();
            return Ok(Verdict::Target(target));
        }
    }
    let code = if dir.format.filetype { FileType::Directory.dirent_code() } else { 0 };
    if entry.type_code != code {
        let problem = Problem::of(wrong_type(entry, code), dir.ino).named(entry.name);
        if ask.ask(problem.values(entry.type_code, code))? {
            return Ok(Verdict::Type(code));
        }
    }
    Ok(Verdict::Fine)
}

/// In which way the type of an entry is wrong.
fn wrong_type(entry: &DirEntry<'_>, expected: u8) -> Code {
    match (entry.type_code, expected) {
        (0, _) => Code::EntryTypeUnset,
        (_, 0) => Code::EntryTypeFeature,
        _ => Code::EntryType,
    }
}

/// Any other record.
fn check_entry(
    ctx: &Context,
    ask: &mut dyn Ask,
    dir: &Directory,
    entry: &DirEntry<'_>,
    said: &mut Said,
) -> Result<Verdict> {
    let Some(target) = entry.ino else { return Ok(Verdict::Fine) };
    let problem = |code| Problem::of(code, dir.ino).named(entry.name).values(target.get(), 0_u32);
    let what = ctx.found.inodes.get(target);
    if what == Use::Free && beyond_scan(ctx, ask, target)? {
        return Ok(Verdict::Fine);
    }
    let dots = entry.name == b"." || entry.name == b"..";
    let internal = target.get() < ctx.first_ino() && target != Ino::ROOT;
    let wrong = if dots {
        Some(Code::EntryDot)
    } else if target.get() > ctx.geometry.inodes_count {
        Some(Code::EntryInode)
    } else if internal || what == Use::Internal {
        Some(Code::EntryReserved)
    } else if target == Ino::ROOT {
        Some(Code::EntryRoot)
    } else if target == dir.ino {
        Some(Code::EntryItself)
    } else if what == Use::Free || what == Use::Reserved {
        Some(Code::EntryUnused)
    } else if what == Use::Attribute {
        Some(Code::EntryEaInode)
    } else if what.is_dir() && second_name(ctx, ask, dir, target, said)? {
        Some(Code::EntryDirLink)
    } else if let Some(policy) = &dir.policy {
        encryption::fault(ctx, policy, entry.name, target)?
    } else {
        None
    };
    if let Some(code) = wrong {
        return Ok(if ask.ask(problem(code))? { Verdict::Clear } else { Verdict::Fine });
    }
    said.names.push(target);
    if what.is_dir() {
        said.children.insert(target);
    }
    if !dir.inode.has(flag::ENCRYPT) && entry.name.iter().any(|&b| b == 0 || b == b'/') {
        let renamed = entry.name.iter().map(|&b| if b == 0 || b == b'/' { b'.' } else { b }).collect();
        if ask.ask(problem(Code::EntryName))? {
            return Ok(Verdict::Rename(renamed));
        }
        return Ok(Verdict::Fine);
    }
    let encoded = dir.inode.flags & (flag::CASEFOLD | flag::ENCRYPT) == flag::CASEFOLD;
    if encoded && (ctx.strict_names() || ctx.options.check_encoding) && !casefold::is_valid(entry.name) {
        let renamed = entry.name.iter().map(|&b| if b.is_ascii() { b } else { b'.' }).collect();
        if ask.ask(problem(Code::EntryEncoding))? {
            return Ok(Verdict::Rename(renamed));
        }
        return Ok(Verdict::Fine);
    }
    if !said.seen.insert(fingerprint(&ctx.folded(dir.inode.flags, entry.name))) {
        if ask.ask(problem(Code::EntryDuplicate))? {
            // A new name would be a plain one: what was encrypted gets a name in lost+found.
            let encrypted = dir.inode.has(flag::ENCRYPT);
            let renamed = if encrypted { None } else { unique_name(ctx, dir, entry.name, said) };
            if renamed.is_none() {
                said.names.pop();
                said.children.remove(&target);
            }
            return Ok(renamed.map_or(Verdict::Clear, Verdict::Rename));
        }
        return Ok(Verdict::Fine);
    }
    if let Use::File(code) = what {
        let expected = if dir.format.filetype { code } else { 0 };
        if entry.type_code != expected {
            let wrong = Problem::of(wrong_type(entry, expected), dir.ino).named(entry.name);
            if ask.ask(wrong.values(entry.type_code, expected))? {
                return Ok(Verdict::Type(expected));
            }
        }
    }
    Ok(Verdict::Fine)
}

/// Looks for duplicates only, among the names of the part that is being looked at.
pub fn check_names(
    ctx: &Context,
    ask: &mut dyn Ask,
    dir: &Directory,
    place: Place,
    said: &mut Said,
) -> Result<()> {
    let mut bytes = ctx.disk.read(place.block)?;
    let format = DirFormat { tail: false, ..dir.format };
    let entries: Vec<(usize, Vec<u8>)> = DirBlock::new(&bytes, format)
        .entries()
        .map_while(std::result::Result::ok)
        .filter(|entry| entry.ino.is_some() && entry.name != b"." && entry.name != b"..")
        .map(|entry| (entry.at.offset, entry.name.to_vec()))
        .collect();
    let mut dirty = false;
    for (offset, name) in entries {
        if said.seen.insert(fingerprint(&ctx.folded(dir.inode.flags, &name)))
            || !ask.ask(Problem::of(Code::EntryDuplicate, dir.ino).named(&name))?
        {
            continue;
        }
        // Whether the new name is taken, too, the next round finds out.
        let encrypted = dir.inode.has(flag::ENCRYPT);
        let renamed = if encrypted { None } else { unique_name(ctx, dir, &name, said) };
        dirty |= apply(&mut bytes, offset, format, renamed.map_or(Verdict::Clear, Verdict::Rename));
    }
    if dirty {
        if dir.inode.has(flag::INDEX) {
            lock(&ctx.found.rebuild).push(dir.ino);
        }
        if place.file_block.0 > 0 || !dir.inode.has(flag::INDEX) {
            ctx.csum.set_dir_block(&mut bytes, dir.ino, dir.inode.generation);
        }
        ctx.disk.write(place.block, &bytes)?;
    }
    Ok(())
}

/// Whether an inode lies where its group says that none is in use, so that nobody has looked. A name for it
/// makes that doubtful: the group is looked at as a whole in the next round.
fn beyond_scan(ctx: &Context, ask: &mut dyn Ask, ino: Ino) -> Result<bool> {
    let Some(place) = ctx.geometry.inode_location(ino) else { return Ok(false) };
    let scanned = ctx.inodes_to_scan(place.group);
    if place.index < scanned {
        return Ok(false);
    }
    if !lock(&ctx.found.distrusted).contains(&place.group) {
        let unused = ctx.geometry.inodes_per_group - scanned;
        let problem = Problem::of_group(Code::ItableUnused, place.group).values(unused, ino.get());
        if ask.ask(problem)? {
            lock(&ctx.found.distrusted).insert(place.group);
        }
    }
    Ok(true)
}

/// Whether a directory that is named here already has a name that it keeps. Of two names, that in the
/// directory which its `..` names is the right one.
fn second_name(ctx: &Context, ask: &mut dyn Ask, dir: &Directory, target: Ino, said: &Said) -> Result<bool> {
    let known = lock(&ctx.found.dirs).get(&target.get()).copied().unwrap_or_default();
    let Some(other) = Ino::new(known.parent).filter(|other| *other != dir.ino) else {
        return Ok(said.children.contains(&target));
    };
    let right = known.dotdot == dir.ino.get() && !said.children.contains(&target);
    let problem = Problem::of(Code::EntryDirLink, other).named("?").values(target.get(), 0_u32);
    if !right || !ask.ask(problem)? {
        return Ok(true);
    }
    pass3::remove_name(ctx, other, target, |_| true)?;
    ctx.found.inodes.add_names(target, -1);
    if let Some(known) = lock(&ctx.found.dirs).get_mut(&target.get()) {
        known.parent = 0;
    }
    Ok(false)
}

/// A number for a name; equal numbers are equal names but for a chance of 2^-64 that a stranger cannot steer.
fn fingerprint(name: &[u8]) -> u64 {
    static KEY: OnceLock<RandomState> = OnceLock::new();
    let mut hasher = KEY.get_or_init(RandomState::new).build_hasher();
    hasher.write(name);
    hasher.finish()
}

/// Another name of the same length: its last letters become a counter. `None` when all are taken.
fn unique_name(ctx: &Context, dir: &Directory, name: &[u8], said: &mut Said) -> Option<Vec<u8>> {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let places = name.len().min(4);
    // No number is tried twice, so that a directory full of one name costs no more than another.
    (said.renamed..36_usize.pow(places as u32)).find_map(|n| {
        said.renamed = n + 1;
        let mut new = name.to_vec();
        let mut rest = n;
        for place in new.iter_mut().rev().take(places) {
            *place = DIGITS[rest % 36];
            rest /= 36;
        }
        said.seen.insert(fingerprint(&ctx.folded(dir.inode.flags, &new))).then_some(new)
    })
}

/// The two parts of an inline directory: behind the parent's number in `i_block`, and the rest in an
/// attribute.
pub fn check_inline(
    ctx: &Context,
    ask: &mut dyn Ask,
    dir: &Directory,
    mut record: Vec<u8>,
    said: &mut Said,
) -> Result<()> {
    let parent = u32::from_le_bytes(std::array::from_fn(|i| record[BLOCK_OFFSET + i]));
    said.dotdot = parent;
    let mut dirty = false;
    if Ino::new(parent).is_none_or(|ino| ino.get() > ctx.geometry.inodes_count)
        && ask.ask(Problem::of(Code::DotDotZero, dir.ino).values(parent, 0_u32))?
    {
        said.dotdot = Ino::ROOT.get();
        record[BLOCK_OFFSET..BLOCK_OFFSET + 4].copy_from_slice(&said.dotdot.to_le_bytes());
        dirty = true;
    }
    let format = DirFormat { tail: false, ..dir.format };
    let place = Place { file_block: ext4_format::FileBlock(1), block: ext4_format::BlockNo(0) };
    for area in inline::areas(ctx, &record, &dir.inode) {
        let mut bytes = record[area.clone()].to_vec();
        if check_entries(ctx, ask, dir, place, &mut bytes, format, said, &mut Index::none())? {
            record[area].copy_from_slice(&bytes);
            dirty = true;
        }
    }
    if dirty { ctx.write_record(dir.ino, &mut record) } else { Ok(()) }
}

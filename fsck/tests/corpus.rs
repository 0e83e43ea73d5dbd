//! The corpus of planted defects: `corpus.txt` names each, says how it is planted and what exactly must be
//! found.
//!
//! Each line is `name | volume | edits | problems | changed`. Edits are separated by `;`, numbers are decimal
//! or 0x:
//! - `inode WHO OFFSET BYTES`, `block WHO N OFFSET BYTES`, `tree WHO N OFFSET BYTES`, `xattr WHO OFFSET
//!   BYTES`, `super OFFSET BYTES`, `desc GROUP OFFSET BYTES`, `bitmap GROUP OFFSET BYTES`, `imap GROUP OFFSET
//!   BYTES`: bytes (hex) of a structure, whose checksum is made right again; with `!` behind the word it is
//!   left wrong;
//! - `entry DIR NAME inode|rec_len|name_len|type|name VALUE`: a field of a directory entry;
//! - `copy WHO N TO`: node N of a tree over a block of the volume, which stands there unchanged;
//! - `journal OFFSET BYTES`: bytes of the journal's superblock;
//! - `zero FIRST COUNT`: bytes of the image;
//! - `copies OFFSET BYTES`: bytes of every copy of the superblock but the first, with their checksums;
//! - `deepen WHO LEVELS`: levels put on top of an extent tree, in the last blocks of the volume;
//! - `debugfs COMMAND`: as debugfs -w does it.
//!
//! WHO is a path or `<number>`. In place of bytes, `@block:WHO:N`, `@tree:WHO:N`, `@xattr:WHO` and `@inode:WHO`
//! are that block's or inode's number in 32 bits; `+` joins parts. After -y the volume must be clean for both checkers, and only
//! as many files may have changed or gone as the last column says; a file that e2fsck keeps (1.47.0 where the
//! rows were made) must be kept here, too. `REXT4_COMPARE=1` tells where exit codes differ from e2fsck's.
//! `REXT4_BLESS=1` writes what was found into the file, to be reviewed.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use ext4_format::dirent::{DirBlock, DirFormat};
use ext4_format::{GroupNo, Ino};
use fsck::Mode;
use support::{
    Held, Kind, Volume, check, copied_little, e2fsck, e2fsck_of, encrypted, filled, filled_little, fix_sum,
};

const VOLUMES: [(&str, &str); 15] = [
    ("ext4", "-t ext4 -b 1024 -J size=1 -N 1024 -g 4096"),
    ("ext3", "-t ext3 -b 1024 -J size=1 -N 1024 -g 4096"),
    ("plain", "-t ext4 -b 1024 -J size=1 -N 1024 -g 4096 -O ^metadata_csum,^64bit"),
    ("inline", "-t ext4 -b 1024 -J size=1 -N 1024 -O inline_data"),
    ("bare", "-t ext4 -b 1024 -N 1024 -O ^has_journal,^resize_inode,^orphan_file,mmp"),
    ("orphan", "-t ext4 -b 1024 -J size=1 -N 1024 -O orphan_file"),
    ("bigalloc", "-t ext4 -b 1024 -N 1024 -O bigalloc,^has_journal -C 4096"),
    ("none", "-t ext2 -b 1024 -N 1024"),
    ("quota", "-t ext4 -b 1024 -J size=1 -N 1024 -O quota"),
    ("ea", "-t ext4 -b 1024 -J size=2 -N 1024 -O ea_inode"),
    ("encrypt", "-t ext4 -b 1024 -J size=1 -N 512 -O encrypt"),
    ("groups8", "-t ext4 -b 1024 -J size=1 -N 128 -g 1024"),
    ("metabg", "-t ext4 -b 1024 -N 256 -O meta_bg,^resize_inode,^has_journal -g 512"),
    ("super2", "-t ext4 -b 1024 -N 256 -O sparse_super2,^has_journal -g 1024"),
    ("big", "-t ext4 -b 65536 -N 256 -O ^has_journal,^resize_inode"),
];

/// The volume of a row of [`VOLUMES`]; features and sizes that not every kernel mounts are left to mke2fs.
fn base(name: &str, options: &str) -> Option<Vec<u8>> {
    match name {
        "quota" => Some(copied_little(options, "16M", false)),
        "big" => Some(copied_little(options, "32M", false)),
        "encrypt" => encrypted(options, "8M"),
        "groups8" => filled_little(options, "16M"),
        "metabg" | "super2" => filled_little(options, "8M"),
        _ => filled(options, 16),
    }
}

/// Rows in which a file that e2fsck 1.47.0 keeps is not kept.
const LOSES_MORE: [&str; 0] = [];

struct Case {
    name: String,
    volume: String,
    edits: Vec<String>,
    problems: String,
    changed: String,
}

fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
        None => text.parse().unwrap_or_else(|_| panic!("{text} is no number")),
    }
}

/// The bytes that a word of an edit stands for.
fn bytes_of(volume: &Volume<'_>, text: &str) -> Vec<u8> {
    if text.contains('+') {
        return text.split('+').flat_map(|part| bytes_of(volume, part)).collect();
    }
    let Some(reference) = text.strip_prefix('@') else { return hex(text) };
    let mut parts = reference.split(':');
    let (kind, ino) = (parts.next().unwrap(), inode_of(volume, parts.next().unwrap()));
    let at = parts.next().map_or(0, |at| number(at) as usize);
    let inode = volume.inode(ino).unwrap();
    let number = match kind {
        "block" => volume.mapped(&inode).0[at].1,
        "tree" => volume.mapped(&inode).1[at],
        "xattr" => inode.file_acl.0,
        "inode" => ino.get().into(),
        kind => panic!("no reference {kind}"),
    };
    (number as u32).to_le_bytes().to_vec()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// The inode that WHO means.
fn inode_of(volume: &Volume<'_>, who: &str) -> Ino {
    if let Some(number) = who.strip_prefix('<') {
        return Ino::new(number.trim_end_matches('>').parse().unwrap()).unwrap();
    }
    if who == "/" {
        return Ino::ROOT;
    }
    volume.files().get(who).unwrap_or_else(|| panic!("no {who}")).0
}

fn edit(image: &mut Vec<u8>, text: &str) {
    let words: Vec<&str> = text.split_whitespace().collect();
    if words[0] == "debugfs" {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &*image).unwrap();
        let command = text.trim().strip_prefix("debugfs ").unwrap();
        let output = Command::new("debugfs").args(["-w", "-R", command]).arg(file.path()).output().unwrap();
        assert!(output.status.success());
        *image = std::fs::read(file.path()).unwrap();
        return;
    }
    let before = image.clone();
    let volume = Volume::new(&before).expect("edits start from a readable volume");
    let size = volume.geometry.block_size as usize;
    match words[0] {
        "copy" => {
            let from = u32::from_le_bytes(
                bytes_of(&volume, &format!("@tree:{}:{}", words[1], words[2])).try_into().unwrap(),
            );
            let (from, to) = (from as usize * size, number(words[3]) as usize * size);
            image.copy_within(from..from + size, to);
            return;
        }
        "copies" => {
            for group in volume.geometry.backup_groups() {
                let at = volume.geometry.group_first_block(group).0 as usize * size;
                let raw = &mut image[at..at + 1024];
                let (offset, new) = (number(words[1]) as usize, hex(words[2]));
                raw[offset..offset + new.len()].copy_from_slice(&new);
                let sum = ext4_format::superblock::checksum((&*raw).try_into().unwrap());
                raw[1020..].copy_from_slice(&sum.to_le_bytes());
            }
            return;
        }
        "deepen" => return deepen(image, &volume, inode_of(&volume, words[1]), number(words[2])),
        "journal" => {
            let inode = volume.inode(Ino::JOURNAL).unwrap();
            let at = volume.mapped(&inode).0[0].1 as usize * size;
            let raw: &mut [u8; 1024] = (&mut image[at..at + 1024]).try_into().unwrap();
            let (offset, new) = (number(words[1]) as usize, hex(words[2]));
            raw[offset..offset + new.len()].copy_from_slice(&new);
            if raw[0x2b] & 0x18 != 0 {
                let sum = ext4_format::csum::JournalCsum::superblock(raw);
                raw[0xfc..0x100].copy_from_slice(&sum.to_be_bytes());
            }
            return;
        }
        "zero" => {
            let first = number(words[1]) as usize;
            image[first..first + number(words[2]) as usize].fill(0);
            return;
        }
        _ => {}
    }
    let fix = !words[0].ends_with('!');
    let (block, kind, start, rest) = match words[0].trim_end_matches('!') {
        "inode" => {
            let ino = inode_of(&volume, words[1]);
            let at = volume.inode_offset(ino).unwrap();
            let group = volume.geometry.inode_location(ino).unwrap().group;
            ((at / size) as u64, Kind::InodeTable(group.0), at % size, 2)
        }
        "block" => {
            let ino = inode_of(&volume, words[1]);
            let inode = volume.inode(ino).unwrap();
            let block = volume.mapped(&inode).0[number(words[2]) as usize].1;
            let kind = volume.metadata().into_iter().find(|m| m.0 == block).map_or(Kind::Indirect, |m| m.1);
            (block, kind, 0, 3)
        }
        "tree" => {
            let ino = inode_of(&volume, words[1]);
            let inode = volume.inode(ino).unwrap();
            let block = volume.mapped(&inode).1[number(words[2]) as usize];
            (block, Kind::Extent(ino, inode.generation), 0, 3)
        }
        "xattr" => {
            let block = volume.inode(inode_of(&volume, words[1])).unwrap().file_acl.0;
            (block, Kind::Xattr, 0, 2)
        }
        "super" => (1024 / size as u64, Kind::Super, 1024 % size, 1),
        "desc" => {
            let (block, byte) = volume.geometry.descriptor(GroupNo(number(words[1]) as u32));
            (block.0, Kind::Descriptors, byte, 2)
        }
        "bitmap" | "imap" => {
            let group = number(words[1]) as u32;
            let wanted =
                if words[0].starts_with('b') { Kind::BlockBitmap(group) } else { Kind::InodeBitmap(group) };
            let block = volume.metadata().into_iter().find(|m| m.1 == wanted).unwrap().0;
            (block, wanted, 0, 2)
        }
        "entry" => {
            let ino = inode_of(&volume, words[1]);
            let inode = volume.inode(ino).unwrap();
            let format = DirFormat { tail: false, ..DirFormat::new(&volume.sb, inode.flags) };
            let (block, offset) = volume
                .mapped(&inode)
                .0
                .iter()
                .find_map(|&(_, block, _)| {
                    let found =
                        DirBlock::new(volume.block(block)?, format).find(words[2].as_bytes()).ok()??;
                    Some((block, found.at.offset))
                })
                .unwrap_or_else(|| panic!("no {} in {}", words[2], words[1]));
            let at = block as usize * size + offset;
            match words[3] {
                "inode" => image[at..at + 4].copy_from_slice(&(number(words[4]) as u32).to_le_bytes()),
                "rec_len" => image[at + 4..at + 6].copy_from_slice(&(number(words[4]) as u16).to_le_bytes()),
                "name_len" => image[at + 6] = number(words[4]) as u8,
                "type" => image[at + 7] = number(words[4]) as u8,
                "name" => image[at + 8..at + 8 + words[4].len() / 2].copy_from_slice(&hex(words[4])),
                field => panic!("no field {field}"),
            }
            let kind = volume.metadata().into_iter().find(|m| m.0 == block).unwrap().1;
            if fix {
                fix_sum(image, &before, block, kind);
            }
            return;
        }
        word => panic!("no edit {word}"),
    };
    let at = block as usize * size + start + number(words[rest]) as usize;
    let bytes = bytes_of(&volume, words[rest + 1]);
    image[at..at + bytes.len()].copy_from_slice(&bytes);
    if fix {
        fix_sum(image, &before, block, kind);
    }
}

/// Puts index nodes with one entry each between the root of an inode's tree and what it names.
fn deepen(image: &mut [u8], volume: &Volume<'_>, ino: Ino, levels: u64) {
    let size = volume.geometry.block_size as usize;
    let inode = volume.inode(ino).unwrap();
    let at = volume.inode_offset(ino).unwrap();
    let root = at + 0x28;
    for level in 1..=levels {
        let block = volume.geometry.blocks_count - level;
        let mut node = vec![0; size];
        node[..60].copy_from_slice(&image[root..root + 60]);
        node[4..6].copy_from_slice(&((size / 12 - 1) as u16).to_le_bytes());
        volume.csum.set_extent_block(&mut node, ino, inode.generation);
        let depth = u16::from_le_bytes([node[6], node[7]]);
        image[block as usize * size..][..size].copy_from_slice(&node);
        image[root + 2..root + 4].copy_from_slice(&1_u16.to_le_bytes());
        image[root + 6..root + 8].copy_from_slice(&(depth + 1).to_le_bytes());
        image[root + 12..root + 16].copy_from_slice(&node[12..16]);
        image[root + 16..root + 24].copy_from_slice(&block.to_le_bytes());
    }
    let blocks = (inode.blocks + levels * (size as u64 / 512)) as u32;
    image[at + 0x1c..at + 0x20].copy_from_slice(&blocks.to_le_bytes());
    volume.csum.set_inode(&mut image[at..at + volume.geometry.inode_size], ino);
}

fn cases() -> (PathBuf, String, Vec<Case>) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus.txt");
    let text = std::fs::read_to_string(&path).unwrap();
    let cases = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(|line| {
            let mut parts = line.split('|').map(str::trim);
            let mut next = || parts.next().unwrap_or_default().to_owned();
            let (name, volume) = (next(), next());
            let edits = next().split(';').map(|edit| edit.trim().to_owned()).collect();
            Case { name, volume, edits, problems: next(), changed: next() }
        })
        .collect();
    (path, text, cases)
}

/// Tells where exit codes are not e2fsck's, for -p and for -y.
fn tell_differences(name: &str, image: &[u8]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    for (flag, mode, given_up) in [("-p", Mode::Preen, 4), ("-y", Mode::Yes, 8)] {
        std::fs::write(file.path(), image).unwrap();
        let (code, words) = e2fsck(file.path(), flag);
        let ours = check(image, mode).0.map_or(given_up, |report| i32::from(report.exit_code()));
        if ours != code {
            eprintln!("{name} {flag}: {ours}, e2fsck {code}: {}", words.replace('\n', " / "));
        }
    }
}

#[test]
fn every_planted_defect_is_found_and_repaired() {
    let bless = std::env::var_os("REXT4_BLESS").is_some();
    let only = std::env::var("REXT4_CASE").ok();
    let compare = std::env::var_os("REXT4_COMPARE").is_some();
    let (path, text, cases) = cases();
    assert!(cases.len() >= 150, "only {} kinds of defects", cases.len());
    let mut bases: HashMap<&str, Vec<u8>> = HashMap::new();
    for (name, options) in VOLUMES {
        let Some(base) = base(name, options) else { return };
        let (report, _) = check(&base, Mode::CheckOnly);
        assert_eq!(report.unwrap().codes(), Vec::<&str>::new(), "{name}");
        bases.insert(name, base);
    }
    let wanted: Vec<&Case> = cases
        .iter()
        .filter(|case| only.as_ref().is_none_or(|only| case.name.contains(only.as_str())))
        .collect();
    let next = AtomicUsize::new(0);
    let results: Mutex<BTreeMap<usize, (String, Option<String>)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Relaxed);
                    let Some(case) = wanted.get(at) else { break };
                    let result = examine(case, &bases[case.volume.as_str()], bless, compare);
                    results.lock().unwrap().insert(at, result);
                }
            });
        }
    });
    let results = results.into_inner().unwrap();
    assert_eq!(results.len(), wanted.len(), "a row ended its thread");
    if bless && only.is_none() {
        let comments = text.lines().filter(|line| line.starts_with('#')).map(|line| format!("{line}\n"));
        let rows = results.values().map(|result| result.0.clone());
        std::fs::write(path, comments.chain(rows).collect::<String>()).unwrap();
    }
    let failures: Vec<&str> = results.values().filter_map(|result| result.1.as_deref()).collect();
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// Plants a defect and repairs it: the row as it should be, and what is wrong with the repair.
fn examine(case: &Case, base: &[u8], bless: bool, compare: bool) -> (String, Option<String>) {
    let mut image = base.to_vec();
    for text in &case.edits {
        edit(&mut image, text);
    }
    let (found, _) = check(&image, Mode::CheckOnly);
    let problems = match &found {
        Ok(report) => report.codes().join(" "),
        Err(error) => format!("ERROR {error}"),
    };
    if compare {
        tell_differences(&case.name, &image);
    }
    let (repaired, ours) = check(&image, Mode::Yes);
    let (again, _) = check(&ours, Mode::CheckOnly);
    let (verdict, words) = e2fsck_of(&ours);
    let before = Volume::new(base).unwrap().files();
    let held = |image: &[u8]| Volume::new(image).map(|volume| volume.files()).unwrap_or_default();
    let after = held(&ours);
    let keeps = |after: &BTreeMap<String, (Ino, Held)>, path: &str, held: &Held| {
        after.get(path).is_some_and(|(_, now)| now == held)
    };
    let changed = before.iter().filter(|(path, (_, held))| !keeps(&after, path, held)).count().to_string();
    // A warning that is given each time is no problem.
    let still = match &again {
        Ok(report) if report.count == 0 => String::new(),
        Ok(report) => report.codes().join(" "),
        Err(error) => error.to_string(),
    };
    let row =
        format!("{} | {} | {} | {problems} | {changed}\n", case.name, case.volume, case.edits.join("; "));
    if repaired.is_err() || verdict != 0 || !still.is_empty() {
        return (row, Some(format!("{}: {problems}; then {still}; e2fsck {verdict}:\n{words}", case.name)));
    }
    // What e2fsck does not come to the end of says nothing about what it keeps.
    let theirs = match changed.as_str() {
        "0" => None,
        _ => repaired_by_e2fsck(&image),
    };
    if let Some(theirs) = theirs.map(|theirs| held(&theirs)) {
        let lost: Vec<&str> = before
            .iter()
            .filter(|(path, (_, held))| keeps(&theirs, path, held) && !keeps(&after, path, held))
            .map(|(path, _)| path.as_str())
            .collect();
        if !lost.is_empty() && !LOSES_MORE.contains(&case.name.as_str()) {
            return (row, Some(format!("{}: e2fsck keeps {}: {lost:?}", case.name, lost.len())));
        }
    }
    let differs = !bless && (problems != case.problems || changed != case.changed);
    (row, differs.then(|| format!("{}: {problems} | {changed}", case.name)))
}

/// The image as e2fsck -fy leaves it.
fn repaired_by_e2fsck(image: &[u8]) -> Option<Vec<u8>> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image).unwrap();
    let (code, _) = e2fsck(file.path(), "-y");
    (code & 8 == 0).then(|| std::fs::read(file.path()).unwrap())
}

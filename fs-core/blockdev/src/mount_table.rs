//! The kernel's table of mounts (`/proc/PID/mountinfo`, see proc(5)).
//!
//! Whoever may mount, an ordinary user with a FUSE filesystem among them, chooses the words of his line: they
//! are bytes of any kind, and the paths lead wherever he likes. So a line is read and compared here, and
//! no path in it is followed.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// A line of the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountEntry {
    /// The mount's own number.
    pub id: u64,
    /// Device number of the filesystem, major and minor.
    pub device: (u32, u32),
    /// The mount point.
    pub point: PathBuf,
    /// Options of this mount.
    pub options: OsString,
    /// The filesystem's type, a subtype behind a dot.
    pub fs_type: OsString,
    /// What is mounted, in the words of whoever mounted it.
    pub source: PathBuf,
    /// Options of the filesystem, whichever mount shows it.
    pub fs_options: OsString,
}

impl MountEntry {
    /// `36 35 98:0 /root /point options optional... - type source options`
    fn parse(line: &[u8]) -> Option<MountEntry> {
        let at = line.windows(3).position(|word| word == b" - ")?;
        let mut front = line[..at].split(|byte| *byte == b' ');
        let mut back = line[at + 3..].split(|byte| *byte == b' ');
        let (id, _parent, device, _root) = (front.next()?, front.next()?, front.next()?, front.next()?);
        let (major, minor) = text(device)?.split_once(':')?;
        Some(MountEntry {
            id: text(id)?.parse().ok()?,
            device: (major.parse().ok()?, minor.parse().ok()?),
            point: unescape(front.next()?).into(),
            options: unescape(front.next()?),
            fs_type: unescape(back.next()?),
            source: unescape(back.next()?).into(),
            fs_options: unescape(back.next()?),
        })
    }

    /// Whether this mount, which others of the same filesystem need not be, is read-only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        has_option(&self.options, b"ro")
    }

    /// Whether the filesystem is read-only in all its mounts.
    #[must_use]
    pub fn fs_is_read_only(&self) -> bool {
        has_option(&self.fs_options, b"ro")
    }
}

/// The mounts that this process sees, in the table's order: the newest of those on one point comes last.
/// What is no line of this form is left out.
///
/// # Errors
/// Those of reading the table.
pub fn mount_table() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mounts that the process or thread `pid` sees.
///
/// # Errors
/// Those of reading its table, which needs the right to trace it.
pub fn mount_table_of(pid: u32) -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read(format!("/proc/{pid}/mountinfo"))?))
}

fn parse(table: &[u8]) -> Vec<MountEntry> {
    table.split(|byte| *byte == b'\n').filter_map(MountEntry::parse).collect()
}

fn has_option(all: &OsString, wanted: &[u8]) -> bool {
    all.as_encoded_bytes().split(|byte| *byte == b',').any(|option| option == wanted)
}

fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok()
}

/// Undoes the escapes of the kernel's tables, a backslash and three octal digits, which stand for space, tab,
/// newline, backslash and number sign.
pub(crate) fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, others)) = rest.split_first() {
        let octal = if first == b'\\' { others.get(..3).and_then(octal) } else { None };
        bytes.push(octal.unwrap_or(first));
        rest = if octal.is_some() { &others[3..] } else { others };
    }
    OsString::from_vec(bytes)
}

fn octal(digits: &[u8]) -> Option<u8> {
    let value = digits.iter().try_fold(0u32, |value, digit| match digit {
        b'0'..=b'7' => Some(value * 8 + u32::from(digit - b'0')),
        _ => None,
    })?;
    value.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::Path;

    use super::*;

    #[test]
    fn escapes_are_undone_and_all_else_stays() {
        for (field, plain) in [
            (&b"/mnt/a\\040b\\134c"[..], &b"/mnt/a b\\c"[..]),
            (b"/plain", b"/plain"),
            (b"\xff\xfe\\011", b"\xff\xfe\t"),
            (b"\\0", b"\\0"),
            (b"\\400\\9", b"\\400\\9"),
            (b"\\\\040", b"\\ "),
        ] {
            assert_eq!(unescape(field), OsStr::from_bytes(plain));
        }
    }

    #[test]
    fn a_line_is_read_whatever_its_bytes() {
        let line = b"40 26 0:36 / /mnt/a\\040\xff rw,noatime shared:7 master:1 - fuse.rext4 /images/\xfe ro,user_id=0";
        let entry = MountEntry::parse(line).unwrap();
        assert_eq!((entry.id, entry.device), (40, (0, 36)));
        assert_eq!(entry.point, Path::new(OsStr::from_bytes(b"/mnt/a \xff")));
        assert_eq!(entry.source, Path::new(OsStr::from_bytes(b"/images/\xfe")));
        assert_eq!(entry.fs_type, "fuse.rext4");
        assert!(!entry.is_read_only() && entry.fs_is_read_only());
    }

    #[test]
    fn a_line_that_is_none_hides_no_other() {
        let table = b"nonsense\n1 2 x:y / /p rw - a b rw\n\n40 26 0:36 / /p rw - t s rw\n41 26 0:3";
        let points: Vec<_> = parse(table).into_iter().map(|entry| entry.id).collect();
        assert_eq!(points, [40]);
    }

    #[test]
    fn the_table_of_this_process_has_a_root() {
        assert!(mount_table().unwrap().iter().any(|entry| entry.point == Path::new("/")));
    }
}

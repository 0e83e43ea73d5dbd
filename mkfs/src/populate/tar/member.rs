//! One member after the other: headers put together, checked and turned into what they describe.

use std::io;
use std::path::Path;

use ext4_format::inode::Time;
use tar::{GnuExtSparseHeader, Header};

use super::super::attributes::NamedValue;
use super::super::content::SparseMap;
use super::super::error::{Error, Result};
use super::super::layer::Merge;
use super::super::tree::{Content, Meta};
use super::feed::{Feed, Stop};
use super::pax::Records;
use super::sparse::{self, Described, Sparse};
use super::{archive, broken, file_at};

const BLOCK: u64 = 512;
/// The longest PAX header: room for a handful of attributes of 64 KiB.
const MAX_RECORDS: u64 = 4 << 20;
/// The longest GNU name.
const MAX_NAME: u64 = 64 << 10;
/// Bytes behind the end of an archive that are read, so that whoever writes it can finish.
const MAX_TRAILER: u64 = 1 << 20;

/// What a member describes.
pub struct Member {
    /// Its path as it stands.
    pub path: Vec<u8>,
    /// Owner, mode and time.
    pub meta: Meta,
    /// What it is.
    pub kind: Kind,
    /// Its extended attributes.
    pub attributes: Vec<NamedValue>,
}

/// What a member is.
#[derive(PartialEq)]
pub enum Kind {
    /// A regular file.
    File {
        /// Its size.
        size: u64,
        /// Where its bytes lie.
        content: Content,
        /// Its holes.
        map: Option<SparseMap>,
    },
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A hard link and the path of the file.
    HardLink(Vec<u8>),
    /// A device: whether a block device, and its numbers.
    Device(bool, u32, u32),
    /// A named pipe.
    Fifo,
}

/// Reads members.
pub struct Reader<'f> {
    feed: &'f mut dyn Feed,
    name: &'f Path,
    global: Records,
    seen: bool,
    /// Bytes that fill up the last block of the member before.
    padding: u64,
}

impl<'f> Reader<'f> {
    /// Reads from the start of an archive.
    pub fn new(feed: &'f mut dyn Feed, name: &'f Path) -> Reader<'f> {
        Reader { feed, name, global: Records::default(), seen: false, padding: 0 }
    }

    /// The next member; `None` behind the last.
    pub fn next(&mut self, merge: &mut Merge<'_>) -> Result<Option<Member>> {
        let mut local = Records::default();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            let padding = std::mem::take(&mut self.padding);
            self.feed.skip(padding).map_err(|error| broken(self.name, &error))?;
            let at = self.feed.position();
            let Some(header) = self.header()? else { return Ok(None) };
            let kind = header.as_bytes()[156];
            let size = field(&header.as_old().size)
                .ok_or_else(|| archive(self.name, format!("the header at byte {at} has a wrong size")))?;
            match kind {
                b'x' | b'X' => {
                    let body = self.body(size, MAX_RECORDS, "a PAX header")?;
                    local.add(&body).map_err(|problem| archive(self.name, problem))?;
                }
                b'g' => {
                    let body = self.body(size, MAX_RECORDS, "a PAX header")?;
                    self.global.add(&body).map_err(|problem| archive(self.name, problem))?;
                    self.global.pieces.clear();
                }
                b'L' => long_name = Some(trimmed(self.body(size, MAX_NAME, "a long name")?)),
                b'K' => long_link = Some(trimmed(self.body(size, MAX_NAME, "a long name")?)),
                b'V' => self.pass(size)?,
                _ => {
                    let records = self.global.with(&local);
                    let path = records.get("GNU.sparse.name").or_else(|| records.get("path"));
                    let path = path.map(<[u8]>::to_vec).or(long_name);
                    let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
                    let link = records.get("linkpath").map(<[u8]>::to_vec).or(long_link);
                    let link = link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
                    let member = self.member(merge, &header, &records, &path, link.unwrap_or_default(), size);
                    return member.map(Some).map_err(|error| match error {
                        Stop::Output(error) => error,
                        Stop::Input(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                            archive(self.name, format!("ends in the middle of {}", path.escape_ascii()))
                        }
                        Stop::Input(error) if error.kind() == io::ErrorKind::InvalidData => {
                            archive(self.name, format!("member {}: {error}", path.escape_ascii()))
                        }
                        Stop::Input(error) => broken(self.name, &error),
                    });
                }
            }
        }
    }

    /// The next header; `None` at the mark that ends the archive.
    fn header(&mut self) -> Result<Option<Header>> {
        let at = self.feed.position();
        let mut header = Header::new_old();
        let got = self.feed.fill(header.as_mut_bytes()).map_err(|error| broken(self.name, &error))?;
        if got < BLOCK as usize {
            let problem = match (got, self.seen) {
                (0, false) => "is empty, not a tar archive",
                (_, false) => "is not a tar archive",
                _ => "ends without its end mark; it is truncated",
            };
            return Err(archive(self.name, problem));
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            self.drain()?;
            return Ok(None);
        }
        let stated = field(&header.as_old().cksum);
        if stated != Some(sum(header.as_bytes(), u32::from).into())
            && stated != Some(u64::from(sum(header.as_bytes(), |byte| i32::from(byte as i8) as u32)))
        {
            return Err(archive(
                self.name,
                match self.seen {
                    false => "is not a tar archive (nor one packed with gzip, zstd or xz)".to_owned(),
                    true => format!("the header at byte {at} is damaged"),
                },
            ));
        }
        self.seen = true;
        Ok(Some(header))
    }

    /// Reads what follows the end mark: padding, and the end of a packed stream with its check sum.
    fn drain(&mut self) -> Result<()> {
        let mut left = MAX_TRAILER;
        let mut block = [0; 4096];
        while left > 0 {
            match self.feed.fill(&mut block).map_err(|error| broken(self.name, &error))? {
                0 => return Ok(()),
                got => left = left.saturating_sub(got as u64),
            }
        }
        Ok(())
    }

    /// A header's own body.
    fn body(&mut self, size: u64, most: u64, what: &str) -> Result<Vec<u8>> {
        if size > most {
            return Err(archive(self.name, format!("{what} of {size} bytes; at most {most} are taken")));
        }
        let mut body = vec![0; size as usize];
        let got = self.feed.fill(&mut body).map_err(|error| broken(self.name, &error))?;
        if got < body.len() {
            return Err(archive(self.name, "ends too early; it is truncated"));
        }
        self.pad(size);
        Ok(body)
    }

    fn pass(&mut self, size: u64) -> Result<()> {
        self.feed.skip(size).map_err(|error| broken(self.name, &error))?;
        self.pad(size);
        Ok(())
    }

    fn pad(&mut self, size: u64) {
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    fn member(
        &mut self,
        merge: &mut Merge<'_>,
        header: &Header,
        records: &Records,
        path: &[u8],
        link: Vec<u8>,
        size: u64,
    ) -> std::result::Result<Member, Stop> {
        let meta = meta(header, records)?;
        let size = records.number("size").map_err(invalid)?.unwrap_or(size);
        let attributes = records.attributes().map_err(invalid)?;
        let kind = match header.as_bytes()[156] {
            // As archives before POSIX spell a directory.
            b'0' | 0 | b'7' if path.ends_with(b"/") => {
                self.feed.skip(size)?;
                self.pad(size);
                Kind::Directory
            }
            b'0' | 0 | b'7' => match sparse::described(records).map_err(invalid)? {
                None => self.file(merge, size, None)?,
                Some((Described::Here(map), real)) => {
                    self.file(merge, size, Some(Sparse { map, size: real }))?
                }
                Some((Described::InFront, real)) => {
                    let (map, read) = sparse::in_front(|| self.block())?;
                    let size =
                        size.checked_sub(read).ok_or_else(|| invalid("its sparse map is larger than it"))?;
                    self.file(merge, size, Some(Sparse { map, size: real }))?
                }
            },
            b'S' => {
                let sparse = self.gnu_sparse(header)?;
                self.file(merge, size, Some(sparse))?
            }
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            kind @ (b'3' | b'4') => {
                let numbers = header.as_ustar().map(|h| (h.dev_major, h.dev_minor));
                let numbers = numbers.or_else(|| header.as_gnu().map(|h| (h.dev_major, h.dev_minor)));
                let (major, minor) = numbers.unwrap_or_default();
                let numbers = field(&major)
                    .zip(field(&minor))
                    .filter(|(major, minor)| *major < 1 << 12 && *minor < 1 << 20);
                let (major, minor) = numbers.ok_or_else(|| invalid("its device numbers are out of range"))?;
                Kind::Device(kind == b'4', major as u32, minor as u32)
            }
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'D' => {
                // A list of names in front of an incremental archive's directory.
                self.feed.skip(size)?;
                self.pad(size);
                Kind::Directory
            }
            b'M' => return Err(invalid("continues in another volume, which is not supported").into()),
            other => return Err(invalid(format!("is of unknown type {:?}", char::from(other))).into()),
        };
        Ok(Member { path: path.to_vec(), meta, kind, attributes })
    }

    fn file(
        &mut self,
        merge: &mut Merge<'_>,
        stored: u64,
        sparse: Option<Sparse>,
    ) -> std::result::Result<Kind, Stop> {
        let sparse = sparse.map(|sparse| sparse.checked(stored).map_err(invalid)).transpose()?;
        merge.check_room(stored, &self.name.display().to_string())?;
        let (file, at) = self.feed.keep(stored)?;
        self.pad(stored);
        let size = sparse.as_ref().map_or(stored, |sparse| sparse.size);
        Ok(Kind::File { size, content: file_at(file, at), map: sparse.map(|sparse| sparse.map) })
    }

    fn block(&mut self) -> std::result::Result<[u8; 512], Stop> {
        let mut block = [0; 512];
        match self.feed.fill(&mut block)? {
            512 => Ok(block),
            _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    }

    fn gnu_sparse(&mut self, header: &Header) -> std::result::Result<Sparse, Stop> {
        let gnu = header.as_gnu().ok_or_else(|| invalid("a sparse file without a GNU header"))?;
        let size = field(&gnu.realsize).ok_or_else(|| invalid("a sparse file without a size"))?;
        let mut map = SparseMap::default();
        sparse::push_gnu(&mut map, &gnu.sparse).map_err(invalid)?;
        let mut more = gnu.is_extended();
        while more {
            let mut next = GnuExtSparseHeader::new();
            *next.as_mut_bytes() = self.block()?;
            sparse::push_gnu(&mut map, &next.sparse).map_err(invalid)?;
            more = next.is_extended();
        }
        Ok(Sparse { map, size })
    }
}

impl From<String> for Stop {
    fn from(problem: String) -> Stop {
        invalid(problem).into()
    }
}

/// A member that contradicts itself.
fn invalid(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

fn meta(header: &Header, records: &Records) -> std::result::Result<Meta, io::Error> {
    let old = header.as_old();
    let owner = |key: &str, bytes: &[u8]| {
        let id = records.number(key).map_err(invalid)?.or_else(|| field(bytes));
        let id = id.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX);
        id.ok_or_else(|| invalid(format!("its {key} is out of range")))
    };
    let mode = field(&old.mode).ok_or_else(|| invalid("its mode is no number"))?;
    let mtime = match records.time("mtime").map_err(invalid)? {
        Some(time) => time,
        // Before 1970 in the binary form, whose sign is in the upper bytes.
        None => {
            let sec = field(&old.mtime).ok_or_else(|| invalid("its time is no number"))?;
            Time { sec: sec as i64, nsec: 0 }
        }
    };
    Ok(Meta {
        mode: (mode & 0o7777) as u16,
        uid: owner("uid", &old.uid)?,
        gid: owner("gid", &old.gid)?,
        mtime,
    })
}

/// A number of a header: octal digits, or, after a byte with its highest bit set, big-endian bytes, whose
/// lower 64 bits count. An empty field is 0.
pub fn field(bytes: &[u8]) -> Option<u64> {
    if bytes.first()? & 0x80 != 0 {
        let (upper, lower) = bytes.split_at(bytes.len().saturating_sub(8));
        let negative = bytes[0] == 0xff;
        let fits = upper.iter().enumerate().all(|(i, byte)| match (i, negative) {
            (0, _) => *byte & 0x7f == if negative { 0x7f } else { 0 },
            _ => *byte == if negative { 0xff } else { 0 },
        });
        let value = lower.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        // In a field of eight bytes the mark is part of the number.
        let value = if upper.is_empty() && !negative { value & !(1 << 63) } else { value };
        return fits.then_some(value);
    }
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = std::str::from_utf8(&bytes[..end]).ok()?.trim();
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// The check sum: all bytes, its own field counted as spaces.
fn sum(bytes: &[u8; 512], widen: impl Fn(u8) -> u32) -> u32 {
    let field = 148..156;
    bytes
        .iter()
        .enumerate()
        .fold(0, |sum: u32, (at, byte)| sum.wrapping_add(if field.contains(&at) { 32 } else { widen(*byte) }))
}

fn trimmed(mut name: Vec<u8>) -> Vec<u8> {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name.truncate(end);
    name
}

/// An archive's error, for members.
impl From<Stop> for Error {
    fn from(stop: Stop) -> Error {
        match stop {
            Stop::Output(error) => error,
            Stop::Input(error) => Error::read("", error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(field(b"0000644\0"), Some(0o644));
        assert_eq!(field(b"  644 \0\0"), Some(0o644));
        assert_eq!(field(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(field(b"12x\0\0\0\0\0"), None);
        assert_eq!(field(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(field(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]), Some(2 << 32));
        assert_eq!(field(&[0xff; 12]), Some(u64::MAX));
        assert_eq!(field(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}

//! Which blocks of a file hold data, and where their bytes come from.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// A run of data in a sparse file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// First byte in the file.
    pub at: u64,
    /// Bytes; not 0.
    pub len: u64,
    /// Bytes of data in the segments before this one.
    pub before: u64,
}

/// Where the data of a sparse file lie: segments in order, none touching the next. The rest is a hole.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SparseMap(Vec<Segment>);

impl SparseMap {
    /// Adds the next run of data. False when it lies before the end of the last, or ends past the largest
    /// file offset.
    #[must_use]
    pub fn push(&mut self, at: u64, len: u64) -> bool {
        let (end, before) = self.0.last().map_or((0, 0), |last| (last.at + last.len, last.before + last.len));
        if at < end || at.checked_add(len).is_none_or(|end| end > i64::MAX as u64) {
            return false;
        }
        match self.0.last_mut() {
            _ if len == 0 => {}
            Some(last) if end == at => last.len += len,
            _ => self.0.push(Segment { at, len, before }),
        }
        true
    }

    /// The runs of data.
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// Bytes of data.
    pub fn data_len(&self) -> u64 {
        self.0.last().map_or(0, |last| last.before + last.len)
    }

    /// One past the last byte of data.
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, |last| last.at + last.len)
    }

    /// Whether the map says no more than the size does.
    pub fn is_dense(&self, size: u64) -> bool {
        matches!(self.0.as_slice(), [Segment { at: 0, len, .. }] if *len == size) || size == 0
    }
}

/// A run of blocks of a file: the first and how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// First block of the file.
    pub first: u64,
    /// Blocks; not 0.
    pub len: u64,
}

/// The blocks of a file that hold data.
pub fn runs<'a>(size: u64, map: Option<&'a SparseMap>, block_size: u64) -> impl Iterator<Item = Run> + 'a {
    let whole = (map.is_none() && size > 0).then_some((0, size));
    let segments = map.into_iter().flat_map(|map| map.segments().iter().map(|s| (s.at, s.at + s.len)));
    let mut pieces = whole.into_iter().chain(segments).peekable();
    std::iter::from_fn(move || {
        let (start, end) = pieces.next()?;
        let first = start / block_size;
        let mut last = end.div_ceil(block_size);
        // Segments that share a block, or lie side by side once they are rounded, are one run.
        while let Some(&(start, end)) = pieces.peek() {
            if start / block_size > last {
                break;
            }
            last = end.div_ceil(block_size);
            pieces.next();
        }
        Some(Run { first, len: last - first })
    })
}

/// The file that a content is read from, and how its offsets relate to the image file's.
pub enum Reader<'a> {
    /// The source file itself, hole by hole the same.
    Plain(&'a File),
    /// Data stored one behind the other from a byte of an archive or spool.
    Stored(&'a File, u64, Option<&'a SparseMap>),
}

impl Reader<'_> {
    /// Fills `buf` with the file's bytes from `at` on, which end before the file does.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> std::io::Result<()> {
        match self {
            Reader::Plain(file) => file.read_exact_at(buf, at),
            Reader::Stored(file, start, None) => file.read_exact_at(buf, start + at),
            Reader::Stored(file, start, Some(map)) => {
                buf.fill(0);
                let end = at + buf.len() as u64;
                let from = map.segments().partition_point(|s| s.at + s.len <= at);
                for s in map.segments()[from..].iter().take_while(|s| s.at < end) {
                    let (low, high) = (s.at.max(at), (s.at + s.len).min(end));
                    let part = &mut buf[(low - at) as usize..(high - at) as usize];
                    file.read_exact_at(part, start + s.before + (low - s.at))?;
                }
                Ok(())
            }
        }
    }
}

/// A path of the host in words for messages.
pub fn host_path(folder: &std::path::Path, inner: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    folder.join(std::ffi::OsStr::from_bytes(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(segments: &[(u64, u64)]) -> SparseMap {
        let mut map = SparseMap::default();
        assert!(segments.iter().all(|(at, len)| map.push(*at, *len)));
        map
    }

    #[test]
    fn segments_become_runs_of_blocks() {
        let found = |segments: &[(u64, u64)]| {
            runs(1 << 20, Some(&map(segments)), 4096).map(|run| (run.first, run.len)).collect::<Vec<_>>()
        };
        assert_eq!(found(&[]), []);
        assert_eq!(found(&[(0, 1)]), [(0, 1)]);
        assert_eq!(found(&[(0, 10), (4095, 2), (9000, 5)]), [(0, 3)]);
        assert_eq!(found(&[(0, 10), (12288, 1)]), [(0, 1), (3, 1)]);
        assert_eq!(runs(5000, None, 4096).collect::<Vec<_>>(), [Run { first: 0, len: 2 }]);
        assert_eq!(runs(0, None, 4096).count(), 0);
    }

    #[test]
    fn a_map_takes_only_what_comes_behind() {
        let mut map = map(&[(10, 5), (15, 5)]);
        assert_eq!(map.segments(), [Segment { at: 10, len: 10, before: 0 }]);
        assert!(!map.push(19, 1) && !map.push(u64::MAX, 1) && map.push(20, 0));
        assert_eq!((map.data_len(), map.end()), (10, 20));
    }

    #[test]
    fn stored_data_are_spread_over_the_file() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"..abcdef", 0).unwrap();
        let map = map(&[(2, 3), (8, 3)]);
        let reader = Reader::Stored(&file, 2, Some(&map));
        let mut bytes = [0xff; 11];
        reader.read(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0\0abc\0\0\0def");
        reader.read(4, &mut bytes[..5]).unwrap();
        assert_eq!(&bytes[..5], b"c\0\0\0d");
    }
}

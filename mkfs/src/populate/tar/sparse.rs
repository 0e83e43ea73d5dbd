//! The maps of sparse files in archives: GNU's own (`S`), and PAX versions 0.0, 0.1 and 1.0.
//!
//! Source: GNU tar's manual, "Storing Sparse Files". A map is pairs of offset and length in ascending order;
//! the data of all pieces follow one behind the other.

use tar::GnuSparseHeader;

use super::super::content::SparseMap;
use super::pax::{Records, number};

/// More pieces than this are refused: the map is held in memory.
const MAX_PIECES: usize = 1 << 24;

/// A map and the size of the file.
pub struct Sparse {
    /// Where the data belong.
    pub map: SparseMap,
    /// Size of the file.
    pub size: u64,
}

impl Sparse {
    /// Checks that the map describes `stored` bytes of a file of its size.
    pub fn checked(self, stored: u64) -> Result<Sparse, String> {
        if self.map.data_len() != stored || self.map.end() > self.size {
            return Err("the map of a sparse file contradicts its size".into());
        }
        Ok(self)
    }
}

/// Adds a piece to a map.
pub fn push(map: &mut SparseMap, at: u64, len: u64) -> Result<(), String> {
    if map.segments().len() >= MAX_PIECES {
        return Err(format!("a sparse file of more than {MAX_PIECES} pieces"));
    }
    map.push(at, len).then_some(()).ok_or_else(|| "the map of a sparse file is out of order".into())
}

/// Adds the pieces of a GNU header.
pub fn push_gnu(map: &mut SparseMap, pieces: &[GnuSparseHeader]) -> Result<(), String> {
    for piece in pieces.iter().take_while(|piece| !piece.is_empty()) {
        let numbers = super::member::field(&piece.offset).zip(super::member::field(&piece.numbytes));
        let (at, len) = numbers.ok_or("the map of a sparse file is no numbers")?;
        push(map, at, len)?;
    }
    Ok(())
}

/// Where a PAX header says that a sparse file's map is.
pub enum Described {
    /// In the header.
    Here(SparseMap),
    /// In front of the data.
    InFront,
}

/// The sparse file that PAX records describe, if they do: its map and its size.
pub fn described(records: &Records) -> Result<Option<(Described, u64)>, String> {
    let wrong = || "the map of a sparse file is no numbers".to_owned();
    let size = match records.number("GNU.sparse.realsize")? {
        Some(size) => Some(size),
        None => records.number("GNU.sparse.size")?,
    };
    if records.get("GNU.sparse.major") == Some(b"1") {
        let size = size.ok_or("a sparse file without a size")?;
        return Ok(Some((Described::InFront, size)));
    }
    let mut map = SparseMap::default();
    if let Some(text) = records.get("GNU.sparse.map") {
        let numbers: Option<Vec<u64>> = text.split(|byte| *byte == b',').map(number).collect();
        let numbers = numbers.filter(|numbers| numbers.len().is_multiple_of(2)).ok_or_else(wrong)?;
        for pair in numbers.chunks_exact(2) {
            push(&mut map, pair[0], pair[1])?;
        }
    } else if !records.pieces.is_empty() {
        for pair in records.pieces.chunks(2) {
            let [(true, at), (false, len)] = pair else { return Err(wrong()) };
            push(&mut map, number(at).ok_or_else(wrong)?, number(len).ok_or_else(wrong)?)?;
        }
    } else {
        return Ok(None);
    }
    Ok(Some((Described::Here(map), size.ok_or("a sparse file without a size")?)))
}

/// Reads a map that stands in front of the data, line by line; `block` gives the next 512 bytes.
pub fn in_front<E: From<String>>(
    mut block: impl FnMut() -> Result<[u8; 512], E>,
) -> Result<(SparseMap, u64), E> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut at = 0;
    let mut read = 0;
    let mut next = || -> Result<u64, E> {
        loop {
            if let Some(end) = bytes[at..].iter().position(|byte| *byte == b'\n') {
                let value = number(&bytes[at..at + end]).filter(|_| end > 0);
                at += end + 1;
                return value.ok_or_else(|| String::from("the map of a sparse file is no numbers").into());
            }
            if bytes.len() - at > 20 {
                return Err(String::from("the map of a sparse file is no numbers").into());
            }
            bytes.drain(..at);
            at = 0;
            bytes.extend_from_slice(&block()?);
            read += 512;
        }
    };
    let count = next()?;
    let mut map = SparseMap::default();
    for _ in 0..count {
        let (start, len) = (next()?, next()?);
        push(&mut map, start, len)?;
    }
    Ok((map, read))
}

//! The bytes of a simulated disk as a value: sparse, and cheap to copy.
//!
//! A map of leaves of pages, each behind an `Arc`. A clone shares everything; a write copies the leaf
//! and the page it touches if someone else still sees them. So a crash lab can keep thousands of disks
//! that differ in a few sectors for the price of those sectors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a page.
const PAGE: usize = 4096;
/// Pages of a leaf.
const LEAF: usize = 64;
/// Bytes of a leaf.
const SPAN: u64 = (PAGE * LEAF) as u64;

type Page = [u8; PAGE];
type Leaf = [Option<Arc<Page>>; LEAF];

/// What a place holds that nobody wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fill {
    /// Zeros, as a new image file.
    Zero,
    /// Eight-byte little-endian words `tag << 48 | byte offset`: old data that show where they are from.
    Stale(u16),
}

impl Fill {
    fn bytes(self, offset: u64, buf: &mut [u8]) {
        match self {
            Fill::Zero => buf.fill(0),
            Fill::Stale(tag) => {
                let word = |at: u64| (u64::from(tag) << 48 | (at & !7)).to_le_bytes();
                let start = (offset & 7) as usize;
                let head = buf.len().min((8 - start) & 7);
                let (head, words) = buf.split_at_mut(head);
                head.copy_from_slice(&word(offset)[start..start + head.len()]);
                let mut at = offset + head.len() as u64;
                for piece in words.chunks_mut(8) {
                    piece.copy_from_slice(&word(at)[..piece.len()]);
                    at += 8;
                }
            }
        }
    }

    fn page(self, offset: u64) -> Arc<Page> {
        let mut page = [0; PAGE];
        self.bytes(offset, &mut page);
        Arc::new(page)
    }
}

/// A disk's content.
#[derive(Clone)]
pub struct Image {
    size: u64,
    fill: Fill,
    leaves: BTreeMap<u64, Arc<Leaf>>,
}

impl Image {
    /// `size` bytes that read as `fill`.
    #[must_use]
    pub fn new(size: u64, fill: Fill) -> Image {
        Image { size, fill, leaves: BTreeMap::new() }
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of memory that its written pages take, shared ones included.
    #[must_use]
    pub fn resident(&self) -> u64 {
        let pages: usize = self.leaves.values().map(|leaf| leaf.iter().flatten().count()).sum();
        (pages * PAGE) as u64
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Panics
    /// Beyond the end, as a slice does.
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        self.check(offset, buf.len() as u64);
        for (at, part) in pieces(offset, buf.len()) {
            let piece = &mut buf[part];
            let inside = (at % PAGE as u64) as usize;
            match self.page(at) {
                Some(page) => piece.copy_from_slice(&page[inside..inside + piece.len()]),
                None => self.fill.bytes(at, piece),
            }
        }
    }

    /// Writes `buf` at `offset`.
    ///
    /// # Panics
    /// Beyond the end, as a slice does.
    pub fn write(&mut self, offset: u64, buf: &[u8]) {
        self.check(offset, buf.len() as u64);
        for (at, part) in pieces(offset, buf.len()) {
            let piece = &buf[part];
            let inside = (at % PAGE as u64) as usize;
            let fill = self.fill;
            let slot = self.slot(at);
            if piece.len() == PAGE && slot.as_mut().is_none_or(|page| Arc::get_mut(page).is_none()) {
                let mut page = [0; PAGE];
                page.copy_from_slice(piece);
                *slot = Some(Arc::new(page));
            } else {
                let page = slot.get_or_insert_with(|| fill.page(at - inside as u64));
                Arc::make_mut(page)[inside..inside + piece.len()].copy_from_slice(piece);
            }
        }
    }

    /// Makes a range read as `fill`; whole pages of the image's own fill go back to being sparse.
    ///
    /// # Panics
    /// Beyond the end, as a slice does.
    pub fn fill(&mut self, offset: u64, len: u64, fill: Fill) {
        self.check(offset, len);
        let own = fill == self.fill;
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let stop = ((at / SPAN + 1) * SPAN).min(end);
            let untouched = !self.leaves.contains_key(&(at / SPAN));
            if own && !untouched && stop - at == SPAN {
                self.leaves.remove(&(at / SPAN));
            } else if !(own && untouched) {
                self.fill_in_leaf(at..stop, fill);
            }
            at = stop;
        }
    }

    fn fill_in_leaf(&mut self, range: Range<u64>, fill: Fill) {
        let mut page = [0; PAGE];
        for (at, part) in pieces(range.start, (range.end - range.start) as usize) {
            if part.len() == PAGE && fill == self.fill {
                *self.slot(at) = None;
            } else {
                fill.bytes(at, &mut page[..part.len()]);
                self.write(at, &page[..part.len()]);
            }
        }
    }

    /// Ranges of whole pages that hold written bytes, ascending; the rest reads as the fill.
    pub fn written(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.leaves.iter().flat_map(move |(leaf, pages)| {
            let first = leaf * SPAN;
            (0..LEAF).filter(|&i| pages[i].is_some()).map(move |i| {
                let start = first + (i * PAGE) as u64;
                start..(start + PAGE as u64).min(self.size)
            })
        })
    }

    fn check(&self, offset: u64, len: u64) {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.size);
        assert!(inside, "{len} bytes at {offset} in a disk of {} bytes", self.size);
    }

    fn page(&self, at: u64) -> Option<&Page> {
        let leaf = self.leaves.get(&(at / SPAN))?;
        leaf[(at % SPAN) as usize / PAGE].as_deref()
    }

    fn slot(&mut self, at: u64) -> &mut Option<Arc<Page>> {
        let leaf = self.leaves.entry(at / SPAN).or_insert_with(|| Arc::new([const { None }; LEAF]));
        &mut Arc::make_mut(leaf)[(at % SPAN) as usize / PAGE]
    }
}

/// Cuts a range at page boundaries: each piece's place on the disk and in the buffer.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let piece = (PAGE - (at % PAGE as u64) as usize).min(len - done);
        let part = done..done + piece;
        done += piece;
        (piece > 0).then_some((at, part))
    })
}

//! The undo log: what a repair overwrites, kept in a file so that it can be put back. It is e2undo's format,
//! so each of the two programs reads what the other one's family writes.
//!
//! A block is saved once, before its first overwrite, and made durable before that overwrite happens, so the
//! log is enough at every moment. A log that was cut short by a crash holds good keys whose sums hold; the
//! rest of it was never needed.

mod format;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use blockdev::BlockDevice;
use ext4_format::superblock::{SUPERBLOCK_LEN, SuperBlock};

use crate::error::{Error, Result};
use format::{HEADER, Header, Key};

/// Most bytes of one key of ours.
const KEY_BYTES: u64 = 256 << 10;
/// Byte of the superblock's UUID.
const UUID: std::ops::Range<usize> = 0x68..0x78;

/// An undo log being written.
pub struct UndoLog {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    file: File,
    header: Header,
    /// Keys of the key block that is being filled, and the unit where it stands.
    keys: Vec<Key>,
    keys_at: u64,
    /// The unit behind the last data.
    end: u64,
    saved: HashSet<u64>,
}

impl UndoLog {
    /// Starts a log of the volume that begins at byte `offset` of its device, or goes on with one of the same
    /// volume.
    ///
    /// # Errors
    /// The file cannot be written, or is something else.
    pub fn open(path: &Path, device: &dyn BlockDevice, offset: u64) -> Result<UndoLog> {
        let failed = |source| Error::Undo { path: path.to_owned(), source };
        let superblock = superblock(device)?;
        let block_size = SuperBlock::parse(&superblock).map_or(1024, |sb| sb.block_size());
        let state = match File::options().read(true).write(true).create_new(true).open(path) {
            Ok(file) => State {
                file,
                header: Header {
                    keys: 0,
                    super_at: 1,
                    keys_at: 2,
                    unit: block_size,
                    block_size,
                    super_sum: format::sum(&superblock),
                    finished: false,
                    offset,
                },
                keys: Vec::new(),
                keys_at: 2,
                end: 3,
                saved: HashSet::new(),
            },
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continued(path, &superblock)?,
            Err(error) => return Err(failed(error)),
        };
        let log = UndoLog { path: path.to_owned(), state: Mutex::new(state) };
        log.change(|state| {
            state.header.finished = false;
            state.write_super(&superblock)?;
            state.write_keys()?;
            state.write_header()?;
            state.file.sync_all()
        })?;
        Ok(log)
    }

    /// Saves a range of the device that is about to be overwritten.
    pub(crate) fn save(&self, device: &dyn BlockDevice, offset: u64, len: u64) -> Result<()> {
        let size = device.geometry().size;
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let unit = {
            let mut state = self.lock();
            let unit = u64::from(state.header.block_size);
            for block in offset / unit..(offset + len).div_ceil(unit) {
                if !state.saved.insert(block) {
                    continue;
                }
                match runs.last_mut() {
                    Some(run) if run.1 == block && (run.1 - run.0) * unit < KEY_BYTES => run.1 += 1,
                    _ => runs.push((block, block + 1)),
                }
            }
            unit
        };
        if runs.is_empty() {
            return Ok(());
        }
        for (start, end) in runs {
            let len = (end * unit).min(size) - (start * unit).min(size);
            let mut bytes = vec![0; len as usize];
            device.read_at(start * unit, &mut bytes)?;
            self.change(|state| state.append(start, bytes))?;
        }
        self.change(|state| {
            state.write_keys()?;
            state.write_header()?;
            state.file.sync_data()
        })
    }

    /// Closes the log: it belongs to the volume as it is now.
    ///
    /// # Errors
    /// The device's or the file's.
    pub fn finish(&self, device: &dyn BlockDevice) -> Result<()> {
        if let Some(block) = self.spare_block() {
            let unit = u64::from(self.lock().header.block_size);
            if (block + 1) * unit <= device.geometry().size {
                self.save(device, block * unit, unit)?;
            }
        }
        let superblock = superblock(device)?;
        self.change(|state| {
            state.header.finished = true;
            state.header.super_sum = format::sum(&superblock);
            state.write_super(&superblock)?;
            state.write_header()?;
            state.file.sync_all()
        })
    }

    /// A block that may be saved although nobody overwrites it, when the last key block is full: with such a
    /// file the programs of e2fsprogs 1.47.0 cannot go on.
    fn spare_block(&self) -> Option<u64> {
        let state = self.lock();
        let full = state.keys.len() as u64 == state.header.keys_per_block();
        (0..).find(|block| !state.saved.contains(block)).filter(|_| full)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State) -> io::Result<()>) -> Result<()> {
        change(&mut self.lock()).map_err(|source| Error::Undo { path: self.path.clone(), source })
    }
}

impl State {
    fn put(&self, unit: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, unit * u64::from(self.header.unit))
    }

    fn append(&mut self, block: u64, mut bytes: Vec<u8>) -> io::Result<()> {
        if self.keys.len() as u64 == self.header.keys_per_block() {
            self.write_keys()?;
            self.keys.clear();
            self.keys_at = self.end;
            self.end += 1;
        }
        self.keys.push(Key { block, sum: format::sum(&bytes), len: bytes.len() as u32 });
        bytes.resize(bytes.len().next_multiple_of(self.header.unit as usize), 0);
        self.put(self.end, &bytes)?;
        self.end += bytes.len() as u64 / u64::from(self.header.unit);
        self.header.keys += 1;
        Ok(())
    }

    fn write_keys(&self) -> io::Result<()> {
        self.put(self.keys_at, &format::encode_keys(&self.keys, self.header.unit))
    }

    fn write_super(&self, superblock: &[u8; SUPERBLOCK_LEN]) -> io::Result<()> {
        self.put(self.header.super_at, &format::disguised(superblock))
    }

    fn write_header(&self) -> io::Result<()> {
        self.put(0, &self.header.encode())
    }
}

fn superblock(device: &dyn BlockDevice) -> Result<[u8; SUPERBLOCK_LEN]> {
    let mut bytes = [0; SUPERBLOCK_LEN];
    device.read_at(1024, &mut bytes)?;
    Ok(bytes)
}

/// The state of a log that another program, or an earlier run, closed.
fn continued(path: &Path, superblock: &[u8; SUPERBLOCK_LEN]) -> Result<State> {
    let refused = |why| Error::Unusable(format!("undo log {}: {why}", path.display()));
    let failed = |source| Error::Undo { path: path.to_owned(), source };
    let file = File::options().read(true).write(true).open(path).map_err(failed)?;
    let contents = Contents::read(&file).map_err(failed)?.map_err(refused)?;
    if !contents.header.finished || contents.torn {
        return Err(refused("it was not closed, so nothing can be added to it"));
    }
    // The sum alone would not tell: that of a superblock with a checksum is always zero.
    if contents.superblock != *superblock {
        return Err(refused("it is of another volume, or the volume was changed since"));
    }
    let Contents { header, keys, last_block, end, .. } = contents;
    let saved = keys
        .iter()
        .flat_map(|(key, _)| key.block..key.block + u64::from(key.len).div_ceil(header.block_size.into()));
    let first_of_last =
        (keys.len() as u64).saturating_sub(1) / header.keys_per_block() * header.keys_per_block();
    Ok(State {
        saved: saved.collect(),
        keys: keys[(first_of_last as usize).min(keys.len())..].iter().map(|(key, _)| *key).collect(),
        keys_at: last_block,
        end,
        file,
        header,
    })
}

/// What an undo file holds.
struct Contents {
    header: Header,
    /// The superblock that was copied.
    superblock: [u8; SUPERBLOCK_LEN],
    /// Keys with the bytes of the file at which their data begin.
    keys: Vec<(Key, u64)>,
    /// The unit of the last key block, and the one behind the last data.
    last_block: u64,
    end: u64,
    /// Whether a sum does not hold or something is missing: what is here are the keys whose data hold.
    torn: bool,
}

impl Contents {
    /// Reads a file; the inner error says why it is no undo file.
    fn read(file: &File) -> io::Result<std::result::Result<Contents, &'static str>> {
        let len = file.metadata()?.len();
        let mut bytes = [0; HEADER];
        if len < HEADER as u64 {
            return Ok(Err("it is too short"));
        }
        file.read_exact_at(&mut bytes, 0)?;
        let header = match Header::decode(&bytes) {
            Ok(header) => header,
            Err(why) => return Ok(Err(why)),
        };
        let unit = u64::from(header.unit);
        let units = len.div_ceil(unit);
        let mut superblock = [0; SUPERBLOCK_LEN];
        if header.super_at >= units || header.super_at.saturating_mul(unit) + 1024 > len {
            return Ok(Err("the place of the superblock"));
        }
        file.read_exact_at(&mut superblock, header.super_at * unit)?;
        let superblock = format::disguised(&superblock);
        let mut contents = Contents {
            header,
            superblock,
            keys: Vec::new(),
            last_block: header.keys_at,
            end: header.keys_at.saturating_add(1),
            torn: false,
        };
        let mut at = header.keys_at;
        while (contents.keys.len() as u64) < header.keys && !contents.torn {
            if at.saturating_add(1) > units || (at + 1) * unit > len {
                contents.torn = true;
                break;
            }
            at = contents.read_keys(file, at, len)?;
        }
        Ok(Ok(contents))
    }

    /// Reads a key block and checks its data; returns the unit behind them.
    fn read_keys(&mut self, file: &File, at: u64, len: u64) -> io::Result<u64> {
        let unit = u64::from(self.header.unit);
        let mut bytes = vec![0; unit as usize];
        file.read_exact_at(&mut bytes, at * unit)?;
        let Some((keys, holds)) = format::decode_keys(&mut bytes) else {
            self.torn = true;
            return Ok(at);
        };
        self.torn |= !holds;
        self.last_block = at;
        self.end = at + 1;
        for key in keys {
            if self.keys.len() as u64 == self.header.keys {
                break;
            }
            let start = self.end * unit;
            if u64::from(key.len) > len.saturating_sub(start) || key.len == 0 {
                self.torn = true;
                break;
            }
            let mut data = vec![0; key.len as usize];
            file.read_exact_at(&mut data, start)?;
            if format::sum(&data) != key.sum {
                self.torn = true;
                break;
            }
            self.keys.push((key, start));
            self.end += u64::from(key.len).div_ceil(unit);
        }
        Ok(self.end)
    }
}

/// How a log is put back.
#[derive(Clone, Debug, Default)]
pub struct UndoOptions {
    /// Put back a log although the volume is not the one it was made of, or has changed since.
    pub force: bool,
    /// Only look whether it can be done.
    pub dry_run: bool,
    /// Byte of the device at which the volume begins; the log knows it without.
    pub offset: Option<u64>,
    /// Keep what is overwritten in this file.
    pub undo: Option<PathBuf>,
}

/// What was put back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Undone {
    /// Bytes written.
    pub bytes: u64,
    /// Whether the log was closed: without, the volume should be checked.
    pub complete: bool,
}

/// Puts back everything a log holds and flushes; `progress` is told each block and its bytes. `device` is the
/// whole device, from its first byte.
///
/// # Errors
/// A log that is none, is damaged, or belongs to another volume: nothing was written; or a failing device.
pub fn undo(
    path: &Path,
    device: &dyn BlockDevice,
    options: &UndoOptions,
    progress: &mut dyn FnMut(u64, u32),
) -> Result<Undone> {
    let failed = |source| Error::Undo { path: path.to_owned(), source };
    let refused = |why: &str| Error::Unusable(format!("undo log {}: {why}", path.display()));
    let file = File::open(path).map_err(failed)?;
    let contents = Contents::read(&file).map_err(failed)?.map_err(refused)?;
    let header = contents.header;
    if header.finished && contents.torn {
        return Err(refused("a checksum does not hold"));
    }
    let offset = options.offset.unwrap_or(header.offset);
    let size = device.geometry().size;
    if !options.force {
        belongs(&contents, device, offset).map_err(|why| refused(&why))?;
    }
    let place = |key: &Key| {
        let start = key.block.checked_mul(header.block_size.into())?.checked_add(offset)?;
        start.checked_add(key.len.into()).filter(|end| *end <= size).map(|_| start)
    };
    if contents.keys.iter().any(|(key, _)| place(key).is_none()) {
        return Err(refused("it names a place behind the end of the device"));
    }
    let keep = match &options.undo {
        Some(path) if !options.dry_run => Some(UndoLog::open(path, device, 0)?),
        _ => None,
    };
    let mut undone = Undone { bytes: 0, complete: header.finished };
    // The other way round: what was saved first is what the volume was.
    for (key, from) in contents.keys.iter().rev() {
        let Some(start) = place(key) else { continue };
        let mut bytes = vec![0; key.len as usize];
        file.read_exact_at(&mut bytes, *from).map_err(failed)?;
        if !options.dry_run {
            keep.as_ref().map_or(Ok(()), |keep| keep.save(device, start, bytes.len() as u64))?;
            device.write_at(start, &bytes)?;
        }
        progress(key.block, key.len);
        undone.bytes += u64::from(key.len);
    }
    device.flush()?;
    keep.as_ref().map_or(Ok(()), |keep| keep.finish(device))?;
    Ok(undone)
}

/// Whether a log is of the volume on a device; the error says why not. Of one that was not closed only the
/// volume's UUID tells.
fn belongs(contents: &Contents, device: &dyn BlockDevice, offset: u64) -> std::result::Result<(), String> {
    let mut now = [0; SUPERBLOCK_LEN];
    offset
        .checked_add(1024)
        .and_then(|at| device.read_at(at, &mut now).ok())
        .ok_or("the device has no superblock (-f puts it back all the same)")?;
    let same = match contents.header.finished {
        true => now == contents.superblock,
        false => now[UUID] == contents.superblock[UUID],
    };
    let why = "it is of another volume, or the volume was changed since (-f puts it back all the same)";
    if same { Ok(()) } else { Err(why.to_owned()) }
}

//! The undo log: what a repair overwrites, kept in a file so that it can be put back.
//!
//! Layout, little-endian: 16 bytes of magic, the size of the device, then records of offset, length and the
//! old bytes. A piece is saved once, before its first overwrite, and made durable before that overwrite
//! happens, so the log is enough at every moment. Pieces are aligned to 4096 bytes. A record cut short by a
//! crash is ignored: its overwrite never happened.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use blockdev::BlockDevice;

use crate::error::{Error, Result};

const MAGIC: &[u8; 16] = b"rext4 undo log 1";
const PIECE: u64 = 4096;

/// An undo log being written.
pub struct UndoLog {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    file: File,
    saved: HashSet<u64>,
}

impl UndoLog {
    /// Starts a log; an existing file is not overwritten.
    ///
    /// # Errors
    /// The file cannot be created or written.
    pub fn create(path: &Path, device_size: u64) -> Result<UndoLog> {
        let start = || -> io::Result<File> {
            let mut file = File::options().write(true).create_new(true).open(path)?;
            file.write_all(MAGIC)?;
            file.write_all(&device_size.to_le_bytes())?;
            file.sync_all()?;
            Ok(file)
        };
        match start() {
            Ok(file) => {
                let state = Mutex::new(State { file, saved: HashSet::new() });
                Ok(UndoLog { path: path.to_owned(), state })
            }
            Err(source) => Err(Error::Undo { path: path.to_owned(), source }),
        }
    }

    /// Saves a range of the device that is about to be overwritten.
    pub(crate) fn save(&self, device: &dyn BlockDevice, offset: u64, len: u64) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let size = device.geometry().size;
        let mut wrote = false;
        for piece in offset / PIECE..(offset + len).div_ceil(PIECE) {
            if !state.saved.insert(piece) {
                continue;
            }
            let at = piece * PIECE;
            let mut bytes = vec![0; PIECE.min(size.saturating_sub(at)) as usize];
            device.read_at(at, &mut bytes)?;
            let mut record = at.to_le_bytes().to_vec();
            record.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            record.extend_from_slice(&bytes);
            self.checked(state.file.write_all(&record))?;
            wrote = true;
        }
        if wrote { self.checked(state.file.sync_data()) } else { Ok(()) }
    }

    fn checked(&self, result: io::Result<()>) -> Result<()> {
        result.map_err(|source| Error::Undo { path: self.path.clone(), source })
    }
}

/// Puts back everything a log holds and flushes; returns how many bytes were written.
///
/// # Errors
/// A log that is none or belongs to a device of another size, or a failing device.
pub fn undo(path: &Path, device: &dyn BlockDevice) -> Result<u64> {
    let failed = |source| Error::Undo { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut head = [0; 24];
    file.read_exact(&mut head).map_err(failed)?;
    let size = device.geometry().size;
    if &head[..16] != MAGIC || head[16..] != size.to_le_bytes() {
        return Err(Error::Unusable(format!("{} is not an undo log of this device", path.display())));
    }
    let end = file.seek(SeekFrom::End(0)).map_err(failed)?;
    file.seek(SeekFrom::Start(24)).map_err(failed)?;
    let mut written = 0;
    loop {
        let mut record = [0; 16];
        let at = file.stream_position().map_err(failed)?;
        if end - at < 16 {
            break;
        }
        file.read_exact(&mut record).map_err(failed)?;
        let [offset, len] = [0, 8].map(|i| u64::from_le_bytes(std::array::from_fn(|j| record[i + j])));
        if len > PIECE || end - at - 16 < len {
            break;
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact(&mut bytes).map_err(failed)?;
        device.write_at(offset, &bytes)?;
        written += len;
    }
    device.flush()?;
    Ok(written)
}

//! Opening a device whose last user is about to leave it: the server of an unmounted image that still writes
//! it out, or the kernel in the middle of an unmount.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::claim::Holder;
use crate::mount_table::mount_table_of;
use crate::mount_users::{is_fuse_of, mounted_elsewhere};
use crate::{FileDevice, OpenError, OpenOptions, open};

/// How long a user that writes everything out may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// An unmount that begins at the same time, or is nearly over.
const MOMENT: Duration = Duration::from_millis(300);
/// When it is said that somebody waits, and for whom.
const SILENCE: Duration = Duration::from_secs(1);
const TURN: Duration = Duration::from_millis(10);

/// As [`open`], but waits up to two minutes for a user that is about to leave. `say` gets a line when that takes
/// more than a second.
///
/// # Errors
/// As [`open`].
pub fn open_when_free(
    path: impl AsRef<Path>,
    options: &OpenOptions,
    say: impl Fn(&str),
) -> Result<Arc<FileDevice>, OpenError> {
    let path = path.as_ref();
    let start = Instant::now();
    let mut said = false;
    loop {
        let (holder, error) = match open(path, options) {
            Err(OpenError::InUse { path, holder }) => (holder.clone(), OpenError::InUse { path, holder }),
            done => return done,
        };
        let waited = start.elapsed();
        let leaving = match &holder {
            Holder::Process { pid, name } => is_server(name) && !serves(*pid, path),
            _ => false,
        };
        if waited > if leaving { PATIENCE } else { MOMENT } {
            return Err(error);
        }
        if leaving && waited > SILENCE && !said {
            said = true;
            say(&waiting_for(path, &holder));
        }
        thread::sleep(TURN);
    }
}

fn waiting_for(path: &Path, holder: &Holder) -> String {
    let who = match holder {
        Holder::Process { pid, name } => format!("process {pid} ({name})"),
        _ => "its user".into(),
    };
    let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let users = mounted_elsewhere(|entry| is_fuse_of(entry, &canonical));
    let elsewhere: Vec<_> = users.iter().map(ToString::to_string).collect();
    let path = path.display();
    match elsewhere.as_slice() {
        [] => format!("waiting for {who}, which is writing {path} out"),
        others => {
            let others = others.join(", ");
            format!("waiting for {who}: {path} is still mounted in another mount namespace, by {others}")
        }
    }
}

/// Whether a program of this name serves ext4 volumes and ends when they are unmounted.
fn is_server(name: &str) -> bool {
    ["mount-rext4", "mount.rext4", "fuse2fs"].contains(&name)
}

/// Whether the process `pid` sees the volume mounted.
fn serves(pid: u32, path: &Path) -> bool {
    let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    mount_table_of(pid).is_ok_and(|table| table.iter().any(|entry| is_fuse_of(entry, &canonical)))
}

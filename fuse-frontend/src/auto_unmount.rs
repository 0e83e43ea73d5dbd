//! `auto_unmount`: the mount goes when the server ends, however it ends.
//!
//! A shell waits for the end of a pipe that only the server holds open, and takes the mount away if it is still
//! there then. `fusermount3` has a watcher of its own, but that one looks into the mount first, which it may not
//! without `allow_other`, and it cannot mount with the type `fuseblk`.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::mountpoint;

/// `$1` is the mount's device number, by which it is told from another one in its place, `$2` the mount point.
const WATCH: &str = r#"trap "" HUP INT TERM
read -r _
while read -r _ _ device _; do
    if [ "$device" = "$1" ]; then
        umount -i -l -- "$2" || exec fusermount3 -u -z -- "$2"
        exit
    fi
done </proc/self/mountinfo"#;

/// The shell; dropped, it ends.
pub struct Watcher(Child);

impl Watcher {
    /// Watches over the newest mount on `dir`.
    ///
    /// # Errors
    /// When there is none, or the shell cannot be started.
    pub fn start(dir: &Path) -> io::Result<Watcher> {
        let (major, minor) = mountpoint::device_of(dir).ok_or(io::ErrorKind::NotFound)?;
        let shell = Command::new("/bin/sh")
            .args(["-c", WATCH, "rext4-auto-unmount", &format!("{major}:{minor}")])
            .arg(dir)
            .current_dir("/")
            // The terminal's signals are not for it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Watcher(shell))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // The number of a mount that is gone may be another's by now: so it does not look any more.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

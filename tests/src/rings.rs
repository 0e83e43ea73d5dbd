//! FUSE over io_uring is off by default, and its switch is the whole machine's. Whoever needs it has it on
//! while this process lives; the last one of several puts back what was there.

use std::io::Read as _;
use std::process::{Child, Stdio};
use std::sync::OnceLock;

use crate::run::tool;

const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// Outlives this process by a moment, however that ends: its standard input is then at an end. Everybody
/// who needs the switch holds the lock shared; what was there before is kept in the locked file.
const KEEPER: &str = r#"
    exec 9<>/run/rext4-rings && flock -s 9 || exit
    grep -q Y "$0" || { cat "$0" >/run/rext4-rings; echo Y >"$0"; }
    echo ready; read nothing
    flock -nx 9 && [ -s /run/rext4-rings ] && { cat /run/rext4-rings >"$0"; : >/run/rext4-rings; }"#;

/// Whether the switch is on; switches it on if we may.
pub fn are_on() -> bool {
    static KEPT: OnceLock<Option<Child>> = OnceLock::new();
    KEPT.get_or_init(keep);
    std::fs::read_to_string(SWITCH).is_ok_and(|value| value.trim() == "Y")
}

fn keep() -> Option<Child> {
    let mut command = tool("sh");
    command.args(["-c", KEEPER, SWITCH]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut keeper = command.spawn().ok()?;
    // Not to the end: the keeper keeps its side open.
    let _ = keeper.stdout.as_mut()?.read(&mut [0; 8]);
    Some(keeper)
}

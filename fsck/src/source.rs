//! Devices by what they are called: `LABEL=` and `UUID=` of the volume on them, `PARTLABEL=` and `PARTUUID=`
//! of their partition.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ext4_format::superblock::{MAGIC, RawSuperBlock, SUPERBLOCK_LEN};
use zerocopy::FromBytes;

/// Why a tag leads to no device.
#[derive(Debug, thiserror::Error)]
pub enum Unresolved {
    /// No device has it.
    #[error("no device with {0} was found")]
    Nothing(String),
    /// More than one has it.
    #[error("{tag} is ambiguous: {first} and {second} both have it; name the device")]
    Ambiguous {
        /// The tag.
        tag: String,
        /// One device.
        first: String,
        /// Another one.
        second: String,
    },
}

/// The path that a name on the command line means.
///
/// # Errors
/// [`Unresolved`] for a tag that no device has, or more than one.
pub fn resolve(name: &str) -> Result<PathBuf, Unresolved> {
    let Some((kind, value)) = name.split_once('=').filter(|_| !Path::new(name).exists()) else {
        return Ok(PathBuf::from(name));
    };
    let value = value.trim_matches('"');
    let linked = |folder: &str| Path::new("/dev/disk").join(folder).join(escaped(value));
    let found = match kind {
        "LABEL" => scan(name, |sb| text(&sb.volume_name) == value.as_bytes())?,
        "UUID" => scan(name, |sb| hyphenated(&sb.uuid) == value.to_lowercase())?,
        "PARTLABEL" => Some(linked("by-partlabel")).filter(|path| path.exists()),
        "PARTUUID" => Some(linked("by-partuuid")).filter(|path| path.exists()),
        _ => return Ok(PathBuf::from(name)),
    };
    found.ok_or_else(|| Unresolved::Nothing(name.to_owned()))
}

/// The block device whose superblock is the one that is wanted.
fn scan(tag: &str, wanted: impl Fn(&RawSuperBlock) -> bool) -> Result<Option<PathBuf>, Unresolved> {
    let mut found: Option<PathBuf> = None;
    for name in names() {
        let path = Path::new("/dev").join(&name);
        if is_part_of_another(&name) || !superblock(&path).is_some_and(|sb| wanted(&sb)) {
            continue;
        }
        if let Some(first) = found.replace(path.clone()) {
            return Err(Unresolved::Ambiguous {
                tag: tag.to_owned(),
                first: first.display().to_string(),
                second: path.display().to_string(),
            });
        }
    }
    Ok(found)
}

/// The names of the kernel's block devices.
fn names() -> Vec<String> {
    let table = fs::read_to_string("/proc/partitions").unwrap_or_default();
    table
        .lines()
        .skip(2)
        .filter_map(|line| line.split_whitespace().nth(3))
        .map(|name| name.replace('!', "/"))
        .collect()
}

/// Whether a device belongs to another one, which shows the same volume: a path of a multipath device, or
/// half of a mirror.
fn is_part_of_another(name: &str) -> bool {
    let holders = Path::new("/sys/class/block").join(name.replace('/', "!")).join("holders");
    fs::read_dir(holders).is_ok_and(|mut holders| holders.next().is_some())
}

fn superblock(path: &Path) -> Option<RawSuperBlock> {
    let mut bytes = [0; SUPERBLOCK_LEN];
    File::open(path).ok()?.read_exact_at(&mut bytes, 1024).ok()?;
    RawSuperBlock::read_from_bytes(&bytes[..]).ok().filter(|sb| sb.magic.get() == MAGIC)
}

fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

fn hyphenated(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// A name as udev writes it in /dev/disk: what is not plain is a hexadecimal escape.
fn escaped(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"#+-.:=@_".contains(&byte) || byte >= 0x80;
    let mut out = Vec::new();
    for byte in name.bytes() {
        match plain(byte) {
            true => out.push(byte),
            false => out.extend(format!("\\x{byte:02x}").into_bytes()),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

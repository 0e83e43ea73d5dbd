//! The command line as mke2fs spells it, turned into [`mkfs::Options`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Parser;
use ext4_format::superblock::OnError;
use mkfs::{Kind, Options, Usage, size_in_bytes};
use uuid::Uuid;

use crate::build::{Build, BuildArgs};

/// Create an ext2, ext3 or ext4 filesystem, with the defaults of mke2fs 1.47.
#[derive(Parser, Debug)]
#[command(name = "mkfs.rext4", bin_name = "mkfs.rext4", version, disable_version_flag = true)]
pub struct Args {
    /// Block size in bytes: 1024, 2048 or 4096
    #[arg(short = 'b', value_name = "block-size")]
    block_size: Option<u32>,
    /// Inode size in bytes
    #[arg(short = 'I', value_name = "inode-size")]
    inode_size: Option<u32>,
    /// Bytes of volume per inode
    #[arg(short = 'i', value_name = "bytes-per-inode")]
    inode_ratio: Option<u32>,
    /// Number of inodes
    #[arg(short = 'N', value_name = "number-of-inodes")]
    inode_count: Option<u64>,
    /// Blocks in a group
    #[arg(short = 'g', value_name = "blocks-per-group")]
    blocks_per_group: Option<u32>,
    /// Groups in a flexible group, a power of two
    #[arg(short = 'G', value_name = "flex-group-size")]
    groups_per_flex: Option<u32>,
    /// Volume label, at most 16 bytes
    #[arg(short = 'L', value_name = "volume-label")]
    label: Option<String>,
    /// Last mounted directory
    #[arg(short = 'M', value_name = "last-mounted-directory")]
    last_mounted: Option<String>,
    /// UUID: a UUID, clear, random or time
    #[arg(short = 'U', value_name = "UUID")]
    uuid: Option<String>,
    /// Features, comma separated: name or ^name; none clears all
    #[arg(short = 'O', value_name = "feature[,...]", value_delimiter = ',', allow_hyphen_values = true)]
    features: Vec<String>,
    /// Extended options, comma separated: stride=, stripe_width=, hash_seed=, lazy_itable_init[=0|1],
    /// lazy_journal_init[=0|1], assume_storage_prezeroed[=0|1], discard, nodiscard, root_owner[=uid:gid],
    /// resize=, num_backup_sb=, mmp_update_interval=, offset=, orphan_file_size=, desc-size=,
    /// no_copy_xattrs, test_fs
    #[arg(short = 'E', value_name = "extended-option[,...]", value_delimiter = ',')]
    extended: Vec<String>,
    /// Journal options, comma separated: size=MiB, fast_commit_size=KiB
    #[arg(short = 'J', value_name = "journal-options", value_delimiter = ',')]
    journal: Vec<String>,
    /// Make a journal
    #[arg(short = 'j')]
    with_journal: bool,
    /// Reserved blocks in percent
    #[arg(short = 'm', value_name = "reserved-percentage")]
    reserved_percent: Option<f64>,
    /// The system that makes the filesystem: Linux
    #[arg(short = 'o', value_name = "creator-os", default_value = "Linux", hide_default_value = true)]
    creator: String,
    /// Revision of the format: 1
    #[arg(short = 'r', value_name = "fs-revision", default_value_t = 1, hide_default_value = true)]
    revision: u32,
    /// Keep the device's old blocks; an older spelling of -E nodiscard
    #[arg(short = 'K')]
    keep_blocks: bool,
    /// What a mount does that finds errors: continue, remount-ro or panic
    #[arg(short = 'e', value_name = "errors-behavior")]
    on_error: Option<String>,
    /// Show what would be done; write nothing
    #[arg(short = 'n')]
    dry_run: bool,
    /// Overwrite an existing filesystem
    #[arg(short = 'F', action = clap::ArgAction::Count)]
    force: u8,
    /// No output
    #[arg(short = 'q')]
    quiet: bool,
    /// More output
    #[arg(short = 'v')]
    verbose: bool,
    /// Print the version
    #[arg(short = 'V', action = clap::ArgAction::Version)]
    version: Option<bool>,
    /// Generation of the format: ext2, ext3 or ext4
    #[arg(short = 't', value_name = "fs-type", default_value = "ext4")]
    kind: String,
    /// Usage types: floppy, small, default, big, huge, news, largefile, largefile4
    #[arg(short = 'T', value_name = "usage-type", value_delimiter = ',')]
    usage: Vec<String>,
    /// What the filesystem shall hold: a folder, a tar archive (plain, gzip, zstd, xz), - for an archive on
    /// standard input, or oci:PATH[:TAG] for a container image; several are stacked in order
    #[arg(short = 'd', value_name = "tree")]
    trees: Vec<OsString>,
    #[command(flatten)]
    build: BuildArgs,
    /// A block device or an image file
    device: PathBuf,
    /// Size in blocks, or with a suffix: s, K, M, G, T
    size: Option<String>,
}

impl Args {
    /// Whether results and errors are for a program.
    pub fn wants_json(&self) -> bool {
        self.build.json
    }
}

/// What to do.
pub struct Job {
    /// The device or image file.
    pub device: PathBuf,
    /// The volume to make.
    pub options: Options,
    /// Byte of the device at which it starts.
    pub offset: u64,
    /// Only show the plan.
    pub dry_run: bool,
    /// Overwrite what is there.
    pub force: bool,
    /// Say nothing.
    pub quiet: bool,
    /// Say more.
    pub verbose: bool,
    /// Reserved blocks, if they were given.
    pub reserved_percent: Option<f64>,
    /// The time that the environment pins.
    pub time: Option<u64>,
    /// Owner of the root directory, if it was given.
    pub root_owner: Option<(u32, u32)>,
    /// What the user should know before anything else.
    pub notes: Vec<String>,
    /// The tree that the volume shall hold, if any.
    pub build: Option<Build>,
}

/// Understands the command line.
pub fn job(args: &Args) -> Result<Job> {
    let kind = match args.kind.as_str() {
        "ext2" => Kind::Ext2,
        "ext3" => Kind::Ext3,
        "ext4" | "rext4" => Kind::Ext4,
        other => bail!("unknown filesystem type {other} (ext2, ext3 or ext4)"),
    };
    if !["linux", "0"].contains(&args.creator.to_lowercase().as_str()) {
        bail!("the creator is Linux, not {}", args.creator);
    }
    if args.revision != 1 {
        bail!("revision {} of the format is not made (1)", args.revision);
    }
    let mut notes = Vec::new();
    let mut options = Options::new(kind, now()?);
    options.discard = !args.keep_blocks;
    for name in &args.usage {
        match Usage::by_name(name) {
            Some(usage) => options.usage.push(usage),
            None => bail!("unknown usage type {name}"),
        }
    }
    options.block_size = args.block_size;
    options.inode_size = args.inode_size;
    options.inode_ratio = args.inode_ratio;
    options.inode_count = args.inode_count;
    options.blocks_per_group = args.blocks_per_group;
    options.groups_per_flex = args.groups_per_flex;
    if let Some(name) = &args.on_error {
        options.on_error = match name.as_str() {
            "continue" => OnError::Continue,
            "remount-ro" => OnError::ReadOnly,
            "panic" => OnError::Panic,
            _ => bail!("bad error behavior - {name} (continue, remount-ro or panic)"),
        };
    }
    options.reserved_percent = args.reserved_percent.unwrap_or(options.reserved_percent);
    if let Some(label) = &args.label {
        if label.len() > 16 {
            let cut = String::from_utf8_lossy(&label.as_bytes()[..16]).into_owned();
            notes.push(format!("label too long; will be truncated to '{cut}'"));
        }
        options.label = label.as_bytes().to_vec();
    }
    options.last_mounted = args.last_mounted.as_deref().unwrap_or_default().as_bytes().to_vec();
    options.uuid = args.uuid.as_deref().map(uuid).transpose()?;
    if args.with_journal {
        options.features.push("has_journal".to_owned());
    }
    options.features.extend(args.features.iter().filter(|edit| !edit.is_empty()).cloned());
    for option in &args.journal {
        match option.split_once('=') {
            Some(("size", value)) => options.journal_mib = Some(number(value, "journal size")?),
            Some(("fast_commit_size", value)) => {
                options.fast_commit_kib = Some(number(value, "fast-commit size")?);
            }
            _ => bail!("journal option {option} is not supported (size=, fast_commit_size=)"),
        }
    }
    let mut offset = 0;
    for option in &args.extended {
        extended(option, &mut options, &mut offset)?;
    }
    let named = args.extended.iter().any(|option| option.starts_with("root_owner"));
    let root_owner = named.then_some(options.root_owner);
    let without_attributes = args.extended.iter().any(|option| option == "no_copy_xattrs");
    let build = args.build.job(&args.trees, without_attributes)?;
    if build.is_none() {
        options.uuid = options.uuid.or_else(|| Some(random()));
    }
    let unit = args.block_size.unwrap_or(1024);
    options.size = args.size.as_deref().map(|text| size_in_bytes(text, unit)).transpose()?;
    Ok(Job {
        device: args.device.clone(),
        options,
        offset,
        dry_run: args.dry_run,
        force: args.force > 0,
        quiet: args.quiet,
        verbose: args.verbose,
        notes,
        reserved_percent: args.reserved_percent,
        time: pinned_time()?,
        root_owner,
        build,
    })
}

fn extended(option: &str, options: &mut Options, offset: &mut u64) -> Result<()> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    let needed = || value.with_context(|| format!("extended option {name} needs a value"));
    let switch = || match value {
        None | Some("1") => Ok(true),
        Some("0") => Ok(false),
        Some(other) => bail!("extended option {name} is 0 or 1, not {other}"),
    };
    match name {
        "stride" => options.stride = number(needed()?, name)?,
        "stripe_width" | "stripe-width" => options.stripe_width = number(needed()?, name)?,
        "hash_seed" => options.hash_seed = Some(uuid(needed()?)?),
        "lazy_itable_init" => options.lazy_itable_init = switch()?,
        "assume_storage_prezeroed" => options.assume_prezeroed = switch()?,
        "desc-size" | "desc_size" => options.desc_size = Some(number(needed()?, name)?),
        // Concerns the tree, not the volume.
        "no_copy_xattrs" => {}
        "lazy_journal_init" => options.lazy_journal_init = switch()?,
        "discard" => options.discard = true,
        "nodiscard" => options.discard = false,
        "root_owner" => {
            options.root_owner = match value {
                None => (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()),
                Some(pair) => {
                    let (user, group) =
                        pair.split_once(':').with_context(|| format!("root_owner is uid:gid, not {pair}"))?;
                    (number(user, name)?, number(group, name)?)
                }
            }
        }
        "resize" => {
            let unit = options.block_size.unwrap_or(1024);
            options.resize = Some(size_in_bytes(needed()?, unit)? / u64::from(unit));
        }
        "num_backup_sb" => {
            options.num_backup_sb = number(needed()?, name)?;
            if options.num_backup_sb > 2 {
                bail!("num_backup_sb is 0, 1 or 2");
            }
        }
        "mmp_update_interval" => options.mmp_interval = number(needed()?, name)?,
        "orphan_file_size" => {
            options.orphan_file_size = Some(size_in_bytes(needed()?, options.block_size.unwrap_or(1024))?);
        }
        "test_fs" => options.test_fs = true,
        "offset" => *offset = size_in_bytes(needed()?, 1)?,
        "" => {}
        _ => bail!("extended option {name} is not supported"),
    }
    Ok(())
}

fn number<N: std::str::FromStr>(text: &str, what: &str) -> Result<N> {
    text.parse().ok().with_context(|| format!("invalid {what}: {text}"))
}

fn random() -> [u8; 16] {
    *Uuid::new_v4().as_bytes()
}

fn uuid(text: &str) -> Result<[u8; 16]> {
    Ok(match text {
        "random" | "time" => random(),
        "clear" | "null" => [0; 16],
        _ => *Uuid::parse_str(text).with_context(|| format!("invalid UUID: {text}"))?.as_bytes(),
    })
}

/// The moment written into the volume: now, unless the environment pins it for reproducible images.
fn now() -> Result<u64> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(pinned_time()?.unwrap_or_else(now))
}

fn pinned_time() -> Result<Option<u64>> {
    for variable in ["E2FSPROGS_FAKE_TIME", "SOURCE_DATE_EPOCH"] {
        if let Ok(text) = std::env::var(variable) {
            return number(&text, variable).map(Some);
        }
    }
    Ok(None)
}

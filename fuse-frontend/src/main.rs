//! `mount.rext4`: mounts an ext4 volume through FUSE. Called `umount.` something, it unmounts one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use fuse_frontend::options::Options;
use fuse_frontend::{background, log, memory, remount, server, unmounter};

/// mount(8)'s exit status for a failed mount.
const MOUNT_FAILURE: u8 = 32;

/// Mounts an ext4 volume (image file, loop device, partition, disk) on a directory.
///
/// Usable as mount(8)'s helper (mount -t rext4), and in the place of fuse2fs.
#[derive(Parser)]
#[command(name = "mount.rext4", version)]
struct Args {
    /// The image file or block device.
    device: PathBuf,
    /// The directory to mount it on.
    dir: PathBuf,
    /// Options, comma-separated, as ext4 and fuse2fs spell them.
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in the foreground.
    #[arg(short)]
    foreground: bool,
    /// What fuse2fs calls the long help.
    #[arg(long, action = clap::ArgAction::HelpLong)]
    helpfull: Option<bool>,
    /// Log what happens, in the foreground.
    #[arg(short, long)]
    debug: bool,
    /// Say more (mount(8) passes it).
    #[arg(short)]
    verbose: bool,
    /// Mount read-only.
    #[arg(short)]
    read_only: bool,
    /// Mount writable.
    #[arg(short = 'w')]
    writable: bool,
    /// Accepted for mount(8) and fuse2fs: there is no mtab to spare, and no option is sloppy.
    #[arg(short = 'n', short_alias = 's', action = clap::ArgAction::Count)]
    no_mtab: u8,
    /// The type that mount(8) was asked for.
    #[arg(short = 't', value_name = "TYPE")]
    fs_type: Option<String>,
}

fn main() -> ExitCode {
    blockdev::file_size_limit_is_an_error();
    if called().starts_with("umount.") {
        return unmounter::run(&std::env::args_os().skip(1).collect::<Vec<_>>());
    }
    let args = Args::parse();
    let default_level = match (args.debug, args.verbose) {
        (true, _) => "debug",
        (_, true) => "info",
        _ => "warn",
    };
    log::start(default_level);
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if background::is_server() {
                background::report_failure(&error);
            } else {
                eprintln!("mount.rext4: {}", blockdev::in_one_line(error.as_ref()));
            }
            ExitCode::from(MOUNT_FAILURE)
        }
    }
}

/// The name that the program was started under.
fn called() -> String {
    let path = std::env::args_os().next().map(PathBuf::from);
    let name = path.as_deref().and_then(Path::file_name);
    name.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn run(args: &Args) -> anyhow::Result<()> {
    let words: Vec<&str> = args.options.iter().flat_map(|items| items.split(',')).collect();
    if words.contains(&"remount") {
        return remount::run(&args.dir, &words);
    }
    let mut options = Options::default();
    args.options.iter().try_for_each(|items| options.apply(items))?;
    options.volume.read_only |= args.read_only && !args.writable;
    options.must_write = args.writable;
    // fuse2fs takes one for the other.
    options.volume.read_only |= options.volume.no_recovery && called() == "fuse2fs";
    if args.foreground || args.debug || background::is_server() {
        blockdev::give_back_large();
        memory::prepare_to_write();
        server::serve(&args.device, &args.dir, &options)
    } else {
        background::start_server()
    }
}

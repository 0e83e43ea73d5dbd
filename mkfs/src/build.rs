//! The options that concern a tree, and the run of a builder.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use mkfs::{BuildReport, Event, Free, IdRange, ImageBuilder, Platform, Source, probe, size_in_bytes};
use serde_json::json;
use uuid::Uuid;

use crate::cli::Job;
use crate::show;

/// Options that go with -d.
#[derive(Args, Debug)]
pub struct BuildArgs {
    /// One owner for all files of the tree
    #[arg(long, value_name = "UID:GID")]
    owner: Option<String>,
    /// Users of the tree that become users of the image: first on the host, first in the image, how many
    #[arg(long, value_name = "HOST:IMAGE:COUNT")]
    map_users: Vec<String>,
    /// The same for groups; as --map-users when only that is given
    #[arg(long, value_name = "HOST:IMAGE:COUNT")]
    map_groups: Vec<String>,
    /// A file that sets owners, modes, devices and attributes by path: BSD mtree, gen_init_cpio's list, or a
    /// device table
    #[arg(long, value_name = "FILE")]
    spec: Vec<PathBuf>,
    /// Free space besides the tree, in an image of no given size
    #[arg(long, value_name = "SIZE|PERCENT%")]
    free: Option<Free>,
    /// Free inodes besides those of the tree, in an image of no given size
    #[arg(long, value_name = "NUMBER")]
    free_inodes: Option<u64>,
    /// Make the smallest image; a size is then the most it may be
    #[arg(long)]
    shrink: bool,
    /// The most that the tree may hold and the image may be
    #[arg(long, value_name = "SIZE")]
    max_size: Option<String>,
    /// Let no file be newer than SOURCE_DATE_EPOCH
    #[arg(long)]
    clamp_mtime: bool,
    /// Which platform of a container image: os/architecture[/variant]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Threads that read and write
    #[arg(long, value_name = "NUMBER")]
    threads: Option<usize>,
    /// Folder for temporary files, instead of the image's
    #[arg(long, value_name = "FOLDER")]
    temporary_folder: Option<PathBuf>,
    /// Print one JSON object about the result, and nothing else
    #[arg(long)]
    pub json: bool,
}

/// A builder, but for the volume's options.
pub struct Build {
    make: Box<dyn Fn() -> Result<ImageBuilder>>,
    /// Whether the size is computed even where there is one.
    computes_size: bool,
    /// Report in JSON.
    pub json: bool,
}

impl BuildArgs {
    /// What these options ask for; `None` when there is no tree.
    pub fn job(&self, trees: &[OsString], without_attributes: bool) -> Result<Option<Build>> {
        let computes_size = self.shrink || self.free.is_some() || self.free_inodes.is_some();
        if trees.is_empty() && self.spec.is_empty() && !computes_size {
            if self.owner.is_some() || !self.map_users.is_empty() || self.clamp_mtime || self.json {
                bail!("there is no tree: name a folder or archive with -d");
            }
            return Ok(None);
        }
        let owner = self.owner.as_deref().map(pair).transpose()?;
        let users = self.map_users.iter().map(|text| range(text)).collect::<Result<Vec<_>>>()?;
        let groups = if self.map_groups.is_empty() { &self.map_users } else { &self.map_groups };
        let groups = groups.iter().map(|text| range(text)).collect::<Result<Vec<_>>>()?;
        let max_size = self.max_size.as_deref().map(|text| size_in_bytes(text, 1)).transpose()?;
        let trees = trees.to_vec();
        let (specs, free, free_inodes) = (self.spec.clone(), self.free, self.free_inodes);
        let (shrink, clamp, threads) = (self.shrink, self.clamp_mtime, self.threads);
        let (platform, folder) = (self.platform.clone(), self.temporary_folder.clone());
        let make = move || {
            let mut builder = ImageBuilder::new().shrink(shrink).clamp_mtime(clamp);
            builder = builder.without_attributes(without_attributes);
            for tree in &trees {
                builder = builder.source(Source::named(tree));
            }
            builder = specs.iter().fold(builder, ImageBuilder::spec);
            builder = users.iter().copied().fold(builder, ImageBuilder::map_users);
            builder = groups.iter().copied().fold(builder, ImageBuilder::map_groups);
            if let Some((uid, gid)) = owner {
                builder = builder.owner(uid, gid);
            }
            builder = free.into_iter().fold(builder, ImageBuilder::free);
            builder = free_inodes.into_iter().fold(builder, ImageBuilder::free_inodes);
            builder = max_size.into_iter().fold(builder, ImageBuilder::max_size);
            builder = threads.into_iter().fold(builder, ImageBuilder::threads);
            builder = platform.iter().cloned().fold(builder, ImageBuilder::platform);
            builder = folder.iter().fold(builder, ImageBuilder::temporary_folder);
            Ok(builder)
        };
        Ok(Some(Build { make: Box::new(make), computes_size, json: self.json }))
    }
}

fn number(text: &str, whole: &str) -> Result<u32> {
    text.parse().ok().with_context(|| format!("{text} in {whole} is no number"))
}

fn pair(text: &str) -> Result<(u32, u32)> {
    let (uid, gid) = text.split_once(':').with_context(|| format!("an owner is UID:GID, not {text}"))?;
    Ok((number(uid, text)?, number(gid, text)?))
}

fn range(text: &str) -> Result<IdRange> {
    let parts: Vec<&str> = text.split(':').collect();
    let [host, image, count] = parts.as_slice() else {
        bail!("an id range is HOST:IMAGE:COUNT, not {text}");
    };
    Ok(IdRange { host: number(host, text)?, image: number(image, text)?, count: number(count, text)? })
}

/// Builds the image of a job.
pub fn run(job: &Job, build: &Build) -> Result<()> {
    let path = job.device.as_path();
    let mut builder = (build.make)()?.options(job.options.clone()).offset(job.offset);
    builder = job.time.into_iter().fold(builder, ImageBuilder::time);
    builder = job.reserved_percent.into_iter().fold(builder, ImageBuilder::reserved_percent);
    if let Some((uid, gid)) = job.root_owner {
        builder = builder.root_owner(uid, gid);
    }
    let size = job.options.size.or(existing_size(job, path, build)?);
    builder = size.into_iter().fold(builder, ImageBuilder::size);
    let quiet = job.quiet || build.json;
    if job.dry_run {
        let layout = builder.plan(&mut |event| note(&event))?;
        return show::plan(job, &layout);
    }
    let mut progress = show::Progress::new(quiet);
    let report = builder.build_watched(path, &mut |event| match event {
        Event::Planned(layout) if !quiet => {
            // What is printed is for a person; a closed pipe is no reason to stop.
            let _ = show::plan(job, layout);
        }
        Event::Step(step, done, total) => progress.at(step, done, total),
        Event::Names(names) => progress.names(names),
        event => note(&event),
    });
    let report = report.with_context(|| format!("{} was not built", path.display()))?;
    if build.json {
        writeln!(std::io::stdout(), "{}", as_json(path, &report))?;
    } else if !quiet {
        summary(&report)?;
    }
    Ok(())
}

fn note(event: &Event<'_>) {
    if let Event::Note(note) = event {
        eprintln!("mkfs.rext4: {note}");
    }
}

/// The size that a prepared file or a device gives. A file that holds something is replaced by an image of
/// its own size, and so must be overwritten on purpose.
fn existing_size(job: &Job, path: &Path, build: &Build) -> Result<Option<u64>> {
    let Ok(meta) = path.metadata() else { return Ok(None) };
    if meta.is_dir() {
        bail!("{} is a directory, not an image file or a block device", path.display());
    }
    if meta.is_file() && meta.len() <= job.offset {
        return Ok(None);
    }
    // Opening tells whether somebody uses it.
    let how = blockdev::OpenOptions {
        read_only: job.dry_run,
        offset: job.offset,
        exclusive: !job.dry_run,
        ..blockdev::OpenOptions::default()
    };
    let device = blockdev::open(path, &how)?;
    let found = probe::probe(&*device).context("cannot read the device")?;
    let is_blank = found.is_none();
    if let Some(found) = found.filter(|_| !job.dry_run) {
        crate::may_overwrite(job, &found)?;
    }
    let size = blockdev::BlockDevice::geometry(&*device).size;
    Ok((is_blank && meta.is_file() && job.offset == 0 && !build.computes_size).then_some(size))
}

fn summary(report: &BuildReport) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let BuildReport { files, directories, symlinks, special, .. } = report;
    writeln!(out, "{files} files, {directories} directories, {symlinks} symbolic links, {special} others")?;
    writeln!(out, "{} bytes, {} of them written", report.size, report.written)?;
    writeln!(out, "Filesystem UUID: {}", Uuid::from_bytes(report.superblock.uuid()))?;
    Ok(())
}

fn as_json(path: &Path, report: &BuildReport) -> serde_json::Value {
    let superblock = &report.superblock;
    json!({
        "image": path.to_string_lossy(),
        "size": report.size,
        "block_size": superblock.block_size(),
        "blocks": superblock.blocks_count().0,
        "free_blocks": superblock.free_blocks(),
        "inodes": superblock.inodes_count(),
        "free_inodes": superblock.free_inodes(),
        "uuid": Uuid::from_bytes(superblock.uuid()).to_string(),
        "files": report.files,
        "directories": report.directories,
        "symlinks": report.symlinks,
        "special": report.special,
        "hard_links": report.hard_links,
        "content": report.content,
        "written": report.written,
        "notes": report.notes,
    })
}

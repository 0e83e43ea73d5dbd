//! From sources to an image, step by step.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use blockdev::BlockDevice;
use ext4_format::csum::Csum;
use ext4_format::inode::{FileType, Time};
use ext4_format::superblock::SuperBlock;

use super::contents::{Contents, Times};
use super::copy::Copy;
use super::error::{Error, Result};
use super::layer::{IMPLICIT, Merge, Rules};
use super::oci::Platform;
use super::order::{Digest, LOST_AND_FOUND, metadata_digest, names_digest};
use super::output::{self, Output};
use super::owners::IdRange;
use super::plan::Plan;
use super::size::{self, Free, Sizing};
use super::source::{Reading, Source};
use super::spec;
use super::tree::{Body, Inode, Meta, ROOT, Tree};
use crate::layout::Layout;
use crate::options::{Kind, Options};
use crate::{Step, files, write};

/// What a builder says on its way.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'e> {
    /// Something was left out or chosen.
    Note(&'e str),
    /// The volume that will be written. Its UUID may not be known yet.
    Planned(&'e Layout),
    /// Names read from the sources so far.
    Names(u64),
    /// How far a step is.
    Step(Step, u64, u64),
}

/// A finished image.
#[derive(Clone, Debug)]
pub struct BuildReport {
    /// Its superblock.
    pub superblock: SuperBlock,
    /// Bytes of the volume.
    pub size: u64,
    /// Bytes written to the device, holes not counted.
    pub written: u64,
    /// Bytes that regular files hold, holes included.
    pub content: u64,
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices, pipes and sockets.
    pub special: u64,
    /// Names that are hard links to a file counted before.
    pub hard_links: u64,
    /// What was left out or chosen, in words.
    pub notes: Vec<String>,
}

/// Builds an ext4 image from folders, archives and container images, without a mount and without root.
///
/// The same sources and options make the same bytes, whoever runs it and wherever. No journal is replayed and
/// none is written to: the volume is laid out directly, and it is clean.
pub struct ImageBuilder {
    options: Options,
    reserved_percent: Option<f64>,
    root_owner: Option<(u32, u32)>,
    sizing: Sizing,
    sources: Vec<Source>,
    specs: Vec<PathBuf>,
    rules: Rules,
    platform: Platform,
    time: Option<u64>,
    clamp: bool,
    threads: usize,
    offset: u64,
    spools: Option<PathBuf>,
}

impl Default for ImageBuilder {
    fn default() -> ImageBuilder {
        ImageBuilder::new()
    }
}

impl ImageBuilder {
    /// An ext4 image of nothing, as small as it can be.
    #[must_use]
    pub fn new() -> ImageBuilder {
        ImageBuilder {
            options: Options::new(Kind::Ext4, 0),
            reserved_percent: None,
            root_owner: None,
            sizing: Sizing { sector: 512, ..Sizing::default() },
            sources: Vec::new(),
            specs: Vec::new(),
            rules: Rules::default(),
            platform: Platform::default(),
            time: None,
            clamp: false,
            threads: std::thread::available_parallelism().map_or(1, usize::from).min(16),
            offset: 0,
            spools: None,
        }
    }

    /// Puts a source over those before it. With more than one, whiteouts take things out of those below.
    #[must_use]
    pub fn source(mut self, source: Source) -> Self {
        self.sources.push(source);
        self
    }

    /// The options of the volume. Its size, time and reserved blocks have methods of their own here.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Bytes of the image, instead of as few as the tree needs.
    #[must_use]
    pub fn size(mut self, bytes: u64) -> Self {
        self.sizing.size = Some(bytes);
        self
    }

    /// Free space in an image whose size is computed.
    #[must_use]
    pub fn free(mut self, free: Free) -> Self {
        self.sizing.free = Some(free);
        self
    }

    /// Free inodes in an image whose size is computed; else as many as suit its free space.
    #[must_use]
    pub fn free_inodes(mut self, count: u64) -> Self {
        self.sizing.free_inodes = Some(count);
        self
    }

    /// Makes the smallest image even where [`ImageBuilder::size`] was given, which then is the most.
    #[must_use]
    pub fn shrink(mut self, shrink: bool) -> Self {
        self.sizing.shrink = shrink;
        self
    }

    /// The most that the sources may hold and the image may become, in bytes. What claims to be more is an
    /// error before it fills the disk.
    #[must_use]
    pub fn max_size(mut self, bytes: u64) -> Self {
        self.rules.max_size = Some(bytes);
        self.sizing.max_size = Some(bytes);
        self
    }

    /// Reserved blocks in percent; 5 for an image of a given size, else 0.
    #[must_use]
    pub fn reserved_percent(mut self, percent: f64) -> Self {
        self.reserved_percent = Some(percent);
        self
    }

    /// One owner and group for all files.
    #[must_use]
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.rules.owners.all = Some((uid, gid));
        self
    }

    /// The owner and group of the root directory.
    #[must_use]
    pub fn root_owner(mut self, uid: u32, gid: u32) -> Self {
        self.root_owner = Some((uid, gid));
        self
    }

    /// Maps users of the sources to users of the image. With any range, a user in none is an error.
    #[must_use]
    pub fn map_users(mut self, range: IdRange) -> Self {
        self.rules.owners.users.push(range);
        self
    }

    /// The same for groups.
    #[must_use]
    pub fn map_groups(mut self, range: IdRange) -> Self {
        self.rules.owners.groups.push(range);
        self
    }

    /// Leaves the sources' extended attributes out, access control lists and capabilities among them.
    #[must_use]
    pub fn without_attributes(mut self, without: bool) -> Self {
        self.rules.without_attributes = without;
        self
    }

    /// A specification file: owners, modes, devices and attributes by path.
    #[must_use]
    pub fn spec(mut self, file: impl Into<PathBuf>) -> Self {
        self.specs.push(file.into());
        self
    }

    /// Which platform of a container image; this machine's by default.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// The time of the image, in seconds since 1970; else that of its newest file.
    #[must_use]
    pub fn time(mut self, seconds: u64) -> Self {
        self.time = Some(seconds);
        self
    }

    /// Lets no file be newer than the image's time.
    #[must_use]
    pub fn clamp_mtime(mut self, clamp: bool) -> Self {
        self.clamp = clamp;
        self
    }

    /// Threads that read and write. The result does not depend on them.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.clamp(1, 64);
        self
    }

    /// The byte at which the volume starts; the file there is then changed in place.
    #[must_use]
    pub fn offset(mut self, bytes: u64) -> Self {
        self.offset = bytes;
        self
    }

    /// The folder for temporary files, instead of the image's own.
    #[must_use]
    pub fn temporary_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.spools = Some(folder.into());
        self
    }

    /// Builds the image. A file appears under its name when it is complete; a block device is written in
    /// place.
    ///
    /// # Errors
    /// [`Error`]; no file was made or changed.
    pub fn build(self, image: impl AsRef<Path>) -> Result<BuildReport> {
        self.build_watched(image, &mut |_| {})
    }

    /// Builds the image and tells how far it is.
    ///
    /// # Errors
    /// As [`ImageBuilder::build`].
    pub fn build_watched(
        self,
        image: impl AsRef<Path>,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<BuildReport> {
        let image = image.as_ref();
        let is_device = image.metadata().is_ok_and(|meta| meta.file_type().is_block_device());
        let spools = self.spools.clone().unwrap_or_else(|| {
            if is_device { std::env::temp_dir() } else { output::folder(image).to_owned() }
        });
        if is_device || self.offset > 0 {
            let how = blockdev::OpenOptions { offset: self.offset, ..blockdev::OpenOptions::default() };
            let device = blockdev::open(image, &how)?;
            return self.build_with(&*device, &spools, output::identity(image), watch);
        }
        let skip: Vec<_> = output::identity(image).into_iter().collect();
        let (threads, fresh) = (self.threads, true);
        let mut draft = self.draft(&spools, &skip, watch)?;
        let file = Output::create(image, volume_size(&draft.layout))?;
        let device = file.device()?;
        watch(Event::Planned(&draft.layout));
        let report = draft.write(&*device, threads, fresh, watch)?;
        drop(device);
        file.finish()?;
        Ok(report)
    }

    /// Builds the image on a device, whose size is the volume's unless another was given.
    ///
    /// # Errors
    /// [`Error`]; the device holds no filesystem when the failure came late.
    pub fn build_on(self, device: &dyn BlockDevice, watch: &mut dyn FnMut(Event<'_>)) -> Result<BuildReport> {
        let spools = self.spools.clone().unwrap_or_else(std::env::temp_dir);
        self.build_with(device, &spools, None, watch)
    }

    fn build_with(
        mut self,
        device: &dyn BlockDevice,
        spools: &Path,
        skip: Option<(u64, u64)>,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<BuildReport> {
        let geometry = device.geometry();
        if geometry.read_only {
            return Err(crate::Error::ReadOnly.into());
        }
        let computed = self.sizing.free.is_some() || self.sizing.shrink;
        if let Some(size) = self.sizing.size.filter(|size| *size > geometry.size) {
            let has = geometry.size;
            return Err(Error::Options(format!(
                "the size asked for ({size} bytes) exceeds the device ({has} bytes)"
            )));
        }
        if computed {
            self.sizing.shrink = true;
        }
        self.sizing.size = Some(self.sizing.size.unwrap_or(geometry.size));
        self.sizing.sector = geometry.logical_sector;
        let threads = self.threads;
        let skip: Vec<_> = skip.into_iter().collect();
        let mut draft = self.draft(spools, &skip, watch)?;
        watch(Event::Planned(&draft.layout));
        draft.write(device, threads, false, watch)
    }

    /// Plans the image and writes nothing.
    ///
    /// # Errors
    /// As [`ImageBuilder::build`].
    pub fn plan(self, watch: &mut dyn FnMut(Event<'_>)) -> Result<Layout> {
        let spools = self.spools.clone().unwrap_or_else(std::env::temp_dir);
        Ok(self.draft(&spools, &[], watch)?.layout)
    }

    /// Reads all sources and plans.
    fn draft(self, spools: &Path, skip: &[(u64, u64)], watch: &mut dyn FnMut(Event<'_>)) -> Result<Draft> {
        if self.clamp && self.time.is_none() {
            return Err(Error::Options("--clamp-mtime needs a time: set SOURCE_DATE_EPOCH".into()));
        }
        let mut options = self.options;
        let computed = self.sizing.is_computed();
        options.reserved_percent =
            self.reserved_percent.unwrap_or(if computed { 0.0 } else { options.reserved_percent });
        let mut names = |names| watch(Event::Names(names));
        let mut merge = Merge::new(&self.rules).watched(&mut names);
        let reading = Reading {
            stacked: self.sources.len() > 1,
            threads: self.threads,
            skip,
            platform: &self.platform,
            spools,
        };
        for source in self.sources {
            source.read(&mut merge, &reading)?;
        }
        for file in &self.specs {
            spec::apply(&mut merge, file)?;
        }
        complete(&mut merge, self.root_owner)?;
        let (mut tree, mut notes) = merge.finish();
        let latest = self.time.filter(|_| self.clamp).map(|time| time as i64);
        let newest = tree.live_inodes().map(|(_, inode)| inode.meta.mtime).filter(|time| *time != IMPLICIT);
        let newest = newest.map(|time| time.sec).max().unwrap_or(0).clamp(0, Time::MAX_SEC);
        options.now = self.time.unwrap_or(newest as u64);
        let times = Times { now: options.now.min(Time::MAX_SEC as u64) as i64, latest };
        let seed = options.hash_seed.unwrap_or_else(|| names_digest(&tree).bytes("hash seed"));
        options.hash_seed = Some(seed);
        let words = std::array::from_fn(|at| {
            u32::from_le_bytes([seed[4 * at], seed[4 * at + 1], seed[4 * at + 2], seed[4 * at + 3]])
        });
        let block_size = size::block_size(&options, &self.sizing);
        let mut plan = Plan::new(&tree, options, block_size, words, &mut notes)?;
        let (options, layout) = plan.fit(&tree, &self.sizing)?;
        tree.forget_names();
        for note in &notes {
            watch(Event::Note(note));
        }
        notes.extend(layout.notes.iter().cloned());
        Ok(Draft { tree, plan, options, layout, times, notes })
    }
}

/// What a tree must have: a root directory with a time, and lost+found.
fn complete(merge: &mut Merge<'_>, root_owner: Option<(u32, u32)>) -> Result<()> {
    let root = merge.tree.inode_of(ROOT);
    if !merge.tree.has_root {
        let meta = Meta { mode: 0o755, uid: 0, gid: 0, mtime: IMPLICIT };
        merge.put_root(meta, 0)?;
    }
    if let Some((uid, gid)) = root_owner {
        let meta = &mut merge.tree.inode_mut(root).meta;
        (meta.uid, meta.gid) = (uid, gid);
    }
    match merge.tree.find(ROOT, LOST_AND_FOUND) {
        Some(node) if merge.tree.at(node).is_directory() => Ok(()),
        Some(_) => Err(Error::entry(LOST_AND_FOUND, "is not a directory; fsck needs the name for one")),
        None => {
            let meta = Meta { mode: 0o700, uid: 0, gid: 0, mtime: IMPLICIT };
            let id = merge.tree.add_inode(Inode::new(meta, Body::Directory(0)))?;
            merge.tree.insert(ROOT, LOST_AND_FOUND, id, 0)?;
            Ok(())
        }
    }
}

fn volume_size(layout: &Layout) -> u64 {
    layout.superblock.blocks_count().0 * u64::from(layout.superblock.block_size())
}

/// A tree and where it goes.
struct Draft {
    tree: Tree,
    plan: Plan,
    options: Options,
    layout: Layout,
    times: Times,
    notes: Vec<String>,
}

impl Draft {
    /// Writes the image: data first, then metadata, then the superblock.
    fn write(
        &mut self,
        device: &dyn BlockDevice,
        threads: usize,
        fresh: bool,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<BuildReport> {
        if fresh {
            // The file is one hole: the tables are zeroed already, and a mount has nothing to do.
            self.options.discard = false;
            self.options.assume_prezeroed = true;
        }
        let mut step = |step, done, total| watch(Event::Step(step, done, total));
        write::prepare(device, &self.layout, &self.options, &mut step)?;
        let digest = self.options.uuid.is_none();
        let total = self.plan.data_blocks * u64::from(self.plan.mapping.block_size);
        let copy = Copy { tree: &self.tree, plan: &self.plan, device, digest };
        let data = copy.run(threads, &mut |done| {
            // The end is told once, below.
            if done < total {
                step(Step::Files, done, total);
            }
        })?;
        step(Step::Files, total, total);
        let uuid = self.options.uuid.unwrap_or_else(|| {
            let mut all: Digest = metadata_digest(&self.tree, &self.plan.order, |inode| {
                let time = self.times.of(inode);
                (time.sec, time.nsec)
            });
            all.merge(data);
            all.uuid("volume")
        });
        let options = Options { uuid: Some(uuid), ..self.options.clone() };
        let sizes = volume_size(&self.layout);
        self.layout = Layout::new(&options, sizes, self.layout.superblock.block_size().min(512))?;
        let mut volume = files::reserved(&self.layout, &options)?;
        let contents = Contents::new(&self.tree, &self.plan, self.times, &volume.superblock);
        volume.fill(contents.counts(volume.geometry()), &self.plan.taken);
        for (ino, record) in contents.reserved()? {
            volume.put_record(ino, record, true);
        }
        let written = write::write(device, volume, &self.layout, &options, Some(&contents), &mut step)?;
        debug_assert!(Csum::new(&written.superblock).seed() == Csum::new(&self.layout.superblock).seed());
        Ok(self.report(written))
    }

    fn report(&self, written: write::Written) -> BuildReport {
        let mut report = BuildReport {
            superblock: written.superblock,
            size: volume_size(&self.layout),
            written: written.bytes,
            content: 0,
            files: 0,
            directories: 0,
            symlinks: 0,
            special: 0,
            hard_links: 0,
            notes: self.notes.clone(),
        };
        for (_, inode) in self.tree.live_inodes() {
            match inode.file_type() {
                FileType::Regular => report.files += 1,
                FileType::Directory => report.directories += 1,
                FileType::Symlink => report.symlinks += 1,
                _ => report.special += 1,
            }
            report.content += inode.size;
            report.hard_links += u64::from(inode.links - 1);
        }
        report
    }
}

impl FromStr for Free {
    type Err = String;

    /// A size with a suffix, or a number with `%`.
    fn from_str(text: &str) -> std::result::Result<Free, String> {
        match text.strip_suffix('%') {
            Some(number) => number
                .parse()
                .ok()
                .filter(|percent| (0.0..95.0).contains(percent))
                .map(Free::Percent)
                .ok_or_else(|| format!("free space of {text} (0% to 95%)")),
            None => crate::size_in_bytes(text, 1).map(Free::Bytes).map_err(|error| error.to_string()),
        }
    }
}

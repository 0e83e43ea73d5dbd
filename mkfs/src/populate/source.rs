//! Where trees come from.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Error, Result};
use super::layer::Merge;
use super::oci::Platform;
use super::{folder, oci, tar};

/// A tree to put into an image. Several are stacked in order, each over those before it.
pub struct Source(Kind);

enum Kind {
    Folder(PathBuf),
    Archive(PathBuf),
    Stream(Box<dyn Read + Send>, PathBuf),
    Image(PathBuf, Option<String>),
    ImageStream(Box<dyn Read + Send>, Option<String>),
}

impl Source {
    /// A folder of the host.
    pub fn dir(path: impl Into<PathBuf>) -> Source {
        Source(Kind::Folder(path.into()))
    }

    /// A tar archive, packed with gzip, zstd or xz or not at all.
    pub fn tar(path: impl Into<PathBuf>) -> Source {
        Source(Kind::Archive(path.into()))
    }

    /// A tar archive that is read once, packed or not. File contents wait in a temporary file.
    pub fn tar_stream(stream: impl Read + Send + 'static) -> Source {
        Source(Kind::Stream(Box::new(stream), PathBuf::from("the archive")))
    }

    /// A container image: an OCI image layout (a folder or an archive) or what `docker save` wrote. `tag` is
    /// its name, all of it or the part behind the colon, where there are several.
    pub fn oci(path: impl Into<PathBuf>, tag: Option<&str>) -> Source {
        Source(Kind::Image(path.into(), tag.map(str::to_owned)))
    }

    /// A container image in an archive that is read once.
    pub fn oci_stream(stream: impl Read + Send + 'static, tag: Option<&str>) -> Source {
        Source(Kind::ImageStream(Box::new(stream), tag.map(str::to_owned)))
    }

    /// As `-d` spells it: `-` for an archive on standard input, `oci:PATH[:TAG]` (or `oci:-`) for a container
    /// image, a folder, or an archive.
    pub fn named(text: &OsStr) -> Source {
        if text == "-" {
            return Source(Kind::Stream(Box::new(std::io::stdin()), PathBuf::from("standard input")));
        }
        if let Some(image) = text.to_str().and_then(|text| text.strip_prefix("oci:")) {
            let whole = Path::new(image);
            if image == "-" || image.starts_with("-:") {
                return Source::oci_stream(std::io::stdin(), image.get(2..));
            }
            return match image.rsplit_once(':') {
                Some((path, tag)) if !whole.exists() => Source::named_image(path, tag),
                _ => Source::oci(whole, None),
            };
        }
        let path = Path::new(text);
        if path.is_dir() { Source::dir(path) } else { Source::tar(path) }
    }

    /// A tag may itself have colons: the path is the longest that is there.
    fn named_image(path: &str, tag: &str) -> Source {
        match path.rsplit_once(':') {
            Some((shorter, more)) if !Path::new(path).exists() => {
                Source::named_image(shorter, &format!("{more}:{tag}"))
            }
            _ => Source::oci(path, Some(tag)),
        }
    }

    /// Reads it into the tree.
    pub(super) fn read(self, merge: &mut Merge<'_>, how: &Reading<'_>) -> Result<()> {
        match self.0 {
            Kind::Folder(path) => {
                merge.next_layer(how.stacked)?;
                folder::read(merge, &path, how.threads, how.skip)
            }
            Kind::Archive(path) => {
                merge.next_layer(how.stacked)?;
                let file = File::open(&path).map_err(|source| Error::read(&path, source))?;
                let kind = file.metadata().map_err(|source| Error::read(&path, source))?;
                if !kind.is_file() {
                    // A pipe or a device has no size and is read once.
                    return tar::read_stream(merge, Box::new(file), &path, how.spools);
                }
                tar::read_file(merge, Arc::new(file), 0..kind.len(), &path, how.spools)
            }
            Kind::Stream(stream, name) => {
                merge.next_layer(how.stacked)?;
                tar::read_stream(merge, stream, &name, how.spools)
            }
            Kind::Image(path, tag) => {
                let from = oci::From::Path(&path);
                oci::read(merge, from, tag.as_deref(), how.platform, how.spools)
            }
            Kind::ImageStream(stream, tag) => {
                let from = oci::From::Stream(stream);
                oci::read(merge, from, tag.as_deref(), how.platform, how.spools)
            }
        }
    }
}

/// How sources are read.
pub(super) struct Reading<'a> {
    /// Whether whiteouts mean something.
    pub stacked: bool,
    /// Threads that look at a folder.
    pub threads: usize,
    /// Files that are not taken: device and inode number.
    pub skip: &'a [(u64, u64)],
    /// Which of an image's platforms.
    pub platform: &'a Platform,
    /// The folder for temporary files.
    pub spools: &'a Path,
}

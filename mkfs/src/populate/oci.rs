//! Container images as a source: an OCI image layout, as a folder or in an archive, or what `docker save`
//! writes. Their layers are archives, applied in the manifest's order.
//!
//! Source: OCI image specification 1.1, "Image Layout", "Image Index", "Image Manifest"; Docker image
//! specification 1.2 for `manifest.json`. Every blob that has a digest is checked against it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::{Descriptor, Digest, DigestAlgorithm, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use sha2::{Digest as _, Sha256, Sha512};

use super::error::{Error, Result};
use super::layer::{Merge, Rules};
use super::tar::{self, FileRange};
use super::tree::{Body, Content};

/// The largest index or manifest that is read.
const MAX_JSON: u64 = 8 << 20;
/// Indexes in indexes.
const MAX_DEPTH: u32 = 4;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";

/// Which of an image's platforms is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Platform {
    /// Operating system, as Go names it.
    pub os: String,
    /// Architecture, as Go names it.
    pub architecture: String,
    /// Variant of the architecture.
    pub variant: Option<String>,
}

impl Default for Platform {
    /// Linux on this machine's architecture.
    fn default() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Platform { os: "linux".into(), architecture: architecture.into(), variant: None }
    }
}

impl std::str::FromStr for Platform {
    type Err = String;

    /// `os/architecture[/variant]`.
    fn from_str(text: &str) -> std::result::Result<Platform, String> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os, architecture] => {
                Ok(Platform { os: (*os).into(), architecture: (*architecture).into(), variant: None })
            }
            [os, architecture, variant] => Ok(Platform {
                os: (*os).into(),
                architecture: (*architecture).into(),
                variant: Some((*variant).into()),
            }),
            _ => Err(format!("a platform is os/architecture[/variant], not {text}")),
        }
    }
}

impl Platform {
    fn fits(&self, descriptor: &Descriptor) -> bool {
        descriptor.platform().as_ref().is_none_or(|platform| {
            platform.os().to_string() == self.os
                && platform.architecture().to_string() == self.architecture
                && (self.variant.is_none() || *platform.variant() == self.variant)
        })
    }
}

/// One image of a `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// A layer: its name in the image and the digest its bytes must have.
struct LayerBlob {
    name: String,
    digest: Option<Digest>,
    size: Option<u64>,
}

/// Where an image's files are.
enum Store<'r> {
    Folder(&'r Path),
    Archive(Box<Merge<'r>>),
}

/// Where an image comes from.
pub enum From<'p> {
    /// A folder or an archive.
    Path(&'p Path),
    /// An archive that is read once.
    Stream(Box<dyn Read + Send>),
}

/// Reads an image into the tree: the one with this tag, for this platform.
pub fn read(
    merge: &mut Merge<'_>,
    from: From<'_>,
    tag: Option<&str>,
    platform: &Platform,
    spools: &Path,
) -> Result<()> {
    let rules = Rules { max_size: merge.rules.max_size, ..Rules::default() };
    let mut archive = Merge::new(&rules);
    let (path, store) = match from {
        From::Path(path) if path.is_dir() => (path, Store::Folder(path)),
        From::Path(path) => {
            let file = Arc::new(File::open(path).map_err(|source| Error::read(path, source))?);
            let end = file.metadata().map_err(|source| Error::read(path, source))?.len();
            tar::read_file(&mut archive, file, 0..end, path, spools)?;
            (path, Store::Archive(Box::new(archive)))
        }
        From::Stream(stream) => {
            let path = Path::new("standard input");
            tar::read_stream(&mut archive, stream, path, spools)?;
            (path, Store::Archive(Box::new(archive)))
        }
    };
    let mut image = Image { store, path, platform };
    for layer in image.layers(tag)? {
        merge.next_layer(true)?;
        image.apply(merge, &layer, spools)?;
    }
    Ok(())
}

struct Image<'r> {
    store: Store<'r>,
    path: &'r Path,
    platform: &'r Platform,
}

impl Image<'_> {
    fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::Image { image: self.path.to_owned(), problem: problem.into() }
    }

    /// A file of the image, `None` when it is not there.
    fn find(&mut self, name: &str) -> Result<Option<(Arc<File>, Range<u64>)>> {
        if !Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_))) {
            return Err(self.wrong(format!("{name} leads out of the image")));
        }
        match &mut self.store {
            Store::Folder(folder) => {
                let path = folder.join(name);
                match File::open(&path) {
                    Ok(file) => {
                        let end = file.metadata().map_err(|source| Error::read(&path, source))?.len();
                        Ok(Some((Arc::new(file), 0..end)))
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(Error::read(path, source)),
                }
            }
            Store::Archive(archive) => {
                let mut name = name.as_bytes().to_vec();
                // Older archives name equal layers by symbolic links.
                for _ in 0..8 {
                    let Some(node) = archive.lookup(&name)? else { return Ok(None) };
                    let inode = *archive.tree.at(node);
                    match inode.body {
                        Body::File(Content::Stored { file, at }) if inode.map.is_none() => {
                            let file = archive.tree.files[usize::from(file)].clone();
                            return Ok(Some((file, at..at + inode.size)));
                        }
                        Body::Symlink(..) => {
                            let mut parts = archive.tree.path(archive.tree.parent(node));
                            parts.push(b'/');
                            parts.extend_from_slice(archive.tree.target(&inode));
                            name = without_dots(&parts);
                        }
                        _ => return Ok(None),
                    }
                }
                Ok(None)
            }
        }
    }

    fn json<T>(
        &mut self,
        name: &str,
        digest: Option<&Digest>,
        parse: fn(&[u8]) -> io::Result<T>,
    ) -> Result<T> {
        let (file, range) = self.find(name)?.ok_or_else(|| self.wrong(format!("{name} is missing")))?;
        if range.end - range.start > MAX_JSON {
            return Err(self.wrong(format!("{name} is larger than {MAX_JSON} bytes")));
        }
        let mut bytes = Vec::new();
        let mut reader = FileRange { file, at: range.start, end: range.end };
        reader.read_to_end(&mut bytes).map_err(|source| Error::read(self.path, source))?;
        if let Some(digest) = digest {
            check(self.path, name, digest, &mut bytes.as_slice())?;
        }
        parse(&bytes).map_err(|error| self.wrong(format!("{name}: {error}")))
    }

    /// The layers of the image that is wanted, lowest first.
    fn layers(&mut self, tag: Option<&str>) -> Result<Vec<LayerBlob>> {
        if self.find("index.json")?.is_some() {
            let index = self.json("index.json", None, parse_index)?;
            return self.layers_of_index(&index, tag, 0);
        }
        if self.find("manifest.json")?.is_some() {
            return self.layers_saved(tag);
        }
        Err(self.wrong("is no OCI image layout and no docker save archive (no index.json, no manifest.json)"))
    }

    fn layers_saved(&mut self, tag: Option<&str>) -> Result<Vec<LayerBlob>> {
        let images: Vec<Saved> =
            self.json("manifest.json", None, |bytes| Ok(serde_json::from_slice(bytes)?))?;
        let tags = |image: &Saved| image.repo_tags.clone().unwrap_or_default();
        let all: BTreeSet<String> = images.iter().flat_map(tags).collect();
        let mut fitting: Vec<Saved> = images
            .into_iter()
            .filter(|image| tag.is_none_or(|tag| tags(image).iter().any(|name| names(name, tag))))
            .collect();
        match (fitting.pop(), fitting.is_empty()) {
            (Some(image), true) => Ok(image
                .layers
                .into_iter()
                .map(|name| LayerBlob { digest: digest_in(&name), name, size: None })
                .collect()),
            _ => Err(self.which(tag, &all)),
        }
    }

    fn layers_of_index(
        &mut self,
        index: &ImageIndex,
        tag: Option<&str>,
        depth: u32,
    ) -> Result<Vec<LayerBlob>> {
        let mut all = BTreeSet::new();
        let mut fitting: Vec<&Descriptor> = Vec::new();
        for descriptor in index.manifests() {
            let annotation = |key: &str| descriptor.annotations().as_ref().and_then(|map| map.get(key));
            let own: Vec<&String> =
                [annotation(IMAGE_NAME), annotation(REF_NAME)].into_iter().flatten().collect();
            all.extend(own.iter().map(|name| (*name).clone()));
            let named = tag.is_none_or(|tag| own.iter().any(|name| names(name, tag)));
            let same = fitting.iter().any(|other| other.digest() == descriptor.digest());
            if named && self.platform.fits(descriptor) && !same {
                fitting.push(descriptor);
            }
        }
        let [one] = fitting.as_slice() else { return Err(self.which(tag, &all)) };
        let name = blob(one.digest());
        match one.media_type() {
            MediaType::ImageIndex => {}
            MediaType::Other(kind) if kind == "application/vnd.docker.distribution.manifest.list.v2+json" => {
            }
            _ => {
                let manifest = self.json(&name, Some(one.digest()), parse_manifest)?;
                let layers = manifest.layers().iter();
                return layers.map(|layer| self.layer(layer)).collect();
            }
        }
        if depth == MAX_DEPTH {
            return Err(self.wrong("has indexes in indexes in indexes"));
        }
        let inner = self.json(&name, Some(one.digest()), parse_index)?;
        self.layers_of_index(&inner, None, depth + 1)
    }

    fn layer(&self, layer: &Descriptor) -> Result<LayerBlob> {
        let kind = layer.media_type().to_string();
        if !kind.contains("tar") {
            return Err(self.wrong(format!("a layer of type {kind} is no archive")));
        }
        let name = blob(layer.digest());
        Ok(LayerBlob { name, digest: Some(layer.digest().clone()), size: Some(layer.size()) })
    }

    /// Why not exactly one image was found.
    fn which(&self, tag: Option<&str>, all: &BTreeSet<String>) -> Error {
        let listed = all.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
        let Platform { os, architecture, variant } = self.platform;
        let variant = variant.as_deref().map(|variant| format!("/{variant}")).unwrap_or_default();
        let wanted = tag.map_or_else(String::new, |tag| format!(" named {tag}"));
        self.wrong(format!(
            "there is not exactly one image{wanted} for {os}/{architecture}{variant}; \
             name it with oci:PATH:TAG or --platform (there are: {listed})"
        ))
    }

    fn apply(&mut self, merge: &mut Merge<'_>, layer: &LayerBlob, spools: &Path) -> Result<()> {
        let found = self.find(&layer.name)?;
        let (file, range) = found.ok_or_else(|| self.wrong(format!("{} is missing", layer.name)))?;
        if layer.size.is_some_and(|size| size != range.end - range.start) {
            return Err(self.wrong(format!(
                "{} is damaged: its size is {}",
                layer.name,
                range.end - range.start
            )));
        }
        let name: PathBuf = self.path.join(&layer.name);
        let image = self.path;
        std::thread::scope(|scope| {
            let digest = layer.digest.as_ref().map(|digest| {
                let mut bytes = FileRange { file: file.clone(), at: range.start, end: range.end };
                scope.spawn(move || check(image, &layer.name, digest, &mut bytes))
            });
            let read = tar::read_file(merge, file, range, &name, spools);
            // A damaged blob is the better explanation for an archive that cannot be read.
            digest.map_or(Ok(()), |check| check.join().unwrap_or(Ok(())))?;
            read
        })
    }
}

/// Checks a blob against its digest.
fn check(image: &Path, name: &str, digest: &Digest, bytes: &mut dyn Read) -> Result<()> {
    let wrong = |problem: String| Error::Image { image: image.to_owned(), problem };
    let found = match digest.algorithm() {
        DigestAlgorithm::Sha256 => digest_of(Sha256::new(), bytes),
        DigestAlgorithm::Sha512 => digest_of(Sha512::new(), bytes),
        other => return Err(wrong(format!("{name} has a digest of unknown kind {other}"))),
    };
    let found = found.map_err(|source| Error::read(image, source))?;
    if found == digest.digest() {
        Ok(())
    } else {
        Err(wrong(format!("{name} is damaged: its digest is {found}")))
    }
}

fn digest_of<D: sha2::Digest>(mut digest: D, bytes: &mut dyn Read) -> io::Result<String> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match bytes.read(&mut buffer)? {
            0 => break,
            len => digest.update(&buffer[..len]),
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn parse_index(bytes: &[u8]) -> io::Result<ImageIndex> {
    ImageIndex::from_reader(bytes).map_err(io::Error::other)
}

fn parse_manifest(bytes: &[u8]) -> io::Result<ImageManifest> {
    ImageManifest::from_reader(bytes).map_err(io::Error::other)
}

fn blob(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}

/// The digest that a blob's path is.
fn digest_in(name: &str) -> Option<Digest> {
    let (algorithm, digest) = name.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{digest}").parse().ok()
}

/// Whether an image's name is the one asked for: all of it, or its tag.
fn names(name: &str, wanted: &str) -> bool {
    let rest = name.strip_suffix(wanted);
    rest.is_some_and(|rest| {
        rest.is_empty() || rest.ends_with(':') || (wanted.contains(':') && rest.ends_with('/'))
    })
}

/// A path with its `..` taken out.
fn without_dots(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_by_its_name_or_its_tag() {
        let name = "docker.io/library/alpine:3.20";
        for wanted in [name, "3.20", "alpine:3.20", "library/alpine:3.20"] {
            assert!(names(name, wanted), "{wanted}");
        }
        for wanted in ["20", "pine:3.20", "alpine", "3.2"] {
            assert!(!names(name, wanted), "{wanted}");
        }
    }

    #[test]
    fn platforms_are_read() {
        let platform: Platform = "linux/arm/v7".parse().unwrap();
        assert_eq!((platform.architecture.as_str(), platform.variant.as_deref()), ("arm", Some("v7")));
        assert!("linux".parse::<Platform>().is_err());
    }
}

//! Trees over trees: whiteouts, OCI image layouts and docker save archives.

use std::fs;
use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::support::*;

/// The image of one hand-made archive.
fn image_of_archive(dir: &Path, members: Vec<Member>) -> Vec<u8> {
    let file = written(dir, "expected.tar", &archive(members));
    image_of(dir, &[file])
}

fn file(path: &str, data: &str) -> Member {
    Member::file(path, data.as_bytes())
}

/// What is seen, the layers from below, and what is left of them.
type Stack = (&'static str, Vec<Vec<Member>>, Vec<Member>);

fn stacks() -> Vec<Stack> {
    let dir = Member::dir;
    let root = || dir("./");
    vec![
        (
            "a whiteout takes a file out",
            vec![
                vec![root(), dir("a/"), file("a/x", "x"), file("a/y", "y")],
                vec![root(), dir("a/"), file("a/.wh.x", "")],
            ],
            vec![root(), dir("a/"), file("a/y", "y")],
        ),
        (
            "a whiteout takes a tree out",
            vec![
                vec![root(), dir("a/"), dir("a/b/"), file("a/b/c", "c"), file("d", "d")],
                vec![root(), file(".wh.a", "")],
            ],
            vec![root(), file("d", "d")],
        ),
        (
            "an opaque directory hides what was there, whatever the order in the layer",
            vec![
                vec![root(), dir("a/"), file("a/x", "old"), dir("a/s/"), file("a/s/t", "t")],
                vec![root(), dir("a/"), file("a/new", "n"), file("a/.wh..wh..opq", ""), file("a/x", "new")],
            ],
            vec![root(), dir("a/"), file("a/new", "n"), file("a/x", "new")],
        ),
        (
            "a whiteout is for lower layers only",
            vec![vec![root(), file("x", "old")], vec![root(), file("x", "new"), file(".wh.x", "")]],
            vec![root(), file("x", "new")],
        ),
        (
            "what AUFS keeps for itself is no file",
            vec![vec![root(), dir(".wh..wh.plnk/"), file(".wh..wh.aufs", ""), file("x", "x")], vec![root()]],
            vec![root(), file("x", "x")],
        ),
        (
            "a file becomes a directory, and a directory a file",
            vec![
                vec![root(), file("f", "f"), dir("d/"), file("d/x", "x")],
                vec![root(), dir("f/"), file("f/y", "y"), file("d", "now a file")],
            ],
            vec![root(), dir("f/"), file("f/y", "y"), file("d", "now a file")],
        ),
        (
            "a path leads through a symbolic link of a lower layer",
            vec![
                vec![root(), dir("usr/"), dir("usr/lib/"), Member::link(b'2', "lib", "usr/lib")],
                vec![root(), file("lib/module", "m")],
                vec![root(), Member::link(b'2', "etc", "/usr/../../usr/lib"), file("etc/conf", "c")],
            ],
            vec![
                root(),
                dir("usr/"),
                dir("usr/lib/"),
                Member::link(b'2', "lib", "usr/lib"),
                file("usr/lib/module", "m"),
                Member::link(b'2', "etc", "/usr/../../usr/lib"),
                file("usr/lib/conf", "c"),
            ],
        ),
        (
            "hard links lead into lower layers",
            vec![vec![root(), file("a", "a")], vec![root(), Member::link(b'1', "b", "a")]],
            vec![root(), file("a", "a"), Member::link(b'1', "b", "/a")],
        ),
        (
            "a change of one name leaves the other",
            vec![vec![root(), file("a", "a"), Member::link(b'1', "b", "a")], vec![root(), file("a", "new")]],
            vec![root(), file("a", "new"), file("b", "a")],
        ),
    ]
}

#[test]
fn layers_are_stacked() {
    for (what, layers, expected) in stacks() {
        let dir = scratch();
        let files: Vec<_> = layers
            .into_iter()
            .enumerate()
            .map(|(n, members)| written(dir.path(), &format!("layer{n}.tar"), &archive(members)))
            .collect();
        let expected = image_of_archive(dir.path(), expected);
        assert!(image_of(dir.path(), &files) == expected, "{what}");
    }
}

#[test]
fn a_single_tree_keeps_names_that_look_like_whiteouts() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join(".wh.x"), b"kept").unwrap();
    let image = dir.path().join("image");
    build(&["-q", "-d", tree.to_str().unwrap(), image.to_str().unwrap()]);
    assert_eq!(read_from(&image, "/.wh.x"), b"kept");
}

#[test]
fn folders_are_stacked_too() {
    let dir = scratch();
    let [low, high, both] = ["low", "high", "both"].map(|name| dir.path().join(name));
    for (root, files) in [
        (&low, &[("a/x", "x"), ("a/y", "y"), ("b/z", "z")][..]),
        (&high, &[("a/.wh.x", ""), ("a/y", "new"), ("c", "c")]),
        (&both, &[("a/y", "new"), ("b/z", "z"), ("c", "c")]),
    ] {
        for (name, data) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, data).unwrap();
        }
        let everything = run(tool("find").arg(root));
        everything.lines().for_each(|path| set_time(Path::new(path), 1_500_000_000, 0));
    }
    assert!(image_of(dir.path(), &[&low, &high]) == image_of(dir.path(), &[&both]));
}

/// An OCI layout or archive being made.
struct Oci {
    files: Vec<(String, Vec<u8>)>,
}

impl Oci {
    fn blob(&mut self, bytes: &[u8]) -> (String, usize) {
        let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        self.files.push((format!("blobs/sha256/{digest}"), bytes.to_vec()));
        (format!("sha256:{digest}"), bytes.len())
    }

    fn manifest(&mut self, layers: &[(Vec<u8>, &str)]) -> (String, usize) {
        let config = self.blob(b"{}");
        let layers: Vec<_> = layers
            .iter()
            .map(|(bytes, kind)| {
                let (digest, size) = self.blob(bytes);
                json!({ "mediaType": kind, "digest": digest, "size": size })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.0, "size": config.1 },
            "layers": layers,
        });
        self.blob(manifest.to_string().as_bytes())
    }

    fn write(&self, folder: &Path) {
        for (name, bytes) in &self.files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    fn archive(&self) -> Vec<u8> {
        archive(self.files.iter().map(|(name, bytes)| Member::file(name, bytes)).collect())
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image with two tags, one of them for two platforms; the image of its wanted tree.
fn example(dir: &Path) -> (Oci, Vec<u8>) {
    let lower =
        archive(vec![Member::dir("./"), Member::dir("bin/"), file("bin/sh", "sh"), file("gone", "x")]);
    let upper = archive(vec![Member::dir("./"), file(".wh.gone", ""), file("etc/name", "wanted")]);
    let other = archive(vec![file("other", "other")]);
    let mut oci = Oci { files: Vec::new() };
    let wanted = oci.manifest(&[
        (gzip(&lower), "application/vnd.oci.image.layer.v1.tar+gzip"),
        (
            zstd::stream::encode_all(upper.as_slice(), 1).unwrap(),
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
    ]);
    let foreign = oci.manifest(&[(other.clone(), TAR)]);
    let descriptor = |(digest, size): &(String, usize), architecture: &str| {
        json!({ "mediaType": MANIFEST, "digest": digest, "size": size,
                "platform": { "os": "linux", "architecture": architecture } })
    };
    let inner = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor(&wanted, "amd64"), descriptor(&foreign, "riscv64"),
                      descriptor(&foreign, "unknown")],
    });
    let inner = oci.blob(inner.to_string().as_bytes());
    let plain = oci.manifest(&[(other, TAR)]);
    let named = |name: &str| json!({ "org.opencontainers.image.ref.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [
        { "mediaType": "application/vnd.oci.image.index.v1+json", "digest": inner.0, "size": inner.1,
          "annotations": named("wanted:1.0") },
        { "mediaType": MANIFEST, "digest": plain.0, "size": plain.1, "annotations": named("plain") },
    ] });
    oci.files.push(("index.json".into(), index.to_string().into_bytes()));
    oci.files.push(("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    let tree = vec![Member::dir("./"), Member::dir("bin/"), file("bin/sh", "sh"), file("etc/name", "wanted")];
    (oci, image_of_archive(dir, tree))
}

#[test]
fn an_oci_layout_is_read_by_tag_and_platform() {
    let dir = scratch();
    let (oci, expected) = example(dir.path());
    let layout = dir.path().join("layout");
    oci.write(&layout);
    let packed = written(dir.path(), "image.tar", &oci.archive());
    let packed_gz = written(dir.path(), "image.tar.gz", &gzip(&oci.archive()));
    let image = dir.path().join("image");
    for path in [&layout, &packed, &packed_gz] {
        for tag in ["1.0", "wanted:1.0"] {
            let source = format!("oci:{}:{tag}", path.display());
            build(&["-q", "-F", "--platform", "linux/amd64", "-d", &source, image.to_str().unwrap()]);
            assert!(fs::read(&image).unwrap() == expected, "{source}");
        }
    }
    for (tag, platform, says) in [
        ("", "linux/amd64", "wanted:1.0"),
        (":nothing", "linux/amd64", "named nothing"),
        (":1.0", "linux/s390x", "linux/s390x"),
    ] {
        let source = format!("oci:{}{tag}", layout.display());
        let (done, said) = mkfs(&["-F", "--platform", platform, "-d", &source, image.to_str().unwrap()]);
        assert!(!done && said.contains(says) && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn a_damaged_blob_is_found() {
    let dir = scratch();
    let (oci, _) = example(dir.path());
    let image = dir.path().join("image");
    for (at, (name, bytes)) in oci.files.iter().enumerate() {
        if !name.starts_with("blobs") || bytes == b"{}" {
            continue;
        }
        let mut damaged = Oci { files: oci.files.clone() };
        let middle = bytes.len() / 2;
        damaged.files[at].1[middle] ^= 1;
        let layout = dir.path().join(format!("layout{at}"));
        damaged.write(&layout);
        let tag = if at == oci.files.len() { "plain" } else { "1.0" };
        let source = format!("oci:{}:{tag}", layout.display());
        let (done, said) = mkfs(&["--platform", "linux/amd64", "-d", &source, image.to_str().unwrap()]);
        let concerns_us = !done;
        assert!(!concerns_us || (said.contains("damaged") && said.lines().count() == 1), "{name}: {said}");
        assert!(concerns_us || !image.exists() || fs::remove_file(&image).is_ok());
    }
    // The blobs of the wanted image, one by one.
    let layout = dir.path().join("missing");
    oci.write(&layout);
    let source = format!("oci:{}:1.0", layout.display());
    let args = ["--platform", "linux/amd64", "-d", &source, image.to_str().unwrap()];
    let blobs: Vec<_> =
        fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|e| e.unwrap().path()).collect();
    let mut needed = 0;
    for blob in blobs {
        let bytes = fs::read(&blob).unwrap();
        fs::write(&blob, [&bytes[..bytes.len() - 1], &[bytes[bytes.len() - 1] ^ 0x20]].concat()).unwrap();
        let (done, said) = mkfs(&args);
        fs::write(&blob, &bytes).unwrap();
        needed += u32::from(!done);
        assert!(done || said.contains("damaged"), "{said}");
        let _ = fs::remove_file(&image);
    }
    assert_eq!(needed, 4, "the inner index, the manifest and two layers");
}

#[test]
fn what_docker_saves_is_read() {
    let dir = scratch();
    let lower = archive(vec![Member::dir("./"), file("a", "a"), file("gone", "x")]);
    let upper = archive(vec![Member::dir("./"), file(".wh.gone", ""), file("b", "b")]);
    let manifest = json!([
        { "Config": "c.json", "RepoTags": ["app:latest"], "Layers": ["1/layer.tar", "2/layer.tar", "3/layer.tar"] },
        { "Config": "d.json", "RepoTags": null, "Layers": [] },
    ]);
    let saved = archive(vec![
        Member::file("1/layer.tar", &lower),
        Member::file("2/layer.tar", &upper),
        Member::link(b'2', "3/layer.tar", "../2/layer.tar"),
        Member::file("manifest.json", manifest.to_string().as_bytes()),
    ]);
    let saved = written(dir.path(), "saved.tar", &saved);
    let expected = image_of_archive(dir.path(), vec![Member::dir("./"), file("a", "a"), file("b", "b")]);
    for tag in ["latest", "app:latest"] {
        assert!(image_of(dir.path(), &[format!("oci:{}:{tag}", saved.display())]) == expected);
    }
    let image = dir.path().join("image");
    for source in ["oci:-:latest", "oci:-:app:latest"] {
        let args = ["-q", "-F", "-d", source].map(std::ffi::OsStr::new);
        let (done, said) = mkfs_fed(&[&args[..], &[image.as_os_str()]].concat(), &fs::read(&saved).unwrap());
        assert!(done && fs::read(&image).unwrap() == expected, "{said}");
    }
    fs::remove_file(&image).unwrap();
    let source = format!("oci:{}", saved.display());
    let (done, said) = mkfs(&["-d", &source, image.to_str().unwrap()]);
    assert!(!done && said.contains("app:latest"), "{said}");
}

#[test]
fn an_image_cannot_name_files_outside_of_it() {
    let dir = scratch();
    written(dir.path(), "secret.tar", &archive(vec![file("secret", "s")]));
    for name in ["../secret.tar", "/etc/passwd", "a/../../secret.tar"] {
        let layout = dir.path().join("layout");
        fs::create_dir_all(&layout).unwrap();
        let manifest = json!([{ "Config": "", "RepoTags": ["x"], "Layers": [name] }]);
        fs::write(layout.join("manifest.json"), manifest.to_string()).unwrap();
        let image = dir.path().join("image");
        let (done, said) = mkfs(&["-d", &format!("oci:{}", layout.display()), image.to_str().unwrap()]);
        assert!(!done && said.contains("leads out of the image"), "{said}");
    }
}

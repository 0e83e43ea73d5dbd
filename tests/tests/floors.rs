//! The floors of ARCHITECTURE.md, checked: a crate imports only what lies below it, a module of fs-core never
//! looks up, and unsafe code stays where it is allowed. Reads manifests and sources, and knows nothing else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;

/// One crate's place in the house.
struct Rule {
    name: &'static str,
    /// Folder below the workspace's root.
    dir: &'static str,
    /// Paths of this workspace's crates that it may import: `jbd2` allows all of it, `jbd2::recovery` a
    /// module.
    may: &'static [&'static str],
    /// The same for its tests, besides.
    tests_may: &'static [&'static str],
    /// Paths of the standard library that would break its promise (no IO, no clock, no threads).
    never: &'static [&'static str],
    /// Whether unsafe code may appear.
    may_be_unsafe: bool,
}

const NO_IO: &[&str] = &["std::fs", "std::io", "std::net", "std::process", "std::thread", "std::time"];
const NO_FILES: &[&str] =
    &["std::fs", "std::net", "std::process::Command", "std::thread", "std::time::SystemTime"];

/// The one module of fs-core that starts threads, and does so only if the `Env` says so.
const MAY_HAVE_THREADS: &str = "threads";

#[rustfmt::skip]
const RULES: &[Rule] = &[
    Rule { name: "ext4-format", dir: "fs-core/ext4-format", may: &[], tests_may: &[], never: NO_IO, may_be_unsafe: false },
    Rule { name: "blockdev", dir: "fs-core/blockdev", may: &[], tests_may: &[], never: &[], may_be_unsafe: true },
    Rule { name: "jbd2", dir: "fs-core/jbd2", may: &["ext4_format", "blockdev"], tests_may: &[], never: NO_FILES, may_be_unsafe: false },
    Rule { name: "fs-core", dir: "fs-core", may: &["ext4_format", "blockdev", "jbd2"], tests_may: &["fs_core", "mkfs"], never: NO_FILES, may_be_unsafe: false },
    Rule { name: "mkfs", dir: "mkfs", may: &["ext4_format", "blockdev"], tests_may: &[], never: &[], may_be_unsafe: false },
    Rule { name: "fsck", dir: "fsck", may: &["ext4_format", "blockdev", "jbd2::recovery"], tests_may: &[], never: &[], may_be_unsafe: false },
    Rule { name: "rext4", dir: "rext4", may: &["ext4_format", "blockdev", "fs_core", "mkfs", "fsck"], tests_may: &[], never: &[], may_be_unsafe: false },
    Rule { name: "fuse-uring", dir: "fuse-frontend/fuse-uring", may: &[], tests_may: &[], never: &[], may_be_unsafe: true },
    Rule { name: "fuse-frontend", dir: "fuse-frontend", may: &["fs_core", "blockdev", "fuse_uring"], tests_may: &[], never: &[], may_be_unsafe: false },
    Rule { name: "tests", dir: "tests", may: &["ext4_format", "blockdev", "jbd2", "fs_core", "mkfs", "fsck", "fuse_frontend"], tests_may: &[],
           never: &[], may_be_unsafe: false },
];

/// Floors inside fs-core. A module that is not named is the API (`lib`) and may use them all.
const FS_CORE_FLOORS: &[(u8, &[&str])] = &[
    (3, &["locks", "error", "volume", "tx"]),
    (4, &["alloc", "extent", "inode", "data", "dir", "xattr"]),
    (5, &["node", "ops"]),
];

fn fs_core_floor(module: &str) -> Option<u8> {
    FS_CORE_FLOORS.iter().find(|(_, names)| names.contains(&module)).map(|(floor, _)| *floor)
}

fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Every path a file mentions, `use` trees flattened, and whether the token `unsafe` occurs.
#[derive(Default)]
struct Mentions {
    paths: Vec<String>,
    has_unsafe: bool,
    /// Names that `use` items bring into scope, and which hide a crate of the same name.
    bound: Vec<String>,
}

impl Mentions {
    fn of(source: &str) -> syn::Result<Mentions> {
        let mut mentions = Mentions::default();
        mentions.visit_file(&syn::parse_file(source)?);
        mentions.scan(source.parse()?);
        let bound = std::mem::take(&mut mentions.bound);
        mentions
            .paths
            .retain(|path| !path.split_once("::").is_some_and(|(first, _)| bound.iter().any(|b| b == first)));
        Ok(mentions)
    }

    /// Tokens see what a syntax tree hides: the insides of macros.
    fn scan(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.scan(group.stream()),
                TokenTree::Ident(ident) => self.has_unsafe |= ident == "unsafe",
                _ => {}
            }
        }
    }

    fn flatten(&mut self, tree: &syn::UseTree, prefix: &str) {
        let join = |name: &syn::Ident| {
            if prefix.is_empty() { name.to_string() } else { format!("{prefix}::{name}") }
        };
        match tree {
            syn::UseTree::Path(path) => self.flatten(&path.tree, &join(&path.ident)),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.flatten(item, prefix)),
            syn::UseTree::Name(name) => {
                if !prefix.is_empty() {
                    self.bound.push(name.ident.to_string());
                }
                self.paths.push(join(&name.ident));
            }
            syn::UseTree::Rename(rename) => self.paths.push(join(&rename.ident)),
            _ => self.paths.push(prefix.to_owned()),
        }
    }
}

impl Visit<'_> for Mentions {
    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        self.flatten(&item.tree, "");
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.paths.push(segments.join("::"));
        syn::visit::visit_path(self, path);
    }
}

/// What one source file does wrong. `module` is its top-level module in its crate, empty for lib.rs and
/// main.rs.
fn judge_source(rule: &Rule, module: &str, source: &str) -> Vec<String> {
    let mentions = match Mentions::of(source) {
        Ok(mentions) => mentions,
        Err(error) => return vec![format!("does not parse: {error}")],
    };
    let mut faults = Vec::new();
    if mentions.has_unsafe && !rule.may_be_unsafe {
        faults.push("has unsafe code".to_owned());
    }
    for path in &mentions.paths {
        let first = path.split("::").next().unwrap_or_default();
        let ours = RULES.iter().any(|other| other.name.replace('-', "_") == first);
        let own = rule.name.replace('-', "_") == first;
        let mut may = rule.may.iter().chain(rule.tests_may);
        if ours && !own && path.contains("::") && !may.any(|prefix| is_below(path, prefix)) {
            faults.push(format!("imports {path}"));
        }
        let threads = rule.name == "fs-core" && module == MAY_HAVE_THREADS && is_below(path, "std::thread");
        if rule.never.iter().any(|prefix| is_below(path, prefix)) && !threads {
            faults.push(format!("imports {path}"));
        }
        if rule.name == "fs-core"
            && let Some(own_floor) = fs_core_floor(module)
            && let Some(target) = path.strip_prefix("crate::").and_then(|rest| rest.split("::").next())
            && fs_core_floor(target).is_some_and(|floor| floor > own_floor)
        {
            faults.push(format!("floor {own_floor} imports {path}"));
        }
    }
    faults.sort();
    faults.dedup();
    faults
}

/// What one manifest does wrong: dependencies upward, or the workspace's lints not taken over.
fn judge_manifest(rule: &Rule, manifest: &str) -> Vec<String> {
    let table: toml::Table = match manifest.parse() {
        Ok(table) => table,
        Err(error) => return vec![format!("does not parse: {error}")],
    };
    let mut faults = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for name in
            table.get(section).and_then(|value| value.as_table()).into_iter().flat_map(|deps| deps.keys())
        {
            let ours = RULES.iter().any(|other| other.name == name);
            let crate_name = name.replace('-', "_");
            let for_tests = if section == "dev-dependencies" { rule.tests_may } else { &[] };
            if ours && !rule.may.iter().chain(for_tests).any(|path| is_below(path, &crate_name)) {
                faults.push(format!("[{section}] names {name}"));
            }
            if name == "fuser" && rule.name != "fuse-frontend" {
                faults.push(format!("[{section}] names {name}: FUSE lives in fuse-frontend"));
            }
        }
    }
    let inherits =
        table.get("lints").and_then(|lints| lints.get("workspace")).and_then(|value| value.as_bool());
    if inherits != Some(true) && !rule.may_be_unsafe {
        faults.push("does not inherit the workspace's lints".to_owned());
    }
    faults
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_owned()
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.map(|entry| entry.expect("readable folder").path()) {
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The top-level module that a file under `src/` belongs to.
fn module_of(src: &Path, file: &Path) -> String {
    let first = file.strip_prefix(src).ok().and_then(|inner| inner.components().next());
    let name = first.map(|part| part.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
    match name.trim_end_matches(".rs") {
        "lib" | "main" => String::new(),
        module => module.to_owned(),
    }
}

#[test]
fn imports_only_go_down() {
    let mut faults: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut seen = 0;
    for rule in RULES {
        let dir = root().join(rule.dir);
        let manifest = dir.join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest).expect("every crate of the house has a manifest");
        faults.insert(manifest.display().to_string(), judge_manifest(rule, &text));
        let mut files = Vec::new();
        for folder in ["src", "tests", "benches", "examples"] {
            rust_files(&dir.join(folder), &mut files);
        }
        for file in &files {
            // The promises about the standard library bind the crate, not its tests.
            let is_test = !file.starts_with(dir.join("src"));
            let rule = match is_test {
                true => Rule { never: &[], ..*rule },
                false => Rule { tests_may: &[], ..*rule },
            };
            let source = std::fs::read_to_string(file).expect("readable source");
            let found = judge_source(&rule, &module_of(&dir.join("src"), file), &source);
            faults.insert(file.display().to_string(), found);
        }
        seen += files.len();
    }
    assert!(seen >= RULES.len(), "the sources were not found");
    faults.retain(|_, found| !found.is_empty());
    assert!(faults.is_empty(), "the house has a wall broken:\n{faults:#?}");
}

#[test]
fn every_crate_of_the_workspace_has_its_rule() {
    let text = std::fs::read_to_string(root().join("Cargo.toml")).expect("workspace manifest");
    let table: toml::Table = text.parse().expect("workspace manifest parses");
    let mut members: Vec<&str> = table["workspace"]["members"]
        .as_array()
        .expect("members")
        .iter()
        .filter_map(|m| m.as_str())
        .collect();
    let mut ruled: Vec<&str> = RULES.iter().map(|rule| rule.dir).collect();
    members.sort_unstable();
    ruled.sort_unstable();
    assert_eq!(members, ruled);
    assert_eq!(table["workspace"]["lints"]["rust"]["unsafe_code"].as_str(), Some("forbid"));
}

mod the_rule_itself {
    use super::*;

    fn rule(name: &str) -> &'static Rule {
        RULES.iter().find(|rule| rule.name == name).expect("a known crate")
    }

    #[test]
    fn sees_an_import_that_goes_up() {
        assert_eq!(
            judge_source(rule("jbd2"), "", "use fs_core::volume::Volume;"),
            ["imports fs_core::volume::Volume"]
        );
        assert_eq!(
            judge_source(rule("mkfs"), "", "fn f() { jbd2::recovery::recover() }"),
            ["imports jbd2::recovery::recover"]
        );
        assert!(judge_source(rule("jbd2"), "", "use blockdev::{BlockDevice, Error};").is_empty());
    }

    #[test]
    fn sees_more_of_a_crate_than_its_allowed_module() {
        let source = "use jbd2::{recovery::scan, handle::Handle};";
        assert_eq!(judge_source(rule("fsck"), "", source), ["imports jbd2::handle::Handle"]);
    }

    #[test]
    fn sees_a_module_with_the_name_of_a_crate() {
        let source = "use ext4_format::{jbd2, num::Tid}; fn f() { jbd2::SuperBlock::parse(); }";
        assert!(judge_source(rule("mkfs"), "", source).is_empty());
    }

    #[test]
    fn sees_a_floor_of_fs_core_that_looks_up() {
        let source = "use crate::{locks::RankedMutex, ops::unlink};";
        assert_eq!(judge_source(rule("fs-core"), "dir", source), ["floor 4 imports crate::ops::unlink"]);
        assert!(judge_source(rule("fs-core"), "ops", source).is_empty());
    }

    #[test]
    fn sees_a_clock_below_the_clock() {
        assert_eq!(
            judge_source(rule("ext4-format"), "", "use std::time::Instant;"),
            ["imports std::time::Instant"]
        );
    }

    #[test]
    fn sees_unsafe_code_even_inside_a_macro() {
        let source = "macro_rules! m { () => { unsafe { core::hint::unreachable_unchecked() } } }";
        assert_eq!(judge_source(rule("fs-core"), "", source), ["has unsafe code"]);
        assert!(
            judge_source(rule("fs-core"), "", "// unsafe in words\nconst A: &str = \"unsafe\";").is_empty()
        );
        assert!(judge_source(rule("blockdev"), "", source).is_empty());
    }

    #[test]
    fn sees_a_manifest_that_goes_up() {
        let manifest = "[dependencies]\nfs-core.workspace = true\nfuser = \"1\"\n";
        let faults = judge_manifest(rule("mkfs"), manifest);
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(
            judge_manifest(rule("fsck"), "[dependencies]\njbd2.workspace = true\n[lints]\nworkspace = true")
                .is_empty()
        );
    }
}

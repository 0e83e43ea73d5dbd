//! The README's program, outside the workspace: it needs nothing but this crate.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::{as_user, assert_clean, folder, kernel_tree, run};

/// The program in the README's section on the library.
fn program() -> String {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let section = readme.split("\n## As a library\n").nth(1).expect("the section on the library");
    let code = section.split("```rust").nth(1).expect("a program").split_once('\n').unwrap().1;
    code.split("```").next().unwrap().to_owned()
}

#[test]
fn the_program_of_the_readme_runs_outside_the_workspace() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let package = tempfile::tempdir().unwrap();
    let code = program();
    assert!(code.lines().count() <= 20 && code.lines().all(|line| !line.contains("#[")), "{code}");
    fs::create_dir(package.path().join("src")).unwrap();
    fs::write(package.path().join("src/main.rs"), &code).unwrap();
    let mut manifest = format!(
        "[package]\nname = \"outsider\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
         [dependencies]\nrext4 = {{ path = {:?} }}\n\n[profile.dev.package.\"*\"]\nopt-level = 2\n",
        here.to_str().unwrap()
    );
    // As in the workspace, so that what has been compiled for it is used.
    for ours in ["ext4-format", "jbd2", "fs-core", "mkfs", "fsck", "rext4"] {
        manifest += &format!("\n[profile.dev.package.{ours}]\nopt-level = 0\n");
    }
    fs::write(package.path().join("Cargo.toml"), manifest).unwrap();
    // The versions that are there, so that nothing is fetched.
    fs::copy(here.join("../Cargo.lock"), package.path().join("Cargo.lock")).unwrap();
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(3).unwrap();
    run(Command::new(env!("CARGO"))
        .args(["build", "--offline", "--quiet", "--target-dir"])
        .arg(target)
        .current_dir(package.path()));

    let folder = folder();
    run(&mut as_user(&target.join("debug/outsider"), folder.path()));
    let image = folder.path().join("disk.img");
    assert_clean(&image);
    if let Some(tree) = kernel_tree(&image) {
        assert_eq!(tree[Path::new("logs/today/first")].content, b"hello");
    }
}

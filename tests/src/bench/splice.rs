//! Answering a READ by splice(2) or by copying: the same reads of a cold file through the page cache, with
//! the dev door's `splice=` and without, and with the ring door, which always copies. Shows from which size
//! splicing wins.

use anyhow::Result;

use super::workloads::{MB, fio};
use super::{Bed, Figures, Setup, System, touch};
use crate::scale::{Need, can_run};

/// Bytes of each request, as fio spells them; read ahead is off, so they reach the server as they are.
const SIZES: [&str; 3] = ["4k", "64k", "1m"];

/// The ways, by their `-o` words.
const WAYS: [(&str, &str); 3] = [
    ("copy", "transport=dev,splice=never"),
    ("splice", "transport=dev,splice=4k"),
    ("ring", "transport=ring"),
];

/// The device under the file: the host's page cache, or past it.
const DEVICES: [(&str, &str); 2] = [("the host's page cache", "dio=never"), ("O_DIRECT", "dio=always")];

/// Measures, and gives the table as Markdown. A minute and a half with three rounds.
pub fn table(setup: &Setup) -> Result<String> {
    let folder = tempfile::Builder::new().prefix("rext4-bench-").tempdir_in(&setup.backing)?;
    let image = folder.path().join("backing");
    touch(&image, 1 << 30)?;
    let rings = can_run("the ring door", &[Need::Rings]);
    let ways: Vec<_> = WAYS.into_iter().filter(|(name, _)| rings || *name != "ring").collect();
    let mut text =
        format!("| device | request | {} |\n|---|---|", WAYS.map(|(name, _)| name).join(", MB/s | "));
    text += &"---|".repeat(ways.len());
    for (device, device_words) in DEVICES {
        let mut figures = vec![vec![Figures::default(); ways.len()]; SIZES.len()];
        for round in 0..setup.rounds {
            for (column, (name, words)) in ways.iter().enumerate() {
                eprintln!("round {} of {}: {device}, {name}", round + 1, setup.rounds);
                let options = [&setup.options[..], &[(*words).to_owned(), device_words.to_owned()]].concat();
                let mut bed = Bed::new(System::Rext4Image, &image, folder.path(), &options, None)?;
                let file = ["--filename=file", "--size=256m", "--ioengine=psync"];
                fio(bed.root(), &[&file[..], &["--bs=1m", "--rw=write", "--end_fsync=1"]].concat())?;
                for (size, row) in SIZES.iter().zip(&mut figures) {
                    bed.make_cold()?;
                    let block = format!("--bs={size}");
                    let read = [&block, "--rw=randread", "--fadvise_hint=random", "--runtime=2"];
                    let (bytes, _) = fio(bed.root(), &[&file[..], &read].concat())?;
                    row[column].values.push(bytes / MB);
                }
                bed.finish()?;
            }
        }
        for (size, row) in SIZES.iter().zip(&figures) {
            text += &format!("\n| {device} | {size} |");
            for figures in row {
                let (low, high) = figures.range();
                text += &format!(" {:.0} [{low:.0}, {high:.0}] |", figures.median().unwrap_or(0.0));
            }
        }
    }
    Ok(text + "\n")
}

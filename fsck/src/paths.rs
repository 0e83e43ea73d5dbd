//! Names for inode numbers: the paths of what a report mentions.

use std::collections::{HashMap, HashSet};

use ext4_format::Ino;
use ext4_format::dirent::{DirBlock, DirFormat};

use crate::context::{Context, lock};
use crate::pass1;
use crate::report::Report;

/// More inodes than this stay without a path: looking one up reads directories.
const MOST: usize = 1000;

/// Adds a path to every finding whose inode has one. Damage on the way only leaves a finding without.
pub fn name(ctx: &Context, report: &mut Report) {
    let wanted: HashSet<u32> =
        report.findings.iter().filter_map(|f| f.problem.ino).map(Ino::get).take(MOST).collect();
    if wanted.is_empty() {
        return;
    }
    let parents: HashMap<u32, u32> =
        lock(&ctx.found.dirs).iter().map(|(&ino, dir)| (ino, dir.parent)).collect();
    let mut named: HashMap<u32, (u32, String)> = HashMap::new();
    for &dir in parents.keys() {
        if named.len() == wanted.len() {
            break;
        }
        collect(ctx, dir, &wanted, &mut named);
    }
    // The directories on the way up need their names, too; pass 2 knows which directory names each.
    for mut at in named.values().map(|(dir, _)| *dir).collect::<HashSet<u32>>() {
        while at != Ino::ROOT.get() && !named.contains_key(&at) {
            let Some(&parent) = parents.get(&at).filter(|parent| **parent != 0) else { break };
            collect(ctx, parent, &HashSet::from([at]), &mut named);
            if !named.contains_key(&at) {
                break;
            }
            at = parent;
        }
    }
    for finding in &mut report.findings {
        finding.path = finding.problem.ino.and_then(|ino| path(ino.get(), &named));
    }
}

fn collect(ctx: &Context, dir: u32, wanted: &HashSet<u32>, named: &mut HashMap<u32, (u32, String)>) {
    let Some(inode) = Ino::new(dir).and_then(|ino| ctx.read_inode(ino).ok()) else { return };
    let format = DirFormat { tail: false, ..DirFormat::new(&ctx.sb, inode.flags) };
    for extent in pass1::extents_of(ctx, &inode) {
        for ahead in 0..u64::from(extent.len) {
            let Ok(bytes) = ctx.disk.read(ext4_format::BlockNo(extent.start.0 + ahead)) else { return };
            for entry in DirBlock::new(&bytes, format).entries().map_while(std::result::Result::ok) {
                let Some(ino) = entry.ino.filter(|ino| wanted.contains(&ino.get())) else { continue };
                if entry.name != b"." && entry.name != b".." {
                    let name = String::from_utf8_lossy(entry.name).into_owned();
                    named.entry(ino.get()).or_insert((dir, name));
                }
            }
        }
    }
}

fn path(ino: u32, named: &HashMap<u32, (u32, String)>) -> Option<String> {
    if ino == Ino::ROOT.get() {
        return Some("/".to_owned());
    }
    let mut parts = Vec::new();
    let mut at = ino;
    // No deeper than there are names: a loop ends here.
    while at != Ino::ROOT.get() && parts.len() <= named.len() {
        let (parent, name) = named.get(&at)?;
        parts.push(name.as_str());
        at = *parent;
    }
    parts.reverse();
    Some(format!("/{}", parts.join("/")))
}

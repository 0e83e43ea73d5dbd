//! Random operations on names against a model in memory: same answers, same tree, links counted
//! alike, and e2fsck content.

use std::collections::{BTreeMap, BTreeSet};

use blockdev::sim::Dice;
use fs_core::{Dir, Error, Node as File, Posix, RenameFlags};

use crate::rig::Rig;

type Id = usize;
type Outcome = Result<(), Posix>;

#[derive(Clone, PartialEq, Eq, Debug)]
enum Kind {
    File,
    Link(Vec<u8>),
    Dir(BTreeMap<Vec<u8>, Id>),
}

#[derive(Clone, Debug)]
struct Node {
    kind: Kind,
    parent: Id,
    links: u32,
}

/// The tree as POSIX wants it. Node 0 is the root.
struct Model {
    nodes: BTreeMap<Id, Node>,
    next: Id,
}

impl Model {
    fn new() -> Model {
        let root = Node { kind: Kind::Dir(BTreeMap::new()), parent: 0, links: 2 };
        Model { nodes: BTreeMap::from([(0, root)]), next: 1 }
    }

    fn names(&self, dir: Id) -> &BTreeMap<Vec<u8>, Id> {
        match &self.nodes[&dir].kind {
            Kind::Dir(names) => names,
            other => panic!("{other:?} is no directory"),
        }
    }

    fn names_mut(&mut self, dir: Id) -> &mut BTreeMap<Vec<u8>, Id> {
        match &mut self.nodes.get_mut(&dir).unwrap().kind {
            Kind::Dir(names) => names,
            other => panic!("{other:?} is no directory"),
        }
    }

    fn is_dir(&self, id: Id) -> bool {
        matches!(self.nodes[&id].kind, Kind::Dir(_))
    }

    fn directories(&self) -> Vec<Id> {
        self.nodes.keys().copied().filter(|id| self.is_dir(*id)).collect()
    }

    fn links(&mut self, id: Id, by: i32) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.links = node.links.checked_add_signed(by).unwrap();
        if node.links == 0 {
            self.nodes.remove(&id);
        }
    }

    fn make(&mut self, dir: Id, name: &[u8], kind: Kind) -> Outcome {
        if self.names(dir).contains_key(name) {
            return Err(Posix::Exists);
        }
        let links = if matches!(kind, Kind::Dir(_)) { 2 } else { 1 };
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, Node { kind, parent: dir, links });
        self.names_mut(dir).insert(name.to_vec(), id);
        if links == 2 {
            self.links(dir, 1);
        }
        Ok(())
    }

    fn link(&mut self, id: Id, dir: Id, name: &[u8]) -> Outcome {
        if self.is_dir(id) {
            return Err(Posix::NotPermitted);
        }
        if self.names(dir).contains_key(name) {
            return Err(Posix::Exists);
        }
        self.links(id, 1);
        self.names_mut(dir).insert(name.to_vec(), id);
        Ok(())
    }

    fn remove(&mut self, dir: Id, name: &[u8], want_dir: bool) -> Outcome {
        let &id = self.names(dir).get(name).ok_or(Posix::NotFound)?;
        match (self.is_dir(id), want_dir) {
            (true, false) => return Err(Posix::IsDirectory),
            (false, true) => return Err(Posix::NotDirectory),
            (true, true) if !self.names(id).is_empty() => return Err(Posix::NotEmpty),
            _ => {}
        }
        self.names_mut(dir).remove(name);
        self.drop_name(dir, id);
        Ok(())
    }

    fn drop_name(&mut self, dir: Id, id: Id) {
        if self.is_dir(id) {
            self.nodes.remove(&id);
            self.links(dir, -1);
        } else {
            self.links(id, -1);
        }
    }

    fn lies_in(&self, mut at: Id, above: Id) -> bool {
        while at != above && at != 0 {
            at = self.nodes[&at].parent;
        }
        at == above
    }

    fn rename(&mut self, from: (Id, &[u8]), to: (Id, &[u8]), flags: RenameFlags) -> Outcome {
        let &id = self.names(from.0).get(from.1).ok_or(Posix::NotFound)?;
        let old = self.names(to.0).get(to.1).copied();
        if old.is_some() && flags.no_replace {
            return Err(Posix::Exists);
        }
        if old.is_none() && flags.exchange {
            return Err(Posix::NotFound);
        }
        if from.0 != to.0 {
            if self.is_dir(id) && self.lies_in(to.0, id) {
                return Err(Posix::Invalid);
            }
            if old.is_some_and(|old| self.is_dir(old) && self.lies_in(from.0, old)) {
                return Err(if flags.exchange { Posix::Invalid } else { Posix::NotEmpty });
            }
        }
        if old == Some(id) {
            return Ok(());
        }
        if let Some(old) = old {
            if flags.exchange {
                self.names_mut(from.0).insert(from.1.to_vec(), old);
                self.names_mut(to.0).insert(to.1.to_vec(), id);
                self.moved(id, from.0, to.0);
                self.moved(old, to.0, from.0);
                return Ok(());
            }
            match (self.is_dir(id), self.is_dir(old)) {
                (true, false) => return Err(Posix::NotDirectory),
                (false, true) => return Err(Posix::IsDirectory),
                (true, true) if !self.names(old).is_empty() => return Err(Posix::NotEmpty),
                _ => {}
            }
            self.names_mut(to.0).remove(to.1);
            self.drop_name(to.0, old);
        }
        self.names_mut(from.0).remove(from.1);
        self.names_mut(to.0).insert(to.1.to_vec(), id);
        self.moved(id, from.0, to.0);
        Ok(())
    }

    fn moved(&mut self, id: Id, from: Id, to: Id) {
        if self.is_dir(id) && from != to {
            self.nodes.get_mut(&id).unwrap().parent = to;
            self.links(from, -1);
            self.links(to, 1);
        }
    }
}

/// The volume beside its model.
struct Pair {
    rig: Rig,
    model: Model,
}

impl Pair {
    /// A directory of the model, found from the root.
    fn dir(&self, dir: Id) -> Dir {
        if dir == 0 {
            return self.rig.root();
        }
        let parent = self.model.nodes[&dir].parent;
        let (name, _) = self.model.names(parent).iter().find(|(_, id)| **id == dir).unwrap();
        self.dir(parent).lookup(name).and_then(File::into_dir).unwrap()
    }

    fn step(&mut self, dice: &mut Dice) {
        let dirs = self.model.directories();
        let (a, b) = (*dice.pick(&dirs), *dice.pick(&dirs));
        let (name, other) = (name(dice), name(dice));
        let (in_a, in_b) = (self.dir(a), self.dir(b));
        let (got, want) = match dice.below(12) {
            0..=2 => (in_a.create(&name, 0o644).map(drop), self.model.make(a, &name, Kind::File)),
            3 if dirs.len() < 40 => {
                let kind = Kind::Dir(BTreeMap::new());
                (in_a.create_dir(&name, 0o755).map(drop), self.model.make(a, &name, kind))
            }
            4 => {
                let target = vec![b't'; 1 + dice.below(200) as usize];
                let made = in_a.symlink(&name, &target).map(drop);
                (made, self.model.make(a, &name, Kind::Link(target)))
            }
            5 => match self.model.names(b).get(&other).copied() {
                Some(id) => {
                    let file = in_b.lookup(&other).expect("the model has it");
                    (in_a.link(&name, &file), self.model.link(id, a, &name))
                }
                None => return,
            },
            6 | 7 => (in_a.unlink(&name).map(drop), self.model.remove(a, &name, false)),
            8 => (in_a.rmdir(&name).map(drop), self.model.remove(a, &name, true)),
            _ => {
                let mut flags = RenameFlags::default();
                match dice.below(5) {
                    0 => flags.no_replace = true,
                    1 => flags.exchange = true,
                    _ => {}
                }
                let got = in_a.rename(&name, &in_b, &other, flags).map(drop);
                (got, self.model.rename((a, &name), (b, &other), flags))
            }
        };
        match (&got, &want) {
            (Ok(()), Ok(())) => {}
            (Err(Error::Posix(got)), Err(want)) if got == want => {}
            _ => panic!("the volume says {got:?}, the model {want:?}"),
        }
    }

    /// Compares the trees, links and targets included.
    fn compare(&self) {
        for dir in self.model.directories() {
            let found = self.dir(dir);
            assert_eq!(found.attributes().unwrap().links, self.model.nodes[&dir].links, "{dir}");
            let names: BTreeSet<Vec<u8>> = self.rig.list(&found, 50).into_iter().collect();
            assert!(names.iter().eq(self.model.names(dir).keys()), "{dir}");
            for (name, id) in self.model.names(dir) {
                let file = found.lookup(name).expect("listed");
                let node = &self.model.nodes[id];
                assert_eq!(file.attributes().unwrap().links, node.links);
                if let Kind::Link(target) = &node.kind {
                    assert_eq!(&file.read_link().unwrap(), target);
                }
            }
        }
    }
}

fn name(dice: &mut Dice) -> Vec<u8> {
    let n = dice.below(60);
    let mut name = format!("{n}").into_bytes();
    name.resize(name.len() + (n * 37 % 150) as usize, b'0' + (n % 10) as u8);
    name
}

#[test]
fn random_operations_agree_with_the_model() {
    for (seed, kind) in [
        (1, &["-t", "ext4", "-b", "1024"][..]),
        (2, &["-t", "ext4"]),
        (3, &["-t", "ext4", "-O", "^dir_index", "-b", "1024"]),
        (4, &["-t", "ext2", "-b", "1024"]),
        (5, &["-t", "ext4", "-O", "^filetype,^orphan_file", "-b", "2048"]),
    ] {
        let Some(rig) = Rig::new(32, kind) else { return };
        rig.root().rmdir(b"lost+found").unwrap();
        let mut pair = Pair { rig, model: Model::new() };
        let mut dice = Dice::new(seed);
        for round in 0..6 {
            for _ in 0..700 {
                pair.step(&mut dice);
            }
            pair.compare();
            if round % 2 == 0 {
                pair.rig.remount();
                pair.compare();
            }
        }
        // Whatever is unlinked must have been given back by now.
        pair.rig.unmount();
    }
}
